"""Archiving a thread: its rollout moves to ``archived_sessions``, and its row follows.

The file moves first, in one rename. A crash between the two leaves a row that points at the old place, which every
lookup and listing repairs, because the file's place is what says whether a thread is archived.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from codex_state.errors import RolloutError, ThreadNotFoundError
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    is_archived_path,
    modified_seconds,
    rollout_date_parts,
)
from codex_state.rollout.lookup import find_own_thread_path
from codex_state.runtime import StateRuntime


def archive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move the thread's rollout to ``archived_sessions`` and mark the thread archived. Again is fine.

    Returns:
        Where the rollout lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: the file can't be moved, or another one is in its place.
    """
    path = _path_of(runtime, thread_id)
    if not is_archived_path(runtime.codex_home, path):
        path = _move(path, runtime.codex_home / ARCHIVED_SESSIONS_DIRECTORY / path.name)
    updated_at = from_epoch_seconds(modified_seconds(path.stat()))
    with runtime.begin() as state:
        thread = state.threads.get(thread_id)
        archived_at = datetime.now(UTC) if thread is None or thread.archived_at is None else thread.archived_at
        state.threads.mark_archived(thread_id, path, archived_at, updated_at=updated_at, home=runtime.home)
    return path


def unarchive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move the thread's rollout back under ``sessions`` and mark the thread not archived. Again is fine.

    Returns:
        Where the rollout lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: the file can't be moved, its name has no date, or another one is in its place.
    """
    path = _path_of(runtime, thread_id)
    if is_archived_path(runtime.codex_home, path):
        parts = rollout_date_parts(path.name)
        if parts is None or not all(part.isdigit() for part in parts):
            raise RolloutError(f"the name of {path} has no date, so its place under {SESSIONS_DIRECTORY} isn't known")
        path = _move(path, runtime.codex_home.joinpath(SESSIONS_DIRECTORY, *parts, path.name))
    updated_at = from_epoch_seconds(modified_seconds(path.stat()))
    with runtime.begin() as state:
        state.threads.mark_unarchived(thread_id, path, updated_at=updated_at, home=runtime.home)
    return path


def _path_of(runtime: StateRuntime, thread_id: UUID) -> Path:
    path = find_own_thread_path(runtime, thread_id)
    if path is None:
        raise ThreadNotFoundError(thread_id)
    return path


def _move(source: Path, target: Path) -> Path:
    if target.exists():
        raise RolloutError(f"can't move {source}: {target} is already there")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    except OSError as error:
        raise RolloutError(f"can't move {source} to {target}: {error.strerror}") from error
    return target
