"""What the inventory of files knows: what changed, what failed, what is gone, and which file is a thread's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from rollout_files import (
    body,
    completed_message,
    history_base,
    numbered,
    rollout_path,
    session_meta,
    thread_id,
    token_count,
    user_message,
    write,
    write_rollout,
)

from codex_state import StateRuntime, StateSettings, Thread, ThreadQuery
from codex_state.models import RolloutFileState
from codex_state.repositories.rollout_files import FileRow
from codex_state.rollout import (
    ToolSpec,
    archive_thread,
    backfill,
    files,
    inventory,
    list_threads,
    unarchive_thread,
    worker,
)
from codex_state.rollout.backfilling import is_fresh
from codex_state.rollout.index import take_in
from codex_state.rollout.names import SESSION_INDEX

MODIFIED = 1_767_400_000
TOOL = ToolSpec(name="t", description="d", input_schema=Raw(b"{}"))
DAYS = ("2026-01-02T03-04-05", "2026-01-03T00-00-00", "2026-01-04T00-00-00")


def row(runtime: StateRuntime, number: int = 1) -> Thread:
    with runtime.read() as state:
        found = state.threads.get(thread_id(number))
    assert found is not None
    return found


def known(runtime: StateRuntime) -> dict[str, FileRow]:
    with runtime.read() as state:
        return {Path(each.path).name: each for each in state.rollout_files.page(runtime.home)}


def everything(runtime: StateRuntime) -> list[tuple[Any, ...]]:
    """All rows of threads and files, as they are stored."""
    with runtime.read() as state:
        connection = state.session.connection()
        return [
            tuple(each)
            for name in ("threads", "rollout_files")
            for each in connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1, 2")
        ]


def listed(runtime: StateRuntime, **options: Any) -> list[int]:
    return [int(str(thread.id)[:8]) for thread in list_threads(runtime, ThreadQuery(**options)).items]


@contextmanager
def reads_noted(refused: Callable[[str], bool] = lambda _path: False) -> Iterator[list[str]]:
    """The names of the rollouts that are read meanwhile. Some may not be."""
    read: list[str] = []
    opened = os.open

    def noted(name: Any, *arguments: Any, **options: Any) -> int:
        if isinstance(name, str) and "/rollout-" in name:
            read.append(Path(name).name)
            if refused(name):
                raise PermissionError(13, "Permission denied", name)
        return opened(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", noted)
        yield read


def refresh(runtime: StateRuntime, **options: Any) -> Any:
    return backfill(runtime, refresh=True, workers=0, **options)


class TestChange:
    def test_what_was_written_while_it_was_read_is_read_again(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1)  # now
        refresh(runtime)
        assert known(runtime)[path.name].mtime_ns is None
        assert not is_fresh(runtime)
        status = path.stat()
        write(path, path.read_bytes().replace(b"hello 1", b"HELLO 1"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert refresh(runtime).scanned == 1
        assert row(runtime).title == "HELLO 1"

    @pytest.mark.parametrize("seconds", [-1, 1])
    def test_a_time_that_is_about_now_tells_nothing(self, runtime: StateRuntime, seconds: int) -> None:
        """Also one a little ahead: another machine's clock, a file system that rounds up."""
        at = datetime.now(UTC).timestamp() + seconds
        path = write_rollout(runtime.codex_home, 1, modified=at)
        refresh(runtime)
        assert known(runtime)[path.name].mtime_ns is None

    @pytest.mark.parametrize(
        ("content", "nanoseconds"),
        [(b"hello 1 and more", 0), (b"HELLO 1", 1), (b"HELLO 1", -1), (b"HELLO 1", -(10**9))],
        ids=["another size, the same time", "a nanosecond later", "a nanosecond earlier", "an older copy"],
    )
    def test_another_size_or_another_nanosecond_is_a_change(
        self, runtime: StateRuntime, content: bytes, nanoseconds: int
    ) -> None:
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        refresh(runtime)
        write(path, path.read_bytes().replace(b"hello 1", content))
        os.utime(path, ns=(0, MODIFIED * 10**9 + nanoseconds))
        assert not is_fresh(runtime)
        assert refresh(runtime).scanned == 1
        assert row(runtime).title == content.decode()
        assert is_fresh(runtime)

    def test_what_looks_the_same_is_not_opened(self, runtime: StateRuntime) -> None:
        for number in range(1, 4):
            write_rollout(runtime.codex_home, number, archived=number == 3, modified=MODIFIED)
        refresh(runtime)
        before = everything(runtime)
        with reads_noted() as read:
            report = refresh(runtime)
        assert (report.scanned, read, everything(runtime)) == (0, [], before)

    def test_a_row_that_was_deleted_is_made_anew_from_its_file(self, runtime: StateRuntime) -> None:
        for number in (1, 2):
            write_rollout(runtime.codex_home, number, modified=MODIFIED)
        refresh(runtime)
        before = everything(runtime)
        with runtime.begin() as state:
            state.threads.delete(thread_id(1))
        assert not is_fresh(runtime)
        assert refresh(runtime).scanned == 1
        assert everything(runtime) == before

    def test_again_reads_everything_again(self, runtime: StateRuntime) -> None:
        names = [write_rollout(runtime.codex_home, n, modified=MODIFIED).name for n in (1, 2)]
        refresh(runtime)
        before = everything(runtime)
        with reads_noted() as read:
            assert refresh(runtime, again=True).scanned == 2
        assert read == names
        assert everything(runtime) == before


class TestFailures:
    def test_a_broken_file_is_named_each_time_and_read_once(self, runtime: StateRuntime) -> None:
        broken = write(rollout_path(runtime.codex_home, 1), b"{", modified=MODIFIED)
        for times in (1, 0, 0):
            with reads_noted() as read:
                report = refresh(runtime)
            assert bool(read) is bool(times)
            assert (report.scanned, report.failed, report.failures[0].path) == (times, 1, str(broken))
            assert str(broken) in report.failures[0].error
            assert is_fresh(runtime)
        with reads_noted() as read:
            assert refresh(runtime, retry_failed=True).failed == 1
        assert read
        write_rollout(runtime.codex_home, 1, modified=MODIFIED + 1)
        assert not is_fresh(runtime)
        assert refresh(runtime).failures == []
        assert row(runtime).title == "hello 1"

    def test_a_file_that_may_not_be_read_is_tried_each_time(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        for _ in range(2):
            with reads_noted(refused=lambda _path: True) as read:
                report = refresh(runtime)
            assert read == [path.name]
            assert [failure.error for failure in report.failures] == [
                f"can't read the rollout {path}: Permission denied"
            ]
            assert is_fresh(runtime), "what can't be read looks the same"
        assert refresh(runtime).failed == 0
        assert row(runtime).title == "hello 1"

    def test_an_older_file_stands_in_for_one_that_cannot_be_read(self, runtime: StateRuntime) -> None:
        old, new = (write_rollout(runtime.codex_home, 1, time=day, modified=MODIFIED) for day in DAYS[:2])
        refresh(runtime)
        assert row(runtime).rollout_path == new
        write(new, b"", modified=MODIFIED + 1)
        refresh(runtime)
        assert row(runtime).rollout_path == old
        states = {name: each.state for name, each in known(runtime).items()}
        assert states == {old.name: RolloutFileState.INDEXED, new.name: RolloutFileState.FAILED}

    def test_a_row_stays_when_its_only_file_is_damaged(self, runtime: StateRuntime) -> None:
        """L7."""
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        refresh(runtime)
        before = row(runtime)
        write(path, b"", modified=MODIFIED + 1)
        assert refresh(runtime).failed == 1
        assert row(runtime) == before
        assert listed(runtime) == [1]


class TestGone:
    def test_a_row_stays_unseen_until_its_file_is_there_again(self, runtime: StateRuntime, tmp_path: Path) -> None:
        """L7: with its name, and whatever else only the row knows."""
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        write_rollout(runtime.codex_home, 2, modified=MODIFIED - 1)
        refresh(runtime)
        with runtime.begin() as state:
            state.threads.set_name(thread_id(1), "Mine")
            state.threads.set_memory_mode(thread_id(1), "polluted")
        before = row(runtime)
        away = shutil.move(path, tmp_path / "away")
        report = refresh(runtime)
        assert (report.gone, report.failed) == (1, 0)
        assert listed(runtime) == [2]
        gone = row(runtime)
        assert gone.gone_at is not None
        assert (gone.name, gone.memory_mode) == ("Mine", "polluted")
        assert known(runtime)[path.name].state == RolloutFileState.GONE
        marked = everything(runtime)
        assert refresh(runtime).gone == 0
        assert everything(runtime) == marked
        shutil.move(away, path)
        assert refresh(runtime).scanned == 1
        assert row(runtime) == before
        assert listed(runtime) == [1, 2]

    @pytest.mark.parametrize("archived", [False, True])
    def test_a_thread_of_which_only_a_damaged_file_is_left_is_not_gone(
        self, runtime: StateRuntime, archived: bool
    ) -> None:
        left = rollout_path(runtime.codex_home, 1, time=DAYS[1], archived=archived)
        write(left, b"", modified=MODIFIED)
        read = write_rollout(runtime.codex_home, 1, time=DAYS[0], modified=MODIFIED)
        refresh(runtime)
        before = row(runtime)
        assert before.rollout_path == read
        read.unlink()
        refresh(runtime)
        now = row(runtime)
        assert (now.gone_at, now.rollout_path, now.archived, now.title) == (None, left, archived, before.title)
        assert is_fresh(runtime)
        page = list_threads(runtime, ThreadQuery(home=runtime.home, archived=archived))
        assert [each.id for each in page.items] == [now.id]
        write_rollout(runtime.codex_home, 1, time=DAYS[1], archived=archived, modified=MODIFIED + 1)
        assert refresh(runtime).upserted == 1
        assert (row(runtime).gone_at, row(runtime).rollout_path) == (None, left)

    @pytest.mark.parametrize("root", ["sessions", "archived_sessions"])
    def test_nothing_is_gone_with_a_tree_that_is_not_mounted(self, runtime: StateRuntime, root: str) -> None:
        home = runtime.codex_home
        for number, archived in ((1, False), (2, True)):
            write_rollout(home, number, archived=archived, modified=MODIFIED)
        refresh(runtime)
        before = everything(runtime)
        (home / root).rename(home / "unmounted")
        for put in (None, lambda place: place.symlink_to("nowhere"), Path.touch):
            if put is not None:
                put(home / root)  # type: ignore[no-untyped-call]
            report = refresh(runtime)
            assert (report.gone, [failure.path for failure in report.failures]) == (0, [str(home / root)])
            assert [(place.path, place.rollouts) for place in report.unseen] == [(str(home / root), 1)]
            assert everything(runtime) == before
            (home / root).unlink(missing_ok=True)
        (home / "unmounted").rename(home / root)
        assert is_fresh(runtime)

    def test_nothing_is_gone_with_a_root_that_never_was(self, runtime: StateRuntime) -> None:
        report = refresh(runtime)
        assert (report.failed, report.unseen) == (0, [])

    @pytest.mark.parametrize("is_mounted", [True, False])
    def test_nothing_is_gone_with_what_a_link_took_the_place_of(
        self, runtime: StateRuntime, tmp_path: Path, is_mounted: bool
    ) -> None:
        home = runtime.codex_home
        below = write_rollout(home, 1, time=DAYS[0], modified=MODIFIED)
        month = below.parents[1]
        file = write_rollout(home, 2, archived=True, modified=MODIFIED)
        refresh(runtime)
        before = everything(runtime)
        for place in (month, file):
            place.rename(tmp_path / place.name)
            place.symlink_to(tmp_path / place.name if is_mounted else "nowhere")
        report = refresh(runtime)
        assert (report.gone, report.failed) == (0, 0)
        assert [(place.path, place.rollouts) for place in report.unseen] == [(str(file), 1), (str(month), 1)]
        take_in(runtime, [each.relative_to(home).as_posix() for each in (below, file)])
        for archived in (False, True):
            list_threads(runtime, ThreadQuery(archived=archived))
        assert everything(runtime) == before

    def test_nothing_is_gone_with_a_directory_that_cannot_be_read(
        self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hidden = write_rollout(runtime.codex_home, 1, time=DAYS[0], modified=MODIFIED).parent
        deleted = write_rollout(runtime.codex_home, 2, time="2026-01-20T00-00-00", modified=MODIFIED)
        refresh(runtime)
        deleted.unlink()
        scandir = os.scandir

        def refusing(name: Any) -> Any:
            if name == str(hidden):
                raise PermissionError(13, "Permission denied", name)
            return scandir(name)

        monkeypatch.setattr(files.os, "scandir", refusing)
        report = refresh(runtime)
        assert [failure.path for failure in report.failures] == [str(hidden)]
        assert report.gone == 1
        assert row(runtime, 1).gone_at is None
        assert row(runtime, 2).gone_at is not None

    def test_a_thread_with_another_file_is_not_gone(self, runtime: StateRuntime) -> None:
        old, new = (write_rollout(runtime.codex_home, 1, time=day, modified=MODIFIED) for day in DAYS[:2])
        refresh(runtime)
        new.unlink()
        assert refresh(runtime).gone == 1
        assert (row(runtime).gone_at, row(runtime).rollout_path) == (None, old)
        assert list(known(runtime)) == [old.name]


class TestSeveralFiles:
    @pytest.fixture
    def reverted(self, runtime: StateRuntime) -> StateRuntime:
        """A thread that was reverted twice: three files, each of which goes on from the first one."""
        home = runtime.codex_home
        first = numbered(session_meta(dynamic_tools=[TOOL]), completed_message("first"), token_count(10))
        write_rollout(home, 1, *first, time=DAYS[0], modified=MODIFIED)
        for place, day in enumerate(DAYS[1:], 1):
            head = session_meta(history_base=history_base(1, 3))
            items = (head, completed_message(f"then {place}"), token_count(10 + place))
            write_rollout(home, 1, *items, time=day, segment=place, modified=MODIFIED + place * 3600)
        refresh(runtime)
        return runtime

    def test_refreshes_of_unchanged_segments_change_nothing(self, reverted: StateRuntime) -> None:
        found = row(reverted)
        assert (found.title, found.tokens_used) == ("first", 12)
        assert found.rollout_path == rollout_path(reverted.codex_home, 1, time=DAYS[2], segment=2)
        before = everything(reverted)
        for _ in range(3):
            assert refresh(reverted).scanned == 0
        refresh(reverted, again=True)
        assert everything(reverted) == before

    def test_tools_that_the_first_file_defines_are_the_threads(self, reverted: StateRuntime) -> None:
        with reverted.read() as state:
            tools = state.dynamic_tools.get(thread_id(1))
        assert tools is not None
        assert [tool.name for tool in tools] == ["t"]

    def test_they_are_archived_and_brought_back_together(self, reverted: StateRuntime) -> None:
        home = reverted.codex_home
        before = row(reverted)
        names = {path.name for path in home.rglob("rollout-*")}
        assert archive_thread(reverted, thread_id(1)).parent == home / "archived_sessions"
        assert {path.name for path in (home / "archived_sessions").iterdir()} == names
        assert not [*(home / "sessions").rglob("rollout-*")]
        for _ in range(2):
            assert refresh(reverted).scanned == 0
            assert row(reverted).archived
        unarchive_thread(reverted, thread_id(1))
        assert {path.name for path in (home / "sessions").rglob("rollout-*")} == names
        assert is_fresh(reverted)
        assert row(reverted) == before

    @pytest.mark.parametrize("copied", [" (1)", " 2", ".sync-conflict-20260301-101010-ABCDEFG"])
    def test_a_copy_never_wins_over_the_file_itself(self, runtime: StateRuntime, copied: str) -> None:
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        conflict = path.with_name(path.name.replace(".jsonl", f"{copied}.jsonl"))
        write(conflict, body(session_meta(), user_message("conflicting")), modified=MODIFIED + 99)
        for _ in range(2):
            refresh(runtime)
            assert (row(runtime).rollout_path, row(runtime).title) == (path, "hello 1")
        path.unlink()
        refresh(runtime)
        assert (row(runtime).rollout_path, row(runtime).title) == (conflict, "conflicting")

    def test_a_fork_does_not_take_its_parents_row(self, runtime: StateRuntime) -> None:
        parent = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        head = session_meta(2, forked_from_id=str(thread_id(1)))
        write_rollout(runtime.codex_home, 2, head, session_meta(1), user_message("fork"), modified=MODIFIED + 9)
        refresh(runtime)
        assert (row(runtime, 1).rollout_path, row(runtime, 1).title) == (parent, "hello 1")
        assert (row(runtime, 2).title, row(runtime, 2).forked_from_id) == ("fork", thread_id(1))

    def test_a_file_that_becomes_another_threads_leaves_its_former_thread(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        refresh(runtime)
        write(path, body(session_meta(2), user_message("two")), modified=MODIFIED + 1)
        refresh(runtime)
        assert row(runtime, 2).rollout_path == path
        assert row(runtime, 1).gone_at is not None


class TestNames:
    def say(self, runtime: StateRuntime, name: str, at: datetime, number: int = 1) -> None:
        """Name a thread as the original does."""
        path = runtime.codex_home / SESSION_INDEX
        entry = {"id": str(thread_id(number)), "thread_name": name, "updated_at": at.isoformat()}
        before = path.read_bytes() if path.exists() else b""
        modified = MODIFIED + len(before) + 1
        write(path, before + json.dumps(entry).encode() + b"\n", modified=modified)

    def test_a_name_given_here_survives_older_lines_and_a_newer_line_wins(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        now = datetime.now(UTC)
        self.say(runtime, "of old", now - timedelta(days=2))
        refresh(runtime)
        assert row(runtime).name == "of old"
        with runtime.begin() as state:
            state.threads.set_name(thread_id(1), "Mine")
        self.say(runtime, "older", now - timedelta(days=1))
        for options in ({}, {"again": True}):
            refresh(runtime, **options)
            assert row(runtime).name == "Mine"
        self.say(runtime, "newer", now + timedelta(days=1))
        refresh(runtime)
        assert row(runtime).name == "newer"
        assert row(runtime).title == "hello 1"

    def test_a_name_that_was_taken_away_here_does_not_come_back(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        self.say(runtime, "of old", datetime.now(UTC) - timedelta(days=2))
        refresh(runtime)
        with runtime.begin() as state:
            state.threads.set_name(thread_id(1), None)
        refresh(runtime, again=True)
        assert row(runtime).name is None

    def test_a_thread_gets_its_name_also_when_its_rollout_comes_later(self, runtime: StateRuntime) -> None:
        self.say(runtime, "early", datetime.now(UTC) - timedelta(days=2))
        refresh(runtime)
        write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        refresh(runtime)
        assert row(runtime).name == "early"

    def test_an_index_of_names_that_did_not_change_is_not_read(
        self, runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        self.say(runtime, "name", datetime.now(UTC) - timedelta(days=2))
        refresh(runtime)
        assert is_fresh(runtime)
        self.say(runtime, "another", datetime.now(UTC) - timedelta(days=1))
        assert not is_fresh(runtime)
        refresh(runtime)
        assert row(runtime).name == "another"


class TestHomesThatMove:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        home = tmp_path / "home"
        for number, archived in ((1, False), (2, True)):
            write_rollout(home, number, archived=archived, modified=MODIFIED + number)
        write(rollout_path(home, 3), b"", modified=MODIFIED)
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            refresh(runtime)
            with runtime.begin() as state:
                state.threads.set_name(thread_id(1), "Mine")
        return home

    def rows_of(self, home: Path, runtime: StateRuntime) -> list[Any]:
        """All rows, with paths relative to the home."""
        return [tuple(str(value).replace(f"{home}/", "") for value in each) for each in everything(runtime)]

    @pytest.mark.parametrize("how", ["moved", "copied", "linked"])
    def test_nothing_is_read_again_and_rows_point_into_the_home_that_is_used(
        self, home: Path, tmp_path: Path, how: str
    ) -> None:
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            before = self.rows_of(home, runtime)
        there = tmp_path / "there"
        if how == "moved":
            home.rename(there)
        elif how == "copied":
            shutil.copytree(home, there)
        else:
            there.symlink_to(home)
        with StateRuntime.open(StateSettings(codex_home=there)) as runtime:
            assert is_fresh(runtime) is (how == "linked")
            with reads_noted() as read:
                report = refresh(runtime)
            assert (report.scanned, report.gone, read) == (0, 0, [])
            assert [failure.path for failure in report.failures] == [str(rollout_path(there, 3))]
            assert str(rollout_path(there, 3)) in report.failures[0].error
            used = home if how == "linked" else there
            assert self.rows_of(used, runtime) == before
            assert [thread.rollout_path for thread in list_threads(runtime).items] == [rollout_path(used, 1)]
            assert is_fresh(runtime)

    @pytest.mark.parametrize("number", [1, 2])
    def test_rows_that_were_written_one_by_one_since_hide_no_others(
        self, home: Path, tmp_path: Path, number: int
    ) -> None:
        between = home.rename(tmp_path / "between")
        with StateRuntime.open(StateSettings(codex_home=between)) as runtime:
            archive_thread(runtime, thread_id(number))
        target = between.rename(tmp_path / "there")
        with StateRuntime.open(StateSettings(codex_home=target)) as runtime:
            assert not is_fresh(runtime)
            refresh(runtime)
            assert row(runtime, 1).rollout_path == rollout_path(target, 1, archived=number == 1)
            assert row(runtime, 2).rollout_path == rollout_path(target, 2, archived=True)
            assert is_fresh(runtime)

    def test_archiving_in_a_copied_home_leaves_the_originals_files_and_rows(self, home: Path, tmp_path: Path) -> None:
        """L12."""
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            before = everything(runtime)
        copied = shutil.copytree(home, tmp_path / "copied")
        with StateRuntime.open(StateSettings(codex_home=copied)) as runtime:
            assert archive_thread(runtime, thread_id(1)) == rollout_path(copied, 1, archived=True)
            refresh(runtime)
            assert unarchive_thread(runtime, thread_id(2)) == rollout_path(copied, 2)
        assert rollout_path(home, 1).is_file()
        assert rollout_path(home, 2, archived=True).is_file()
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            assert is_fresh(runtime)
            assert everything(runtime) == before


def test_a_worker_that_is_asked_for_a_missing_file_says_so(tmp_path: Path) -> None:
    """A file may go between the look at the tree and its turn."""
    result = worker.extract_one(str(tmp_path / "rollout-a.jsonl"), "openai")
    assert isinstance(result, worker.Failed)
    assert result.may_pass


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)  # SQLite has no other way
def test_a_threads_files_are_found_by_an_index_though_nobody_has_analysed_the_table_since_it_was_small(
    runtime: StateRuntime,
) -> None:
    """L10: after thousands of files are gone and some thousands are there anew, as after the first ones."""

    def rows_read() -> int:
        with runtime.read() as state:
            counted = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'rollout_files'"
            read: int = state.session.connection().exec_driver_sql(counted).scalar_one()
            return read

    write_rollout(runtime.codex_home, 1, modified=MODIFIED)
    refresh(runtime)
    with runtime.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE rollout_files")
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    ids = [str(thread_id(number)) for number in range(2, 3002)]
    with runtime.begin() as state:
        state.rollout_files.put(
            [
                inventory.file_row(runtime.home, f"sessions/{each}", RolloutFileState.INDEXED, 1, 1, thread_id=each)
                for each in ids
            ]
        )
    before = rows_read()
    with runtime.read() as state:
        for start in range(0, 3000, 200):
            assert len(state.rollout_files.of_threads(ids[start : start + 200], runtime.home)) == 200
        connection = state.session.connection()
        assert connection.exec_driver_sql("SHOW enable_seqscan").scalar_one() == "on"
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    assert rows_read() - before <= 2 * len(ids)
