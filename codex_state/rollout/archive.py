"""Archiving a thread: its rollouts move to ``archived_sessions`` of their own home, and its row follows.

The files move first. A crash between the two leaves a row that points at the old place, which every lookup, listing and
refresh repairs, because the files' place is what says whether a thread is archived.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from codex_state.errors import RolloutError, ThreadNotFoundError
from codex_state.models import RolloutFileState
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    is_archived,
    modified_seconds,
    rank,
    rollout_date_parts,
)
from codex_state.rollout.index import take_in
from codex_state.rollout.inventory import follow_home
from codex_state.rollout.lookup import files_of_thread
from codex_state.runtime import StateRuntime

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""How file systems say that they can't give a file another name."""


def archive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move all files of the thread to ``archived_sessions`` and mark the thread archived. Again is fine.

    Returns:
        Where the thread's newest rollout that can be read lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: a file can't be moved, or another one is in its place.
    """

    def target(path: str) -> str:
        return path if is_archived(path) else f"{ARCHIVED_SESSIONS_DIRECTORY}/{path.rpartition('/')[2]}"

    with runtime.read() as state:
        thread = state.threads.get(thread_id)
    since = None if thread is None else thread.archived_at
    path, updated_at = _move_all(runtime, thread_id, target)
    with runtime.begin() as state:
        archived_at = since or datetime.now(UTC)
        state.threads.mark_archived(thread_id, path, archived_at, updated_at=updated_at, home=runtime.home)
    return path


def unarchive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move all files of the thread back under ``sessions`` and mark the thread not archived. Again is fine.

    Returns:
        Where the thread's newest rollout that can be read lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: a file can't be moved, its name has no date, or another one is in its place.
    """

    def target(path: str) -> str:
        if not is_archived(path):
            return path
        name = path.rpartition("/")[2]
        parts = rollout_date_parts(name)
        if parts is None or not all(part.isdigit() for part in parts):
            raise RolloutError(f"the name of {path} has no date, so its place under {SESSIONS_DIRECTORY} isn't known")
        return "/".join((SESSIONS_DIRECTORY, *parts, name))

    path, updated_at = _move_all(runtime, thread_id, target)
    with runtime.begin() as state:
        state.threads.mark_unarchived(thread_id, path, updated_at=updated_at, home=runtime.home)
    return path


def _move_all(runtime: StateRuntime, thread_id: UUID, target: Callable[[str], str]) -> tuple[Path, datetime]:
    """Move all files of the thread and take in where they are. Returns where the one that counts is, and its time."""
    home = runtime.codex_home
    targets = {path: target(path) for path in files_of_thread(runtime, thread_id)}
    if not targets:
        raise ThreadNotFoundError(thread_id)
    moved = {path: to for path, to in targets.items() if to != path}
    for path, to in moved.items():
        if list(moved.values()).count(to) > 1 or _is_in_the_way(home / path, home / to):
            raise _already_there(home / path, home / to)
    for path, to in moved.items():
        _move(home / path, home / to)
    if moved:
        take_in(runtime, [*moved, *targets.values()])
    else:
        runtime.run(follow_home, runtime)
    spelled = str(thread_id)
    with runtime.read() as state:
        known = state.rollout_files.of_threads({spelled}, runtime.home).get(spelled, [])
    # The newest that can be read: the row comes from it, as after a refresh.
    indexed = {row.path for row in known if row.state == RolloutFileState.INDEXED} & set(targets.values())
    newest = home / max(indexed or targets.values(), key=lambda path: rank(path, spelled))
    return newest, from_epoch_seconds(modified_seconds(newest.stat()))


def _already_there(source: Path, target: Path) -> RolloutError:
    return RolloutError(f"can't move {source}: {target} is already there")


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_to_another_volume(source, target)
    except FileExistsError as error:
        raise _already_there(source, target) from error
    except OSError as error:
        raise RolloutError(f"can't move {source} to {target}: {error.strerror}") from error


def _rename(source: Path, target: Path) -> None:
    """Rename a file within its volume, and never over another one, whenever that appears.

    Raises:
        FileExistsError: something is at the target.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        if _is_in_the_way(source, target):
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Whoever else wants the name finds it taken, so that what is replaced is this empty file.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            source.replace(target)
        except BaseException:
            target.unlink()
            raise
        return
    source.unlink()


def _is_in_the_way(source: Path, target: Path) -> bool:
    """Whether something is at the target, unless that is this file: a move that was interrupted left both names."""
    try:
        there = target.lstat()
    except FileNotFoundError:
        return False
    # One name that is reached by two ways has one link.
    return not (there.st_nlink > 1 and os.path.samestat(there, source.lstat()))


def _move_to_another_volume(source: Path, target: Path) -> None:
    """Copy, make sure of the copy, and only then delete: whenever this stops, one whole file is there."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        shutil.copy2(source, part)
        with part.open("rb") as copied:
            os.fsync(copied.fileno())
        _rename(part, target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    source.unlink()
