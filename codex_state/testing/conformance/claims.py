"""The claim of one job: every state of the job against every kind of claim (laws L1 to L3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from codex_state.errors import ThreadNotFoundError
from codex_state.models import (
    Claimed,
    HolderWrite,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Skipped,
    SkipReason,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.processes import owner_columns
from codex_state.testing.samples import NOON, a_thread

_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_OWNER, _OTHER = UUID(int=1), UUID(int=2)

_STARTED = {
    "unknown": None,
    "fresh": NOON - _HOUR + _SECOND,
    "boundary": NOON - _HOUR,
    "stale": NOON - _HOUR - _SECOND,
    "now": NOON,
    "future": NOON + _SECOND,
}
_SOURCE = {"older": NOON - _SECOND, "equal": NOON, "newer": NOON + _SECOND}
_RETRY = {"none": None, "future": NOON + _SECOND, "boundary": NOON, "reached": NOON - _SECOND}
_LEASES = {"negative": -_HOUR, "zero": timedelta(0), "half a second": timedelta(milliseconds=500), "hour": _HOUR}


@dataclass(frozen=True)
class _Case:
    """A stored job (``None``: there is none) and the lease that a claim at noon asks for."""

    status: Phase1Status | None
    started: str
    stored_source: str
    retry: str
    lease: str

    @property
    def refusal(self) -> SkipReason | None:
        """The table of the claim's rules, in plain Python."""
        match self.status:
            case None:
                return None
            case Phase1Status.FAILED:
                if self.retry == "none":
                    return SkipReason.TERMINAL_FAILURE
                return SkipReason.RETRY_LATER if self.retry == "future" else None
            case Phase1Status.SUCCEEDED:
                return None if self.stored_source == "older" else SkipReason.UP_TO_DATE
            case Phase1Status.RUNNING:
                over = {"unknown", "stale", "boundary"}
                if self.lease != "hour":
                    over |= {"fresh", "now"}  # every lease below one second takes over at once
                return None if self.started in over else SkipReason.RUNNING

    def job(self, thread_id: UUID) -> Phase1Job:
        assert self.status is not None
        return Phase1Job(
            thread_id=thread_id,
            scope_kind="user",
            scope_key="user",
            status=self.status,
            owner_session_id=_OTHER,
            started_at=_STARTED[self.started],
            finished_at=NOON - _HOUR,
            failure_reason="an earlier failure",
            source_updated_at=_SOURCE[self.stored_source],
            raw_memory_path=Path("/earlier"),
            summary_hash="earlier",
            ownership_token=f"earlier token of {thread_id}",
            attempt=7,
            retry_at=_RETRY[self.retry],
        )


_EVERY_CASE = [
    *(_Case(None, "unknown", "equal", "none", lease) for lease in _LEASES),
    *(_Case(status, *rest) for status, *rest in product(Phase1Status, _STARTED, _SOURCE, _RETRY, _LEASES)),
]


class TestClaims:
    """``Phase1JobRepository.try_claim``."""

    @pytest.mark.parametrize("status", [None, *Phase1Status])
    def test_a_claim_follows_the_table_of_rules(self, state: State, status: Phase1Status | None) -> None:
        """L1."""
        cases = {uuid4(): case for case in _EVERY_CASE if case.status is status}
        state.threads.upsert_many([a_thread(id=thread_id) for thread_id in cases])
        if status is not None:
            state.session.add_all([case.job(thread_id) for thread_id, case in cases.items()])
            state.session.flush()
            state.session.expunge_all()
        before = _stored_jobs(state)
        outcomes = {
            thread_id: _try_claim(state, Phase1Key(thread_id, MemoryScope.user()), lease=_LEASES[case.lease])
            for thread_id, case in cases.items()
        }
        after = _stored_jobs(state)
        for thread_id, case in cases.items():
            outcome = outcomes[thread_id]
            if case.refusal is None:
                assert isinstance(outcome, Claimed), case
                assert after[thread_id] == _running(outcome.lease, attempt=8 if status else 1), case
                earlier = before[thread_id].ownership_token if status else None
                assert outcome.lease.token not in {"", earlier}, case
                assert outcome.lease.duration == _LEASES[case.lease], case
            else:
                assert outcome == Skipped(case.refusal), case
                assert after[thread_id] == before[thread_id], case

    def test_a_job_of_a_thread_without_a_row_cannot_be_claimed(self, state: State) -> None:
        nobody = uuid4()
        with pytest.raises(ThreadNotFoundError, match=f"thread not found: {nobody}"):
            _try_claim(state, Phase1Key(nobody, MemoryScope.user()))

    def test_a_claim_concerns_its_own_scope_only(self, state: State) -> None:
        keys = [
            Phase1Key(_a_stored_thread(state), scope)
            for scope in (MemoryScope.user(), MemoryScope("cwd", "/code"), MemoryScope("cwd", "/code/"))
        ]
        same_thread = [Phase1Key(keys[0].thread_id, key.scope) for key in keys]
        leases = [_claim(state, key) for key in [*same_thread, *keys[1:]]]
        assert len({lease.token for lease in leases}) == 5
        assert {lease.attempt for lease in leases} == {1}

    def test_a_lease_says_what_was_granted_by_the_databases_clock(self, state: State, clock: ManualClock) -> None:
        """L3."""
        clock.advance(timedelta(days=400))
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        lease = _claim(state, key, source=NOON + _HOUR)
        expected = Phase1Lease(
            key=key,
            owner=_OWNER,
            token=lease.token,
            granted_at=NOON + timedelta(days=400),
            duration=_HOUR,
            source_updated_at=NOON + _HOUR,
        )
        assert lease == expected

    def test_a_fresh_job_is_refused_and_a_stale_one_taken_over(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        first = _claim(state, key)
        clock.advance(_HOUR - _SECOND)
        assert _try_claim(state, key, owner=_OTHER) == Skipped(SkipReason.RUNNING)
        clock.advance(_SECOND)
        second = _claim(state, key, owner=_OTHER)
        assert second.token != first.token
        assert (first.attempt, second.attempt) == (1, 2)

    @pytest.mark.parametrize("rivals", [_SECOND, _HOUR, timedelta(days=1)])
    def test_a_rival_with_a_shorter_lease_waits_for_the_end_of_the_granted_one(
        self, state: State, clock: ManualClock, rivals: timedelta
    ) -> None:
        """And one with a longer lease doesn't wait beyond it; a renewal grants the holder's own time again."""
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        lease = _claim(state, key)
        clock.advance(_HOUR - _SECOND)
        assert state.phase1_jobs.renew(lease)
        clock.advance(_HOUR - _SECOND)
        assert _try_claim(state, key, owner=_OTHER, lease=rivals) == Skipped(SkipReason.RUNNING)
        clock.advance(_SECOND)
        assert isinstance(_try_claim(state, key, owner=_OTHER, lease=rivals), Claimed)

    def test_a_take_over_may_bring_an_older_source(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        _claim(state, key)
        clock.advance(_HOUR)
        _claim(state, key, source=NOON - _HOUR)
        job = state.phase1_jobs.get(key)
        assert job is not None
        assert job.source_updated_at == NOON - _HOUR

    def test_a_running_job_is_not_claimed_for_a_newer_source(self, state: State) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        _claim(state, key)
        assert _try_claim(state, key, source=NOON + _HOUR) == Skipped(SkipReason.RUNNING)

    def test_the_owner_of_a_running_job_is_refused_like_everybody(self, state: State) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        _claim(state, key)
        assert _try_claim(state, key) == Skipped(SkipReason.RUNNING)

    def test_a_failed_job_is_terminal_even_for_a_newer_source(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        state.phase1_jobs.fail(_claim(state, key), "broken")
        clock.advance(timedelta(days=365))
        refused = Skipped(SkipReason.TERMINAL_FAILURE)
        assert _try_claim(state, key, source=NOON + timedelta(days=365)) == refused
        assert _try_claim(state, key, lease=timedelta(0)) == refused

    def test_a_renewed_lease_counts_from_its_renewal(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        lease = _claim(state, key)
        clock.advance(_HOUR - _SECOND)
        assert state.phase1_jobs.renew(lease)
        job = state.phase1_jobs.get(key)
        assert job is not None
        assert job.started_at == clock.now
        clock.advance(_HOUR - _SECOND)
        assert _try_claim(state, key) == Skipped(SkipReason.RUNNING)
        assert state.phase1_jobs.renew(lease)

    def test_a_lease_that_is_over_but_not_taken_is_still_the_holders(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        lease = _claim(state, key)
        clock.advance(timedelta(days=2))
        assert state.phase1_jobs.renew(lease)
        assert state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m"), summary_hash="h") is HolderWrite.APPLIED

    def test_a_clock_that_goes_back_prolongs_a_lease_and_ends_none(self, state: State, clock: ManualClock) -> None:
        key = Phase1Key(_a_stored_thread(state), MemoryScope.user())
        _claim(state, key)
        clock.advance(-timedelta(days=1))
        assert _try_claim(state, key, lease=timedelta(0)) == Skipped(SkipReason.RUNNING)


def _a_stored_thread(state: State) -> UUID:
    thread = a_thread()
    state.threads.upsert(thread)
    return thread.id


def _stored_jobs(state: State) -> dict[UUID, Phase1Job]:
    return {job.thread_id: job for job in state.phase1_jobs.list(limit=len(_EVERY_CASE))}


def _try_claim(
    state: State, key: Phase1Key, owner: UUID = _OWNER, source: datetime = NOON, lease: timedelta = _HOUR
) -> Claimed[Phase1Lease] | Skipped:
    return state.phase1_jobs.try_claim(key, owner=owner, source_updated_at=source, lease=lease)


def _claim(state: State, key: Phase1Key, owner: UUID = _OWNER, source: datetime = NOON) -> Phase1Lease:
    outcome = _try_claim(state, key, owner, source)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _running(lease: Phase1Lease, attempt: int) -> Phase1Job:
    assert lease.attempt == attempt
    return Phase1Job(
        thread_id=lease.key.thread_id,
        scope_kind="user",
        scope_key="user",
        status=Phase1Status.RUNNING,
        owner_session_id=_OWNER,
        started_at=NOON,
        source_updated_at=NOON,
        ownership_token=lease.token,
        attempt=attempt,
        **owner_columns(lease.duration),
    )
