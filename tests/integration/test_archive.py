"""Archiving and bringing back, on both databases."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
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
from codex_state.rollout import archive_thread, backfill, find_thread_path, list_threads, lookup, unarchive_thread
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


def test_the_row_stays_with_the_newest_file_that_can_be_read(indexed: StateRuntime) -> None:
    write(rollout_path(indexed.codex_home, 1, segment=1), b"no rollout\n", modified=MODIFIED + 1)
    assert archive_thread(indexed, thread_id(1)) == rollout_path(indexed.codex_home, 1, archived=True)
    thread = row(indexed)
    assert thread.rollout_path == rollout_path(indexed.codex_home, 1, archived=True)
    assert thread.updated_at == from_epoch_seconds(MODIFIED)
    assert rollout_path(indexed.codex_home, 1, archived=True, segment=1).is_file()


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


@pytest.mark.parametrize("volumes", ["one", "two", "without hard links"])
@pytest.mark.parametrize("move", [archive_thread, unarchive_thread])
def test_of_two_equal_files_the_one_in_sessions_stays_wherever_it_is_moved(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch, move: Move, volumes: str
) -> None:
    """As after a backup of ``sessions`` was put back: somebody may go on in that one just now."""
    if volumes != "one":
        {"two": _on_two_volumes, "without hard links": _without_hard_links}[volumes](monkeypatch, indexed.codex_home)
    source, archived = (rollout_path(indexed.codex_home, 1, archived=flag) for flag in (False, True))
    archive_thread(indexed, thread_id(1))
    write(source, archived.read_bytes(), modified=MODIFIED + 5)
    content = source.read_bytes()
    stays = source if volumes == "two" else source.stat().st_ino
    moved = move(indexed, thread_id(1))
    assert moved == (archived if move is archive_thread else source)
    assert (names_in(indexed.codex_home), moved.read_bytes()) == ([source.name], content)
    assert stays in {source, moved.stat().st_ino}
    assert (row(indexed).archived, row(indexed).updated_at) == (
        move is archive_thread,
        from_epoch_seconds(MODIFIED + 5),
    )
    assert is_fresh(indexed)


def test_two_files_of_one_name_in_different_days_are_moved_if_they_are_equal_and_else_named(
    indexed: StateRuntime,
) -> None:
    source = rollout_path(indexed.codex_home, 1)
    other = write(source.parents[1] / "31" / source.name, source.read_bytes() + b"\n")
    with pytest.raises(RolloutError) as refused:
        archive_thread(indexed, thread_id(1))
    assert {str(source), str(other)} <= set(str(refused.value).replace(":", " ").split())
    assert (source.exists(), other.exists()) == (True, True)
    other.write_bytes(source.read_bytes())
    assert archive_thread(indexed, thread_id(1)) == rollout_path(indexed.codex_home, 1, archived=True)
    assert names_in(indexed.codex_home) == [source.name]
    assert is_fresh(indexed)


@pytest.mark.parametrize("name", ["rollout-odd.jsonl", "rollout-without-any-date.jsonl"])
def test_a_name_without_a_date_is_brought_back_by_the_day_of_its_thread(runtime: StateRuntime, name: str) -> None:
    path = write(runtime.codex_home / "archived_sessions" / name, body(session_meta(), user_message()))
    backfill(runtime)
    day = row(runtime).created_at
    moved = unarchive_thread(runtime, thread_id(1))
    assert moved == runtime.codex_home / "sessions" / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}" / name
    assert (moved.is_file(), path.exists(), row(runtime).archived) == (True, False, False)
    assert archive_thread(runtime, thread_id(1)) == path


def test_a_name_without_a_date_cannot_be_brought_back_while_its_thread_is_not_known(runtime: StateRuntime) -> None:
    path = write(runtime.codex_home / "archived_sessions/rollout-odd.jsonl", body(session_meta(), user_message()))
    backfill(runtime)
    with runtime.begin() as state:
        state.threads.delete(thread_id(1))
    with pytest.raises(RolloutError, match="has no date"):
        unarchive_thread(runtime, thread_id(1))
    assert path.is_file()


def test_a_move_that_the_system_refuses_is_a_clear_error(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(lookup.os, "link", refused)
    with pytest.raises(RolloutError, match="Permission denied"):
        archive_thread(indexed, thread_id(1))
    assert not row(indexed).archived


def _a_file(path: Path) -> None:
    path.write_text("no directory")


def _a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def _a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [(_a_file, "Not a directory"), (_a_loop, "levels of symbolic links"), (_a_link_to_nothing, "is not a directory")],
)
@pytest.mark.parametrize("move", [archive_thread, unarchive_thread])
def test_what_is_no_directory_where_a_rollout_is_to_be_moved_is_a_clear_error(
    indexed: StateRuntime, move: Move, obstacle: Callable[[Path], None], told: str
) -> None:
    place = indexed.codex_home / "archived_sessions"
    if move is unarchive_thread:
        archive_thread(indexed, thread_id(1))
        place = indexed.codex_home / "sessions" / "2026"
        shutil.rmtree(place)
    obstacle(place)
    with pytest.raises(RolloutError, match=f"can't move .*{told}"):
        move(indexed, thread_id(1))
    assert row(indexed).archived is (move is unarchive_thread)


@pytest.mark.parametrize("step", ["lstat", "stat"])
def test_a_rollout_that_vanishes_while_it_is_moved_is_a_clear_error(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before its place is looked at, when another name is left there, and after it was moved."""
    source, target = (rollout_path(indexed.codex_home, 1, archived=flag) for flag in (False, True))
    if step == "lstat":
        target.parent.mkdir()
        target.hardlink_to(source)
    watched, look = source if step == "lstat" else target, getattr(Path, step)

    def vanishing(each: Path, **how: bool) -> os.stat_result:
        if each == watched:
            each.unlink(missing_ok=True)
        status: os.stat_result = look(each, **how)
        return status

    monkeypatch.setattr(Path, step, vanishing)
    with pytest.raises(RolloutError, match="No such file"):
        archive_thread(indexed, thread_id(1))


Patch = Callable[[pytest.MonkeyPatch, Path], None]


def _on_two_volumes(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The two roots of the home lie on two volumes: nothing in one can get a name in the other."""
    link = os.link

    def refusing(source: Path, target: Path) -> None:
        if len({path.relative_to(home).parts[0] for path in (source, target)}) > 1:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(target))
        link(source, target)

    monkeypatch.setattr(lookup.os, "link", refusing)


def _without_hard_links(monkeypatch: pytest.MonkeyPatch, _home: Path) -> None:
    """The home lies on a file system where a file has one name."""

    def refused(_source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(lookup.os, "link", refused)


@pytest.fixture
def two_volumes(indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> StateRuntime:
    _on_two_volumes(monkeypatch, indexed.codex_home)
    return indexed


@pytest.fixture
def no_hard_links(indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> StateRuntime:
    _without_hard_links(monkeypatch, indexed.codex_home)
    return indexed


@pytest.mark.parametrize("volumes", [None, _on_two_volumes, _without_hard_links])
@pytest.mark.parametrize("move", [archive_thread, unarchive_thread])
def test_a_file_that_appears_while_another_is_moved_there_is_never_overwritten(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch, volumes: Patch | None, move: Move
) -> None:
    """L12: it comes at the last moment before the step that gives the name."""
    home = indexed.codex_home
    if move is unarchive_thread:
        archive_thread(indexed, thread_id(1))
    if volumes is not None:
        volumes(monkeypatch, home)
    source, target = (
        rollout_path(home, 1, archived=flag) for flag in (move is unarchive_thread, move is archive_thread)
    )
    content = source.read_bytes()
    step = "open" if volumes is _without_hard_links else "link"
    give_name = getattr(os, step)

    def late(*arguments: object) -> object:
        if target in arguments and (volumes is not _on_two_volumes or source not in arguments):
            write(target, b"precious")
        return give_name(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lookup.os, step, late)
        with pytest.raises(RolloutError, match="already there"):
            move(indexed, thread_id(1))
    assert (source.read_bytes(), target.read_bytes()) == (content, b"precious")
    assert names_in(home) == [source.name] * 2
    assert row(indexed).archived is (move is unarchive_thread)


def test_where_a_file_has_only_one_name_it_is_moved_as_well(no_hard_links: StateRuntime) -> None:
    source, target = (rollout_path(no_hard_links.codex_home, 1, archived=flag) for flag in (False, True))
    content, status = source.read_bytes(), source.stat()
    assert archive_thread(no_hard_links, thread_id(1)) == target
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (content, status.st_mtime_ns)
    assert unarchive_thread(no_hard_links, thread_id(1)) == source
    assert names_in(no_hard_links.codex_home) == [source.name]
    assert is_fresh(no_hard_links)


@pytest.mark.parametrize("volumes", [None, _without_hard_links])
def test_a_move_that_fails_half_way_leaves_the_file_and_is_finished_by_the_next(
    indexed: StateRuntime, monkeypatch: pytest.MonkeyPatch, volumes: Patch | None
) -> None:
    if volumes is not None:
        volumes(monkeypatch, indexed.codex_home)
    source, target = (rollout_path(indexed.codex_home, 1, archived=flag) for flag in (False, True))
    content = source.read_bytes()

    def full(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        unlink = Path.unlink
        patch.setattr(Path, "unlink", lambda each, **how: full() if each == source else unlink(each, **how))
        patch.setattr(Path, "replace", full)
        with pytest.raises(RolloutError, match="Input/output error"):
            archive_thread(indexed, thread_id(1))
    assert source.read_bytes() == content
    assert target.exists() is (volumes is None)
    backfill(indexed, refresh=True)
    assert not row(indexed).archived
    assert archive_thread(indexed, thread_id(1)) == target
    assert (names_in(indexed.codex_home), target.read_bytes()) == ([source.name], content)
    assert row(indexed).archived
    assert is_fresh(indexed)


def test_one_file_that_is_reached_by_two_ways_is_not_taken_for_a_move_that_was_interrupted(
    indexed: StateRuntime,
) -> None:
    source = rollout_path(indexed.codex_home, 1)
    (indexed.codex_home / "archived_sessions").symlink_to(source.parent)
    with pytest.raises(RolloutError, match="is the same file"):
        archive_thread(indexed, thread_id(1))
    assert source.is_file()


def names_in(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*") if path.is_file() and "sqlite" not in path.name)


def test_a_rollout_is_moved_to_another_volume_as_it_is(two_volumes: StateRuntime) -> None:
    source, target = (rollout_path(two_volumes.codex_home, 1, archived=flag) for flag in (False, True))
    os.utime(source, ns=(1, MODIFIED * 10**9 + 123_456_789))
    content, status = source.read_bytes(), source.stat()
    assert archive_thread(two_volumes, thread_id(1)) == target
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (content, status.st_mtime_ns)
    assert target.stat().st_mode == status.st_mode
    assert names_in(two_volumes.codex_home) == [source.name]
    assert unarchive_thread(two_volumes, thread_id(1)) == source
    assert (source.read_bytes(), source.stat().st_mtime_ns) == (content, status.st_mtime_ns)
    assert names_in(two_volumes.codex_home) == [source.name]
    assert is_fresh(two_volumes)


@pytest.mark.parametrize(
    ("step", "is_there_twice"), [("copy", False), ("fsync", False), ("link", False), ("unlink", True)]
)
def test_a_move_to_another_volume_that_fails_leaves_the_whole_file(
    two_volumes: StateRuntime, monkeypatch: pytest.MonkeyPatch, step: str, is_there_twice: bool
) -> None:
    """L7: nor is half a file ever seen under the rollout's name."""
    home = two_volumes.codex_home
    source, target = (rollout_path(home, 1, archived=flag) for flag in (False, True))
    content = source.read_bytes()

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(_source: Path, part: Path) -> None:
        part.write_bytes(content[:20])
        full()

    with monkeypatch.context() as patch:
        match step:
            case "copy":
                patch.setattr(lookup.shutil, "copy2", half)
            case "fsync":
                patch.setattr(lookup.os, "fsync", full)
            case "link":
                link = lookup.os.link
                patch.setattr(lookup.os, "link", lambda each, to: full() if each.suffix == ".part" else link(each, to))
            case _:
                unlink = Path.unlink
                patch.setattr(Path, "unlink", lambda each, **how: full() if each == source else unlink(each, **how))
        with pytest.raises(RolloutError, match="No space left on device"):
            archive_thread(two_volumes, thread_id(1))
    assert source.read_bytes() == content
    assert names_in(home) == [source.name] * (1 + is_there_twice)
    assert not is_there_twice or target.read_bytes() == content
    backfill(two_volumes, refresh=True)
    assert not row(two_volumes).archived
    if not is_there_twice:
        archive_thread(two_volumes, thread_id(1))
        assert row(two_volumes).archived


_ON_TWO_VOLUMES = """
import os, subprocess, sys
from pathlib import Path
home = Path(sys.argv[1])
source = next(home.glob("sessions/*/*/*/rollout-*"))
kept = source.read_bytes(), source.stat().st_mtime_ns
(home / "archived_sessions").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(home / "archived_sessions")], check=True)
assert (home / "archived_sessions").stat().st_dev != source.stat().st_dev
from codex_state import StateRuntime, StateSettings
from codex_state.rollout import archive_thread, backfill, unarchive_thread
from uuid import UUID
with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
    backfill(runtime)
    target = archive_thread(runtime, UUID(sys.argv[2]))
    assert not source.exists()
    assert (target.read_bytes(), target.stat().st_mtime_ns) == kept
    assert unarchive_thread(runtime, UUID(sys.argv[2])) == source
assert not target.exists()
assert (source.read_bytes(), source.stat().st_mtime_ns) == kept
print("moved there and back")
"""


def test_real_volumes_are_no_border(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("another volume can't be mounted here")
    write_rollout(tmp_path / "home", 1, modified=MODIFIED + 0.123)
    command = [unshare, "--mount", sys.executable, "-c", _ON_TWO_VOLUMES, tmp_path / "home", str(thread_id(1))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "moved there and back\n", done.stderr


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
        patch.setattr(lookup, "take_in", crash)
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
