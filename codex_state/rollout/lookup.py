"""Finding a thread's rollout, and listing threads, without trusting that rows and files still agree.

A row's path counts only if the file there says that it is this thread's. Otherwise the rollouts of the home are
searched for the id, and the row is repaired by what is found. Only rows of the own home are judged: another home's
files can't be seen from here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from codex_state.errors import RolloutError
from codex_state.models import Thread, ThreadQuery, ThreadsPage
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    find_rollouts,
    is_archived_path,
    plain_name,
    rollout_date_parts,
)
from codex_state.rollout.head import read_session_meta
from codex_state.rollout.indexing import index_rollout, repair_row
from codex_state.runtime import StateRuntime

_log = logging.getLogger("codex_state")


def find_thread_path(runtime: StateRuntime, thread_id: UUID, *, archived: bool | None = None) -> Path | None:
    """Where the thread's rollout lies, or ``None``. Repairs the row when it was missing or wrong.

    Args:
        runtime: the open state.
        thread_id: the thread.
        archived: only an archived (or not archived) thread; ``None`` for either.

    Raises:
        DatabaseError: the row can't be read or repaired.
    """
    with runtime.read() as state:
        stored = state.threads.find_rollout_path(thread_id, archived=archived)
    return _verified_or_searched(runtime, thread_id, stored, archived)


def find_own_thread_path(runtime: StateRuntime, thread_id: UUID) -> Path | None:
    """Where the thread's rollout lies in this home, or ``None``: another home's file isn't ours to move."""
    with runtime.read() as state:
        row = state.threads.rollouts_of({thread_id}).get(thread_id)
    stored = row[0] if row is not None and row[2] == runtime.home else None
    return _verified_or_searched(runtime, thread_id, stored, None)


def _verified_or_searched(
    runtime: StateRuntime,
    thread_id: UUID,
    stored: Path | None,
    archived: bool | None,  # noqa: FBT001
) -> Path | None:
    unverified = None
    if stored is not None and (existing := existing_rollout(stored)) is not None:
        owner = _owner_of(existing)
        if owner == thread_id:
            return existing
        if owner is None:
            unverified = existing
    found = _search(runtime, thread_id, archived)
    if found is None:
        return unverified
    _log.info("the row of thread %s is repaired: its rollout is %s", thread_id, found)
    repair_row(runtime, thread_id, found)
    return found


def existing_rollout(path: Path) -> Path | None:
    """The file that holds a rollout now: itself, or its compressed form; ``None`` when both are gone."""
    for candidate in (path, path.with_name(path.name + ".zst"), path.with_name(plain_name(path.name))):
        if candidate.is_file():
            return candidate
    return None


def list_threads(
    runtime: StateRuntime, query: ThreadQuery | None = None, *, page_size: int | None = None
) -> ThreadsPage:
    """One page of threads whose rollouts exist, newest first.

    A row whose rollout was archived or brought back behind our back is repaired. One whose rollout is gone is marked so
    and dropped from the page; nothing is deleted. So a page may be shorter than asked for while more follow:
    ``next_anchor`` alone tells whether it is the last.

    Args:
        runtime: the open state.
        query: which threads; by default those of every home that aren't archived.
        page_size: in place of the query's limit.
    """
    query = query or ThreadQuery()
    if page_size is not None:
        query = replace(query, limit=page_size)
    with runtime.read() as state:
        page = state.threads.list(query)
    items = [thread for thread in page.items if query.all or _is_still_there(runtime, thread)]
    return replace(page, items=items)


def _is_still_there(runtime: StateRuntime, thread: Thread) -> bool:
    path = thread.rollout_path
    if path is None or thread.home != runtime.home or existing_rollout(path) is not None:
        return True
    moved = _moved_rollout(runtime.codex_home, path)
    if moved is not None:
        repair_row(runtime, thread.id, moved)
        return is_archived_path(runtime.codex_home, moved) == thread.archived
    if _is_reachable(runtime.codex_home, path):
        with runtime.begin() as state:
            state.threads.mark_gone([thread.id], thread.home)
        _log.info("the rollout of thread %s is gone: %s", thread.id, path)
    return False


def _is_reachable(home: Path, path: Path) -> bool:
    """Whether the tree that the file should be in is there: a file on a disk that isn't mounted isn't gone."""
    root = ARCHIVED_SESSIONS_DIRECTORY if is_archived_path(home, path) else SESSIONS_DIRECTORY
    return (home / root).is_dir() if path.is_relative_to(home) else path.parent.is_dir()


def _moved_rollout(home: Path, path: Path) -> Path | None:
    """The same file in the other place that archiving would have put it."""
    if is_archived_path(home, path):
        parts = rollout_date_parts(path.name)
        return None if parts is None else existing_rollout(home.joinpath(SESSIONS_DIRECTORY, *parts, path.name))
    return existing_rollout(home / ARCHIVED_SESSIONS_DIRECTORY / path.name)


def _owner_of(path: Path) -> UUID | None:
    try:
        return UUID(read_session_meta(path).id)
    except RolloutError:
        return None


def _search(runtime: StateRuntime, thread_id: UUID, archived: bool | None) -> Path | None:  # noqa: FBT001
    """The thread's rollout among the files named after it: one that says so itself, else one that doesn't say."""
    silent = None
    for path in find_rollouts(runtime.codex_home, thread_id, archived=archived):
        owner = _owner_of(path)
        if owner == thread_id:
            return path
        if owner is None and silent is None:
            silent = path
    if silent is None or not _is_usable(runtime, silent):
        return None
    return silent


def _is_usable(runtime: StateRuntime, path: Path) -> bool:
    try:
        index_rollout(runtime, path)
    except RolloutError:
        return False
    return True
