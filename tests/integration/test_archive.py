"""Archiving and bringing back, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import zstandard
from rollout_files import body, rollout_path, session_meta, thread_id, user_message, write, write_rollout

from codex_state import StateRuntime, Thread, ThreadNotFoundError, ThreadQuery
from codex_state.errors import DatabaseBusyError, RolloutError
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout import archive, archive_thread, backfill, find_thread_path, list_threads, unarchive_thread
from codex_state.rollout.backfilling import is_fresh

MODIFIED = 1_767_400_000

Move = Callable[[StateRuntime, UUID], Path]


@pytest.fixture
def indexed(runtime: StateRuntime) -> StateRuntime:
    write_rollout(runtime.codex_home, 1, modified=MODIFIED)
    backfill(runtime)
    return runtime


def row(runtime: StateRuntime) -> Thread:
    with runtime.read() as state:
        thread = state.threads.get(thread_id(1))
    assert thread is not None
    return thread


def test_archiving_moves_the_rollout_and_marks_the_row(indexed: StateRuntime) -> None:
    source, target = (rollout_path(indexed.codex_home, 1, archived=flag) for flag in (False, True))
    content = source.read_bytes()
    assert archive_thread(indexed, thread_id(1)) == target
    assert (source.exists(), target.read_bytes()) == (False, content)
    thread = row(indexed)
    assert (thread.rollout_path, thread.archived, thread.updated_at) == (target, True, from_epoch_seconds(MODIFIED))
    assert thread.archived_at is not None
    assert abs(thread.archived_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_bringing_back_restores_the_place_by_date_and_the_row(indexed: StateRuntime) -> None:
    source = rollout_path(indexed.codex_home, 1)
    before = row(indexed)
    archive_thread(indexed, thread_id(1))
    assert unarchive_thread(indexed, thread_id(1)) == source
    after = row(indexed)
    assert source.is_file()
    assert {name: getattr(after, name) for name in Thread.column_names()} == {
        name: getattr(before, name) for name in Thread.column_names()
    }


def test_doing_it_again_is_fine(indexed: StateRuntime) -> None:
    first = archive_thread(indexed, thread_id(1))
    since = row(indexed).archived_at
    assert archive_thread(indexed, thread_id(1)) == first
    assert row(indexed).archived_at == since
    back = unarchive_thread(indexed, thread_id(1))
    assert unarchive_thread(indexed, thread_id(1)) == back


def test_a_compressed_rollout_is_moved_as_it_is(runtime: StateRuntime) -> None:
    packed = zstandard.ZstdCompressor().compress(body(session_meta(), user_message()))
    source = write(rollout_path(runtime.codex_home, 1).with_suffix(".jsonl.zst"), packed)
    backfill(runtime)
    moved = archive_thread(runtime, thread_id(1))
    assert moved == runtime.codex_home / "archived_sessions" / source.name
    assert unarchive_thread(runtime, thread_id(1)) == source


def test_an_unknown_thread_is_named(indexed: StateRuntime) -> None:
    for move in (archive_thread, unarchive_thread):
        with pytest.raises(ThreadNotFoundError, match=str(thread_id(9))):
            move(indexed, thread_id(9))


def test_another_file_in_the_way_is_never_overwritten(indexed: StateRuntime) -> None:
    source = rollout_path(indexed.codex_home, 1)
    obstacle = write(rollout_path(indexed.codex_home, 1, archived=True), b"precious")
    with pytest.raises(RolloutError, match="already there"):
        archive_thread(indexed, thread_id(1))
    assert (obstacle.read_bytes(), source.is_file(), row(indexed).archived) == (b"precious", True, False)


def test_a_name_without_a_date_cannot_be_brought_back(runtime: StateRuntime) -> None:
    path = write(runtime.codex_home / "archived_sessions/rollout-odd.jsonl", body(session_meta(), user_message()))
    backfill(runtime)
    with pytest.raises(RolloutError, match="has no date"):
        unarchive_thread(runtime, thread_id(1))
    assert path.is_file()


def test_a_move_that_the_system_refuses_is_a_clear_error(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_self: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link", str(target))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(RolloutError, match="Invalid cross-device link"):
        archive_thread(indexed, thread_id(1))
    assert not row(indexed).archived


@pytest.mark.parametrize("mended_by", ["again", "lookup", "listing", "refresh"])
@pytest.mark.parametrize("move", [archive_thread, unarchive_thread])
def test_a_crash_between_file_and_row_is_mended(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch, move: Move, mended_by: str
) -> None:
    def crash(*_arguments: object) -> None:
        raise DatabaseBusyError("crash")

    is_archived = move is archive_thread
    if not is_archived:
        archive_thread(indexed, thread_id(1))
    with monkeypatch.context() as patch:
        patch.setattr(archive, "take_in", crash)
        with pytest.raises(DatabaseBusyError):
            move(indexed, thread_id(1))
    target = rollout_path(indexed.codex_home, 1, archived=is_archived)
    assert target.is_file()
    assert row(indexed).archived is not is_archived
    match mended_by:
        case "again":
            move(indexed, thread_id(1))
        case "lookup":
            assert find_thread_path(indexed, thread_id(1)) == target
        case "refresh":
            backfill(indexed, refresh=True)
        case _:
            assert list_threads(indexed, ThreadQuery(archived=not is_archived)).items == []
    assert (row(indexed).archived, row(indexed).rollout_path) == (is_archived, target)
    backfill(indexed, refresh=True)
    assert is_fresh(indexed)
    assert (row(indexed).archived, row(indexed).rollout_path) == (is_archived, target)
