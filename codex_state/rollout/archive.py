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
from codex_state.rollout.lookup import files_of_thread
from codex_state.runtime import StateRuntime


def archive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move all files of the thread to ``archived_sessions`` and mark the thread archived. Again is fine.

    Returns:
        Where the thread's newest rollout lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: a file can't be moved, or another one is in its place.
    """

    def target(path: str) -> str:
        return path if is_archived(path) else f"{ARCHIVED_SESSIONS_DIRECTORY}/{path.rpartition('/')[2]}"

    path = _move_all(runtime, thread_id, target)
    updated_at = from_epoch_seconds(modified_seconds(path.stat()))
    with runtime.begin() as state:
        thread = state.threads.get(thread_id)
        archived_at = datetime.now(UTC) if thread is None or thread.archived_at is None else thread.archived_at
        state.threads.mark_archived(thread_id, path, archived_at, updated_at=updated_at, home=runtime.home)
    return path


def unarchive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move all files of the thread back under ``sessions`` and mark the thread not archived. Again is fine.

    Returns:
        Where the thread's newest rollout lies now.

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

    path = _move_all(runtime, thread_id, target)
    updated_at = from_epoch_seconds(modified_seconds(path.stat()))
    with runtime.begin() as state:
        state.threads.mark_unarchived(thread_id, path, updated_at=updated_at, home=runtime.home)
    return path


def _move_all(runtime: StateRuntime, thread_id: UUID, target: Callable[[str], str]) -> Path:
    home = runtime.codex_home
    paths = files_of_thread(runtime, thread_id)
    if not paths:
        raise ThreadNotFoundError(thread_id)
    targets = {path: target(path) for path in paths}
    moved = [path for path in paths if targets[path] != path]
    for path in moved:
        if (home / targets[path]).exists() or list(targets.values()).count(targets[path]) > 1:
            raise RolloutError(f"can't move {home / path}: {home / targets[path]} is already there")
    for path in moved:
        _move(home / path, home / targets[path])
    now = max(targets.values(), key=lambda path: rank(path, str(thread_id)))
    if moved:
        archived_at = None
        with runtime.read() as state:
            thread = state.threads.get(thread_id)
            archived_at = None if thread is None else thread.archived_at
        take_in(runtime, [*moved, *targets.values()])
        if archived_at is None and is_archived(now):
            with runtime.begin() as state:
                state.threads.mark_archived(thread_id, home / now, datetime.now(UTC), home=runtime.home)
    return home / now


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_to_another_volume(source, target)
    except OSError as error:
        raise RolloutError(f"can't move {source} to {target}: {error.strerror}") from error


def _move_to_another_volume(source: Path, target: Path) -> None:
    """Copy, make sure of the copy, and only then delete: whenever this stops, one whole file is there."""
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copy2(source, part)
        with part.open("rb") as copied:
            os.fsync(copied.fileno())
        part.rename(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    source.unlink()
