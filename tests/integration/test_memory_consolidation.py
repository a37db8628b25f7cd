"""Passes of consolidation: which scopes, under which lock, and when they are clean."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from memory_support import CWD, OTHER, OWNER, add_threads, let_leases_end

from codex_state import (
    Claimed,
    ConsolidationOptions,
    ConsolidationOutcome,
    ConsolidationReport,
    ConsolidationResult,
    ExtractedMemory,
    InvalidInputError,
    LockLease,
    MemoryScope,
    State,
    StateRuntime,
    StateSettings,
    StopReason,
    Thread,
    ThreadMemory,
    aconsolidate_memories,
    consolidate_memories,
    current_work,
    fence,
    memory_root,
    run_phase1,
)

Open = Callable[[StateSettings], StateRuntime]

CWD_SCOPE, USER = MemoryScope.cwd(CWD), MemoryScope.user()
SHORT = ConsolidationOptions(lease=timedelta(seconds=6))


def remember(runtime: StateRuntime, count: int = 2) -> list[Thread]:
    threads = add_threads(runtime, count)
    run_phase1(runtime, lambda thread: ExtractedMemory(f"raw of {thread.id}", f"{thread.id}"), owner=OWNER)
    return threads


def nothing(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
    pass


def refuse(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
    pytest.fail(f"{scope} was consolidated")


def dirty(runtime: StateRuntime) -> set[MemoryScope]:
    with runtime.read() as state:
        return {MemoryScope(mark.scope_kind, mark.scope_key) for mark in state.memory_scopes.list_dirty()}


def locks(runtime: StateRuntime) -> dict[Path, Any]:
    with runtime.read() as state:
        return {lock.cwd: lock.working_thread_id for lock in state.consolidation_locks.list()}


def lock(runtime: StateRuntime, scope: MemoryScope, *, lease: float = 3600) -> LockLease:
    with runtime.autocommit() as state:
        claim = state.consolidation_locks.try_claim(
            memory_root(runtime.codex_home, scope), owner=OTHER, lease=timedelta(seconds=lease)
        )
    assert isinstance(claim, Claimed)
    return claim.lease


def outcomes(report: ConsolidationReport) -> dict[MemoryScope, ConsolidationOutcome]:
    return {result.scope: result.outcome for result in report.results}


def test_every_dirty_scope_is_consolidated_once_and_clean_afterwards(runtime: StateRuntime) -> None:
    threads = remember(runtime, 3)
    calls: list[tuple[MemoryScope, set[Any]]] = []

    def consolidate(scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
        root = memory_root(runtime.codex_home, scope)
        assert locks(runtime)[root] == OWNER
        assert (root / "memory_summary.md").read_text().count("\n- ") == 3
        (root / "MEMORY.md").write_text("consolidated")
        calls.append((scope, {memory.thread_id for memory in memories}))

    report = consolidate_memories(runtime, consolidate, owner=OWNER)
    assert outcomes(report) == dict.fromkeys([CWD_SCOPE, USER], ConsolidationOutcome.CLEAN)
    assert {result.memories for result in report.results} == {3}
    assert sorted(calls, key=str) == sorted(
        [(scope, {thread.id for thread in threads}) for scope in (CWD_SCOPE, USER)], key=str
    )
    assert dirty(runtime) == set()
    assert locks(runtime) == {}
    assert consolidate_memories(runtime, refuse, owner=OWNER) == ConsolidationReport()


def test_the_memories_come_newest_first_and_at_most_64(runtime: StateRuntime) -> None:
    remember(runtime, 40)
    remember(runtime, 40)
    handed: list[list[ThreadMemory]] = []
    consolidate_memories(runtime, lambda _scope, memories: handed.append(list(memories)), owner=OWNER, scopes=[USER])
    order = [(memory.updated_at, memory.thread_id) for memory in handed[0]]
    assert len(order) == 64
    assert order == sorted(order, reverse=True)
    assert dirty(runtime) == {CWD_SCOPE}


def test_a_scope_whose_memories_were_all_invalidated_is_consolidated_without_any(runtime: StateRuntime) -> None:
    (thread,) = remember(runtime, 1)
    with runtime.begin() as state:
        state.thread_memories.invalidate(thread.id, USER, "wrong")
    handed: list[int] = []
    consolidate_memories(runtime, lambda _scope, memories: handed.append(len(memories)), owner=OWNER, scopes=[USER])
    assert handed == [0]


def test_a_scope_that_becomes_dirty_meanwhile_stays_dirty(runtime: StateRuntime) -> None:
    remember(runtime)

    def interrupted(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        if scope == USER:
            with runtime.begin() as state:
                state.memory_scopes.mark_dirty(scope)

    report = consolidate_memories(runtime, interrupted, owner=OWNER)
    assert outcomes(report) == {CWD_SCOPE: ConsolidationOutcome.CLEAN, USER: ConsolidationOutcome.DIRTY_AGAIN}
    assert dirty(runtime) == {USER}
    assert locks(runtime) == {}
    assert outcomes(consolidate_memories(runtime, nothing, owner=OWNER)) == {USER: ConsolidationOutcome.CLEAN}


def test_a_failed_consolidation_leaves_its_scope_dirty_and_frees_the_lock(runtime: StateRuntime) -> None:
    remember(runtime)

    def broken(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        if scope == USER:
            raise RuntimeError("no model")

    report = consolidate_memories(runtime, broken, owner=OWNER)
    assert outcomes(report) == {CWD_SCOPE: ConsolidationOutcome.CLEAN, USER: ConsolidationOutcome.FAILED}
    assert {result.reason for result in report.results} == {None, "RuntimeError: no model"}
    assert dirty(runtime) == {USER}
    assert locks(runtime) == {}


def test_a_scope_that_somebody_else_consolidates_is_skipped_until_their_lock_is_stale(runtime: StateRuntime) -> None:
    remember(runtime)
    lock(runtime, USER, lease=60)
    report = consolidate_memories(runtime, nothing, owner=OWNER, scopes=[USER])
    (result,) = report.results
    assert result.outcome is ConsolidationOutcome.SKIPPED
    assert re.fullmatch(rf".* process {os.getpid()}, last seen .* UTC, consolidates it", result.reason or "")
    assert dirty(runtime) >= {USER}
    let_leases_end(runtime, 60)
    report = consolidate_memories(runtime, nothing, owner=OWNER, scopes=[USER], options=SHORT)
    assert outcomes(report) == {USER: ConsolidationOutcome.CLEAN}


def test_a_scope_that_somebody_else_has_just_consolidated_is_skipped(settings: StateSettings, opened: Open) -> None:
    """Between the listing and the lock."""
    runtime, other = opened(settings), opened(settings)
    remember(runtime)

    def consolidate(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        if scope != USER and USER in dirty(runtime):
            consolidate_memories(other, nothing, owner=OTHER, scopes=[USER])

    report = consolidate_memories(
        runtime, consolidate, owner=OWNER, scopes=[CWD_SCOPE, USER], options=ConsolidationOptions(concurrency=1)
    )
    assert [(result.outcome, result.reason) for result in report.results] == [
        (ConsolidationOutcome.CLEAN, None),
        (ConsolidationOutcome.SKIPPED, "somebody else has just consolidated it"),
    ]
    assert locks(runtime) == {}


def test_only_scopes_that_are_dirty_are_consolidated_when_asked_for_by_name(runtime: StateRuntime) -> None:
    remember(runtime)
    consolidate_memories(runtime, nothing, owner=OWNER, scopes=[USER])
    report = consolidate_memories(runtime, nothing, owner=OWNER, scopes=[USER, MemoryScope("cwd", "/other"), CWD_SCOPE])
    assert outcomes(report) == {CWD_SCOPE: ConsolidationOutcome.CLEAN}


def test_a_lock_is_kept_alive_for_longer_than_its_lease(settings: StateSettings, opened: Open) -> None:
    runtime, other = opened(settings), opened(settings)
    remember(runtime)

    begun = threading.Semaphore(0)

    def slow(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        begun.release()
        time.sleep(8)

    reports: list[ConsolidationReport] = []
    worker = threading.Thread(
        target=lambda: reports.append(consolidate_memories(runtime, slow, owner=OWNER, options=SHORT))
    )
    worker.start()
    for _ in (CWD_SCOPE, USER):
        assert begun.acquire(timeout=60)
    skipped = 0
    while worker.is_alive():
        skipped += sum(
            result.outcome is ConsolidationOutcome.SKIPPED
            for result in consolidate_memories(other, refuse, owner=OTHER, options=SHORT).results
        )
        time.sleep(0.2)
    worker.join()
    assert outcomes(reports[0]) == dict.fromkeys([CWD_SCOPE, USER], ConsolidationOutcome.CLEAN)
    assert skipped > 5


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_a_consolidation_whose_lock_was_taken_over_marks_nothing_clean(runtime: StateRuntime, ending: str) -> None:
    """L2."""
    remember(runtime)

    def robbed(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        work = current_work()
        assert work is not None
        lock(runtime, scope, lease=0)
        assert work.wait(60)
        assert work.reason is StopReason.REFUSED
        if ending == "raises":
            work.check()

    report = consolidate_memories(runtime, robbed, owner=OWNER, scopes=[USER], options=SHORT)
    assert [(result.outcome, result.reason) for result in report.results] == [
        (ConsolidationOutcome.LOST, "somebody else took the lock over")
    ]
    assert dirty(runtime) == {CWD_SCOPE, USER}
    assert set(locks(runtime).values()) == {OTHER}


def test_a_task_whose_lock_was_taken_over_is_cancelled(runtime: StateRuntime) -> None:
    remember(runtime)
    notes: list[str] = []

    async def robbed(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        await asyncio.to_thread(lock, runtime, scope, lease=0)
        try:
            await asyncio.sleep(60)
        finally:
            notes.append("ended")

    report = asyncio.run(aconsolidate_memories(runtime, robbed, owner=OWNER, scopes=[USER], options=SHORT))
    assert outcomes(report) == {USER: ConsolidationOutcome.LOST}
    assert notes == ["ended"]


def titled(runtime: StateRuntime, thread: Thread) -> str:
    with runtime.read() as state:
        found = state.threads.get(thread.id)
    assert found is not None
    return found.title


def test_a_fenced_write_of_a_paused_consolidation_changes_nothing(runtime: StateRuntime) -> None:
    """With a lease of ten minutes no renewal tells the work in time: only the fence does."""
    thread = remember(runtime)[0]

    def write(text: str) -> None:
        def work(state: State) -> None:
            fence(state)
            state.threads.upsert(Thread(**thread.model_dump() | {"title": text}))

        runtime.run(work)

    def paused(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        write("first")
        let_leases_end(runtime, 601)
        successor = consolidate_memories(runtime, lambda *_: write("newer"), owner=OTHER, scopes=[USER])
        assert outcomes(successor) == {USER: ConsolidationOutcome.CLEAN}
        write("older")

    report = consolidate_memories(runtime, paused, owner=OWNER, scopes=[USER])
    assert [(result.outcome, result.reason) for result in report.results] == [
        (ConsolidationOutcome.LOST, "somebody else took the lock over")
    ]
    assert titled(runtime, thread) == "newer"


def test_a_take_over_waits_for_a_transaction_that_is_fenced(runtime: StateRuntime) -> None:
    remember(runtime)
    order: list[str] = []

    def robbed(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        def steal() -> None:
            lock(runtime, scope, lease=0)
            order.append("taken over")

        thief = threading.Thread(target=steal)
        with runtime.begin() as state:
            fence(state)
            thief.start()
            thief.join(0.5)
            order.append("written")
        thief.join(60)

    consolidate_memories(runtime, robbed, owner=OWNER, scopes=[USER])
    assert order == ["written", "taken over"]


def test_a_fence_without_a_lease_is_refused(sqlite_runtime: StateRuntime) -> None:
    with sqlite_runtime.begin() as state, pytest.raises(InvalidInputError, match="no lease to fence with"):
        fence(state)


def test_a_consolidation_that_takes_too_long_is_cancelled_and_its_scope_stays_dirty(runtime: StateRuntime) -> None:
    remember(runtime)

    async def hanging(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        await asyncio.sleep(60)

    options = ConsolidationOptions(timeout=timedelta(seconds=0.1))
    report = asyncio.run(aconsolidate_memories(runtime, hanging, owner=OWNER, options=options))
    assert {(result.outcome, result.reason) for result in report.results} == {
        (ConsolidationOutcome.FAILED, "timed out after 0.1 s")
    }
    assert dirty(runtime) == {CWD_SCOPE, USER}
    assert locks(runtime) == {}


def test_a_plain_consolidation_that_takes_too_long_is_failed_and_left_behind(runtime: StateRuntime) -> None:
    remember(runtime)
    go_on = threading.Event()
    begun: list[MemoryScope] = []

    def hanging(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        begun.append(scope)
        if len(begun) == 1:
            assert go_on.wait(60)

    options = ConsolidationOptions(timeout=timedelta(seconds=0.5), concurrency=1)
    report = consolidate_memories(runtime, hanging, owner=OWNER, options=options)
    assert outcomes(report) == {begun[0]: ConsolidationOutcome.FAILED, begun[1]: ConsolidationOutcome.CLEAN}
    assert [result.reason for result in report.results if result.reason] == ["timed out after 0.5 s"]
    assert dirty(runtime) == {begun[0]}
    assert locks(runtime) == {}
    go_on.set()
    for worker in threading.enumerate():
        if worker.name.startswith("codex-state-memory"):
            worker.join(60)
    assert dirty(runtime) == {begun[0]}, "what it did doesn't count"


def test_files_that_cannot_be_written_fail_the_consolidation(runtime: StateRuntime) -> None:
    add_threads(runtime)
    (runtime.codex_home / "memories").write_text("in the way")
    run_phase1(runtime, lambda thread: ExtractedMemory("raw"), owner=OWNER)
    report = consolidate_memories(runtime, refuse, owner=OWNER)
    assert set(outcomes(report).values()) == {ConsolidationOutcome.FAILED}
    assert dirty(runtime) == {CWD_SCOPE, USER}
    assert locks(runtime) == {}
    without_files = ConsolidationOptions(write_files=False)
    report = consolidate_memories(runtime, nothing, owner=OWNER, options=without_files)
    assert set(outcomes(report).values()) == {ConsolidationOutcome.CLEAN}


def test_outcomes_are_told_as_they_come(runtime: StateRuntime) -> None:
    remember(runtime)
    told: list[ConsolidationResult] = []
    report = consolidate_memories(runtime, nothing, owner=OWNER, progress=told.append)
    assert set(told) == set(report.results)


def test_a_coroutine_function_needs_the_async_variant(runtime: StateRuntime) -> None:
    async def later(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        pass

    with pytest.raises(InvalidInputError, match="await the async variant"):
        consolidate_memories(runtime, later, owner=OWNER)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"lease": timedelta(seconds=1)}, {"concurrency": 0}, {"limit": -1}])
def test_options_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ConsolidationOptions(**values)


def test_many_workers_at_once_consolidate_each_scope_once(settings: StateSettings, opened: Open) -> None:
    runtimes = [opened(settings) for _ in range(4)]
    for number in range(6):
        add_threads(runtimes[0], cwd=Path(f"/code/{number}"))
    run_phase1(runtimes[0], lambda thread: ExtractedMemory("raw"), owner=OWNER)
    calls: list[MemoryScope] = []

    def slow(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        calls.append(scope)
        time.sleep(0.05)

    owners = [OWNER, OTHER, *(thread.id for thread in add_threads(runtimes[0], 2))]
    workers = [
        threading.Thread(target=consolidate_memories, args=[runtime, slow], kwargs={"owner": owner})
        for runtime, owner in zip(runtimes, owners, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == len(set(calls)) == 7
    assert dirty(runtimes[0]) == set()
