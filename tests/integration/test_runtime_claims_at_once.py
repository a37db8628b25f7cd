"""Batch claims that run at once: the cap holds, nobody takes what another took, and nobody waits for another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from codex_state.errors import ThreadNotFoundError
from codex_state.models import Claimed, MemoryScope, Phase1Key, Phase1Lease, Phase1Status, Product, Skipped, ThreadQuery
from codex_state.runtime import State, StateRuntime
from codex_state.testing.samples import NOON, a_thread
from tests import stores
from tests.elsewhere import another_writer

_HOUR = timedelta(hours=1)
_AGES = timedelta(days=36_500)
_WORKERS = 4


@pytest.fixture(params=["sqlite", "postgresql"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateRuntime]:
    with stores.fresh_settings(request.param, tmp_path, request) as settings, StateRuntime.open(settings) as runtime:
        yield runtime


def _store_threads(runtime: StateRuntime, count: int) -> list[UUID]:
    threads = [a_thread() for _ in range(count)]
    with runtime.begin() as state:
        state.threads.upsert_many(threads)
    return [thread.id for thread in threads]


def _claim(state: State, limit: int, max_running: int | None = None) -> list[Phase1Lease]:
    return state.phase1_jobs.claim_candidates(
        owner=uuid4(), lease=_HOUR, limit=limit, max_running=max_running, max_age=_AGES, scope_kinds=["user"]
    )


@pytest.mark.parametrize("mode", ["autocommit", "begin"])
def test_the_cap_on_live_leases_holds_when_many_claim_at_once(runtime: StateRuntime, mode: str) -> None:
    _store_threads(runtime, 100)
    for round_number in range(1, 11):
        start = threading.Barrier(_WORKERS)

        def claim(_: int, start: threading.Barrier = start, cap: int = round_number * 3) -> int:
            with getattr(runtime, mode)() as state:
                if mode == "autocommit" or runtime.database.dialect == "postgresql":
                    state.session.connection()
                    start.wait(30)  # on SQLite a unit of work holds the write lock from its start
                return len(_claim(state, limit=64, max_running=cap))

        with ThreadPoolExecutor(_WORKERS) as pool:
            granted = sum(pool.map(claim, range(_WORKERS)))
        assert granted == 3
        with runtime.read() as state:
            assert state.phase1_jobs.count_by_status()[Phase1Status.RUNNING] == round_number * 3


def test_batches_that_are_claimed_at_once_share_the_threads_between_them(runtime: StateRuntime) -> None:
    """L1: each is granted once."""
    threads = _store_threads(runtime, 200)
    taken: list[list[UUID]] = [[] for _ in range(_WORKERS)]

    def drain(worker: int) -> None:
        with runtime.autocommit() as state:
            idle = 0
            while idle < 3:  # a batch may come back empty because another worker was faster
                leases = _claim(state, limit=7)
                idle = 0 if leases else idle + 1
                taken[worker] += [lease.key.thread_id for lease in leases]

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(drain, range(_WORKERS)))
    counts = Counter(thread for worker in taken for thread in worker)
    assert counts == Counter(threads)


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_a_batch_that_is_not_committed_keeps_nobody_waiting(runtime: StateRuntime) -> None:
    # SQLite has one writer, so there the second waits for the first one's commit in any case.
    threads = set(_store_threads(runtime, 10))
    with runtime.begin() as first:
        mine = {lease.key.thread_id for lease in _claim(first, limit=5)}
        with runtime.autocommit() as second:
            second.session.connection().execute(text("SET lock_timeout = '100ms'"))
            others = {lease.key.thread_id for lease in _claim(second, limit=10)}
            assert others == threads - mine
            # Rows that refer to a claimed thread aren't held up either.
            outcome = second.phase1_jobs.try_claim(
                Phase1Key(min(mine), MemoryScope("cwd", "/code")),
                owner=uuid4(),
                source_updated_at=NOON,
                lease=_HOUR,
            )
            assert isinstance(outcome, Claimed)
            second.thread_memories.upsert(min(mine), "raw", "summary")
            second.session.connection().execute(text("RESET lock_timeout"))


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_two_workers_that_claim_64_each_in_open_transactions_get_128_different_threads(runtime: StateRuntime) -> None:
    """L1: in either order of their commits, and nobody waits. SQLite has one writer, so there one waits in any case."""
    threads = _store_threads(runtime, 128)
    with runtime.begin() as first, another_writer(runtime) as second:
        claimed = []
        for worker in (first, second):
            worker.session.connection().execute(text("SET LOCAL lock_timeout = '100ms'"))
            claimed.append([lease.key.thread_id for lease in _claim(worker, limit=64)])
        assert [len(batch) for batch in claimed] == [64, 64]
        assert Counter(claimed[0] + claimed[1]) == Counter(threads)
    with runtime.read() as state:
        assert state.phase1_jobs.count_by_status()[Phase1Status.RUNNING] == 128


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_a_batch_passes_over_the_threads_that_somebody_is_writing_and_waits_for_nobody(runtime: StateRuntime) -> None:
    ids = _store_threads(runtime, 6)
    with runtime.begin() as writer:
        writer.threads.upsert_many([a_thread(id=thread_id, title="written meanwhile") for thread_id in ids[:2]])
        writer.threads.upsert(a_thread())
        with another_writer(runtime) as worker:
            worker.session.connection().execute(text("SET LOCAL lock_timeout = '100ms'"))
            assert {lease.key.thread_id for lease in _claim(worker, limit=10)} == set(ids[2:])
    with runtime.begin() as worker:
        assert len(_claim(worker, limit=10)) == 3


def test_threads_that_are_written_while_a_batch_is_claimed_keep_both(runtime: StateRuntime) -> None:
    """L5: the write waits for the claim where they meet, and neither is lost."""
    ids = _store_threads(runtime, 6)
    new = a_thread()
    with ThreadPoolExecutor(1) as pool:
        with another_writer(runtime) as worker:
            claimed = {lease.key.thread_id for lease in _claim(worker, limit=4)}
            changed = [a_thread(id=thread_id, title="written meanwhile") for thread_id in ids]

            def write() -> None:
                with runtime.begin() as state:
                    state.threads.upsert_many([new, *changed])

            written = pool.submit(write)
        written.result(60)
    with runtime.read() as state:
        titles = {thread.id: thread.title for thread in state.threads.list(ThreadQuery(limit=10)).items}
        assert titles == dict.fromkeys(ids, "written meanwhile") | {new.id: new.title}
        assert {job.thread_id for job in state.phase1_jobs.list()} == claimed
        assert len(claimed) == 4


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_a_holder_stores_its_memory_while_a_batch_has_its_thread(runtime: StateRuntime) -> None:
    """Else the batch, when it comes to the job that the holder's transaction has locked, is a deadlock's victim."""
    [thread_id] = _store_threads(runtime, 1)
    with runtime.autocommit() as state:
        claim = state.phase1_jobs.try_claim(
            Phase1Key(thread_id, MemoryScope.user()), owner=uuid4(), source_updated_at=NOON, lease=_HOUR
        )
    assert isinstance(claim, Claimed)
    with runtime.begin() as batch:
        assert batch.phase1_jobs.claim_candidates(
            owner=uuid4(), lease=_HOUR, limit=1, max_age=_AGES, scope_kinds=("cwd",)
        )
        with another_writer(runtime) as holder:
            holder.session.connection().execute(text("SET LOCAL lock_timeout = '100ms'"))
            assert holder.phase1_jobs.renew(claim.lease)
            assert holder.thread_memories.upsert_if_owner(claim.lease, "raw", "summary")


@pytest.mark.parametrize("write", ["claim", "memory", "memory for scope", "guarded memory"])
def test_a_thread_that_is_deleted_at_the_same_time_is_found_or_missed(runtime: StateRuntime, write: str) -> None:
    """L8: never the foreign key's error, never a deadlock."""
    start = threading.Barrier(2)
    scope = MemoryScope.user()

    def claim(state: State, thread_id: UUID) -> Claimed[Phase1Lease] | Skipped:
        return state.phase1_jobs.try_claim(
            Phase1Key(thread_id, scope), owner=uuid4(), source_updated_at=NOON, lease=timedelta(0)
        )

    def try_to_write(thread_id: UUID) -> None:
        with runtime.autocommit() as state:
            lease = claim(state, thread_id).lease  # type: ignore[union-attr]
            start.wait(30)
            try:
                match write:
                    case "claim":
                        claim(state, thread_id)
                    case "memory":
                        state.thread_memories.upsert(thread_id, "raw", "summary")
                    case "memory for scope":
                        state.thread_memories.upsert_for_scope(thread_id, scope, "raw", "summary")
                    case _:
                        state.thread_memories.upsert_if_owner(lease, "raw", "summary")
            except ThreadNotFoundError:
                pass

    def delete(thread_id: UUID) -> None:
        with runtime.autocommit() as state:
            state.session.connection()
            start.wait(30)
            assert state.threads.delete(thread_id) is True

    with ThreadPoolExecutor(2) as pool:
        for thread_id in _store_threads(runtime, 60):
            for done in [pool.submit(try_to_write, thread_id), pool.submit(delete, thread_id)]:
                done.result(60)
    with runtime.read() as state:
        assert state.phase1_jobs.list() == []


@pytest.mark.parametrize("primary", ["memory", "job", "name", "a service's row"])
def test_deleting_what_is_gone_does_not_take_what_is_written_at_the_same_time(
    runtime: StateRuntime, primary: str
) -> None:
    """L7: memories, jobs and names are in no rollout."""
    thread = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(thread)
        state.threads.mark_gone([thread.id], thread.home)
        kind = "uuid" if runtime.database.dialect == "postgresql" else "TEXT"
        definition = f"CREATE TABLE tickets (thread {kind} REFERENCES threads (id) ON DELETE CASCADE)"
        state.session.connection().execute(text(definition))

    def delete() -> Sequence[UUID]:
        with runtime.autocommit() as state:
            return state.threads.delete_gone([thread.id], thread.home)

    with ThreadPoolExecutor(1) as pool:
        with runtime.begin() as state:
            match primary:
                case "memory":
                    state.thread_memories.upsert(thread.id, "raw", "summary")
                case "job":
                    key = Phase1Key(thread.id, MemoryScope.user())
                    state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=NOON, lease=_HOUR)
                case "name":
                    state.threads.set_name(thread.id, "mine")
                case _:
                    state.session.connection().execute(text(f"INSERT INTO tickets VALUES ('{thread.id}')"))
            deleted = pool.submit(delete)
            time.sleep(0.3)  # it judges the row now, and must judge again when it can have it
            assert not deleted.done()
        assert deleted.result(60) == []
    with runtime.read() as state:
        assert state.threads.get(thread.id) is not None


def _wait_for_a_lock_wait(runtime: StateRuntime) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 60
    while True:
        with runtime.read() as state:
            if state.session.connection().execute(waiting).scalar_one() == 1:
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_batch_claim_does_not_wait_for_jobs_that_are_just_being_finished(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It and a batch finish would lock them in any order, and each could wait for the other."""
    threads = [a_thread() for _ in range(8)]
    with (
        stores.fresh_settings("postgresql", tmp_path, request, busy_timeout=timedelta(seconds=60)) as settings,
        StateRuntime.open(settings) as runtime,
    ):
        leases = []
        with runtime.begin() as state:
            state.threads.upsert_many(threads)
            for thread in threads:
                key = Phase1Key(thread.id, MemoryScope.user())
                claimed = state.phase1_jobs.try_claim(
                    key, owner=uuid4(), source_updated_at=thread.updated_at, lease=_HOUR
                )
                assert isinstance(claimed, Claimed)
                leases.append(claimed.lease)

        def finish() -> int:
            with runtime.autocommit() as state:
                return sum(map(bool, state.phase1_jobs.succeed_many({lease: Product() for lease in leases}).values()))

        with ThreadPoolExecutor(1) as pool:
            with runtime.begin() as state:
                assert state.phase1_jobs.renew(leases[4])
                finished = pool.submit(finish)
                _wait_for_a_lock_wait(runtime)
                with runtime.autocommit() as rivals:
                    taken = rivals.phase1_jobs.claim_candidates(
                        owner=uuid4(), lease=timedelta(0), max_age=_AGES, scope_kinds=["user"]
                    )
                assert leases[4].key not in {lease.key for lease in taken}
                assert not finished.done()
            assert finished.result(60) + len(taken) == len(threads)
