"""Leased work in a few lines: one does it, it is kept alive, and whatever happens it is given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from loops import Asyncio, Loop, Trio
from memory_support import OWNER, add_threads

from codex_state import (
    AsyncStateRuntime,
    Claimed,
    ExtractedMemory,
    HolderWrite,
    LeaseLost,
    MemoryScope,
    NamedLease,
    Phase1Lease,
    Phase1Status,
    Skipped,
    State,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadMemory,
    WorkStoppedError,
    aconsolidate_memories,
    ahold,
    arun_phase1,
    hold,
)
from codex_state.errors import InvalidInputError

LEASE = timedelta(minutes=5)
EVERY_LOOP = pytest.mark.parametrize("loop", [Asyncio, Trio])


def claim_name(state: State) -> Claimed[NamedLease] | Skipped:
    return state.named_locks.try_claim("report", owner="tests", lease=LEASE)


def claim_job(state: State) -> list[Phase1Lease]:
    return state.phase1_jobs.claim_candidates(owner=OWNER, lease=LEASE, limit=1)


def succeed(state: State, lease: Phase1Lease) -> HolderWrite:
    return state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)


def take_over(runtime: StateRuntime) -> None:
    with runtime.autocommit() as state:
        assert isinstance(state.named_locks.try_claim("report", lease=timedelta(0)), Claimed)


def held_by(runtime: StateRuntime) -> str | None:
    lock = runtime.run_read(lambda state: state.named_locks.get("report"))
    return None if lock is None else lock.owner


def test_one_of_many_does_it_and_the_next_can_when_it_is_done(runtime: StateRuntime) -> None:
    with hold(runtime, claim_name) as work, hold(runtime, claim_name) as other:
        assert work is not None
        assert other is None
        work.check()
        runtime.run(work.fence)
        assert held_by(runtime) == "tests"
    assert held_by(runtime) is None


def test_a_job_is_begun_and_finished_by_its_own_verb(runtime: StateRuntime) -> None:
    add_threads(runtime)
    for _ in range(2):
        with hold(runtime, claim_job) as work:
            assert work is not None
            job = runtime.run_read(lambda state, key=work.lease.key: state.phase1_jobs.get(key))
            assert job is not None
            assert job.begun_at is not None
            assert runtime.run(succeed, work.lease)
    with hold(runtime, claim_job) as work:
        assert work is None
    with runtime.read() as state:
        assert state.phase1_jobs.count_by_status()[Phase1Status.SUCCEEDED] == 2


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(143)])
def test_whatever_ends_the_work_gives_it_back(runtime: StateRuntime, error: BaseException) -> None:
    add_threads(runtime)
    keys = []

    def fail() -> None:
        with hold(runtime, claim_job) as work:
            assert work is not None
            keys.append(work.lease.key)
            raise error

    with pytest.raises(type(error)):
        fail()
    job = runtime.run_read(lambda state: state.phase1_jobs.get(keys[0]))
    assert job is not None
    assert (job.status, job.failures, job.crashes) == (Phase1Status.FAILED, 0, 0)
    expected = "ValueError: broken" if isinstance(error, ValueError) else "its worker was interrupted"
    assert job.failure_reason == expected
    with hold(runtime, claim_job) as work:
        assert work is not None


def test_work_that_ends_without_a_verb_is_given_back(runtime: StateRuntime) -> None:
    add_threads(runtime)
    with hold(runtime, claim_job) as work:
        assert work is not None
    job = runtime.run_read(lambda state: state.phase1_jobs.get(work.lease.key))
    assert job is not None
    assert job.failure_reason == "its worker left it unfinished"


def test_whose_lock_was_taken_over_writes_nothing_and_releases_nothing(runtime: StateRuntime) -> None:
    """L2."""

    def lose() -> None:
        with hold(runtime, claim_name) as work:
            assert work is not None
            take_over(runtime)
            runtime.run(work.fence)

    with pytest.raises(LeaseLost):
        lose()
    assert held_by(runtime) == ""


def test_several_pieces_at_a_time_are_refused(runtime: StateRuntime) -> None:
    add_threads(runtime, 2)
    with (
        pytest.raises(InvalidInputError, match="limit=1"),
        hold(runtime, lambda state: state.phase1_jobs.claim_candidates(owner=OWNER, lease=LEASE)),
    ):
        pass
    assert runtime.run(claim_job), "none of them stays claimed"


def test_work_that_takes_too_long_is_told(runtime: StateRuntime) -> None:
    def take_long() -> None:
        with hold(runtime, claim_name, timeout=timedelta(seconds=0.05)) as work:
            assert work is not None
            assert work.signal.wait(30)
            work.check()

    with pytest.raises(WorkStoppedError):
        take_long()
    assert held_by(runtime) is None


@EVERY_LOOP
def test_under_an_event_loop_it_is_the_same(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            async with ahold(runtime, claim_name) as work, ahold(runtime, claim_name) as other:
                assert work is not None
                assert other is None
                await runtime.run(work.fence)
            assert held_by(runtime.sync) is None
            with pytest.raises(ValueError, match="broken"):
                async with ahold(runtime, claim_name):
                    raise ValueError("broken")
            assert held_by(runtime.sync) is None
            with pytest.raises(WorkStoppedError):
                async with ahold(runtime, claim_name, timeout=timedelta(seconds=0.05)):
                    await loop.sleep(60)
            assert held_by(runtime.sync) is None

    loop.run(main)


@EVERY_LOOP
def test_a_cancelled_task_gives_its_work_back(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            working = threading.Event()

            async def work() -> None:
                async with ahold(runtime, claim_name):
                    working.set()
                    await loop.sleep(60)

            async with loop.started(work) as cancel:
                while not working.is_set():
                    await loop.sleep(0.001)
                cancel()
            assert held_by(runtime.sync) is None

    loop.run(main)


@EVERY_LOOP
def test_a_task_cancelled_while_it_claims_keeps_nothing(settings: StateSettings, loop: Loop) -> None:
    claiming, cancelled = threading.Event(), threading.Event()

    def claim_slowly(state: State) -> Claimed[NamedLease] | Skipped:
        claiming.set()
        assert cancelled.wait(60)
        return claim_name(state)

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:

            async def work() -> None:
                async with ahold(runtime, claim_slowly):
                    await loop.sleep(60)

            async with loop.started(work) as cancel:
                while not claiming.is_set():
                    await loop.sleep(0.001)
                cancel()
                await loop.sleep(0.01)
                cancelled.set()
            assert held_by(runtime.sync) is None

    loop.run(main)


@EVERY_LOOP
def test_the_passes_of_the_pipeline_run_under_either_loop(settings: StateSettings, loop: Loop) -> None:
    """And the coroutines of the caller in it."""
    consolidated: list[MemoryScope] = []

    async def extract(thread: Thread) -> ExtractedMemory:
        await loop.sleep(0)
        return ExtractedMemory(f"of {thread.id}")

    async def consolidate(scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        await loop.sleep(0)
        consolidated.append(scope)

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            add_threads(runtime.sync, 3)
            assert (await arun_phase1(runtime, extract, owner=OWNER)).succeeded == 6
            await aconsolidate_memories(runtime, consolidate, owner=OWNER)

    loop.run(main)
    assert len(consolidated) == 2


@EVERY_LOOP
def test_a_pass_that_is_cancelled_gives_its_jobs_back_under_either_loop(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            add_threads(runtime.sync, 3)
            begun = threading.Event()

            async def hanging(_thread: Thread) -> Any:
                begun.set()
                await loop.sleep(60)

            async with loop.started(lambda: arun_phase1(runtime, hanging, owner=OWNER)) as cancel:
                while not begun.is_set():
                    await loop.sleep(0.001)
                cancel()
            with runtime.sync.read() as state:
                assert state.phase1_jobs.count_by_status()[Phase1Status.RUNNING] == 0

    loop.run(main)


_WORKER = """
import sys, time
from datetime import timedelta
from codex_state import StateRuntime, StateSettings, exit_on_sigterm, hold

with exit_on_sigterm(), StateRuntime.open(StateSettings(codex_home=sys.argv[1])) as runtime:
    with hold(runtime, lambda state: state.named_locks.try_claim("report", lease=timedelta(minutes=5))) as work:
        print("working", flush=True)
        time.sleep(60)
"""


def test_a_worker_that_is_told_to_end_gives_its_work_back(sqlite_settings: StateSettings) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(sqlite_settings.codex_home)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "working\n"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 128 + signal.SIGTERM
    with StateRuntime.open(sqlite_settings) as runtime:
        assert held_by(runtime) is None
        assert isinstance(runtime.run(claim_name), Claimed)
