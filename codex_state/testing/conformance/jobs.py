"""What holders of jobs write, and what operators see and do."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from codex_state.errors import InvalidInputError
from codex_state.models import (
    Claimed,
    HolderWrite,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Product,
    Requeue,
    Skipped,
    SkipReason,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_thread

_HOUR = timedelta(hours=1)
_USER = MemoryScope.user()


class TestJobs:
    """``Phase1JobRepository``, but for its claims."""

    def test_success_stores_what_was_produced(self, state: State, clock: ManualClock) -> None:
        lease = _claim(state, _a_key(state))
        before = _stored(state, lease.key)
        clock.advance(_HOUR)
        assert state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m/ä"), summary_hash="h") is HolderWrite.APPLIED
        assert _stored(state, lease.key) == _changed(
            before,
            status=Phase1Status.SUCCEEDED,
            finished_at=NOON + _HOUR,
            raw_memory_path=Path("/m/ä"),
            summary_hash="h",
        )

    def test_many_successes_store_what_each_produced(self, state: State, clock: ManualClock) -> None:
        products = {
            _claim(state, _a_key(state)): product
            for product in (Product(Path("/m/ä"), "h"), Product(Path("/m/\\u0000 'b'"), None), Product())
        }
        untouched = _claim(state, _a_key(state))
        before = {lease: _stored(state, lease.key) for lease in (*products, untouched)}
        clock.advance(_HOUR)
        assert state.phase1_jobs.succeed_many(products) == dict.fromkeys(products, HolderWrite.APPLIED)
        for lease, product in products.items():
            assert _stored(state, lease.key) == _changed(
                before[lease],
                status=Phase1Status.SUCCEEDED,
                finished_at=NOON + _HOUR,
                raw_memory_path=product.raw_memory_path,
                summary_hash=product.summary_hash,
            )
        assert _stored(state, untouched.key) == before[untouched]

    def test_a_lost_lease_among_many_changes_nothing_and_keeps_no_other_from_finishing(
        self, state: State, clock: ManualClock
    ) -> None:
        """L2."""
        stale, finished = _claim(state, _a_key(state)), _claim(state, _a_key(state))
        clock.advance(_HOUR)
        current = _claim(state, stale.key)
        state.phase1_jobs.fail(finished, "broken")
        before = _stored(state, finished.key)
        answers = state.phase1_jobs.succeed_many({stale: Product(None, "old"), finished: Product(), current: Product()})
        assert answers == {
            stale: HolderWrite.LEASE_LOST,
            finished: HolderWrite.LEASE_LOST,
            current: HolderWrite.APPLIED,
        }
        assert _stored(state, stale.key).summary_hash is None
        assert _stored(state, finished.key) == before
        assert state.phase1_jobs.succeed_many({}) == {}

    @pytest.mark.parametrize("product", [Product(None, "a\0b"), Product(Path("a\0b")), Product(None, "\udc80")])
    def test_what_no_database_can_hold_is_refused_with_all_that_came_with_it(
        self, state: State, product: Product
    ) -> None:
        first, second = _claim(state, _a_key(state)), _claim(state, _a_key(state))
        with pytest.raises(InvalidInputError):
            state.phase1_jobs.succeed_many({first: Product(), second: product})

    def test_failure_stores_its_reason_and_no_retry(self, state: State, clock: ManualClock) -> None:
        lease = _claim(state, _a_key(state))
        before = _stored(state, lease.key)
        clock.advance(_HOUR)
        assert state.phase1_jobs.fail(lease, "no model") is HolderWrite.APPLIED
        assert _stored(state, lease.key) == _changed(
            before, status=Phase1Status.FAILED, finished_at=NOON + _HOUR, failure_reason="no model", failures=1
        )

    def test_a_failure_with_a_retry_time_is_claimable_from_that_second_on(
        self, state: State, clock: ManualClock
    ) -> None:
        lease = _claim(state, _a_key(state))
        assert state.phase1_jobs.fail(lease, "busy", retry_after=_HOUR) is HolderWrite.APPLIED
        assert _stored(state, lease.key).retry_at == NOON + _HOUR
        clock.advance(_HOUR - timedelta(seconds=1))
        assert _try_claim(state, lease.key) == Skipped(SkipReason.RETRY_LATER)
        clock.advance(timedelta(seconds=1))
        again = _claim(state, lease.key)
        assert again.attempt == 2
        assert _stored(state, lease.key).retry_at is None
        assert _stored(state, lease.key).failure_reason is None

    @pytest.mark.parametrize("finish", ["succeed", "fail", "fail with retry", "release"])
    @pytest.mark.parametrize("write", ["renew", "begin", "succeed", "fail", "release"])
    def test_a_finished_job_is_not_touched_again_by_its_holder(self, state: State, finish: str, write: str) -> None:
        """L4: it is never un-finished except by a new claim."""
        lease = _claim(state, _a_key(state))
        assert _write(state, lease, finish) is HolderWrite.APPLIED
        finished = _stored(state, lease.key)
        assert _write(state, lease, write) is HolderWrite.LEASE_LOST
        assert _stored(state, lease.key) == finished

    @pytest.mark.parametrize("write", ["renew", "succeed", "fail", "fail with retry", "release"])
    def test_a_holder_that_was_taken_over_changes_nothing(self, state: State, clock: ManualClock, write: str) -> None:
        """L2."""
        stale = _claim(state, _a_key(state))
        clock.advance(_HOUR)
        _claim(state, stale.key)
        before = _stored(state, stale.key)
        assert _write(state, stale, write) is HolderWrite.LEASE_LOST
        assert _stored(state, stale.key) == before

    @pytest.mark.parametrize("write", ["renew", "succeed", "fail"])
    def test_a_deleted_thread_leaves_its_holder_without_a_lease(self, state: State, write: str) -> None:
        lease = _claim(state, _a_key(state))
        state.threads.delete(lease.key.thread_id)
        assert _write(state, lease, write) is HolderWrite.LEASE_LOST
        assert state.phase1_jobs.get(lease.key) is None

    def test_the_token_of_a_thread_that_was_deleted_and_came_back_is_void(self, state: State) -> None:
        lease = _claim(state, _a_key(state))
        state.threads.delete(lease.key.thread_id)
        state.threads.upsert(a_thread(id=lease.key.thread_id))
        _claim(state, lease.key)
        assert state.phase1_jobs.renew(lease) is HolderWrite.LEASE_LOST

    def test_a_terminal_failure_comes_back_by_a_requeue_only(self, state: State) -> None:
        lease = _claim(state, _a_key(state))
        state.phase1_jobs.fail(lease, "broken")
        assert _try_claim(state, lease.key) == Skipped(SkipReason.TERMINAL_FAILURE)
        assert state.phase1_jobs.requeue(lease.key) is Requeue.REQUEUED
        assert _claim(state, lease.key).attempt == 2

    def test_a_requeue_brings_a_retry_forward(self, state: State) -> None:
        lease = _claim(state, _a_key(state))
        state.phase1_jobs.fail(lease, "busy", retry_after=_HOUR)
        assert state.phase1_jobs.requeue(lease.key) is Requeue.REQUEUED
        assert _claim(state, lease.key).attempt == 2

    def test_a_job_that_missed_its_file_can_be_claimed_again_when_the_file_is_found(
        self, state: State, clock: ManualClock
    ) -> None:
        missed, broken, waiting = (_claim(state, _a_key(state)) for _ in range(3))
        state.phase1_jobs.fail(missed, "FileNotFoundError: [Errno 2] No such file or directory: 'r.jsonl'")
        state.phase1_jobs.fail(broken, "ValueError: no model")
        state.phase1_jobs.fail(waiting, "FileNotFoundError", retry_after=_HOUR)
        before = [_stored(state, lease.key) for lease in (missed, broken, waiting)]
        clock.advance(timedelta(minutes=1))
        threads = [str(lease.key.thread_id) for lease in (missed, broken, waiting)]
        assert state.phase1_jobs.reopen_found(threads) == 1
        assert state.phase1_jobs.reopen_found(threads) == 0
        after = [_stored(state, lease.key) for lease in (missed, broken, waiting)]
        assert after == [_changed(before[0], retry_at=NOON + timedelta(minutes=1)), *before[1:]]
        assert _claim(state, missed.key).attempt == 2

    def test_a_released_job_can_be_claimed_at_once_and_counts_no_failure(
        self, state: State, clock: ManualClock
    ) -> None:
        lease = _claim(state, _a_key(state))
        before = _stored(state, lease.key)
        clock.advance(_HOUR)
        assert state.phase1_jobs.release(lease, "interrupted") is HolderWrite.APPLIED
        assert _stored(state, lease.key) == _changed(
            before,
            status=Phase1Status.FAILED,
            finished_at=NOON + _HOUR,
            failure_reason="interrupted",
            retry_at=NOON + _HOUR,
        )
        again = _claim(state, lease.key)
        assert (again.attempt, again.failures) == (2, 0)

    def test_failures_are_counted_until_the_source_is_newer_or_an_operator_requeues(self, state: State) -> None:
        key = _a_key(state)
        for failures in range(3):
            lease = _claim(state, key)
            assert lease.failures == failures
            state.phase1_jobs.fail(lease, "busy", retry_after=timedelta(0))
        newer = _try_claim(state, key, NOON + _HOUR)
        assert isinstance(newer, Claimed)
        assert newer.lease.failures == 0
        state.phase1_jobs.fail(newer.lease, "busy")
        assert _stored(state, key).failures == 1
        state.phase1_jobs.requeue(key)
        assert _claim(state, key).failures == 0

    @pytest.mark.parametrize("finish", ["nothing", "succeed"])
    def test_only_a_failed_job_is_requeued(self, state: State, finish: str) -> None:
        lease = _claim(state, _a_key(state))
        if finish != "nothing":
            _write(state, lease, finish)
        before = _stored(state, lease.key)
        assert state.phase1_jobs.requeue(lease.key) is (Requeue.RUNNING if finish == "nothing" else Requeue.NOT_FAILED)
        assert _stored(state, lease.key) == before
        assert state.phase1_jobs.requeue(Phase1Key(uuid4(), _USER)) is Requeue.NOT_FOUND

    def test_a_job_that_was_left_behind_is_requeued_when_its_lease_is_over(
        self, state: State, clock: ManualClock
    ) -> None:
        """By the time that its row was granted; also when no claim would look at its thread any more."""
        lease = _claim(state, _a_key(state))
        state.phase1_jobs.begin(lease)
        state.threads.mark_archived(lease.key.thread_id, Path("/r"), NOON)
        clock.advance(lease.duration - timedelta(seconds=1))
        assert state.phase1_jobs.requeue(lease.key, lease=timedelta(seconds=1)) is Requeue.RUNNING
        clock.advance(timedelta(seconds=1))
        assert state.phase1_jobs.requeue(lease.key) is Requeue.REQUEUED
        stored = _stored(state, lease.key)
        assert (stored.status, stored.retry_at, stored.crashes) == (Phase1Status.FAILED, clock.now, 0)
        assert "left it behind" in (stored.failure_reason or "")
        assert stored.ownership_token is None
        assert state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None) is HolderWrite.LEASE_LOST

    def test_jobs_are_listed_by_their_start_and_counted_by_status(self, state: State, clock: ManualClock) -> None:
        keys = []
        for finish in ("succeed", "fail", "fail", None):
            key = _a_key(state)
            lease = _claim(state, key)
            if finish is not None:
                _write(state, lease, finish)
            keys.append(key)
            clock.advance(timedelta(minutes=1))
        newest_first = [key.thread_id for key in reversed(keys)]
        assert [job.thread_id for job in state.phase1_jobs.list()] == newest_first
        assert [job.thread_id for job in state.phase1_jobs.list(limit=2)] == newest_first[:2]
        failed = state.phase1_jobs.list(status=Phase1Status.FAILED)
        assert [job.thread_id for job in failed] == newest_first[1:3]
        assert state.phase1_jobs.count_by_status() == {
            Phase1Status.RUNNING: 1,
            Phase1Status.SUCCEEDED: 1,
            Phase1Status.FAILED: 2,
        }

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_of_nothing_lists_nothing(self, state: State, limit: int) -> None:
        _claim(state, _a_key(state))
        assert state.phase1_jobs.list(limit=limit) == []
        assert state.phase1_jobs.list(status=Phase1Status.RUNNING, limit=limit) == []

    def test_without_jobs_every_status_counts_zero(self, state: State) -> None:
        assert state.phase1_jobs.count_by_status() == dict.fromkeys(Phase1Status, 0)
        assert state.phase1_jobs.list() == []
        assert state.phase1_jobs.get(Phase1Key(uuid4(), _USER)) is None


def _a_key(state: State) -> Phase1Key:
    thread = a_thread()
    state.threads.upsert(thread)
    return Phase1Key(thread.id, _USER)


def _try_claim(state: State, key: Phase1Key, source: datetime = NOON) -> Claimed[Phase1Lease] | Skipped:
    return state.phase1_jobs.try_claim(key, owner=UUID(int=1), source_updated_at=source, lease=_HOUR)


def _claim(state: State, key: Phase1Key) -> Phase1Lease:
    outcome = _try_claim(state, key)
    assert isinstance(outcome, Claimed)
    return outcome.lease


def _stored(state: State, key: Phase1Key) -> Phase1Job:
    job = state.phase1_jobs.get(key)
    assert job is not None
    return job


def _changed(job: Phase1Job, **values: Any) -> Phase1Job:
    return Phase1Job(**(job.model_dump() | values))


def _write(state: State, lease: Phase1Lease, verb: str) -> HolderWrite:
    match verb:
        case "renew":
            return state.phase1_jobs.renew(lease)
        case "begin":
            return state.phase1_jobs.begin(lease)
        case "succeed":
            return state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m"), summary_hash="h")
        case "fail":
            return state.phase1_jobs.fail(lease, "broken")
        case "fail with retry":
            return state.phase1_jobs.fail(lease, "broken", retry_after=_HOUR)
        case "release":
            return state.phase1_jobs.release(lease, "interrupted")
        case _:
            raise AssertionError(verb)
