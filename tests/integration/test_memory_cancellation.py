"""Passes that are cancelled under asyncio: nothing outlives them, and others can go on at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
from memory_support import OTHER, OWNER, add_threads

from codex_state import (
    AsyncStateRuntime,
    ExtractedMemory,
    MemoryScope,
    Phase1Options,
    Phase1Status,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadMemory,
    aconsolidate_memories,
    arun_phase1,
    current_work,
    run_phase1,
)


def extract(thread: Thread) -> ExtractedMemory:
    return ExtractedMemory(f"raw of {thread.id}", "summary")


def statuses(runtime: StateRuntime) -> dict[Phase1Status, int]:
    with runtime.read() as state:
        return {status: count for status, count in state.phase1_jobs.count_by_status().items() if count}


def test_a_cancelled_pass_gives_its_jobs_back_before_the_cancellation_goes_on(runtime: StateRuntime) -> None:
    add_threads(runtime, 5)

    async def main() -> None:
        started, ended = asyncio.Event(), list[Thread]()

        async def hanging(thread: Thread) -> ExtractedMemory:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                ended.append(thread)
            raise AssertionError

        task = asyncio.create_task(arun_phase1(runtime, hanging, owner=OWNER, options=Phase1Options(concurrency=3)))
        await started.wait()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(ended) == 3, "what had begun was cancelled and awaited, the rest never began"
        assert len(asyncio.all_tasks()) == 1
        assert statuses(runtime) == {Phase1Status.FAILED: 10}
        assert (await arun_phase1(runtime, extract, owner=OTHER)).succeeded == 10

    asyncio.run(main())


def test_a_timeout_around_a_pass_is_a_cancellation(runtime: StateRuntime) -> None:
    add_threads(runtime, 2)

    async def hanging(_thread: Thread) -> ExtractedMemory:
        await asyncio.sleep(60)
        raise AssertionError

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await arun_phase1(runtime, hanging, owner=OWNER)

    asyncio.run(main())
    assert statuses(runtime) == {Phase1Status.FAILED: 4}


@pytest.mark.parametrize("moment", range(12))
def test_a_pass_cancelled_at_any_moment_leaves_every_job_finished_or_claimable(
    sqlite_settings: StateSettings, moment: int
) -> None:
    """The delays walk through the claim, the extraction and the storing of a pass."""

    async def main() -> None:
        async with AsyncStateRuntime.open(sqlite_settings) as runtime:
            await asyncio.to_thread(add_threads, runtime.sync, 12)

            async def brief(thread: Thread) -> ExtractedMemory:
                await asyncio.sleep(0.002)
                return extract(thread)

            task = asyncio.create_task(arun_phase1(runtime, brief, owner=OWNER, options=Phase1Options(concurrency=4)))
            await asyncio.sleep(0.006 * moment)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert Phase1Status.RUNNING not in statuses(runtime.sync)
            await arun_phase1(runtime, brief, owner=OTHER)
            assert statuses(runtime.sync) == {Phase1Status.SUCCEEDED: 24}

    asyncio.run(main())


def test_a_plain_extractor_is_left_behind_and_its_result_thrown_away(runtime: StateRuntime) -> None:
    add_threads(runtime)
    started, go_on, told = threading.Event(), threading.Event(), list[bool]()

    def stubborn(thread: Thread) -> ExtractedMemory:
        started.set()
        go_on.wait(60)
        work = current_work()
        assert work is not None
        told.append(work.stopped)
        return extract(thread)

    async def main() -> None:
        task = asyncio.create_task(arun_phase1(runtime, stubborn, owner=OWNER))
        await asyncio.to_thread(started.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert statuses(runtime) == {Phase1Status.FAILED: 2}
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("codex-state-memory"):
            thread.join(60)
    assert told == [True]
    assert statuses(runtime) == {Phase1Status.FAILED: 2}


def test_the_end_of_the_event_loop_fails_no_job(runtime: StateRuntime) -> None:
    """``asyncio.run`` cancels every task that is left, the extractions' among them."""
    add_threads(runtime, 3)

    async def main() -> None:
        started = asyncio.Event()

        async def hanging(_thread: Thread) -> ExtractedMemory:
            started.set()
            await asyncio.sleep(60)
            raise AssertionError

        main.task = asyncio.create_task(arun_phase1(runtime, hanging, owner=OWNER))  # type: ignore[attr-defined]
        await started.wait()

    asyncio.run(main())
    assert statuses(runtime) == {Phase1Status.FAILED: 6}
    assert run_phase1(runtime, extract, owner=OTHER, options=Phase1Options(lease=timedelta(hours=1))).succeeded == 6


def test_a_cancelled_consolidation_frees_its_locks_and_leaves_its_scopes_dirty(runtime: StateRuntime) -> None:
    add_threads(runtime, 2)
    run_phase1(runtime, extract, owner=OWNER)
    ended: list[MemoryScope] = []

    async def main() -> None:
        started = asyncio.Event()

        async def hanging(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(scope)

        task = asyncio.create_task(aconsolidate_memories(runtime, hanging, owner=OWNER))
        await started.wait()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(ended) == 2
    with runtime.read() as state:
        assert state.consolidation_locks.list() == []
        assert len(state.memory_scopes.list_dirty()) == 2
