"""Work that ends with its worker: it is counted, and a job that does so too often is given up (law L1)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from codex_state.models import (
    Claimed,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Requeue,
    Skipped,
    SkipReason,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.processes import HERE, ManualProcesses, a_process
from codex_state.testing.samples import NOON, a_thread

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_USER = MemoryScope.user()
_OWNER = UUID(int=1)
_EVERY_WAY = pytest.mark.parametrize("way", ["one claim", "a batch"])


def _a_key(state: State) -> Phase1Key:
    thread = a_thread()
    state.threads.upsert(thread)
    return Phase1Key(thread.id, _USER)


def _stored(state: State, key: Phase1Key) -> Phase1Job:
    job = state.phase1_jobs.get(key)
    assert job is not None
    return job


def _claim(state: State, key: Phase1Key) -> Phase1Lease:
    outcome = state.phase1_jobs.try_claim(key, owner=_OWNER, source_updated_at=NOON, lease=_HOUR)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _claims(state: State, way: str, key: Phase1Key, allowed: int = 3) -> list[Phase1Lease]:
    if way == "a batch":
        return state.phase1_jobs.claim_candidates(
            owner=_OWNER, lease=_HOUR, scope_kinds=["user"], crashes_allowed=allowed
        )
    outcome = state.phase1_jobs.try_claim(
        key, owner=_OWNER, source_updated_at=NOON, lease=_HOUR, crashes_allowed=allowed
    )
    assert isinstance(outcome, Claimed) or outcome.reason in {SkipReason.TERMINAL_FAILURE, SkipReason.RUNNING}
    return [outcome.lease] if isinstance(outcome, Claimed) else []


def _left_behind(key: Phase1Key, **values: Any) -> Phase1Job:
    """A job whose work had begun, and then its lease ran out: it has crashed twice before."""
    defaults: dict[str, Any] = {
        "status": Phase1Status.RUNNING,
        "owner_session_id": UUID(int=9),
        "started_at": NOON - _HOUR,
        "begun_at": NOON - _HOUR,
        "source_updated_at": NOON,
        "ownership_token": f"token of {key}",
        "attempt": 7,
        "crashes": 2,
        "retry_at": NOON + _HOUR,
        "owner_name": "there process 1",
        "owner_process": None,
        "lease_seconds": 3600,
    }
    return Phase1Job(thread_id=key.thread_id, scope_kind=key.scope.kind, scope_key=key.scope.key, **(defaults | values))


def _store(state: State, *jobs: Phase1Job) -> None:
    state.session.add_all([Phase1Job(**job.model_dump()) for job in jobs])
    state.session.flush()
    state.session.expunge_all()


def _given_up(job: Phase1Job) -> Phase1Job:
    return Phase1Job(
        **job.model_dump()
        | {
            "status": Phase1Status.FAILED,
            "finished_at": NOON,
            "failure_reason": "its worker ended while it worked on it (3 of 3 crashes allowed)",
            "ownership_token": None,
            "retry_at": None,
            "crashes": 3,
        }
    )


class TestCrashes:
    """``begin``, and what claims make of work that ended with its worker."""

    @_EVERY_WAY
    @pytest.mark.parametrize("started_at", [NOON - _HOUR, None], ids=["over", "never renewed"])
    def test_a_job_is_given_up_whole(self, state: State, way: str, started_at: Any) -> None:
        """And no other: not a neighbour, nor one that is held, finished, or hasn't begun."""
        key = _a_key(state)
        job = _left_behind(key, started_at=started_at)
        others = [
            _left_behind(_a_key(state), started_at=NOON - _HOUR + _SECOND),
            _left_behind(_a_key(state), status=Phase1Status.SUCCEEDED, owner_process=f"{HERE}:1:0"),
            _left_behind(Phase1Key(key.thread_id, MemoryScope("user", "another")), started_at=NOON),
            _left_behind(Phase1Key(key.thread_id, MemoryScope("cwd", "user")), started_at=NOON),
        ]
        if way == "one claim":
            others += [
                _left_behind(_a_key(state)),
                _left_behind(Phase1Key(key.thread_id, MemoryScope("user", "over"))),
                _left_behind(Phase1Key(key.thread_id, MemoryScope("team", "user"))),
            ]
        _store(state, job, *others)
        assert _claims(state, way, key) == []
        assert _stored(state, key) == _given_up(job)
        for other in others:
            assert _stored(state, Phase1Key(other.thread_id, MemoryScope(other.scope_kind, other.scope_key))) == other

    @_EVERY_WAY
    def test_a_job_of_a_dead_process_is_given_up_at_once(
        self, state: State, processes: ManualProcesses, way: str
    ) -> None:
        """And no other: not a neighbour of a living process, nor what the dead one finished."""
        key = _a_key(state)
        dead, living = f"{HERE}:1:0", f"{HERE}:3:0"
        job = _left_behind(key, started_at=NOON, owner_process=dead)
        others = [
            _left_behind(_a_key(state), started_at=NOON, owner_process=living),
            _left_behind(_a_key(state), status=Phase1Status.SUCCEEDED, owner_process=dead),
            _left_behind(Phase1Key(key.thread_id, MemoryScope("user", "b")), started_at=NOON, owner_process=living),
        ]
        if way == "one claim":
            others += [
                _left_behind(_a_key(state), started_at=NOON, owner_process=dead),
                _left_behind(Phase1Key(key.thread_id, MemoryScope("user", "c")), started_at=NOON, owner_process=dead),
                _left_behind(
                    Phase1Key(key.thread_id, MemoryScope("team", "user")), started_at=NOON, owner_process=dead
                ),
            ]
        _store(state, job, *others)
        processes.kill(a_process(1))
        processes.become(2)
        assert _claims(state, way, key) == []
        assert _stored(state, key) == _given_up(job)
        for other in others:
            assert _stored(state, Phase1Key(other.thread_id, MemoryScope(other.scope_kind, other.scope_key))) == other

    @_EVERY_WAY
    def test_a_job_that_is_held_is_not_given_up_however_often_it_crashed(self, state: State, way: str) -> None:
        key = _a_key(state)
        job = _left_behind(key, started_at=NOON - _HOUR + _SECOND)
        _store(state, job)
        assert _claims(state, way, key) == []
        assert _stored(state, key) == job

    @pytest.mark.parametrize("meanwhile", ["succeed", "renew"])
    def test_a_job_that_its_holder_writes_after_a_claim_found_it_dead_is_not_given_up(
        self, state: State, processes: ManualProcesses, meanwhile: str
    ) -> None:
        """L1: the statement decides, by the row as it is then."""
        key = _a_key(state)
        job = _left_behind(key, started_at=NOON, owner_process=f"{HERE}:1:0")
        _store(state, job)
        lease = Phase1Lease(
            key=key,
            owner=UUID(int=9),
            token=job.ownership_token or "",
            granted_at=NOON,
            duration=_HOUR,
            source_updated_at=NOON,
        )
        processes.kill(a_process(1))
        processes.become(2)

        def write() -> None:
            processes.become(3)
            if meanwhile == "renew":
                assert state.phase1_jobs.renew(lease)
            else:
                assert state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
            processes.become(2)

        processes.meanwhile = write
        reason = SkipReason.RUNNING if meanwhile == "renew" else SkipReason.UP_TO_DATE
        outcome = state.phase1_jobs.try_claim(key, owner=_OWNER, source_updated_at=NOON, lease=_HOUR)
        assert outcome == Skipped(reason)
        stored = _stored(state, key)
        assert stored.status is (Phase1Status.RUNNING if meanwhile == "renew" else Phase1Status.SUCCEEDED)
        assert stored.crashes == 2

    @_EVERY_WAY
    def test_a_dead_process_has_crashed_once_more(self, state: State, processes: ManualProcesses, way: str) -> None:
        key = _a_key(state)
        _store(state, _left_behind(key, started_at=NOON, crashes=1, owner_process=f"{HERE}:1:0"))
        processes.kill(a_process(1))
        processes.become(2)
        (lease,) = _claims(state, way, key)
        stored = _stored(state, key)
        assert (lease.crashes, stored.crashes, stored.begun_at, stored.attempt) == (2, 2, None, 8)

    @pytest.mark.parametrize("renewed", [False, True])
    def test_what_a_dead_process_left_behind_is_requeued_at_once(
        self, state: State, clock: ManualClock, processes: ManualProcesses, renewed: bool
    ) -> None:
        """L1: unless another has it by then."""
        processes.become(1)
        key = _a_key(state)
        lease = _claim(state, key)
        processes.become(2)
        assert state.phase1_jobs.requeue(key) is Requeue.RUNNING
        processes.kill(a_process(1))
        clock.advance(_SECOND)

        def go_on() -> None:
            processes.become(3)
            assert state.phase1_jobs.renew(lease)
            processes.become(2)

        if renewed:
            processes.meanwhile = go_on
        assert state.phase1_jobs.requeue(key) is (Requeue.RUNNING if renewed else Requeue.REQUEUED)
        stored = _stored(state, key)
        if renewed:
            assert (stored.status, stored.ownership_token) == (Phase1Status.RUNNING, lease.token)
        else:
            assert (stored.status, stored.ownership_token) == (Phase1Status.FAILED, None)
            assert (stored.retry_at, stored.finished_at) == (clock.now, clock.now)

    def test_whoever_begins_prolongs_the_lease_and_is_named(
        self, state: State, clock: ManualClock, processes: ManualProcesses
    ) -> None:
        key = _a_key(state)
        lease = _claim(state, key)
        clock.advance(_SECOND)
        processes.become(2)
        state.session.connection().exec_driver_sql("UPDATE memory_phase1_jobs SET lease_seconds = 7")
        assert state.phase1_jobs.begin(lease)
        stored = _stored(state, key)
        assert (stored.begun_at, stored.started_at, stored.lease_seconds) == (NOON + _SECOND, NOON + _SECOND, 3600)
        assert (stored.owner_name, stored.owner_process) == ("here process 2", f"{HERE}:2:0")

    def test_work_that_had_begun_when_its_lease_ran_out_has_crashed(self, state: State, clock: ManualClock) -> None:
        key = _a_key(state)
        for begun in (False, True):
            lease = _claim(state, key)
            if begun:
                assert state.phase1_jobs.begin(lease)
            clock.advance(lease.duration)
        lease = _claim(state, key)
        assert (lease.attempt, lease.crashes) == (3, 1)
        stored = _stored(state, key)
        assert (stored.begun_at, stored.crashes) == (None, 1)
        assert state.phase1_jobs.begin(lease)
        assert _stored(state, key).begun_at == clock.now

    @_EVERY_WAY
    @pytest.mark.parametrize("allowed", [1, 3])
    def test_a_job_that_crashes_too_often_fails_for_good_and_says_why(
        self, state: State, clock: ManualClock, way: str, allowed: int
    ) -> None:
        """Nobody works on it again until it is requeued."""
        key = _a_key(state)

        crashed = 0
        while leases := _claims(state, way, key, allowed):
            state.phase1_jobs.begin(leases[0])
            crashed += 1
            clock.advance(timedelta(hours=1))
        stored = _stored(state, key)
        assert (crashed, stored.crashes, stored.status) == (allowed, allowed, Phase1Status.FAILED)
        assert (
            stored.failure_reason == f"its worker ended while it worked on it ({allowed} of {allowed} crashes allowed)"
        )
        assert stored.ownership_token is None
        assert state.phase1_jobs.requeue(key) is Requeue.REQUEUED
        assert [lease.crashes for lease in _claims(state, way, key, allowed)] == [0]

    @pytest.mark.parametrize("end", ["given back", "failed", "succeeded"])
    def test_work_that_came_to_an_end_has_not_crashed(self, state: State, clock: ManualClock, end: str) -> None:
        key = _a_key(state)
        lease = _claim(state, key)
        state.phase1_jobs.begin(lease)
        match end:
            case "given back":
                state.phase1_jobs.release(lease, "a restart")
            case "failed":
                state.phase1_jobs.fail(lease, "broken", retry_after=timedelta(0))
            case _:
                state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
        clock.advance(lease.duration)
        outcome = state.phase1_jobs.try_claim(
            key, owner=uuid4(), source_updated_at=NOON + timedelta(seconds=1), lease=lease.duration
        )
        assert isinstance(outcome, Claimed)
        assert outcome.lease.crashes == 0

    def test_a_take_over_by_force_counts_no_crash(self, state: State) -> None:
        key = _a_key(state)
        state.phase1_jobs.begin(_claim(state, key))
        outcome = state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=NOON, lease=timedelta(0))
        assert isinstance(outcome, Claimed)
        assert outcome.lease.crashes == 0
