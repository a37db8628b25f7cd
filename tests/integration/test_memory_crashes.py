"""Workers that are killed, paused or interrupted at every step of the memory pipeline."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from memory_support import CWD, OTHER, OWNER, add_threads, let_leases_end
from memory_worker import Orders
from sqlalchemy import text

from codex_state import (
    ConsolidationOptions,
    ConsolidationOutcome,
    ExtractedMemory,
    MemoryScope,
    Phase1Options,
    Phase1Status,
    RetryPolicy,
    StateRuntime,
    StateSettings,
    Thread,
    consolidate_memories,
    memory_root,
    run_phase1,
)
from tests.chaos.processes import Worker, WorkerError, WorkerHost

Open = Callable[[StateSettings], StateRuntime]

SECONDS = 60
LEASE = timedelta(seconds=SECONDS)
"""Long enough for the slowest machine to keep it. Its end is brought about, not waited for."""
TABLES = ("memory_phase1_jobs", "thread_memory", "memory_scope_dirty", "memory_consolidation_locks")
SCOPES = (MemoryScope.cwd(CWD), MemoryScope.user())

EXTRACTION_STEPS = [
    "after claim",
    "within",
    "before store",
    "before upsert",
    "after upsert",
    "after succeed",
    "after mark",
    "after store",
    "before write",
    "after write",
    "after render",
]
CONSOLIDATION_STEPS = ["after acquire", "before write", "within", "before clean", "after clean", "after release"]


def orders(settings: StateSettings, **values: Any) -> Orders:
    url = settings.database_url
    return Orders(settings.codex_home, url and url.get_secret_value(), **({"owner": OWNER} | values))


@contextmanager
def started(host: WorkerHost, given: Orders) -> Iterator[Worker]:
    worker = host.start("tests.memory_worker:work", orders=given.dumps())
    try:
        yield worker
    finally:
        worker.close()


def rows_of(runtime: StateRuntime) -> dict[str, list[Any]]:
    with runtime.read() as state:
        connection = state.session.connection()
        return {
            table: sorted(map(repr, connection.execute(text(f"SELECT * FROM {table}")).mappings())) for table in TABLES
        }


def files_of(home: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted((home / "memories").rglob("*.md"))}


def finish_with_another_worker(
    runtime: StateRuntime, *, expected: int, lease: timedelta = LEASE, attempts: int = 3
) -> None:
    """Passes of another worker, until every job is done."""

    def extract(thread: Thread) -> ExtractedMemory:
        return ExtractedMemory(f"of {thread.id} by {OTHER}", f"by {OTHER}")

    options = Phase1Options(lease=lease, retry=RetryPolicy(attempts=attempts))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        run_phase1(runtime, extract, owner=OTHER, options=options)
        with runtime.read() as state:
            if state.phase1_jobs.count_by_status()[Phase1Status.SUCCEEDED] == expected:
                return
        time.sleep(0.1)
    pytest.fail("the jobs were not finished")


def check_each_output_is_there_once(runtime: StateRuntime, threads: list[Thread]) -> None:
    """Every job succeeded once, its memory is its holder's, and the files show exactly that."""
    with runtime.read() as state:
        jobs = state.phase1_jobs.list()
        assert len(jobs) == 2 * len(threads)
        for scope in SCOPES:
            memories = {memory.thread_id: memory for memory in state.thread_memories.last_n_for_scope(scope, 100)}
            mark = state.memory_scopes.get(scope)
            assert mark is not None
            assert mark.dirty
            root = memory_root(runtime.codex_home, scope)
            assert {path.stem for path in (root / "raw_memories").iterdir()} == {str(key) for key in memories}
            for thread in threads:
                (job,) = [job for job in jobs if (job.thread_id, job.scope_kind) == (thread.id, scope.kind)]
                assert job.status is Phase1Status.SUCCEEDED
                assert memories[thread.id].raw_memory == f"of {thread.id} by {job.owner_session_id}"
                assert job.raw_memory_path == root / "raw_memories" / f"{thread.id}.md"
                assert job.raw_memory_path.read_text().endswith(f"\n\n{memories[thread.id].raw_memory}\n")
                assert f"by {job.owner_session_id} (thread {thread.id}" in (root / "memory_summary.md").read_text()


@pytest.mark.parametrize("step", EXTRACTION_STEPS)
def test_an_extraction_killed_at_any_step_is_finished_by_another_worker(
    settings: StateSettings, opened: Open, host: WorkerHost, step: str
) -> None:
    """L2, L5: its outputs are there exactly once."""
    runtime = opened(settings)
    threads = add_threads(runtime, 3)
    with started(host, orders(settings, lease=SECONDS, at=step)) as worker:
        assert worker.wait() == -signal.SIGKILL
    let_leases_end(runtime, SECONDS)
    finish_with_another_worker(runtime, expected=6)
    check_each_output_is_there_once(runtime, threads)
    with runtime.read() as state:
        finished_before = [job for job in state.phase1_jobs.list() if job.owner_session_id == OWNER]
        assert {job.attempt for job in finished_before} <= {1}, "what was finished was not claimed again"
        committed = step in {"after store", "before write", "after write", "after render"}
        assert bool(finished_before) == committed


@pytest.mark.parametrize("step", ["within", "before store"])
def test_an_extraction_paused_past_its_lease_changes_nothing(
    settings: StateSettings, opened: Open, host: WorkerHost, step: str
) -> None:
    """L2."""
    runtime = opened(settings)
    threads = add_threads(runtime, 2)
    with started(host, orders(settings, lease=SECONDS, concurrency=2, at=step, happens="SIGSTOP")) as worker:
        worker.wait_until_stopped()
        let_leases_end(runtime, SECONDS)
        finish_with_another_worker(runtime, expected=4)
        rows, files = rows_of(runtime), files_of(settings.codex_home)
        worker.proceed()
        outcomes, status = worker.receive(), worker.wait()
    assert (status, outcomes) == (0, ["lost"] * 4)
    assert rows_of(runtime) == rows
    assert files_of(settings.codex_home) == files
    check_each_output_is_there_once(runtime, threads)
    with runtime.read() as state:
        assert {job.owner_session_id for job in state.phase1_jobs.list()} == {OTHER}


def test_an_extraction_paused_in_real_time_changes_nothing(
    settings: StateSettings, opened: Open, host: WorkerHost
) -> None:
    """L2. Nobody turns a clock here."""
    runtime = opened(settings)
    add_threads(runtime, 2)
    with started(host, orders(settings, lease=3, concurrency=2, at="within", happens="SIGSTOP")) as worker:
        worker.wait_until_stopped()
        # On a machine that does much else a lease of three seconds may run out under this worker, too.
        finish_with_another_worker(runtime, expected=4, lease=timedelta(seconds=3), attempts=99)
        rows = rows_of(runtime)
        worker.proceed()
        assert (worker.receive(), worker.wait()) == (["lost"] * 4, 0)
    assert rows_of(runtime) == rows


@pytest.mark.parametrize("step", ["before render", "before write", "after write"])
def test_a_worker_paused_while_it_writes_files_leaves_the_newest_texts(
    settings: StateSettings, opened: Open, host: WorkerHost, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from codex_state.memory import files

    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.2)
    runtime = opened(settings)
    threads = add_threads(runtime, 2)
    with started(host, orders(settings, lease=SECONDS, at=step, happens="SIGSTOP")) as worker:
        worker.wait_until_stopped()
        let_leases_end(runtime, SECONDS)
        finish_with_another_worker(runtime, expected=4)
        worker.proceed()
        worker.receive()
        assert worker.wait() == 0
    check_each_output_is_there_once(runtime, threads)


def test_an_interrupted_worker_gives_its_jobs_back_at_once(
    settings: StateSettings, opened: Open, host: WorkerHost
) -> None:
    """With a lease of an hour: nobody waits for its end."""
    runtime = opened(settings)
    threads = add_threads(runtime, 3)
    log, gate = settings.codex_home / "log", settings.codex_home / "gate"
    with started(host, orders(settings, concurrency=2, log=log, pause_for=gate)) as worker:
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            time.sleep(0.01)
        worker.interrupt()
        with pytest.raises(WorkerError, match=r"\nKeyboardInterrupt\n$"):
            worker.receive()
        assert worker.wait() == 1
    with runtime.read() as state:
        jobs = state.phase1_jobs.list()
        assert {job.status for job in jobs} == {Phase1Status.FAILED}
        assert {job.failure_reason for job in jobs} == {"the pass was interrupted"}
    report = run_phase1(
        runtime,
        lambda thread: ExtractedMemory(f"of {thread.id} by {OTHER}", f"by {OTHER}"),
        owner=OTHER,
    )
    assert report.succeeded == 6
    check_each_output_is_there_once(runtime, threads)


def test_workers_killed_again_and_again_get_everything_done_once(
    settings: StateSettings, opened: Open, host: WorkerHost
) -> None:
    runtime = opened(settings)
    threads = add_threads(runtime, 8)
    for round_, step in enumerate(["after upsert", "after store", "before mark", "before write"]):
        owner = OWNER if round_ % 2 else OTHER
        given = orders(settings, owner=owner, lease=SECONDS, concurrency=4, attempts=9, at=step)
        with started(host, given) as worker:
            assert worker.wait() == -signal.SIGKILL
        let_leases_end(runtime, SECONDS)
    finish_with_another_worker(runtime, expected=16, attempts=9)
    check_each_output_is_there_once(runtime, threads)


def remember_everything(runtime: StateRuntime) -> list[Thread]:
    threads = add_threads(runtime, 2)
    run_phase1(runtime, lambda thread: ExtractedMemory(f"of {thread.id} by {OWNER}", f"by {OWNER}"), owner=OWNER)
    return threads


@pytest.mark.parametrize("step", CONSOLIDATION_STEPS)
def test_a_consolidation_killed_at_any_step_leaves_its_scope_dirty_for_another(
    settings: StateSettings, opened: Open, host: WorkerHost, step: str
) -> None:
    runtime = opened(settings)
    remember_everything(runtime)
    with started(host, orders(settings, phase="consolidate", lease=SECONDS, at=step)) as worker:
        assert worker.wait() == -signal.SIGKILL
    with runtime.read() as state:
        assert len(state.memory_scopes.list_dirty()) == 2, "the mark is cleaned with the lock's release"
    let_leases_end(runtime, SECONDS)
    options = ConsolidationOptions(lease=LEASE)
    calls: list[MemoryScope] = []
    report = consolidate_memories(runtime, lambda scope, _memories: calls.append(scope), owner=OTHER, options=options)
    assert report.count(ConsolidationOutcome.CLEAN) == 2
    assert sorted(map(str, calls)) == sorted(map(str, SCOPES))
    with runtime.read() as state:
        assert state.memory_scopes.list_dirty() == []
        assert state.consolidation_locks.list() == []


def check_a_paused_consolidation_changes_nothing(
    host: WorkerHost, settings: StateSettings, runtime: StateRuntime, step: str
) -> None:
    remember_everything(runtime)
    given = orders(settings, phase="consolidate", lease=SECONDS, at=step, happens="SIGSTOP")
    with started(host, given) as worker:
        worker.wait_until_stopped()
        let_leases_end(runtime, SECONDS)
        with runtime.begin() as state:
            for scope in SCOPES:
                root = memory_root(settings.codex_home, scope)
                state.consolidation_locks.try_claim(root, owner=OTHER, lease=LEASE)
                state.memory_scopes.mark_dirty(scope)
        rows = rows_of(runtime)
        worker.proceed()
        outcomes, status = worker.receive(), worker.wait()
    # The scope that it hadn't locked yet was locked by the other.
    assert (status, outcomes) == (0, ["lost", "skipped"])
    assert rows_of(runtime) == rows


def test_a_consolidation_paused_past_its_lease_changes_nothing(
    settings: StateSettings, opened: Open, host: WorkerHost
) -> None:
    """L2."""
    check_a_paused_consolidation_changes_nothing(host, settings, opened(settings), "within")


def test_a_consolidation_paused_in_its_last_transaction_changes_nothing(
    postgres_settings: StateSettings, opened: Open, host: WorkerHost
) -> None:
    """L2. On SQLite nobody can take over meanwhile: there is one writer."""
    check_a_paused_consolidation_changes_nothing(host, postgres_settings, opened(postgres_settings), "before clean")


def test_the_orders_of_a_worker_survive_their_journey(sqlite_settings: StateSettings) -> None:
    given = orders(sqlite_settings, at="after claim", log=Path("/log"), lease=2)
    assert Orders.loads(given.dumps()) == given
    assert json.loads(given.dumps())["home"] == str(sqlite_settings.codex_home)
