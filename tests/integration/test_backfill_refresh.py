"""Refreshing a complete index: what was written, added, moved or restored since, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_home import copy_of_the_example_home
from rollout_files import write_rollout

from codex_state import BackfillOutcome, StateRuntime, StateSettings, Thread, ThreadQuery, backfill
from codex_state.rollout import fold


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[StateRuntime]:
    home = copy_of_the_example_home(tmp_path / "home")
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
        broken = next(path for path in home.rglob("*.jsonl") if "019d65e1-f380" in path.name)
        broken.unlink()
        yield runtime


def all_threads(runtime: StateRuntime) -> list[Thread]:
    with runtime.read() as state:
        ids = [
            *state.threads.list_ids(ThreadQuery(limit=100)),
            *state.threads.list_ids(ThreadQuery(limit=100, archived=True)),
        ]
        return [thread for thread in map(state.threads.get, ids) if thread is not None]


def one_plain_rollout(runtime: StateRuntime) -> Thread:
    return next(
        thread
        for thread in all_threads(runtime)
        if thread.rollout_path.suffix == ".jsonl" and not thread.archived and str(thread.id) in thread.rollout_path.name
    )


def test_a_complete_index_is_left_alone_without_it(runtime: StateRuntime) -> None:
    thread = one_plain_rollout(runtime)
    thread.rollout_path.touch()
    assert backfill(runtime).scanned == 0


def test_nothing_is_read_when_nothing_changed(runtime: StateRuntime) -> None:
    before = all_threads(runtime)
    with runtime.read() as state:
        watermark = state.backfill.get().last_watermark
    assert backfill(runtime, refresh=True).gone == 1  # the damaged file, which the fixture took away
    report = backfill(runtime, refresh=True)
    assert (report.status, report.scanned, report.gone, report.failed) == (BackfillOutcome.COMPLETE, 0, 0, 0)
    assert report.watermark == watermark
    assert all_threads(runtime) == before
    with runtime.read() as state:
        assert state.backfill.get().last_watermark == watermark


def test_a_rollout_that_was_written_since_is_read_again(runtime: StateRuntime) -> None:
    thread = one_plain_rollout(runtime)
    kinds = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens")
    usage = dict.fromkeys(kinds, 987654)
    payload = {"type": "token_count", "info": {"total_token_usage": usage, "last_token_usage": usage}}
    with thread.rollout_path.open("a") as file:
        line = {"timestamp": "2026-05-01T00:00:00.000Z", "type": "event_msg", "payload": payload}
        file.write("\n" + json.dumps(line) + "\n")
    report = backfill(runtime, refresh=True)
    assert (report.scanned, report.upserted) == (1, 1)
    with runtime.read() as state:
        assert state.threads.get(thread.id).tokens_used == 987654


def test_a_rollout_that_is_restored_from_a_backup_is_found(runtime: StateRuntime, tmp_path: Path) -> None:
    thread = one_plain_rollout(runtime)
    backup = tmp_path / "backup.jsonl"
    shutil.copy2(thread.rollout_path, backup)
    thread.rollout_path.unlink()
    with runtime.begin() as state:
        state.threads.delete(thread.id)
    assert backfill(runtime, refresh=True).scanned == 0
    shutil.copy2(backup, thread.rollout_path)
    report = backfill(runtime, refresh=True)
    assert (report.scanned, report.upserted) == (1, 1)
    with runtime.read() as state:
        assert state.threads.get(thread.id) == thread


def test_a_new_rollout_is_found_before_and_beyond_the_watermark(runtime: StateRuntime) -> None:
    thread = one_plain_rollout(runtime)
    text = thread.rollout_path.read_text()
    added = []
    for number, day in enumerate(("2020/01/01", "2099/01/01")):
        new_id = f"{number:08x}-0000-7000-8000-00000000abcd"
        name = f"rollout-{day.replace('/', '-')}T00-00-00-{new_id}.jsonl"
        path = runtime.codex_home / "sessions" / day / name
        path.parent.mkdir(parents=True)
        path.write_text(text.replace(str(thread.id), new_id))
        os.utime(path, (1_790_000_000, 1_790_000_000))
        added.append(path)
    report = backfill(runtime, refresh=True)
    assert (report.scanned, report.upserted) == (2, 2)
    assert set(added) <= {thread.rollout_path for thread in all_threads(runtime)}
    assert backfill(runtime, refresh=True).scanned == 0


def test_an_earlier_rollout_of_a_thread_never_replaces_the_later_one(runtime: StateRuntime) -> None:
    thread = one_plain_rollout(runtime)
    earlier = runtime.codex_home / "sessions" / "2020" / thread.rollout_path.name
    earlier.parent.mkdir(parents=True)
    shutil.copy2(thread.rollout_path, earlier)
    os.utime(earlier, (1, 1))
    for looked_at in (1, 0):
        report = backfill(runtime, refresh=True)
        assert (report.scanned, report.failed) == (looked_at, 0)
        with runtime.read() as state:
            assert state.threads.get(thread.id) == thread


def test_a_moved_rollout_is_followed(runtime: StateRuntime) -> None:
    thread = one_plain_rollout(runtime)
    target = runtime.codex_home / "archived_sessions" / thread.rollout_path.name
    thread.rollout_path.rename(target)
    backfill(runtime, refresh=True)
    with runtime.read() as state:
        moved = state.threads.get(thread.id)
    assert (moved.rollout_path, moved.archived) == (target, True)


def test_a_file_that_failed_is_named_each_time_and_read_once(runtime: StateRuntime) -> None:
    broken = one_plain_rollout(runtime).rollout_path.with_name("rollout-nobody.jsonl")
    broken.write_text("nothing of use\n")
    os.utime(broken, (1, 1))
    for read in (1, 0):
        report = backfill(runtime, refresh=True)
        assert (report.scanned, report.failed, report.failures[0].path) == (read, 1, str(broken))


@pytest.mark.parametrize("year", [1600, 2263, 9000, 30_000])
def test_a_file_of_any_time_stops_no_other(runtime: StateRuntime, year: int) -> None:
    """A database's integers hold nanoseconds of the years 1677 to 2262 only."""
    thread = one_plain_rollout(runtime)
    path, index = thread.rollout_path, runtime.codex_home / "session_index.jsonl"
    index.write_text(json.dumps({"id": str(thread.id), "thread_name": "n"}) + "\n")
    seconds = (year - 1970) * 31_556_952
    try:
        for each in (path, index):
            os.utime(each, ns=(seconds * 10**9, seconds * 10**9))
    except (OSError, OverflowError) as error:
        pytest.skip(f"the file system can't store it: {error}")
    if path.stat().st_mtime_ns != seconds * 10**9:
        pytest.skip("the file system can't store it")
    other = write_rollout(runtime.codex_home, 7)
    first, second = backfill(runtime, refresh=True), backfill(runtime, refresh=True)
    assert (first.scanned, first.upserted + first.failed) == (2, 2)
    assert [failure.path for failure in first.failures] == ([str(path)] if year > 9999 else [])
    assert (second.scanned, second.failed) == (1, first.failed)  # the one that was written just now
    with runtime.read() as state:
        page = state.threads.list(ThreadQuery(limit=100))
    assert not page.unreadable
    assert {path, other} <= {each.rollout_path for each in page.items}


def test_a_modification_time_out_of_range_fails_one_rollout_only(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems can store such a time, others can't."""
    thread = one_plain_rollout(runtime)
    size = thread.rollout_path.stat().st_size
    real = fold.modified_seconds
    monkeypatch.setattr(
        fold, "modified_seconds", lambda status: 300_000_000_000 if status.st_size == size else real(status)
    )
    report = backfill(runtime, again=True, workers=0)
    assert report.status is BackfillOutcome.COMPLETE
    assert [failure.path for failure in report.failures if "out of range" in failure.error] == [
        str(thread.rollout_path)
    ]
