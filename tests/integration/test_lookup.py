"""Finding and listing threads when rows and files disagree, on both databases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from rollout_files import (
    body,
    rollout_name,
    rollout_path,
    session_meta,
    thread_id,
    user_message,
    write,
    write_rollout,
)

from codex_state import SortKey, StateRuntime, StateSettings, Thread, ThreadQuery
from codex_state.errors import DatabaseReadOnlyError, RolloutError
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout import (
    ResponseItem,
    backfill,
    files,
    find_thread_path,
    index_rollout,
    list_threads,
    lookup,
    read_session_meta,
)
from codex_state.testing.samples import a_thread
from tests.elsewhere import elsewhere

MODIFIED = 1_767_400_000


def row(runtime: StateRuntime, number: int = 1) -> Thread | None:
    with runtime.read() as state:
        return state.threads.get(thread_id(number))


def path_in_row(runtime: StateRuntime, number: int = 1) -> Path | None:
    with runtime.read() as state:
        return state.threads.find_rollout_path(thread_id(number))


def point_row_at(runtime: StateRuntime, path: Path, number: int = 1) -> None:
    thread = row(runtime, number)
    assert thread is not None
    thread.rollout_path = path
    with runtime.begin() as state:
        state.threads.upsert(thread)


@pytest.fixture
def indexed(runtime: StateRuntime) -> StateRuntime:
    """A state with three threads, one of them archived, oldest first."""
    for number in (1, 2, 3):
        write_rollout(runtime.codex_home, number, archived=number == 3, modified=MODIFIED + number)
    backfill(runtime)
    return runtime


class TestFinding:
    def test_a_row_whose_file_is_the_threads_is_believed_without_a_search(
        self, indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved = indexed.codex_home / "elsewhere" / "odd name"
        moved.parent.mkdir()
        shutil.move(rollout_path(indexed.codex_home, 1), moved)
        point_row_at(indexed, moved)
        monkeypatch.setattr(os, "scandir", lambda _path: pytest.fail("searched"))
        assert find_thread_path(indexed, thread_id(1)) == moved

    def test_a_stale_path_is_replaced_by_the_file_and_the_row_is_repaired(self, indexed: StateRuntime) -> None:
        path = rollout_path(indexed.codex_home, 1)
        point_row_at(indexed, path.with_name("gone.jsonl"))
        assert find_thread_path(indexed, thread_id(1)) == path
        assert path_in_row(indexed) == path

    def test_a_path_of_another_thread_is_not_believed(self, indexed: StateRuntime) -> None:
        path = rollout_path(indexed.codex_home, 1)
        point_row_at(indexed, rollout_path(indexed.codex_home, 2))
        assert find_thread_path(indexed, thread_id(1)) == path
        assert path_in_row(indexed) == path
        assert path_in_row(indexed, 2) == rollout_path(indexed.codex_home, 2)

    def test_a_missing_row_is_made_from_the_file(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1, modified=MODIFIED)
        assert find_thread_path(runtime, thread_id(1)) == path
        thread = row(runtime)
        assert thread is not None
        assert (thread.title, thread.updated_at) == ("hello 1", from_epoch_seconds(MODIFIED))

    @pytest.mark.parametrize("content", [b"", b"not a rollout\n", body(ResponseItem("message"))])
    def test_a_file_that_does_not_say_whose_it_is_is_the_last_resort(
        self, indexed: StateRuntime, content: bytes
    ) -> None:
        odd = write(indexed.codex_home / "odd", content)
        point_row_at(indexed, odd)
        real = rollout_path(indexed.codex_home, 1)
        aside = real.rename(indexed.codex_home / "aside")
        assert find_thread_path(indexed, thread_id(1)) == odd
        aside.rename(real)
        assert find_thread_path(indexed, thread_id(1)) == real

    def test_a_thread_without_row_and_file_is_not_found(self, indexed: StateRuntime) -> None:
        assert find_thread_path(indexed, thread_id(99)) is None

    def test_ids_match_exactly_never_in_part(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 11)
        near = rollout_path(runtime.codex_home, 1)
        write(near.with_name(near.name.replace(".jsonl", "-copy.jsonl")), body(session_meta(11)))
        assert find_thread_path(runtime, thread_id(1)) is None

    def test_a_file_with_the_threads_name_but_of_another_thread_is_not_taken(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, session_meta(2), user_message())
        assert find_thread_path(runtime, thread_id(1)) is None
        assert row(runtime) is None

    def test_only_the_wanted_root_is_looked_into(self, indexed: StateRuntime) -> None:
        archived = rollout_path(indexed.codex_home, 3, archived=True)
        active = rollout_path(indexed.codex_home, 1)
        assert find_thread_path(indexed, thread_id(3), archived=True) == archived
        assert find_thread_path(indexed, thread_id(3), archived=False) is None
        assert find_thread_path(indexed, thread_id(1), archived=False) == active
        assert find_thread_path(indexed, thread_id(1), archived=True) is None

    def test_a_rollout_that_was_archived_behind_our_back_is_found_and_its_row_marked(
        self, indexed: StateRuntime
    ) -> None:
        target = rollout_path(indexed.codex_home, 1, archived=True)
        rollout_path(indexed.codex_home, 1).rename(target)
        assert find_thread_path(indexed, thread_id(1)) == target
        thread = row(indexed)
        assert thread is not None
        assert (thread.archived, thread.archived_at) == (True, from_epoch_seconds(MODIFIED + 1))

    def test_a_repair_takes_in_what_the_file_says_now_and_keeps_what_only_the_row_knows(
        self, indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with indexed.begin() as state:
            state.threads.set_name(thread_id(1), "Mine")
            state.threads.set_memory_mode(thread_id(1), "polluted")
        before = row(indexed)
        point_row_at(indexed, indexed.codex_home / "gone")
        path = rollout_path(indexed.codex_home, 1)
        write(path, body(session_meta(), user_message("other")), modified=MODIFIED + 99)
        assert find_thread_path(indexed, thread_id(1)) == path
        after = row(indexed)
        assert before is not None
        assert after is not None
        changed = {name for name in Thread.column_names() if getattr(before, name) != getattr(after, name)}
        assert changed == {"first_user_message", "title", "tokens_used", "updated_at"}
        monkeypatch.setattr(indexed.database, "begin", lambda: pytest.fail("wrote"))
        assert find_thread_path(indexed, thread_id(1)) == path

    def test_a_path_is_given_though_the_row_cannot_be_repaired_for_a_busy_writer(
        self, indexed: StateRuntime, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = rollout_path(indexed.codex_home, 1)
        stale = path.with_name("gone.jsonl")
        point_row_at(indexed, stale)
        hurried = indexed.settings.model_copy(update={"busy_timeout": timedelta(seconds=0.2)})
        with (
            caplog.at_level("WARNING", "codex_state"),
            StateRuntime.open(hurried) as other,
            indexed.begin() as state,  # on PostgreSQL a writer of the same row does it
        ):
            state.threads.set_name(thread_id(1), "Mine")
            assert elsewhere(lambda: find_thread_path(other, thread_id(1))) == path
        assert "can't be repaired" in caplog.text
        assert path_in_row(indexed) == stale
        assert find_thread_path(indexed, thread_id(1)) == path
        assert path_in_row(indexed) == path

    def test_a_path_is_given_inside_of_the_callers_own_write(self, indexed: StateRuntime) -> None:
        path = rollout_path(indexed.codex_home, 1)
        point_row_at(indexed, path.with_name("gone.jsonl"))
        with indexed.begin() as state:
            state.threads.set_name(thread_id(1), "Mine")
            assert find_thread_path(indexed, thread_id(1)) == path

    def test_a_compressed_rollout_stands_in_for_the_plain_one(self, indexed: StateRuntime) -> None:
        plain = rollout_path(indexed.codex_home, 1)
        packed = write(plain.with_name(plain.name + ".zst"), zstandard.ZstdCompressor().compress(plain.read_bytes()))
        plain.unlink()
        assert find_thread_path(indexed, thread_id(1)) == packed
        assert [thread.id for thread in list_threads(indexed, page_size=9).items] == [thread_id(2), thread_id(1)]

    def test_ignore_files_do_not_hide_a_rollout(self, runtime: StateRuntime) -> None:
        path = write_rollout(runtime.codex_home, 1)
        write(runtime.codex_home / ".gitignore", b"*\n*.jsonl\n")
        (runtime.codex_home / ".git").mkdir()
        assert find_thread_path(runtime, thread_id(1)) == path

    def test_a_home_whose_roots_are_gone_gives_the_unverified_path_or_nothing(self, indexed: StateRuntime) -> None:
        odd = write(indexed.codex_home / "odd", b"")
        point_row_at(indexed, odd)
        shutil.rmtree(indexed.codex_home / "sessions")
        shutil.rmtree(indexed.codex_home / "archived_sessions")
        assert find_thread_path(indexed, thread_id(1)) == odd
        assert find_thread_path(indexed, thread_id(2)) is None


class TestHead:
    @pytest.mark.parametrize(
        "before",
        [[], [b"bad line", b"", b"\xff"], [user_message(), b'{"timestamp":1}']],
        ids=["first", "bad", "events"],
    )
    def test_a_session_meta_may_come_after_bad_lines_and_events(self, tmp_path: Path, before: list[Any]) -> None:
        path = write_rollout(tmp_path, 1, *before, session_meta(), session_meta(2))
        assert read_session_meta(path).id == str(thread_id(1))

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "is empty"),
            (body(user_message(), b"bad"), "is empty"),
            (body(ResponseItem("message"), session_meta()), "does not start with session metadata"),
        ],
    )
    def test_a_rollout_without_a_head_is_refused(self, tmp_path: Path, content: bytes, problem: str) -> None:
        path = write(tmp_path / rollout_name(1), content)
        with pytest.raises(RolloutError, match=problem):
            read_session_meta(path)

    def test_damage_and_directories_are_rollout_errors(self, tmp_path: Path) -> None:
        with pytest.raises(RolloutError, match="damaged compression"):
            read_session_meta(write(tmp_path / "rollout-a.jsonl.zst", b"nonsense"))
        with pytest.raises(RolloutError, match="not a regular file"):
            read_session_meta(tmp_path)


class TestListing:
    def listed(self, runtime: StateRuntime, **options: Any) -> list[int]:
        page = list_threads(runtime, ThreadQuery(limit=9, **options))
        return [int(str(thread.id)[:8]) for thread in page.items]

    def test_threads_whose_rollouts_exist_are_listed_newest_first(self, indexed: StateRuntime) -> None:
        assert self.listed(indexed) == [2, 1]
        assert self.listed(indexed, archived=True) == [3]
        assert self.listed(indexed, sort_key=SortKey.CREATED_AT) == [2, 1]

    def test_nothing_is_listed_before_the_index_knows_it(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1)
        assert self.listed(runtime) == []
        index_rollout(runtime, rollout_path(runtime.codex_home, 1))
        assert self.listed(runtime) == [1]

    def test_a_vanished_rollout_is_dropped_and_its_row_marked(self, indexed: StateRuntime) -> None:
        """L7: a listing deletes nothing."""
        rollout_path(indexed.codex_home, 2).unlink()
        assert self.listed(indexed) == [1]
        gone = row(indexed, 2)
        assert gone is not None
        assert gone.gone_at is not None
        assert self.listed(indexed) == [1]
        assert self.listed(indexed, all=True) == [2, 1]

    def test_a_thread_that_never_had_a_rollout_is_listed(self, indexed: StateRuntime) -> None:
        with indexed.begin() as state:
            state.threads.upsert(a_thread(id=thread_id(7), rollout_path=Path(), first_user_message=None))
        assert self.listed(indexed) == [7, 2, 1]

    def test_rows_stay_when_the_whole_tree_is_away(self, indexed: StateRuntime) -> None:
        (indexed.codex_home / "sessions").rename(indexed.codex_home / "unmounted")
        assert self.listed(indexed) == []
        assert row(indexed, 1) is not None
        (indexed.codex_home / "unmounted").rename(indexed.codex_home / "sessions")
        assert self.listed(indexed) == [2, 1]

    def test_a_rollout_moved_between_the_roots_is_repaired_not_deleted(self, indexed: StateRuntime) -> None:
        rollout_path(indexed.codex_home, 1).rename(rollout_path(indexed.codex_home, 1, archived=True))
        assert self.listed(indexed) == [2]
        assert self.listed(indexed, archived=True) == [3, 1]
        rollout_path(indexed.codex_home, 3, archived=True).rename(rollout_path(indexed.codex_home, 3))
        assert self.listed(indexed, archived=True) == [1]
        assert self.listed(indexed) == [3, 2]

    def test_dropped_rows_do_not_end_the_paging(self, indexed: StateRuntime) -> None:
        rollout_path(indexed.codex_home, 2).unlink()
        first = list_threads(indexed, page_size=1)
        assert (first.items, first.num_scanned_rows) == ([], 2)
        assert first.next_anchor is not None
        second = list_threads(indexed, ThreadQuery(limit=1, anchor=first.next_anchor))
        assert [thread.id for thread in second.items] == [thread_id(1)]
        assert second.next_anchor is None

    def test_an_unreadable_row_is_left_out_and_named_and_made_anew_from_its_file(
        self, indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with indexed.begin() as state:
            connection = state.session.connection()
            connection.exec_driver_sql(f"UPDATE threads SET created_at = {2**62} WHERE id = '{thread_id(2)}'")
        with indexed.read() as state:
            page = state.threads.list()
        assert [thread.id for thread in page.items] == [thread_id(1)]
        assert [row.key for row in page.unreadable] == [str(thread_id(2))]
        with monkeypatch.context() as patch:
            patch.setattr(lookup, "take_in", self.refuse)
            page = list_threads(indexed)
        assert [thread.id for thread in page.items] == [thread_id(1)]
        assert [row.key for row in page.unreadable] == [str(thread_id(2))]
        page = list_threads(indexed)
        assert ([thread.id for thread in page.items], page.unreadable) == ([thread_id(2), thread_id(1)], ())
        assert self.listed(indexed) == [2, 1]

    def refuse(self, *_arguments: object) -> None:
        raise DatabaseReadOnlyError("read-only")

    def test_sources_and_providers_filter(self, runtime: StateRuntime) -> None:
        write_rollout(runtime.codex_home, 1, session_meta(source="exec"), user_message())
        write_rollout(runtime.codex_home, 2, session_meta(2, model_provider="other"), user_message())
        backfill(runtime)
        assert self.listed(runtime, sources=["exec"]) == [1]
        assert self.listed(runtime, providers=["other"]) == [2]
        assert self.listed(runtime, sources=["exec"], providers=["other"]) == []


def test_another_homes_rows_are_never_judged(
    postgres_settings: StateSettings, opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    mine = opened(postgres_settings)
    theirs = opened(postgres_settings.model_copy(update={"codex_home": tmp_path / "theirs"}))
    write_rollout(theirs.codex_home, 1)
    (mine.codex_home / "sessions").mkdir()
    backfill(theirs)
    rollout_path(theirs.codex_home, 1).unlink()
    assert [thread.id for thread in list_threads(mine, page_size=9).items] == [thread_id(1)]
    assert row(mine) is not None
    assert list_threads(theirs, page_size=9).items == []
    judged = row(mine)
    assert judged is not None
    assert judged.gone_at is not None


def test_a_search_skips_a_directory_that_cannot_be_read(runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = write_rollout(runtime.codex_home, 2, time="2026-01-01T00-00-00").parent
    path = write_rollout(runtime.codex_home, 1)
    scandir = os.scandir

    def refusing(name: Any) -> Any:
        if name == str(hidden):
            raise PermissionError(13, "Permission denied", name)
        return scandir(name)

    monkeypatch.setattr(files.os, "scandir", refusing)
    assert find_thread_path(runtime, thread_id(1)) == path
    assert find_thread_path(runtime, thread_id(2)) is None
