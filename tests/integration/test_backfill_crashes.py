"""A backfill whose process is killed, paused, or given more than fits into memory."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollout_files import (
    body,
    history_base,
    line,
    rollout_path,
    session_meta,
    thread_id,
    token_count,
    user_message,
    write,
    write_rollout,
)

from codex_state import BackfillStatus, StateRuntime, StateSettings, Thread, ThreadQuery
from codex_state.rollout import ToolSpec, backfill
from codex_state.rollout.backfilling import is_fresh
from tests.backfill_process import run
from tests.chaos.processes import Worker, WorkerHost

TOOL = ToolSpec(name="t", description="d", input_schema=msgspec.Raw(b"{}"))


@contextmanager
def started(
    host: WorkerHost,
    home: Path,
    *,
    batch_size: int = 200,
    lease: int = 900,
    workers: int = 0,
    refresh: bool = False,
    pause: int | None = None,
) -> Iterator[Worker]:
    """A process that backfills ``home``, past its start. It is killed at the end, if it still lives."""
    process = host.start(
        "tests.backfill_process:run",
        home=home,
        batch_size=batch_size,
        lease=lease,
        workers=workers,
        refresh=refresh,
        pause=pause,
    )
    try:
        assert process.receive() == "started"
        yield process
    finally:
        process.close()


def finished(process: Worker) -> tuple[str, int, int, int, int]:
    """What the process said at its end: outcome, upserted, failed, parse errors, growth of its memory in KiB."""
    while not isinstance(told := process.receive(), list):
        pass
    assert process.wait() == 0
    return _as_told(told)


def _as_told(told: list[Any]) -> tuple[str, int, int, int, int]:
    outcome, upserted, failed, parse_errors, grown = told
    return outcome, upserted, failed, parse_errors, grown


def alone(home: Path) -> tuple[str, int, int, int, int]:
    """What a process says that shares no memory with another, so that what it needs can be measured."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=run, args=(theirs, str(home), 200, 900, 0, False, None))
    with ours, theirs:
        process.start()
        while not isinstance(told := ours.recv(), list):
            pass
        process.join(60)
    return _as_told(told)


def rows(home: Path) -> dict[str, Any]:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        threads = (
            state.threads.list(ThreadQuery(limit=1000)).items
            + state.threads.list(ThreadQuery(limit=1000, archived=True)).items
        )
        return {
            str(each.id): {name: getattr(each, name) for name in Thread.column_names() if name != "rollout_path"}
            | {"path": each.rollout_path.relative_to(home), "tools": len(state.dynamic_tools.get(each.id) or ())}
            for each in threads
        }


def many_rollouts(home: Path, count: int) -> None:
    for number in range(1, count + 1):
        write_rollout(
            home,
            number,
            session_meta(number, dynamic_tools=[TOOL]),
            user_message(f"prompt {number}"),
            token_count(number),
            archived=number % 4 == 0,
            time=f"2026-01-{number % 28 + 1:02d}T00-00-00",
            modified=1_767_400_000 + number,
        )


def watermark(home: Path) -> str:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        stored = state.backfill.get()
        return "" if stored is None else stored.last_watermark or ""


def end_lease_of_the_dead(home: Path) -> bool:
    """Let the next worker start at once instead of after the lease. Tells whether the backfill is complete."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.autocommit() as state:
        stored = state.backfill.get()
        if stored is not None and stored.status is BackfillStatus.COMPLETE:
            return True
        state.backfill.release(state.backfill.take_over(owner="test", lease=timedelta(seconds=1)))
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_a_backfill_killed_at_random_points_ends_with_the_rows_of_an_undisturbed_one(
    host: WorkerHost, tmp_path: Path, workers: int
) -> None:
    """L4, L5: it repeats at most one batch, and its watermark never goes back."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    many_rollouts(calm, 70)
    shutil.copytree(calm, killed)
    with StateRuntime.open(StateSettings(codex_home=calm)) as runtime:
        backfill(runtime, workers=0)
    rng = random.Random(workers)
    marks = [""]
    kills = 0
    for number in range(60):
        # The first ones surely don't end before: they stop when a batch is to be stored.
        pause = 1 + number % 2 if number < 3 else None
        with started(host, killed, batch_size=7, workers=workers, pause=pause) as process:
            if pause is not None:
                while process.receive() != "paused":
                    pass
            else:
                for _ in range(rng.randrange(3)):
                    if isinstance(process.receive(), list):
                        break  # it has ended by itself
                time.sleep(rng.uniform(0, 0.01))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        marks.append(watermark(killed))
        if end_lease_of_the_dead(killed):
            break
    with StateRuntime.open(StateSettings(codex_home=killed)) as runtime:
        backfill(runtime, workers=0)
    assert kills >= 3
    assert marks == sorted(marks)
    assert rows(killed) == rows(calm)
    assert len(rows(calm)) == 70
    assert watermark(killed) == watermark(calm)


def test_another_worker_takes_over_from_a_killed_one_at_once(host: WorkerHost, tmp_path: Path) -> None:
    many_rollouts(tmp_path, 20)
    with started(host, tmp_path, batch_size=5, lease=900, pause=2) as process:
        assert process.receive() == 5
        process.kill()
        process.wait()
    with StateRuntime.open(StateSettings(codex_home=tmp_path)) as runtime:
        report = backfill(runtime)
    assert (report.status, report.scanned) == ("complete", 15)
    assert len(rows(tmp_path)) == 20


def test_one_that_may_live_elsewhere_is_waited_for_until_its_lease_is_over(host: WorkerHost, tmp_path: Path) -> None:
    many_rollouts(tmp_path, 20)
    with started(host, tmp_path, batch_size=5, lease=2, pause=2) as process:
        assert process.receive() == 5
        assert process.receive() == "paused"
        process.kill()
        process.wait()
    settings = StateSettings(codex_home=tmp_path, backfill_lease=timedelta(seconds=2))
    with StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            state.session.connection().exec_driver_sql(
                "UPDATE backfill_state SET owner_process = 'another boot:1:1:1', updated_at = unixepoch()"
            )
        assert backfill(runtime).status == "running"
        time.sleep(3.1)
        report = backfill(runtime)
    assert (report.status, report.scanned) == ("complete", 15)


def test_a_paused_worker_changes_nothing_after_takeover(host: WorkerHost, tmp_path: Path) -> None:
    """L2, L5: what it had read before the pause is old by then; its whole batch is refused."""
    many_rollouts(tmp_path, 20)
    with started(host, tmp_path, batch_size=5, lease=1, pause=2) as process:
        assert process.receive() == 5
        assert process.receive() == "paused"
        process.wait_until_stopped()
        time.sleep(2.1)
        for number in range(1, 21):
            path = next(tmp_path.rglob(f"rollout-*-{thread_id(number)}.jsonl"))
            write(path, body(session_meta(number), user_message(f"newer {number}")), modified=1_767_500_000 + number)
        settings = StateSettings(codex_home=tmp_path, backfill_lease=timedelta(seconds=1))
        with StateRuntime.open(settings) as runtime:
            report = backfill(runtime)
        assert (report.status, report.scanned) == ("complete", 20), "the first five were written again since"
        before = rows(tmp_path)
        process.proceed()
        outcome, upserted, *_ = finished(process)
    assert (outcome, upserted) == ("lease_lost", 5)
    assert rows(tmp_path) == before
    assert all(row["title"].startswith("newer") for row in before.values())


def test_two_workers_at_once_do_the_work_once(host: WorkerHost, tmp_path: Path) -> None:
    many_rollouts(tmp_path, 60)
    StateRuntime.open(StateSettings(codex_home=tmp_path)).close()
    with started(host, tmp_path, batch_size=5) as first, started(host, tmp_path, batch_size=5) as second:
        outcomes = [finished(first), finished(second)]
    assert sorted(upserted for _, upserted, *_ in outcomes) == [0, 60]
    assert len(rows(tmp_path)) == 60


def threads_with_several_files(home: Path, count: int) -> None:
    """Rollouts of many threads; some were reverted, some have a copy, some lie in both roots, some are damaged."""
    many_rollouts(home, count)
    for number in range(1, count + 1):
        path = next(home.rglob(f"rollout-*-{thread_id(number)}.jsonl"))
        seconds = 1_767_500_000 + number
        if number % 5 == 0:
            items = (session_meta(number, history_base=history_base(number, 3)), user_message(f"then {number}"))
            write_rollout(home, number, *items, time="2026-02-01T00-00-00", segment=number, modified=seconds)
        if number % 7 == 0:
            write(path.with_name(path.name.replace(".jsonl", " (1).jsonl")), path.read_bytes(), modified=seconds)
        if number % 9 == 0:
            write(home / "archived_sessions" / path.name, path.read_bytes(), modified=seconds)
        if number % 11 == 0:
            write(path, b"damaged", modified=seconds)


def everything(home: Path) -> list[tuple[str, ...]]:
    """All rows of threads, tools and files as they are stored, with paths relative to the home."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        connection = state.session.connection()
        return [
            tuple(str(value).replace(f"{home}/", "") for value in each)
            for name in ("threads", "thread_dynamic_tools", "rollout_files")
            for each in connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1, 2")
        ]


def test_many_times_at_once_and_killed_in_between_gives_the_rows_of_a_single_run(
    host: WorkerHost, tmp_path: Path
) -> None:
    """L5: whoever does it, however often it is begun."""
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    threads_with_several_files(calm, 60)
    shutil.copytree(calm, disturbed)
    with StateRuntime.open(StateSettings(codex_home=calm)) as runtime:
        backfill(runtime, workers=0)
    rng = random.Random(8)
    rounds = killed = 0
    # On a busy machine many have ended before they are killed.
    while rounds < 10 or (killed < 3 and rounds < 100):
        rounds += 1
        with ExitStack() as running:
            processes = [running.enter_context(started(host, disturbed, batch_size=5, refresh=True)) for _ in range(2)]
            time.sleep(rng.uniform(0, 0.05))
            for process in rng.sample(processes, rng.randrange(3)):
                process.kill()
            killed += [process.wait() for process in processes].count(-signal.SIGKILL)
    with StateRuntime.open(StateSettings(codex_home=disturbed)) as runtime:
        for _ in range(3):
            assert backfill(runtime, refresh=True).status == "complete"
        assert is_fresh(runtime)
    assert killed >= 3
    assert everything(disturbed) == everything(calm)
    assert len(rows(calm)) == 60 - 4, "four have no other file than a damaged one"


def test_a_line_of_64_mb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    huge = (
        line(user_message("x" * 8)).replace(b"xxxxxxxx", b"x" * (64 << 20)).replace(b"user_message", b"agent_message")
    )
    good, broken = huge, huge[:-1]
    write(rollout_path(tmp_path, 1), body(session_meta(1), user_message("one"), good, token_count(1)))
    write(rollout_path(tmp_path, 2), body(session_meta(2), user_message("two"), broken, token_count(2)))
    outcome, upserted, failed, parse_errors, grown = alone(tmp_path)
    assert (outcome, upserted, failed, parse_errors) == ("complete", 2, 0, 1)
    assert {row["title"]: row["tokens_used"] for row in rows(tmp_path).values()} == {"one": 1, "two": 2}
    # The line itself, and once more while it is put together.
    assert grown < (2 * 64 + 40) * 1024


def test_memory_does_not_grow_with_the_number_of_rollouts(tmp_path: Path) -> None:
    """L10."""
    grown = {}
    for count in (400, 4000):
        home = tmp_path / str(count)
        many_rollouts(home, count)
        outcome, upserted, *_, grown[count] = alone(home)
        assert (outcome, upserted) == ("complete", count)
    assert grown[4000] - grown[400] < 6 * 1024
