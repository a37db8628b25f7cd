"""Locks: one holder at a time, fenced when it was taken over."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from codex_state.models import (
    Claimed,
    ConsolidationLock,
    HolderWrite,
    LockLease,
    NamedLease,
    NamedLock,
    Skipped,
    SkipReason,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.processes import ManualProcesses, a_process, owner_columns
from codex_state.testing.samples import NOON

_ROOT = Path("/home/memories/user/memory")
_LEASE = timedelta(seconds=600)
_SECOND = timedelta(seconds=1)
_MINE, _OTHERS = UUID(int=1), UUID(int=2)
_RUNNING = Skipped(SkipReason.RUNNING)


def _acquire(state: State, owner: UUID = _MINE, lease: timedelta = _LEASE, root: Path = _ROOT) -> LockLease:
    outcome = state.consolidation_locks.try_claim(root, owner=owner, lease=lease)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _row(lease: LockLease) -> ConsolidationLock:
    assert isinstance(lease.owner, UUID)
    return ConsolidationLock(
        cwd=lease.key,
        working_thread_id=lease.owner,
        updated_at=lease.granted_at,
        ownership_token=lease.token,
        **owner_columns(lease.duration),
    )


class TestConsolidationLocks:
    """``ConsolidationLockRepository``."""

    def test_a_free_lock_is_taken_by_the_databases_clock(self, state: State) -> None:
        assert state.consolidation_locks.get(_ROOT) is None
        lease = _acquire(state)
        assert lease == LockLease(key=_ROOT, owner=_MINE, token=lease.token, granted_at=NOON, duration=_LEASE)
        assert state.consolidation_locks.get(_ROOT) == _row(lease)

    def test_a_held_lock_is_refused_until_its_lease_is_over(self, state: State, clock: ManualClock) -> None:
        _acquire(state)
        clock.advance(_LEASE - _SECOND)
        assert state.consolidation_locks.try_claim(_ROOT, owner=_OTHERS, lease=_LEASE) == _RUNNING
        clock.advance(_SECOND)
        taken_over = _acquire(state, _OTHERS)
        assert state.consolidation_locks.get(_ROOT) == _row(taken_over)

    @pytest.mark.parametrize("lease", [timedelta(0), -_LEASE, timedelta(milliseconds=999)])
    def test_a_lease_below_one_second_takes_over_at_once(self, state: State, lease: timedelta) -> None:
        _acquire(state)
        assert _acquire(state, _OTHERS, lease).owner == _OTHERS

    def test_its_owner_gets_the_lock_again_and_the_earlier_lease_is_void(
        self, state: State, clock: ManualClock
    ) -> None:
        first = _acquire(state)
        clock.advance(_SECOND)
        second = _acquire(state)
        assert second.token != first.token
        assert second.granted_at == NOON + _SECOND
        assert state.consolidation_locks.renew(first) is HolderWrite.LEASE_LOST
        assert state.consolidation_locks.release(first) is HolderWrite.LEASE_LOST
        assert state.consolidation_locks.get(_ROOT) == _row(second)

    def test_a_renewal_counts_from_now(self, state: State, clock: ManualClock) -> None:
        lease = _acquire(state)
        clock.advance(_LEASE - _SECOND)
        assert state.consolidation_locks.renew(lease) is HolderWrite.APPLIED
        lock = state.consolidation_locks.get(_ROOT)
        assert lock is not None
        assert lock.updated_at == clock.now
        clock.advance(_LEASE - _SECOND)
        assert state.consolidation_locks.try_claim(_ROOT, owner=_OTHERS, lease=_LEASE) == _RUNNING

    def test_a_released_lock_is_free(self, state: State) -> None:
        lease = _acquire(state)
        assert state.consolidation_locks.release(lease) is HolderWrite.APPLIED
        assert state.consolidation_locks.get(_ROOT) is None
        assert state.consolidation_locks.release(lease) is HolderWrite.LEASE_LOST
        assert state.consolidation_locks.renew(lease) is HolderWrite.LEASE_LOST
        assert _acquire(state, _OTHERS).owner == _OTHERS

    def test_a_holder_that_was_taken_over_changes_nothing(self, state: State, clock: ManualClock) -> None:
        """L2."""
        stale = _acquire(state)
        clock.advance(_LEASE)
        current = _acquire(state, _OTHERS)
        assert state.consolidation_locks.renew(stale) is HolderWrite.LEASE_LOST
        assert state.consolidation_locks.release(stale) is HolderWrite.LEASE_LOST
        assert state.consolidation_locks.get(_ROOT) == _row(current)

    def test_a_lease_that_is_over_but_not_taken_is_still_the_holders(self, state: State, clock: ManualClock) -> None:
        lease = _acquire(state)
        clock.advance(timedelta(days=1))
        assert state.consolidation_locks.renew(lease) is HolderWrite.APPLIED
        assert state.consolidation_locks.release(lease) is HolderWrite.APPLIED

    def test_locks_are_told_apart_by_their_exact_path(self, state: State, clock: ManualClock) -> None:
        leases = []
        for root in (_ROOT, _ROOT / "sub", _ROOT.parent):
            leases.append(_acquire(state, root=root))
            clock.advance(_SECOND)
        assert state.consolidation_locks.list() == [_row(lease) for lease in reversed(leases)]
        assert state.consolidation_locks.release(leases[0]) is HolderWrite.APPLIED
        assert len(state.consolidation_locks.list()) == 2


_NAME = "report"


def _claim_name(state: State, owner: str = "one", lease: timedelta = _LEASE, name: str = _NAME) -> NamedLease:
    outcome = state.named_locks.try_claim(name, owner=owner, lease=lease)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _named_row(lease: NamedLease, renewed_at: datetime) -> NamedLock:
    return NamedLock(
        name=lease.key,
        owner=str(lease.owner),
        renewed_at=renewed_at,
        ownership_token=lease.token,
        **owner_columns(lease.duration, str(lease.owner)),
    )


class TestNamedLocks:
    """``NamedLockRepository``."""

    def test_a_name_is_claimed_by_the_databases_clock(self, state: State) -> None:
        assert state.named_locks.get(_NAME) is None
        lease = _claim_name(state)
        assert lease == NamedLease(key=_NAME, owner="one", token=lease.token, granted_at=NOON, duration=_LEASE)
        assert state.named_locks.get(_NAME) == _named_row(lease, NOON)

    @pytest.mark.parametrize("rival", ["one", "two"])
    def test_a_held_name_is_refused_until_its_lease_is_over_also_to_its_owner(
        self, state: State, clock: ManualClock, rival: str
    ) -> None:
        first = _claim_name(state)
        clock.advance(_LEASE - _SECOND)
        assert state.named_locks.try_claim(_NAME, owner=rival, lease=_SECOND) == _RUNNING
        clock.advance(_SECOND)
        second = _claim_name(state, rival)
        assert second.token != first.token
        assert state.named_locks.get(_NAME) == _named_row(second, clock.now)
        assert state.named_locks.renew(first) is HolderWrite.LEASE_LOST
        assert state.named_locks.release(first) is HolderWrite.LEASE_LOST
        assert state.named_locks.get(_NAME) == _named_row(second, clock.now)

    @pytest.mark.parametrize("lease", [timedelta(0), -_LEASE, timedelta(milliseconds=999)])
    def test_a_lease_below_one_second_takes_over_at_once(self, state: State, lease: timedelta) -> None:
        _claim_name(state)
        taken = _claim_name(state, "two", lease)
        assert state.named_locks.get(_NAME) == _named_row(taken, NOON)

    def test_a_renewal_counts_from_now_and_a_release_frees(self, state: State, clock: ManualClock) -> None:
        lease, other = _claim_name(state), _claim_name(state, name="another")
        clock.advance(_LEASE - _SECOND)
        assert state.named_locks.renew(lease) is HolderWrite.APPLIED
        assert state.named_locks.get(_NAME) == _named_row(lease, clock.now)
        assert state.named_locks.release(lease) is HolderWrite.APPLIED
        assert state.named_locks.release(lease) is HolderWrite.LEASE_LOST
        assert state.named_locks.list() == [_named_row(other, NOON)]

    @pytest.mark.parametrize("renewed", [False, True])
    def test_what_a_dead_process_held_is_claimed_at_once(
        self, state: State, clock: ManualClock, processes: ManualProcesses, renewed: bool
    ) -> None:
        """L1: unless another has it by then."""
        processes.become(1)
        first = _claim_name(state)
        processes.become(2)
        processes.kill(a_process(1))
        clock.advance(_SECOND)

        def go_on() -> None:
            processes.become(3)
            assert state.named_locks.renew(first)
            processes.become(2)

        if renewed:
            processes.meanwhile = go_on
        outcome = state.named_locks.try_claim(_NAME, owner="two", lease=_LEASE)
        lock = state.named_locks.get(_NAME)
        assert lock is not None
        if renewed:
            assert (outcome, lock.ownership_token) == (_RUNNING, first.token)
        else:
            assert isinstance(outcome, Claimed)
            assert (lock.ownership_token, lock.renewed_at) == (outcome.lease.token, clock.now)
            assert outcome.lease.token != first.token

    def test_the_token_of_one_name_opens_no_other(self, state: State) -> None:
        """L2."""
        one, two = _claim_name(state), _claim_name(state, name="another")
        crossed = replace(one, key=two.key)
        assert state.named_locks.renew(crossed) is HolderWrite.LEASE_LOST
        assert state.named_locks.release(crossed) is HolderWrite.LEASE_LOST
        assert len(state.named_locks.list()) == 2
