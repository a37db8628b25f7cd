"""Backfills: one worker per home, progress that never goes back (law L4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from codex_state.models import (
    BackfillLease,
    BackfillState,
    BackfillStatus,
    Claimed,
    HolderWrite,
    Skipped,
    SkipReason,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.processes import owner_columns
from codex_state.testing.samples import NOON

_LEASE = timedelta(seconds=900)
_SECOND = timedelta(seconds=1)
_RUNNING, _UP_TO_DATE = Skipped(SkipReason.RUNNING), Skipped(SkipReason.UP_TO_DATE)


def _claim(state: State, home: str = "local", owner: str = "me") -> BackfillLease:
    outcome = state.backfill.try_claim(home, owner=owner, lease=_LEASE)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _row(lease: BackfillLease, owner: str = "me", updated_at: datetime = NOON, **values: Any) -> BackfillState:
    row: dict[str, Any] = {
        "home": lease.key,
        "status": BackfillStatus.RUNNING,
        "last_watermark": lease.last_watermark,
        "updated_at": updated_at,
        "ownership_token": lease.token,
        "claimed_at": lease.granted_at,
        **owner_columns(lease.duration, owner),
    }
    return BackfillState(**(row | values))


class TestBackfills:
    """``BackfillRepository``."""

    def test_a_home_starts_without_a_backfill(self, state: State) -> None:
        assert state.backfill.get() is None
        assert state.backfill.list() == []
        assert state.backfill.is_complete() is False

    def test_a_pending_backfill_can_be_claimed(self, state: State) -> None:
        state.session.add(BackfillState(status=BackfillStatus.PENDING, updated_at=NOON))
        state.session.flush()
        assert state.backfill.is_complete() is False
        lease = _claim(state)
        assert state.backfill.get() == _row(lease)

    def test_progress_and_completion_persist(self, state: State, clock: ManualClock) -> None:
        lease = _claim(state)
        assert lease == BackfillLease(key="local", owner="me", token=lease.token, granted_at=NOON, duration=_LEASE)
        assert state.backfill.get() == _row(lease)
        clock.advance(_SECOND)
        assert state.backfill.checkpoint(lease, "sessions/a") is HolderWrite.APPLIED
        assert state.backfill.get() == _row(lease, updated_at=NOON + _SECOND, last_watermark="sessions/a")
        clock.advance(_SECOND)
        assert state.backfill.complete(lease, "sessions/b") is HolderWrite.APPLIED
        done = NOON + 2 * _SECOND
        assert state.backfill.get() == _row(
            lease, updated_at=done, last_success_at=done, last_watermark="sessions/b", status=BackfillStatus.COMPLETE
        )
        assert state.backfill.is_complete() is True

    def test_completion_without_a_watermark_keeps_the_stored_one(self, state: State) -> None:
        lease = _claim(state)
        state.backfill.checkpoint(lease, "sessions/a")
        assert state.backfill.complete(lease) is HolderWrite.APPLIED
        assert _watermark(state) == "sessions/a"

    def test_an_empty_home_completes_without_a_watermark(self, state: State) -> None:
        assert state.backfill.complete(_claim(state)) is HolderWrite.APPLIED
        assert _watermark(state) is None

    def test_a_running_backfill_is_refused_until_its_lease_is_over(self, state: State, clock: ManualClock) -> None:
        first = _claim(state)
        state.backfill.checkpoint(first, "sessions/a")
        clock.advance(_LEASE - _SECOND)
        assert state.backfill.try_claim(owner="other", lease=_LEASE) == _RUNNING
        clock.advance(_SECOND)
        second = _claim(state, owner="other")
        assert second.last_watermark == "sessions/a"
        assert second.token != first.token
        assert state.backfill.get() == _row(second, "other", NOON + _LEASE)

    @pytest.mark.parametrize("keep_alive", ["renew", "checkpoint"])
    def test_a_renewal_or_progress_prolongs_the_lease(self, state: State, clock: ManualClock, keep_alive: str) -> None:
        lease = _claim(state)
        clock.advance(_LEASE - _SECOND)
        if keep_alive == "renew":
            assert state.backfill.renew(lease) is HolderWrite.APPLIED
        else:
            assert state.backfill.checkpoint(lease, "sessions/a") is HolderWrite.APPLIED
        clock.advance(_LEASE - _SECOND)
        assert state.backfill.try_claim(owner="other", lease=_LEASE) == _RUNNING

    def test_a_complete_backfill_is_not_claimed_again_however_old(self, state: State, clock: ManualClock) -> None:
        state.backfill.complete(_claim(state), "sessions/a")
        clock.advance(timedelta(days=365))
        assert state.backfill.try_claim(owner="other", lease=timedelta(0)) == _UP_TO_DATE

    @pytest.mark.parametrize("taken_over_by", ["claim", "force"])
    @pytest.mark.parametrize("write", ["renew", "checkpoint", "complete", "release"])
    def test_a_holder_that_was_taken_over_changes_nothing(
        self, state: State, clock: ManualClock, taken_over_by: str, write: str
    ) -> None:
        """L2."""
        stale = _claim(state)
        clock.advance(_LEASE)
        if taken_over_by == "claim":
            _claim(state, owner="other")
        else:
            state.backfill.take_over(owner="other", lease=_LEASE)
        before = state.backfill.get()
        assert _write(state, stale, write) is HolderWrite.LEASE_LOST
        assert state.backfill.get() == before

    @pytest.mark.parametrize("write", ["renew", "checkpoint", "complete", "release"])
    def test_a_complete_backfill_is_not_touched_again_by_its_holder(self, state: State, write: str) -> None:
        lease = _claim(state)
        state.backfill.complete(lease, "sessions/a")
        before = state.backfill.get()
        assert _write(state, lease, write) is HolderWrite.LEASE_LOST
        assert state.backfill.get() == before

    def test_the_watermark_never_goes_back(self, state: State) -> None:
        """L4: whatever order the work was done in, and in the order of the bytes."""
        lease = _claim(state)
        seen = []
        for watermark in ("sessions/b", "sessions/a", "sessions/B", "sessions/bä", "sessions/bz"):
            assert state.backfill.checkpoint(lease, watermark) is HolderWrite.APPLIED
            seen.append(_watermark(state))
        assert seen == ["sessions/b", "sessions/b", "sessions/b", "sessions/bä", "sessions/bä"]
        assert state.backfill.complete(lease, "sessions/a") is HolderWrite.APPLIED
        assert _watermark(state) == "sessions/bä"

    def test_work_that_was_given_back_goes_on_at_once_where_it_stopped(self, state: State, clock: ManualClock) -> None:
        first = _claim(state)
        state.backfill.checkpoint(first, "sessions/a")
        clock.advance(_SECOND)
        assert state.backfill.release(first) is HolderWrite.APPLIED
        stored = state.backfill.get()
        assert stored is not None
        assert (stored.status, stored.ownership_token) == (BackfillStatus.PENDING, None)
        assert stored.updated_at == NOON + _SECOND
        assert state.backfill.renew(first) is HolderWrite.LEASE_LOST
        assert _claim(state, owner="other").last_watermark == "sessions/a"

    def test_force_takes_over_a_live_and_even_a_complete_backfill(self, state: State) -> None:
        first = _claim(state)
        state.backfill.checkpoint(first, "sessions/a")
        second = state.backfill.take_over(owner="other", lease=_LEASE)
        assert state.backfill.get() == _row(second, "other")
        assert second.last_watermark == "sessions/a"
        state.backfill.complete(second)
        third = state.backfill.take_over(owner="third", lease=_LEASE)
        assert third.last_watermark == "sessions/a"
        assert state.backfill.is_complete() is False

    def test_force_can_start_over_and_keeps_the_time_of_the_last_success(
        self, state: State, clock: ManualClock
    ) -> None:
        state.backfill.complete(_claim(state), "sessions/z")
        clock.advance(_SECOND)
        lease = state.backfill.take_over(owner="me", lease=_LEASE, from_the_start=True)
        assert lease.last_watermark is None
        assert state.backfill.get() == _row(lease, updated_at=NOON + _SECOND, last_success_at=NOON)
        assert state.backfill.checkpoint(lease, "sessions/a") is HolderWrite.APPLIED
        assert _watermark(state) == "sessions/a"

    def test_a_complete_backfill_can_be_claimed_again_from_the_start(self, state: State, clock: ManualClock) -> None:
        state.backfill.complete(_claim(state), "sessions/z")
        clock.advance(_SECOND)
        outcome = state.backfill.try_claim(owner="me", lease=_LEASE, again=True)
        assert isinstance(outcome, Claimed)
        assert outcome.lease.last_watermark is None
        assert state.backfill.get() == _row(outcome.lease, updated_at=NOON + _SECOND, last_success_at=NOON)

    def test_a_running_backfill_is_not_claimed_again_until_its_lease_is_over(
        self, state: State, clock: ManualClock
    ) -> None:
        lease = _claim(state)
        state.backfill.checkpoint(lease, "sessions/a")
        assert state.backfill.try_claim(owner="other", lease=_LEASE, again=True) == _RUNNING
        assert _watermark(state) == "sessions/a"
        clock.advance(_LEASE)
        assert isinstance(state.backfill.try_claim(owner="other", lease=_LEASE, again=True), Claimed)
        assert state.backfill.renew(lease) is HolderWrite.LEASE_LOST

    def test_force_works_where_nothing_ever_ran(self, state: State) -> None:
        lease = state.backfill.take_over("laptop", owner="me", lease=_LEASE)
        assert state.backfill.get("laptop") == _row(lease)

    def test_homes_are_independent(self, state: State) -> None:
        laptop, server = _claim(state, "laptop"), _claim(state, "server")
        assert state.backfill.complete(laptop, "sessions/a") is HolderWrite.APPLIED
        assert (state.backfill.is_complete("laptop"), state.backfill.is_complete("server")) == (True, False)
        assert [each.home for each in state.backfill.list()] == ["laptop", "server"]
        crossed = replace(laptop, key="server")
        assert state.backfill.checkpoint(crossed, "sessions/z") is HolderWrite.LEASE_LOST
        assert state.backfill.renew(server) is HolderWrite.APPLIED


def _watermark(state: State) -> str | None:
    stored = state.backfill.get()
    assert stored is not None
    return stored.last_watermark


def _write(state: State, lease: BackfillLease, verb: str) -> HolderWrite:
    match verb:
        case "renew":
            return state.backfill.renew(lease)
        case "checkpoint":
            return state.backfill.checkpoint(lease, "sessions/zz")
        case "release":
            return state.backfill.release(lease)
        case _:
            return state.backfill.complete(lease, "sessions/zz")
