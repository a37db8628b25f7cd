"""Building the index, on both databases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import zstandard
from rollout_files import (
    CREATED_AT,
    body,
    line,
    name_updated,
    rollout_name,
    rollout_path,
    session_meta,
    thread_id,
    token_count,
    turn_context,
    user_message,
    write,
    write_rollout,
)

from codex_state import (
    BackfillStatus,
    Claimed,
    DatabaseUnavailableError,
    IntegrityViolationError,
    MemoryScope,
    Skipped,
    StateRuntime,
    StateSettings,
    Thread,
    telemetry,
)
from codex_state.models.columns import from_epoch_seconds
from codex_state.repositories.rollout_files import RolloutFileRepository
from codex_state.rollout import (
    BackfillFailure,
    BackfillOutcome,
    BackfillProgress,
    BackfillReport,
    GitInfo,
    RolloutItem,
    ToolSpec,
    backfill,
    backfilling,
    pool,
    worker,
)
from codex_state.rollout.files import relative_to

TOOL = ToolSpec(name="search", description="finds", input_schema=msgspec.Raw(b'{"b":1,"a":[null]}'), defer_loading=True)
MODIFIED = 1_767_400_000


def thread(runtime: StateRuntime, number: int) -> Thread:
    found = find(runtime, number)
    assert found is not None
    return found


def find(runtime: StateRuntime, number: int) -> Thread | None:
    with runtime.read() as state:
        return state.threads.get(thread_id(number))


def rows(runtime: StateRuntime) -> dict[str, dict[str, Any]]:
    """Every row with its tools."""
    with runtime.read() as state:
        ids = [UUID(str(row[0])) for row in state.session.connection().exec_driver_sql("SELECT id FROM threads")]
        found = {}
        for each in ids:
            row = state.threads.get(each)
            assert row is not None
            tools = state.dynamic_tools.get(each) or []
            found[str(each)] = {name: getattr(row, name) for name in Thread.column_names()} | {
                "tools": [{name: getattr(tool, name) for name in tool.column_names()} for tool in tools]
            }
        return found


def with_settings(runtime: StateRuntime, **changes: Any) -> StateRuntime:
    """The same state, under other settings."""
    return StateRuntime(runtime.settings.model_copy(update=changes), runtime.database)


class TestRows:
    def test_every_rollout_of_both_roots_gets_its_row(self, runtime: StateRuntime) -> None:
        home = runtime.codex_home
        active = write_rollout(home, 1, modified=MODIFIED)
        archived = write_rollout(home, 2, archived=True, modified=MODIFIED + 0.9)
        report = backfill(runtime)
        assert report == BackfillReport(
            BackfillOutcome.COMPLETE,
            scanned=2,
            upserted=2,
            watermark=relative_to(home, active),
            seconds=report.seconds,
        )
        first, second = thread(runtime, 1), thread(runtime, 2)
        assert (first.rollout_path, first.archived, first.archived_at) == (active, False, None)
        assert (second.rollout_path, second.archived) == (archived, True)
        assert second.archived_at == second.updated_at == from_epoch_seconds(MODIFIED)
        assert (first.created_at, first.title, first.tokens_used) == (from_epoch_seconds(CREATED_AT), "hello 1", 1)
        assert first.home == runtime.home

    def test_an_empty_or_missing_home_is_complete_at_once(self, runtime: StateRuntime) -> None:
        report = backfill(runtime)
        assert (report.status, report.scanned, report.watermark) == (BackfillOutcome.COMPLETE, 0, None)

    def test_memory_mode_tools_and_default_provider_come_from_the_rollout_or_the_settings(
        self, runtime: StateRuntime
    ) -> None:
        meta = session_meta(model_provider=None, memory_mode="disabled", dynamic_tools=[TOOL, TOOL])
        write_rollout(runtime.codex_home, 1, meta, user_message())
        write_rollout(runtime.codex_home, 2, session_meta(2, memory_mode="whatever"), user_message())
        backfill(with_settings(runtime, default_provider="mock"))
        assert (thread(runtime, 1).model_provider, thread(runtime, 1).memory_mode) == ("mock", "disabled")
        assert thread(runtime, 2).memory_mode == "whatever"
        with runtime.read() as state:
            tools = state.dynamic_tools.get(thread_id(1))
            assert state.dynamic_tools.get(thread_id(2)) is None
        assert tools is not None
        assert [(tool.position, tool.name, tool.input_schema, tool.defer_loading) for tool in tools] == [
            (0, "search", {"b": 1, "a": [None]}, True),
            (1, "search", {"b": 1, "a": [None]}, True),
        ]

    def test_a_thread_in_both_roots_ends_with_what_sessions_says(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, archived=True)
        path = write_rollout(runtime.codex_home, 1)
        backfill(runtime)
        assert (thread(runtime, 1).rollout_path, thread(runtime, 1).archived) == (path, False)

    def test_of_two_rollouts_of_one_thread_the_later_name_counts_but_known_git_fields_stay(
        self, runtime: StateRuntime
    ) -> None:
        early = session_meta(cwd="/early", git=GitInfo(commit_hash="c", branch="b"), memory_mode="disabled")
        late = session_meta(cwd="/late", git=GitInfo(commit_hash="d", repository_url="u"))
        write_rollout(runtime.codex_home, 1, early, user_message("early"), token_count(9))
        path = write_rollout(runtime.codex_home, 1, late, user_message("late"), time="2026-01-03T00-00-00")
        backfill(runtime)
        found = thread(runtime, 1)
        assert (found.rollout_path, found.title, found.cwd, found.tokens_used) == (path, "late", Path("/late"), 0)
        assert (found.git_sha, found.git_branch, found.git_origin_url) == ("c", "b", "u")
        assert found.memory_mode == "enabled"

    def test_the_directory_is_normalised(self, runtime: StateRuntime, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        write_rollout(runtime.codex_home, 1, session_meta(cwd=f"{tmp_path}/link/../link"), user_message())
        backfill(runtime)
        assert thread(runtime, 1).cwd == (tmp_path / "real").resolve()

    def test_a_compressed_rollout_is_read_when_the_plain_one_is_gone(self, runtime: StateRuntime) -> None:
        plain = write_rollout(runtime.codex_home, 1)
        packed = write(plain.with_name(plain.name + ".zst"), zstandard.ZstdCompressor().compress(plain.read_bytes()))
        plain.unlink()
        report = backfill(runtime)
        assert thread(runtime, 1).rollout_path == packed
        assert report.watermark == relative_to(runtime.codex_home, packed)

    def test_tools_of_a_head_whose_thread_has_no_row_are_left_out(self, runtime: StateRuntime) -> None:
        head = session_meta(9, timestamp="bad", dynamic_tools=[TOOL])
        write_rollout(runtime.codex_home, 1, head, user_message())
        report = backfill(runtime)
        assert (report.upserted, report.failed) == (1, 0)
        with runtime.read() as state:
            assert state.dynamic_tools.get(thread_id(9)) is None

    def test_nul_characters_are_stored_as_the_same_text_everywhere(self, runtime: StateRuntime) -> None:
        tool = msgspec.structs.replace(TOOL, name="a\0b", input_schema=msgspec.Raw(rb'{"a":"\u0000"}'))
        write_rollout(runtime.codex_home, 1, session_meta(dynamic_tools=[tool]), user_message("x\0y"))
        assert backfill(runtime).failed == 0
        assert thread(runtime, 1).title == "x\ufffdy"
        with runtime.read() as state:
            stored = state.dynamic_tools.get(thread_id(1))
        assert stored is not None
        assert (stored[0].name, stored[0].input_schema) == ("a\ufffdb", {"a": "\0"})


class TestResuming:
    def test_what_an_earlier_worker_has_handled_is_not_read_again(self, runtime: StateRuntime) -> None:
        days = (1, 2, 3)
        paths = [write_rollout(runtime.codex_home, n, time=f"2026-01-0{n}T00-00-00", modified=MODIFIED) for n in days]
        small = with_settings(runtime, backfill_batch_size=1)

        def stop(_progress: BackfillProgress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backfill(small, on_progress=stop, workers=0)
        assert find(runtime, 2) is None
        report = backfill(runtime)
        assert (report.status, report.scanned) == (BackfillOutcome.COMPLETE, 2)
        assert [thread(runtime, number).title for number in days] == ["hello 1", "hello 2", "hello 3"]
        with runtime.read() as state:
            stored = state.backfill.get(runtime.home)
        assert stored is not None
        assert (stored.status, stored.last_watermark) == (
            BackfillStatus.COMPLETE,
            relative_to(runtime.codex_home, paths[2]),
        )
        assert stored.last_success_at is not None

    def test_the_inventory_says_what_is_handled_and_the_watermark_does_not(self, runtime: StateRuntime) -> None:
        """What was added before the watermark of an interrupted run is found as well."""
        paths = [write_rollout(runtime.codex_home, n, time=f"2026-01-0{n}T00-00-00") for n in (1, 2, 3)]
        with runtime.autocommit() as state:
            claim = state.backfill.try_claim(runtime.home, owner="dead", lease=timedelta(seconds=900))
            assert isinstance(claim, Claimed)
            state.backfill.checkpoint(claim.lease, relative_to(runtime.codex_home, paths[1]) or "")
            state.backfill.release(claim.lease)
        report = backfill(runtime)
        assert (report.status, report.scanned, report.upserted) == (BackfillOutcome.COMPLETE, 3, 3)
        assert report.watermark == relative_to(runtime.codex_home, paths[2])

    def test_a_complete_index_is_left_alone(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1)
        backfill(runtime)
        write_rollout(runtime.codex_home, 2)
        report = backfill(runtime)
        assert (report.status, report.scanned) == (BackfillOutcome.COMPLETE, 0)
        assert report.watermark == relative_to(runtime.codex_home, path)
        assert find(runtime, 2) is None

    def test_asked_to_it_handles_everything_again(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 2)
        backfill(runtime)
        write_rollout(runtime.codex_home, 1)
        write_rollout(runtime.codex_home, 2, session_meta(2), user_message("changed"))
        report = backfill(runtime, again=True)
        assert (report.scanned, report.upserted) == (2, 2)
        assert [thread(runtime, number).first_user_message for number in (1, 2)] == ["hello 1", "changed"]

    def test_while_somebody_else_works_on_it_nothing_is_done(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1)
        with runtime.autocommit() as state:
            state.backfill.try_claim(runtime.home, owner="other", lease=timedelta(seconds=900))
        for options in ({}, {"again": True}, {"retry_failed": True}):
            report = backfill(runtime, **options)
            assert (report.status, report.scanned) == (BackfillOutcome.RUNNING, 0)
        assert find(runtime, 1) is None

    def test_an_interrupted_backfill_can_go_on_at_once(self, runtime: StateRuntime) -> None:
        for number in range(1, 8):
            write_rollout(runtime.codex_home, number, time=f"2026-01-0{number}T00-00-00", modified=MODIFIED)
        small = with_settings(runtime, backfill_batch_size=2)

        def interrupt(progress: BackfillProgress) -> None:
            if progress.files_done >= 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backfill(small, on_progress=interrupt, workers=0)
        assert len(rows(runtime)) == 4
        with runtime.read() as state:
            stored = state.backfill.get(runtime.home)
        assert stored is not None
        assert stored.status is BackfillStatus.PENDING
        report = backfill(small)
        assert (report.status, report.scanned) == (BackfillOutcome.COMPLETE, 3)
        assert len(rows(runtime)) == 7

    def test_a_backfill_that_the_database_stops_says_so_and_goes_on_later(
        self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """L8: an index that is known to be incomplete never looks complete."""
        for number in range(1, 8):
            write_rollout(runtime.codex_home, number, time=f"2026-01-0{number}T00-00-00", modified=MODIFIED)
        small = with_settings(runtime, backfill_batch_size=2)
        stored = RolloutFileRepository.upsert_threads

        def full(repository: RolloutFileRepository, threads: Any) -> None:
            if any(each["id"] == str(thread_id(5)) for each in threads):
                raise DatabaseUnavailableError("the disk is full")
            stored(repository, threads)

        with monkeypatch.context() as patch:
            patch.setattr(RolloutFileRepository, "upsert_threads", full)
            with pytest.raises(DatabaseUnavailableError, match="the disk is full"):
                backfill(small, workers=0)
        assert len(rows(runtime)) == 4
        with runtime.read() as state:
            assert not state.backfill.is_complete(runtime.home)
        report = backfill(small)
        assert (report.status, report.scanned) == (BackfillOutcome.COMPLETE, 3)

    def test_what_only_the_row_knows_survives_a_rebuild(self, runtime: StateRuntime) -> None:
        """L7."""
        write_rollout(runtime.codex_home, 1, session_meta(git=GitInfo(branch="rollout")), user_message("first"))
        backfill(runtime)
        with runtime.begin() as state:
            state.threads.set_name(thread_id(1), "Mine")
            changed = thread(runtime, 1)
            changed.git_branch = "switched"
            state.threads.upsert(changed)
            state.thread_memories.upsert(thread_id(1), raw_memory="raw", memory_summary="summary")
        backfill(runtime, again=True)
        assert (thread(runtime, 1).name, thread(runtime, 1).git_branch) == ("Mine", "switched")
        with runtime.read() as state:
            assert state.thread_memories.get(thread_id(1)) is not None

    def test_tools_that_are_stored_stay_as_they_are(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, session_meta(dynamic_tools=[TOOL]), user_message())
        backfill(runtime)
        other = msgspec.structs.replace(TOOL, name="other")
        write_rollout(runtime.codex_home, 1, session_meta(dynamic_tools=[other, other]), user_message())
        backfill(runtime, again=True)
        with runtime.read() as state:
            tools = state.dynamic_tools.get(thread_id(1))
        assert tools is not None
        assert [tool.name for tool in tools] == ["search", "other"]


def bad_home(home: Path) -> dict[Path, str]:
    """A home with good rollouts 1 and 2 and every kind of bad one; gives the bad files and what is said of each."""
    write_rollout(home, 1)
    write_rollout(home, 2, archived=True)
    directory = home / "sessions/2026/01/02"
    (directory / "rollout-directory.jsonl").mkdir()
    (directory / "rollout-broken-link.jsonl").symlink_to(directory / "nothing")
    os.mkfifo(directory / "rollout-pipe.jsonl")
    whole = body(session_meta(9), user_message())
    return {
        write(rollout_path(home, 10), b""): "is empty",
        write(rollout_path(home, 11), b" \n\n"): "is empty",
        write(rollout_path(home, 12), bytes(range(256)) * 100): "no usable line",
        write(rollout_path(home, 13), whole[:40]): "no usable line",
        write(directory / "rollout-nobody.jsonl", body(user_message())): "doesn't say whose it is",
        write(rollout_path(home, 14).with_suffix(".jsonl.zst"), b"not compressed"): "damaged compression",
    }


@contextmanager
def reads_noted() -> Iterator[list[str]]:
    """The rollouts that this process reads, in order."""
    read: list[str] = []
    extract = worker.extract

    def noted(path: str, default_provider: str) -> Any:
        read.append(path)
        return extract(path, default_provider)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "extract", noted)
        yield read


@pytest.mark.parametrize("batch_size", [1, 2, 200])
def test_the_newest_name_counts_whichever_file_has_it_and_however_files_are_batched(
    runtime: StateRuntime, batch_size: int
) -> None:
    """What is written in batches of one file, each over the one before, is written in a batch of all."""
    home = runtime.codex_home
    for day, names in ((1, ["first"]), (2, ["second", "third"]), (3, [])):
        named = [line(name_updated(name), f"2026-01-0{day}T1{hour}:00:00.000Z") for hour, name in enumerate(names)]
        write_rollout(home, 1, session_meta(1), user_message("hello"), *named, time=f"2026-01-0{day}T03-04-05")
    assert backfill(with_settings(runtime, backfill_batch_size=batch_size), workers=0).status == "complete"
    found = thread(runtime, 1)
    assert (found.name, found.name_at) == ("third", from_epoch_seconds(1_767_351_600))
    assert found.rollout_path == rollout_path(home, 1, time="2026-01-03T03-04-05")


class TestBadRollouts:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_each_is_named_and_none_stops_the_rest(self, runtime: StateRuntime, workers: int) -> None:
        bad = bad_home(runtime.codex_home)
        report = backfill(runtime, workers=workers)
        assert (report.status, report.scanned, report.upserted, report.failed) == (
            BackfillOutcome.COMPLETE,
            len(bad) + 2,
            2,
            len(bad),
        )
        assert {Path(failure.path) for failure in report.failures} == set(bad)
        for failure in report.failures:
            assert bad[Path(failure.path)] in failure.error
            assert failure.path in failure.error
        assert [Path(skipped.path).name for skipped in report.skipped] == ["rollout-broken-link.jsonl"]
        assert set(rows(runtime)) == {str(thread_id(1)), str(thread_id(2))}

    def test_a_file_that_may_not_be_read_is_named(self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        write_rollout(runtime.codex_home, 1)
        path = write_rollout(runtime.codex_home, 2)
        opened = os.open

        def refusing(name: Any, *arguments: Any, **options: Any) -> int:
            if name == str(path):
                raise PermissionError(13, "Permission denied", name)
            return opened(name, *arguments, **options)

        monkeypatch.setattr(os, "open", refusing)
        report = backfill(runtime, workers=0)
        assert report.failures == [BackfillFailure(str(path), f"can't read the rollout {path}: Permission denied")]
        assert report.upserted == 1

    def test_a_directory_that_may_not_be_read_is_named(
        self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rollout(runtime.codex_home, 1)
        hidden = write_rollout(runtime.codex_home, 2, time="2026-02-01T00-00-00").parent
        scandir = os.scandir

        def refusing(name: Any) -> Any:
            if name == str(hidden):
                raise PermissionError(13, "Permission denied", name)
            return scandir(name)

        monkeypatch.setattr(os, "scandir", refusing)
        report = backfill(runtime, workers=0)
        assert report.failures == [BackfillFailure(str(hidden), "Permission denied")]
        assert (report.status, report.scanned, report.upserted) == (BackfillOutcome.COMPLETE, 1, 1)

    def test_bad_lines_are_counted_over_all_rollouts(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, session_meta(), b"{", user_message(), b"\xff")
        write_rollout(runtime.codex_home, 2, session_meta(2), b"[]", user_message())
        report = backfill(runtime)
        assert (report.upserted, report.failed, report.parse_errors) == (2, 0, 3)

    def test_retrying_reads_what_failed_and_what_changed_and_nothing_else(self, runtime: StateRuntime) -> None:
        home = runtime.codex_home
        write_rollout(home, 1, modified=MODIFIED)
        bad = write(rollout_path(home, 2), b"", modified=MODIFIED)
        still_bad = write(rollout_path(home, 3), b"", modified=MODIFIED)
        assert backfill(runtime).failed == 2
        write_rollout(home, 2, modified=MODIFIED + 1)
        with reads_noted() as read:
            report = backfill(runtime, retry_failed=True, workers=0)
        assert read == [str(bad), str(still_bad)]
        assert (report.status, report.scanned, report.upserted) == (BackfillOutcome.COMPLETE, 2, 1)
        assert [failure.path for failure in report.failures] == [str(still_bad)]
        assert thread(runtime, 2).rollout_path == bad

    def test_retrying_never_puts_an_earlier_rollout_of_a_thread_over_a_later_one(self, runtime: StateRuntime) -> None:
        home = runtime.codex_home
        write(rollout_path(home, 1), b"", modified=MODIFIED)
        late = write_rollout(home, 1, session_meta(), user_message("late"), time="2026-01-03T00-00-00", modified=1e9)
        assert backfill(runtime).failed == 0, "it doesn't matter whether a superseded file can be read"
        early = write_rollout(home, 1, session_meta(), user_message("early"), modified=MODIFIED + 1)
        report = backfill(runtime, retry_failed=True)
        assert (report.scanned, report.failed) == (1, 0)
        assert (thread(runtime, 1).rollout_path, thread(runtime, 1).title) == (late, "late")
        late.unlink()
        assert backfill(runtime, retry_failed=True).upserted == 1
        assert (thread(runtime, 1).rollout_path, thread(runtime, 1).title) == (early, "early")

    def test_a_row_that_the_database_refuses_costs_only_itself(
        self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [write_rollout(runtime.codex_home, number) for number in (1, 2, 3)]
        upsert = RolloutFileRepository.upsert_threads

        def refusing(repository: RolloutFileRepository, threads: Any) -> None:
            upsert(repository, threads)
            if any(each["id"] == str(thread_id(2)) for each in threads):
                raise IntegrityViolationError("refused")

        monkeypatch.setattr(RolloutFileRepository, "upsert_threads", refusing)
        report = backfill(runtime)
        assert report.failures == [BackfillFailure(str(paths[1]), "refused")]
        assert (report.status, report.upserted) == (BackfillOutcome.COMPLETE, 2)
        assert set(rows(runtime)) == {str(thread_id(1)), str(thread_id(3))}


class TestProgress:
    def test_it_is_told_after_each_batch_and_ends_with_everything_done(self, runtime: StateRuntime) -> None:
        sizes = [write_rollout(runtime.codex_home, number).stat().st_size for number in range(1, 6)]
        write(rollout_path(runtime.codex_home, 9), b"")
        seen: list[BackfillProgress] = []
        backfill(with_settings(runtime, backfill_batch_size=2), on_progress=seen.append)
        assert [(each.files_done, each.files_total) for each in seen] == [(2, 6), (4, 6), (6, 6)]
        assert (seen[-1].bytes_done, seen[-1].bytes_total, seen[-1].failed) == (sum(sizes), sum(sizes), 1)
        assert seen[-1].seconds_left == 0
        assert all(each.bytes_per_second > 0 for each in seen)

    def test_the_originals_metrics_are_counted(self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        write_rollout(runtime.codex_home, 1, session_meta(), user_message(), b"{")
        write(rollout_path(runtime.codex_home, 9), b"")
        counted: list[tuple[str, int, dict[str, str]]] = []
        timed: list[tuple[str, dict[str, str]]] = []
        monkeypatch.setattr(telemetry, "count", lambda name, amount=1, **tags: counted.append((name, amount, tags)))
        monkeypatch.setattr(telemetry, "record_milliseconds", lambda name, _ms, **tags: timed.append((name, tags)))
        backfill(runtime)
        assert counted == [
            ("codex.db.backfill", 1, {"status": "upserted"}),
            ("codex.db.backfill", 1, {"status": "failed"}),
            ("codex.db.error", 1, {"stage": "backfill_sessions"}),
        ]
        assert timed == [("codex.db.backfill.duration_ms", {"status": "partial_failure"})]


class TestWorkers:
    def test_child_processes_give_the_same_rows(self, runtime: StateRuntime) -> None:
        home = runtime.codex_home
        bad_home(home)
        for number in range(100, 180):
            items: list[RolloutItem] = [
                session_meta(number, dynamic_tools=[TOOL] if number % 3 else None, cwd=f"/p/{number % 7}"),
                turn_context(effort="low"),
                user_message(f"prompt ünï {number}"),
                token_count(number),
            ]
            write_rollout(home, number, *items, archived=number % 5 == 0, modified=MODIFIED + number)
        alone = backfill(runtime, workers=0)
        expected = rows(runtime)
        with runtime.begin() as state:
            for each in expected:
                state.threads.delete(UUID(each))
        helped = backfill(runtime, again=True, workers=2)
        assert rows(runtime) == expected
        assert len(expected) == 82
        assert (helped.scanned, helped.upserted, helped.failures) == (alone.scanned, alone.upserted, alone.failures)

    def test_a_child_that_dies_costs_nothing(
        self, sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(1, 120):
            write_rollout(sqlite_runtime.codex_home, number)
        run = pool._Child.run

        def dying(child: Any, job: worker.Job) -> Any:
            child.kill()
            return run(child, job)

        monkeypatch.setattr(pool._Child, "run", dying)
        report = backfill(sqlite_runtime, workers=2)
        assert (report.upserted, report.failed) == (119, 0)

    def test_a_python_that_cannot_be_started_costs_nothing(
        self, sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rollout(sqlite_runtime.codex_home, 1)
        monkeypatch.setattr(pool.sys, "executable", "/no/such/python")
        assert backfill(sqlite_runtime, workers=2).upserted == 1

    def test_a_small_home_is_done_without_child_processes(self) -> None:
        assert backfilling.worker_count(1_000_000) == 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        assert backfilling.worker_count(10**9) == (min(cores, 8) if cores > 1 else 0)


class TestLease:
    def test_a_long_batch_keeps_its_lease(self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 13):
            write_rollout(runtime.codex_home, number)
        claims: list[object] = []
        extract_one = backfilling.extract_one

        def slow(path: str, default_provider: str) -> Any:
            time.sleep(0.5)
            with runtime.autocommit() as state:
                claims.append(state.backfill.try_claim(runtime.home, owner="other", lease=timedelta(seconds=4)))
            return extract_one(path, default_provider)

        monkeypatch.setattr(backfilling, "extract_one", slow)
        report = backfill(with_settings(runtime, backfill_lease=timedelta(seconds=4)), workers=0)
        assert report.status is BackfillOutcome.COMPLETE
        assert len(claims) == 12
        assert all(isinstance(claim, Skipped) for claim in claims)

    @pytest.mark.parametrize("moment", ["within a batch", "between two batches", "before completing"])
    def test_a_worker_that_was_taken_over_stops_and_leaves_no_trace_of_its_batch(
        self, runtime: StateRuntime, moment: str
    ) -> None:
        """L2, L5."""
        for number in range(1, 5):
            write_rollout(runtime.codex_home, number)
        taken_after = {"within a batch": 0, "between two batches": 2, "before completing": 4}[moment]
        small = with_settings(runtime, backfill_batch_size=2)

        def take_over(_progress: object = None) -> None:
            with runtime.autocommit() as state:
                state.backfill.take_over(runtime.home, owner="other", lease=timedelta(seconds=900))

        def after(progress: BackfillProgress) -> None:
            if progress.files_done == taken_after:
                take_over()

        with pytest.MonkeyPatch.context() as patch:
            if taken_after == 0:
                persist = RolloutFileRepository.upsert_threads
                taken: list[bool] = []

                def overtaken(repository: RolloutFileRepository, threads: Any) -> None:
                    persist(repository, threads)
                    if not taken:
                        # By this very transaction, so that no other one has to wait for it.
                        taken.append(True)
                        connection = repository._session.connection()
                        connection.exec_driver_sql("UPDATE backfill_state SET ownership_token = 'other'")

                patch.setattr(RolloutFileRepository, "upsert_threads", overtaken)
            report = backfill(small, on_progress=after, workers=0)
        assert report.status is BackfillOutcome.LEASE_LOST
        assert report.upserted == taken_after
        assert len(rows(runtime)) == taken_after
        with runtime.read() as state:
            stored = state.backfill.get(runtime.home)
        assert stored is not None
        assert stored.status is BackfillStatus.RUNNING


def test_homes_in_one_database_have_a_backfill_each(
    postgres_settings: StateSettings, opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    first = opened(postgres_settings)
    second = opened(postgres_settings.model_copy(update={"codex_home": tmp_path / "second"}))
    write_rollout(first.codex_home, 1)
    write_rollout(second.codex_home, 2)
    assert backfill(first).upserted == 1
    assert find(first, 2) is None
    assert backfill(second).upserted == 1
    assert thread(first, 1).home != thread(first, 2).home == second.home


def test_the_scope_of_a_threads_memories_is_its_normalised_directory(runtime: StateRuntime, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_rollout(runtime.codex_home, 1, session_meta(cwd=str(tmp_path / "link")), user_message())
    backfill(runtime)
    with runtime.begin() as state:
        memory = state.thread_memories.upsert(thread_id(1), raw_memory="r", memory_summary="s")
    assert memory.scope_key == MemoryScope.cwd((tmp_path / "real").resolve()).key


def test_a_rollouts_place_does_not_matter_only_its_name(runtime: StateRuntime) -> None:
    home = runtime.codex_home
    for number, place in enumerate(("sessions", "sessions/a/b/c", "sessions/.hidden", "archived_sessions/2026"), 1):
        write(home / place / rollout_name(number), body(session_meta(number), user_message()))
    assert backfill(runtime).upserted == 4
    assert thread(runtime, 4).archived
