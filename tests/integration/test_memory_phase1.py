"""Passes of extraction: what is claimed, stored, reported and tried again."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from memory_support import CWD, OTHER, OWNER, add_threads, claim, cwd_key, now, user_key

from codex_state import (
    AsyncStateRuntime,
    Claimed,
    ExtractedMemory,
    InvalidInputError,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Options,
    Phase1Outcome,
    Phase1Progress,
    Phase1Report,
    Phase1Status,
    RetryPolicy,
    SkipReason,
    StateRuntime,
    StateSettings,
    StopReason,
    StopSignal,
    Thread,
    ThreadMemory,
    ThreadNotFoundError,
    arun_phase1,
    current_work,
    fence,
    memory_root,
    run_phase1,
)

Open = Callable[[StateSettings], StateRuntime]

SHORT = Phase1Options(lease=timedelta(seconds=6))


def extract(thread: Thread) -> ExtractedMemory:
    return ExtractedMemory(f"raw of {thread.id}", f"summary of {thread.id}")


def refuse(thread: Thread) -> None:
    pytest.fail(f"{thread.id} was extracted")


def job_of(runtime: StateRuntime, key: Phase1Key) -> Phase1Job:
    with runtime.read() as state:
        job = state.phase1_jobs.get(key)
    assert job is not None
    return job


def memories_of(runtime: StateRuntime, scope: MemoryScope) -> list[ThreadMemory]:
    with runtime.read() as state:
        return list(state.thread_memories.last_n_for_scope(scope, 100))


def dirty(runtime: StateRuntime) -> set[MemoryScope]:
    with runtime.read() as state:
        return {MemoryScope(mark.scope_kind, mark.scope_key) for mark in state.memory_scopes.list_dirty()}


def outcomes(report: Phase1Report) -> list[Phase1Outcome]:
    return [result.outcome for result in report.results]


def test_a_pass_stores_memories_finishes_jobs_marks_scopes_and_writes_files(runtime: StateRuntime) -> None:
    first, second = add_threads(runtime, 2)
    report = run_phase1(runtime, extract, owner=OWNER)
    assert {result.key for result in report.results} == {
        key for thread in (first, second) for key in (cwd_key(thread), user_key(thread))
    }
    assert [result.key.thread_id for result in report.results] == [first.id, first.id, second.id, second.id]
    assert (report.claimed, report.succeeded, report.failed, report.lost, report.nothing) == (4, 4, 0, 0, 0)
    for scope in (MemoryScope.cwd(CWD), MemoryScope.user()):
        root = memory_root(runtime.codex_home, scope)
        assert {memory.thread_id for memory in memories_of(runtime, scope)} == {first.id, second.id}
        for thread in (first, second):
            job = job_of(runtime, Phase1Key(thread.id, scope))
            path = root / "raw_memories" / f"{thread.id}.md"
            assert (job.status, job.owner_session_id, job.failure_reason) == (Phase1Status.SUCCEEDED, OWNER, None)
            assert job.raw_memory_path == path
            assert job.summary_hash == sha256(f"summary of {thread.id}".encode()).hexdigest()
            assert path.read_text().endswith(f"\n\nraw of {thread.id}\n")
        assert f"summary of {first.id}" in (root / "memory_summary.md").read_text()
    assert dirty(runtime) == {MemoryScope.cwd(CWD), MemoryScope.user()}


def test_each_thread_is_extracted_once_for_all_its_scopes(runtime: StateRuntime) -> None:
    threads = add_threads(runtime, 3)
    calls: list[UUID] = []

    def counted(thread: Thread) -> ExtractedMemory:
        calls.append(thread.id)
        return extract(thread)

    assert run_phase1(runtime, counted, owner=OWNER).succeeded == 6
    assert sorted(calls) == sorted(thread.id for thread in threads)


def test_a_second_pass_finds_nothing_to_do_until_a_thread_is_updated(runtime: StateRuntime) -> None:
    thread, _ = add_threads(runtime, 2)
    run_phase1(runtime, extract, owner=OWNER)
    assert run_phase1(runtime, refuse, owner=OWNER) == Phase1Report()
    before = {memory.thread_id: memory.updated_at for memory in memories_of(runtime, MemoryScope.user())}
    with runtime.begin() as state:
        state.threads.upsert(Thread(**(thread.model_dump() | {"updated_at": now()})))
    report = run_phase1(runtime, extract, owner=OTHER)
    assert {result.key for result in report.results} == {cwd_key(thread), user_key(thread)}
    assert {result.attempt for result in report.results} == {2}
    after = {memory.thread_id: memory.updated_at for memory in memories_of(runtime, MemoryScope.user())}
    assert {thread_id for thread_id in after if after[thread_id] > before[thread_id]} == {thread.id}


def test_a_pass_takes_the_most_recent_threads_up_to_its_limit(runtime: StateRuntime) -> None:
    threads = add_threads(runtime, 5)
    report = run_phase1(runtime, extract, owner=OWNER, options=Phase1Options(limit=3))
    assert {result.key.thread_id for result in report.results} == {thread.id for thread in threads[:3]}
    assert run_phase1(runtime, extract, owner=OWNER).claimed == 4


def test_options_choose_what_is_extracted(runtime: StateRuntime) -> None:
    mine, old = add_threads(runtime, 1)[0], add_threads(runtime, updated_at=now() - timedelta(days=31))[0]
    (script,) = add_threads(runtime, source="exec")
    assert run_phase1(runtime, refuse, owner=OWNER, options=Phase1Options(exclude=mine.id)).claimed == 0
    report = run_phase1(
        runtime,
        extract,
        owner=OWNER,
        options=Phase1Options(sources=["exec"], scope_kinds=["user"], max_age=timedelta(days=99)),
    )
    assert [result.key for result in report.results] == [user_key(script)]
    report = run_phase1(runtime, extract, owner=OWNER, options=Phase1Options(max_age=timedelta(days=99)))
    assert {result.key.thread_id for result in report.results} == {mine.id, old.id}


@pytest.mark.parametrize(
    "values", [{"lease": timedelta(seconds=1)}, {"concurrency": 0}, {"limit": -1}, {"lease": timedelta(0)}]
)
def test_options_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Phase1Options(**values)


def test_files_are_written_only_if_wanted(runtime: StateRuntime) -> None:
    add_threads(runtime)
    run_phase1(runtime, extract, owner=OWNER, options=Phase1Options(write_files=False))
    assert not (runtime.codex_home / "memories").exists()


def test_files_that_cannot_be_written_cost_no_memory(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    (runtime.codex_home / "memories").write_text("in the way")
    report = run_phase1(runtime, extract, owner=OWNER)
    assert report.succeeded == 2
    assert all("can't write the memories" in (result.files_error or "") for result in report.results)
    assert len(memories_of(runtime, MemoryScope.user())) == 1
    (runtime.codex_home / "memories").unlink()
    assert run_phase1(runtime, extract, owner=OWNER).claimed == 0
    root = memory_root(runtime.codex_home, MemoryScope.user())
    assert (root / "raw_memories" / f"{thread.id}.md").exists(), "the next pass mends the files"


def test_nothing_to_remember_finishes_the_job_and_touches_nothing_else(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    report = run_phase1(runtime, lambda _thread: None, owner=OWNER)
    assert outcomes(report) == [Phase1Outcome.NOTHING] * 2
    job = job_of(runtime, user_key(thread))
    assert (job.status, job.raw_memory_path, job.summary_hash) == (Phase1Status.SUCCEEDED, None, None)
    assert memories_of(runtime, MemoryScope.user()) == []
    assert dirty(runtime) == set()
    assert run_phase1(runtime, refuse, owner=OWNER).claimed == 0


def test_nothing_to_remember_any_more_invalidates_the_older_memory(runtime: StateRuntime) -> None:
    """L7: the text stays in its row."""
    (thread,) = add_threads(runtime)
    run_phase1(runtime, extract, owner=OWNER)
    seen = {}
    with runtime.begin() as state:
        for scope in (MemoryScope.cwd(CWD), MemoryScope.user()):
            mark = state.memory_scopes.get(scope)
            assert mark is not None
            seen[scope] = mark.updated_at
            state.memory_scopes.mark_clean(scope, seen=mark.updated_at)
        state.threads.upsert(Thread(**(thread.model_dump() | {"updated_at": now()})))
    run_phase1(runtime, lambda _thread: None, owner=OWNER)
    assert memories_of(runtime, MemoryScope.user()) == []
    with runtime.read() as state:
        memory = state.thread_memories.get(thread.id)
    assert memory is not None
    assert memory.raw_memory == f"raw of {thread.id}"
    assert memory.invalid_reason == "a later extraction found nothing to remember"
    assert dirty(runtime) == set(seen)
    root = memory_root(runtime.codex_home, MemoryScope.user())
    assert list((root / "raw_memories").iterdir()) == []


def test_a_failure_is_recorded_with_its_reason_and_terminal_by_default(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)

    def broken(_thread: Thread) -> ExtractedMemory:
        raise ValueError("the model\x00 said no")

    report = run_phase1(runtime, broken, owner=OWNER)
    assert outcomes(report) == [Phase1Outcome.FAILED] * 2
    assert {(result.reason, result.retry_after) for result in report.results} == {
        ("ValueError: the model said no", None)
    }
    job = job_of(runtime, cwd_key(thread))
    assert (job.status, job.failure_reason, job.retry_at) == (
        Phase1Status.FAILED,
        "ValueError: the model said no",
        None,
    )
    with runtime.begin() as state:
        state.threads.upsert(Thread(**(thread.model_dump() | {"updated_at": now()})))
    assert run_phase1(runtime, refuse, owner=OWNER).claimed == 0


def test_an_extractor_that_would_end_the_process_has_failed(runtime: StateRuntime) -> None:
    """It was a program once."""
    add_threads(runtime)

    def program(_thread: Thread) -> ExtractedMemory:
        sys.exit(3)

    report = run_phase1(runtime, program, owner=OWNER)
    assert outcomes(report) == [Phase1Outcome.FAILED] * 2
    assert "program called sys.exit(3); return or raise an error" in str(report.results[0].reason)


def test_one_failure_hurts_no_other_thread(runtime: StateRuntime) -> None:
    threads = add_threads(runtime, 3)

    def picky(thread: Thread) -> ExtractedMemory:
        if thread.id == threads[1].id:
            raise RuntimeError("broken")
        return extract(thread)

    report = run_phase1(runtime, picky, owner=OWNER)
    assert (report.succeeded, report.failed) == (4, 2)
    assert {result.key.thread_id for result in report.results if result.reason} == {threads[1].id}


@pytest.mark.parametrize("value", ["text", 7, ("raw", "summary")])
def test_what_is_no_memory_fails_the_job(runtime: StateRuntime, value: Any) -> None:
    add_threads(runtime)
    report = run_phase1(runtime, lambda _thread: value, owner=OWNER)
    assert outcomes(report) == [Phase1Outcome.FAILED] * 2
    assert "not an ExtractedMemory" in str(report.results[0].reason)


def test_a_policy_lets_failures_be_tried_again_and_bounds_them(runtime: StateRuntime) -> None:
    add_threads(runtime)
    options = Phase1Options(retry=RetryPolicy(attempts=3, backoff=timedelta(0)), scope_kinds=["user"])

    def broken(_thread: Thread) -> ExtractedMemory:
        raise TimeoutError

    reports = [run_phase1(runtime, broken, owner=OWNER, options=options) for _ in range(4)]
    assert [[(result.attempt, result.retry_after) for result in report.results] for report in reports] == [
        [(1, timedelta(0))],
        [(2, timedelta(0))],
        [(3, None)],
        [],
    ]


def test_a_failed_job_waits_for_its_retry_time(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    options = Phase1Options(retry=RetryPolicy(attempts=2, backoff=timedelta(hours=1)), scope_kinds=["user"])

    def broken(_thread: Thread) -> ExtractedMemory:
        raise TimeoutError

    report = run_phase1(runtime, broken, owner=OWNER, options=options)
    assert report.results[0].retry_after == timedelta(hours=1)
    assert run_phase1(runtime, refuse, owner=OWNER, options=options).claimed == 0
    job = job_of(runtime, user_key(thread))
    assert job.retry_at is not None
    assert job.finished_at is not None
    assert job.retry_at - job.finished_at == timedelta(hours=1)
    with runtime.begin() as state:
        state.phase1_jobs.requeue(user_key(thread))
    assert run_phase1(runtime, extract, owner=OWNER, options=options).succeeded == 1


def test_jobs_asked_for_by_key_are_claimed_or_their_refusal_is_reported(runtime: StateRuntime) -> None:
    fresh, running, done, failed, later = add_threads(runtime, 5)
    claim(runtime, user_key(running), owner=OTHER)
    run_phase1(runtime, extract, owner=OWNER, keys=[user_key(done)])
    with runtime.begin() as state:
        for thread, retry in ((failed, None), (later, timedelta(hours=1))):
            outcome = state.phase1_jobs.try_claim(
                user_key(thread), owner=OTHER, source_updated_at=now(), lease=timedelta(hours=1)
            )
            assert isinstance(outcome, Claimed)
            state.phase1_jobs.fail(outcome.lease, "broken", retry_after=retry)
    keys = [user_key(thread) for thread in (fresh, running, done, failed, later, fresh)]
    report = run_phase1(runtime, extract, owner=OWNER, keys=keys)
    assert [(result.key, result.outcome) for result in report.results] == [(keys[0], Phase1Outcome.SUCCEEDED)]
    assert [(skipped.key, skipped.reason) for skipped in report.skipped] == [
        (keys[1], SkipReason.RUNNING),
        (keys[2], SkipReason.UP_TO_DATE),
        (keys[3], SkipReason.TERMINAL_FAILURE),
        (keys[4], SkipReason.RETRY_LATER),
    ]
    assert report.skipped_by_reason == dict.fromkeys(SkipReason, 1)


def test_a_key_of_a_missing_thread_is_an_error_and_claims_nothing(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    missing = Phase1Key(UUID(int=7), MemoryScope.user())
    with pytest.raises(ThreadNotFoundError):
        run_phase1(runtime, refuse, owner=OWNER, keys=[user_key(thread), missing])
    with runtime.read() as state:
        assert state.phase1_jobs.list() == []


def test_progress_tells_of_an_extraction_while_it_runs(runtime: StateRuntime) -> None:
    add_threads(runtime)
    told: list[Phase1Progress] = []
    during: list[Phase1Progress] = []

    def look(thread: Thread) -> None:
        during.extend(told)

    run_phase1(runtime, look, owner=OWNER, progress=told.append)
    assert [(news.finished, news.running) for news in during] == [(0, 0), (0, 1)]


def test_progress_is_told_after_the_claim_and_after_each_outcome(runtime: StateRuntime) -> None:
    add_threads(runtime, 3)
    told: list[Phase1Progress] = []
    report = run_phase1(runtime, extract, owner=OWNER, progress=told.append)
    outcomes = [news for news in told if news.last is not None]
    assert [(news.claimed, news.finished) for news in outcomes] == [(6, finished) for finished in range(1, 7)]
    assert told[0] == Phase1Progress(claimed=6, finished=0, running=0)
    assert {news.last for news in outcomes} == set(report.results)


def test_an_error_of_the_progress_callback_ends_the_pass_and_gives_jobs_back(runtime: StateRuntime) -> None:
    add_threads(runtime, 3)

    def broken(news: Phase1Progress) -> None:
        if news.finished:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        run_phase1(runtime, extract, owner=OWNER, progress=broken, options=Phase1Options(concurrency=1))
    with runtime.read() as state:
        assert state.phase1_jobs.list(status=Phase1Status.RUNNING) == []
    assert run_phase1(runtime, extract, owner=OWNER).claimed > 0


def test_a_coroutine_function_needs_the_async_variant(runtime: StateRuntime) -> None:
    add_threads(runtime)

    async def later(thread: Thread) -> ExtractedMemory:
        return extract(thread)

    with pytest.raises(InvalidInputError, match="await the async variant"):
        run_phase1(runtime, later, owner=OWNER)  # type: ignore[arg-type]
    with runtime.read() as state:
        assert state.phase1_jobs.list() == []


def test_coroutines_are_extracted_in_the_callers_loop_with_bounded_concurrency(settings: StateSettings) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            await asyncio.to_thread(add_threads, runtime.sync, 20)
            loop, running, most = asyncio.get_running_loop(), 0, 0
            full = asyncio.Event()

            async def later(thread: Thread) -> ExtractedMemory:
                nonlocal running, most
                assert asyncio.get_running_loop() is loop
                running += 1
                most = max(most, running)
                if running == 7:
                    full.set()
                await asyncio.wait_for(full.wait(), 60)
                running -= 1
                return extract(thread)

            report = await arun_phase1(runtime, later, owner=OWNER, options=Phase1Options(concurrency=7))
            assert (report.succeeded, most) == (40, 7)
            assert (await arun_phase1(runtime, later, owner=OWNER)).claimed == 0

    asyncio.run(main())


def test_a_plain_function_may_be_used_under_asyncio(sqlite_runtime: StateRuntime) -> None:
    add_threads(sqlite_runtime, 2)
    threads: set[str] = set()

    def plain(thread: Thread) -> ExtractedMemory:
        threads.add(threading.current_thread().name)
        return extract(thread)

    report = asyncio.run(arun_phase1(sqlite_runtime, plain, owner=OWNER))
    assert report.succeeded == 4
    assert all(name.startswith("codex-state-memory") for name in threads)


@pytest.mark.parametrize(("settings", "front"), [("sqlite", "sync"), ("postgresql", "async")], indirect=["settings"])
def test_64_slow_extractions_keep_their_leases_though_they_wait_longer_than_those_last(
    runtime: StateRuntime, opened: Open, front: str
) -> None:
    add_threads(runtime, 64)
    rival = opened(runtime.settings)
    begun, stop, stolen = threading.Event(), threading.Event(), list[int]()

    def compete() -> None:
        assert begun.wait(60)
        while not stop.wait(0.1):
            stolen.append(run_phase1(rival, refuse, owner=OTHER, options=SHORT).claimed)

    def slow(thread: Thread) -> ExtractedMemory:
        begun.set()
        time.sleep(1)
        return extract(thread)

    async def slow_task(thread: Thread) -> ExtractedMemory:
        begun.set()
        await asyncio.sleep(1)
        return extract(thread)

    options = Phase1Options(lease=SHORT.lease, concurrency=8)
    competitor = threading.Thread(target=compete)
    competitor.start()
    try:
        if front == "sync":
            report = run_phase1(runtime, slow, owner=OWNER, options=options)
        else:
            report = asyncio.run(arun_phase1(runtime, slow_task, owner=OWNER, options=options))
    finally:
        stop.set()
        competitor.join()
    assert (report.claimed, report.succeeded) == (128, 128)
    assert {result.attempt for result in report.results} == {1}
    assert len(stolen) > 3
    assert set(stolen) == {0}


def steal(runtime: StateRuntime, key: Phase1Key) -> None:
    outcome = claim(runtime, key, owner=OTHER, lease=0)
    assert outcome.attempt == 2


def test_a_scope_that_was_taken_over_is_lost_and_the_other_is_stored(runtime: StateRuntime) -> None:
    """L2."""
    (thread,) = add_threads(runtime)

    def robbed(_thread: Thread) -> ExtractedMemory:
        steal(runtime, user_key(thread))
        return extract(thread)

    report = run_phase1(runtime, robbed, owner=OWNER)
    assert {result.key: result.outcome for result in report.results} == {
        cwd_key(thread): Phase1Outcome.SUCCEEDED,
        user_key(thread): Phase1Outcome.LOST,
    }
    assert memories_of(runtime, MemoryScope.user()) == []
    assert dirty(runtime) == {MemoryScope.cwd(CWD)}
    job = job_of(runtime, user_key(thread))
    assert (job.status, job.owner_session_id, job.attempt) == (Phase1Status.RUNNING, OTHER, 2)


@pytest.mark.parametrize("ending", ["memory", "nothing", "error"])
def test_a_worker_that_was_taken_over_changes_nothing_whatever_its_extraction_came_to(
    runtime: StateRuntime, ending: str
) -> None:
    """L2."""
    (thread,) = add_threads(runtime)

    def robbed(_thread: Thread) -> ExtractedMemory | None:
        steal(runtime, user_key(thread))
        steal(runtime, cwd_key(thread))
        if ending == "error":
            raise RuntimeError("broken")
        return extract(thread) if ending == "memory" else None

    report = run_phase1(runtime, robbed, owner=OWNER)
    assert outcomes(report) == [Phase1Outcome.LOST] * 2
    for key in (user_key(thread), cwd_key(thread)):
        job = job_of(runtime, key)
        assert (job.status, job.owner_session_id, job.failure_reason) == (Phase1Status.RUNNING, OTHER, None)
        assert memories_of(runtime, key.scope) == []
    assert dirty(runtime) == set()
    assert not (runtime.codex_home / "memories").exists()


def test_work_learns_that_its_jobs_were_taken_over_while_it_runs(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    reasons: list[StopReason | None] = []

    def robbed(_thread: Thread) -> ExtractedMemory:
        work = current_work()
        assert work is not None
        steal(runtime, user_key(thread))
        assert not work.wait(2), "the other scope is still ours"
        steal(runtime, cwd_key(thread))
        assert work.wait(60)
        reasons.append(work.reason)
        work.check()
        raise AssertionError

    assert outcomes(run_phase1(runtime, robbed, owner=OWNER, options=SHORT)) == [Phase1Outcome.LOST] * 2
    assert reasons == [StopReason.REFUSED]


def test_a_task_whose_jobs_were_taken_over_is_cancelled(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    notes: list[str] = []

    async def robbed(_thread: Thread) -> ExtractedMemory:
        for key in (user_key(thread), cwd_key(thread)):
            await asyncio.to_thread(steal, runtime, key)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise
        raise AssertionError

    report = asyncio.run(arun_phase1(runtime, robbed, owner=OWNER, options=SHORT))
    assert outcomes(report) == [Phase1Outcome.LOST] * 2
    assert notes == ["cancelled"]


def test_work_is_stopped_in_time_when_the_database_is_locked_and_its_jobs_are_given_back(
    sqlite_runtime: StateRuntime,
) -> None:
    """The lease ends unrenewed, nobody takes over: the jobs are free again at once."""
    (thread,) = add_threads(sqlite_runtime)
    signals: list[StopSignal | None] = []

    async def blocked(_thread: Thread) -> ExtractedMemory:
        signals.append(current_work())
        with closing(sqlite3.connect(sqlite_runtime.settings.database_path)) as locker:
            locker.isolation_level = None
            locker.execute("BEGIN IMMEDIATE")
            try:
                await asyncio.sleep(60)
            finally:
                locker.execute("ROLLBACK")
        raise AssertionError

    report = asyncio.run(arun_phase1(sqlite_runtime, blocked, owner=OWNER, options=SHORT))
    assert signals[0] is not None
    assert signals[0].reason is StopReason.LATE
    assert [result.reason for result in report.results] == ["no renewal was confirmed in time"] * 2
    job = job_of(sqlite_runtime, user_key(thread))
    assert (job.status, job.failure_reason) == (Phase1Status.FAILED, "no renewal was confirmed in time")
    long = Phase1Options(lease=timedelta(hours=1))
    assert run_phase1(sqlite_runtime, extract, owner=OTHER, options=long).succeeded == 2


def test_a_result_that_comes_late_is_stored_when_nobody_took_over(sqlite_runtime: StateRuntime) -> None:
    add_threads(sqlite_runtime)

    def late(thread: Thread) -> ExtractedMemory:
        work = current_work()
        assert work is not None
        with closing(sqlite3.connect(sqlite_runtime.settings.database_path)) as locker:
            locker.isolation_level = None
            locker.execute("BEGIN IMMEDIATE")
            assert work.wait(60)
            locker.execute("ROLLBACK")
        return extract(thread)

    assert run_phase1(sqlite_runtime, late, owner=OWNER, options=SHORT).succeeded == 2


def test_an_extraction_that_takes_too_long_is_cancelled_and_failed(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    options = Phase1Options(timeout=timedelta(seconds=0.1), scope_kinds=["user"])

    async def hanging(_thread: Thread) -> ExtractedMemory:
        await asyncio.sleep(60)
        raise AssertionError

    report = asyncio.run(arun_phase1(runtime, hanging, owner=OWNER, options=options))
    assert outcomes(report) == [Phase1Outcome.FAILED]
    assert job_of(runtime, user_key(thread)).failure_reason == "timed out after 0.1 s"


def test_a_plain_extractor_that_takes_too_long_is_told_failed_and_left_behind(runtime: StateRuntime) -> None:
    stuck, other = add_threads(runtime, 2)
    options = Phase1Options(timeout=timedelta(seconds=0.5), scope_kinds=["user"], concurrency=1)
    go_on, returning = threading.Event(), threading.Event()
    reasons: list[StopReason | None] = []

    def hanging(thread: Thread) -> ExtractedMemory:
        if thread.id == stuck.id:
            work = current_work()
            assert work is not None
            assert work.wait(60)
            reasons.append(work.reason)
            assert go_on.wait(60)
            returning.set()
        return extract(thread)

    report = run_phase1(runtime, hanging, owner=OWNER, options=options)
    assert outcomes(report) == [Phase1Outcome.FAILED, Phase1Outcome.SUCCEEDED]
    assert reasons == [StopReason.TIMED_OUT]
    failed = job_of(runtime, user_key(stuck))
    assert (failed.status, failed.failure_reason) == (Phase1Status.FAILED, "timed out after 0.5 s")
    go_on.set()
    assert returning.wait(60)
    for worker in threading.enumerate():
        if worker.name.startswith("codex-state-memory"):
            worker.join(60)
    assert job_of(runtime, user_key(stuck)) == failed, "what it returns is thrown away"
    assert [memory.thread_id for memory in memories_of(runtime, MemoryScope.user())] == [other.id]


def test_a_plain_extractor_that_hangs_after_its_lease_was_lost_does_not_hold_up_the_pass(
    runtime: StateRuntime,
) -> None:
    (thread,) = add_threads(runtime)
    options = Phase1Options(lease=timedelta(seconds=2), timeout=timedelta(seconds=3), scope_kinds=["user"])
    go_on = threading.Event()

    def robbed(_thread: Thread) -> ExtractedMemory | None:
        assert claim(runtime, user_key(thread), owner=OTHER, lease=0).attempt == 2
        work = current_work()
        assert work is not None
        assert work.wait(60)
        assert work.reason is StopReason.REFUSED
        assert go_on.wait(60)
        return None

    report = run_phase1(runtime, robbed, owner=OWNER, options=options)
    go_on.set()
    assert outcomes(report) == [Phase1Outcome.LOST]
    assert job_of(runtime, user_key(thread)).status is Phase1Status.RUNNING


def test_a_thread_that_is_deleted_while_it_is_extracted_is_lost(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)

    def deleting(_thread: Thread) -> ExtractedMemory:
        with runtime.begin() as state:
            state.threads.delete(thread.id)
        return extract(thread)

    assert outcomes(run_phase1(runtime, deleting, owner=OWNER)) == [Phase1Outcome.LOST] * 2
    assert dirty(runtime) == set()


def test_many_workers_at_once_extract_each_thread_once(settings: StateSettings, opened: Open) -> None:
    runtimes = [opened(settings) for _ in range(4)]
    threads = add_threads(runtimes[0], 40)
    calls: list[UUID] = []
    reports: list[Phase1Report] = []

    def counted(thread: Thread) -> ExtractedMemory:
        calls.append(thread.id)
        time.sleep(0.01)
        return extract(thread)

    def work(runtime: StateRuntime) -> None:
        while (report := run_phase1(runtime, counted, owner=OWNER, options=Phase1Options(limit=5))).claimed:
            reports.append(report)

    workers = [threading.Thread(target=work, args=[runtime]) for runtime in runtimes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(calls) == sorted(thread.id for thread in threads)
    assert sum(report.succeeded for report in reports) == 80
    root = memory_root(settings.codex_home, MemoryScope.user())
    assert {path.stem for path in (root / "raw_memories").iterdir()} == {str(thread.id) for thread in threads}
    assert (root / "memory_summary.md").read_text().count("\n- ") == 40


def test_an_empty_working_directory_has_no_scope_of_its_own(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime, cwd=Path())
    report = run_phase1(runtime, extract, owner=OWNER)
    assert [result.key for result in report.results] == [user_key(thread)]


def test_threads_of_other_homes_are_left_to_their_own_workers(runtime: StateRuntime) -> None:
    """Their rollouts are out of reach, and a failure would be terminal."""
    (mine,) = add_threads(runtime, home=runtime.home)
    (nobodys,) = add_threads(runtime)
    (far,) = add_threads(runtime, home="another machine")
    report = run_phase1(runtime, extract, owner=OWNER)
    assert {result.key.thread_id for result in report.results} == {mine.id, nobodys.id}
    report = run_phase1(runtime, extract, owner=OWNER, options=Phase1Options(all_homes=True))
    assert {result.key.thread_id for result in report.results} == {far.id}


def test_a_pass_works_on_a_database_in_memory(tmp_path: Path) -> None:
    """It has one connection, for the work and the renewals alike."""
    with StateRuntime.open(StateSettings(codex_home=tmp_path, database_url="sqlite://")) as runtime:
        add_threads(runtime, 10)

        def slow(thread: Thread) -> ExtractedMemory:
            time.sleep(7)
            return extract(thread)

        assert run_phase1(runtime, slow, owner=OWNER, options=SHORT).succeeded == 20


def test_a_fence_that_finds_one_scope_lost_gives_the_other_back(runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)

    def robbed(_thread: Thread) -> None:
        claim(runtime, user_key(thread), lease=0, owner=OTHER)
        runtime.run(fence)

    report = run_phase1(runtime, robbed, owner=OWNER)
    assert {result.key: result.outcome for result in report.results} == {
        user_key(thread): Phase1Outcome.LOST,
        cwd_key(thread): Phase1Outcome.LOST,
    }
    with runtime.read() as state:
        job = state.phase1_jobs.get(cwd_key(thread))
    assert job is not None
    assert job.retry_at is not None, "that scope was no failure"
    assert job.failures == 0


def test_a_job_that_has_crashed_is_extracted_alone_after_all_others(runtime: StateRuntime) -> None:
    """What ended with its worker must not take innocent work along once more."""
    suspects, others = add_threads(runtime, 2), add_threads(runtime, 4)
    with runtime.begin() as state:
        for thread in suspects:
            outcome = state.phase1_jobs.try_claim(
                user_key(thread), owner=OTHER, source_updated_at=thread.updated_at, lease=timedelta(seconds=5)
            )
            assert isinstance(outcome, Claimed)
            state.phase1_jobs.begin(outcome.lease)
        state.session.connection().exec_driver_sql("UPDATE memory_phase1_jobs SET started_at = started_at - 60")
    running: set[UUID] = set()
    seen: list[tuple[UUID, int]] = []
    lock = threading.Lock()

    def slow(thread: Thread) -> ExtractedMemory:
        with lock:
            running.add(thread.id)
            seen.append((thread.id, len(running)))
        time.sleep(0.02)
        with lock:
            running.discard(thread.id)
        return extract(thread)

    report = run_phase1(runtime, slow, owner=OWNER, options=Phase1Options(concurrency=8))
    assert report.succeeded == 12
    assert {thread_id for thread_id, _ in seen[-2:]} == {thread.id for thread in suspects}
    assert [at_a_time for _, at_a_time in seen[-2:]] == [1, 1]
    assert {thread_id for thread_id, _ in seen[:-2]} == {thread.id for thread in others}


def test_failures_that_differ_are_the_threads_own(runtime: StateRuntime) -> None:
    threads = add_threads(runtime, 5)

    def fail(thread: Thread) -> None:
        raise ValueError(f"can't read {thread.id}")

    report = run_phase1(runtime, fail, owner=OWNER)
    assert (report.failed, report.lost, report.stopped) == (2 * len(threads), 0, None)


@pytest.mark.parametrize("good", [0, 3, 4])
def test_a_pass_in_which_anything_else_happens_than_one_failure_goes_on(runtime: StateRuntime, good: int) -> None:
    """Only what begins with three failures that are alike is stopped."""
    threads = add_threads(runtime, 5)
    calls: list[UUID] = []

    def sometimes(thread: Thread) -> ExtractedMemory:
        calls.append(thread.id)
        if len(calls) <= good:
            return extract(thread)
        raise ValueError("no model")

    report = run_phase1(runtime, sometimes, owner=OWNER, options=Phase1Options(concurrency=1))
    if good:
        assert (report.succeeded, report.failed, report.stopped) == (2 * good, 2 * (len(threads) - good), None)
    else:
        assert (report.failed, len(calls)) == (0, 3)
        assert "ValueError: no model" in (report.stopped or "")
        with runtime.read() as state:
            assert all(job.retry_at is not None and job.failures == 0 for job in state.phase1_jobs.list())


def test_two_failures_that_are_alike_are_stored_at_the_end(runtime: StateRuntime) -> None:
    add_threads(runtime, 2)

    def fail(_thread: Thread) -> None:
        raise ValueError("no model")

    report = run_phase1(runtime, fail, owner=OWNER)
    assert (report.failed, report.stopped) == (4, None)
