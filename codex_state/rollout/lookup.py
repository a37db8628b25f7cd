"""Finding a thread's rollout, and listing threads, without trusting that rows and files still agree.

A row's path counts only if the file there says that it is this thread's. Otherwise the rollouts of the home are
searched for the id, and the row is repaired by what is found. Only rows of the own home are judged: another home's
files can't be seen from here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from codex_state.errors import DatabaseError, DatabaseReadOnlyError, RolloutError, UsageError
from codex_state.models import Thread, ThreadQuery, ThreadsPage, UnreadableRow
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    find_rollouts,
    is_archived,
    is_directory,
    may_be_file,
    plain_name,
    relative_to,
    rollout_date_parts,
)
from codex_state.rollout.format import canonical_uuid
from codex_state.rollout.head import owner_of
from codex_state.rollout.index import index_rollout, take_in
from codex_state.rollout.inventory import known_paths, paths_of
from codex_state.runtime import StateRuntime

_log = logging.getLogger("codex_state")


def find_thread_path(runtime: StateRuntime, thread_id: UUID, *, archived: bool | None = None) -> Path | None:
    """Where the thread's rollout lies, or ``None``. Repairs the row when it was missing or wrong, if it can.

    Args:
        runtime: the open state.
        thread_id: the thread.
        archived: only an archived (or not archived) thread; ``None`` for either.

    Raises:
        DatabaseError: the row can't be read.
    """
    with runtime.read() as state:
        stored = state.threads.find_rollout_path(thread_id, archived=archived)
    unverified = None
    paths = sorted(known_paths(runtime, thread_id))
    known = [runtime.codex_home / path for path in paths if archived in (None, is_archived(path))]
    for path in ([stored] if stored is not None else []) + known:
        if (existing := existing_rollout(path)) is not None:
            owner = owner_of(existing)
            if owner == str(thread_id):
                if path != stored:
                    _repair(runtime, thread_id, existing)
                return existing
            if owner is None:
                unverified = unverified or existing
    found = _search(runtime, thread_id, archived)
    if found is None:
        return unverified
    _log.info("the row of thread %s is repaired: its rollout is %s", thread_id, found)
    _repair(runtime, thread_id, found)
    return found


def with_its_rollout(runtime: StateRuntime, thread: Thread) -> Thread | None:
    """The thread with the place where its rollout lies now, for someone who is about to read it.

    ``None`` when the rollout is gone from this home; then the thread isn't listed, nor extracted, until it is back. A
    thread without a rollout, one of another home, and one whose rollout never lay in a home are as they are.
    """
    path = thread.rollout_path
    if path is None or thread.home != runtime.home:
        return thread
    found = find_thread_path(runtime, thread.id)
    if found is not None:
        values = dict(thread.column_values()) | {"rollout_path": found}
        return thread if found == path else Thread.snapshot([values[name] for name in Thread.column_names()])
    if relative_to(runtime.codex_home, path) is None:
        return thread
    _look_again(runtime, thread.id, path)
    return None


def existing_rollout(path: Path) -> Path | None:
    """The file that holds a rollout now: itself, or its compressed form; ``None`` when both are gone."""
    for candidate in (path, path.with_name(path.name + ".zst"), path.with_name(plain_name(path.name))):
        if may_be_file(candidate):
            return candidate
    return None


def files_of_thread(runtime: StateRuntime, thread_id: UUID) -> list[str]:
    """All files of a thread in this home, relative to it: those that say so, and those that are only named so."""
    home = runtime.codex_home
    named = [path.relative_to(home).as_posix() for path in find_rollouts(home, thread_id)]
    known = [path for path in known_paths(runtime, thread_id) if may_be_file(home / path)]
    paths = dict.fromkeys([*named, *known])
    return [path for path in paths if owner_of(home / path) in (None, str(thread_id))]


def list_threads(
    runtime: StateRuntime, query: ThreadQuery | None = None, *, page_size: int | None = None
) -> ThreadsPage:
    """One page of threads whose rollouts exist.

    A row whose rollout was archived, brought back or compressed behind our back is repaired. One whose rollout is gone
    is left out from now on; its row stays (law L7). So a page may be shorter than asked for while more follow:
    ``next_anchor`` alone tells whether it is the last. A row that can't be read is made anew from its rollout.

    Args:
        runtime: the open state.
        query: which threads, and in which order; all of them by default.
        page_size: how many at most, in place of the query's.
    """
    wanted = query or ThreadQuery()
    if page_size is not None:
        wanted = replace(wanted, limit=page_size)
    with runtime.read() as state:
        page = state.threads.list(wanted)
    if page.unreadable and _made_anew(runtime, page.unreadable):
        with runtime.read() as state:
            page = state.threads.list(wanted)
    items = [thread for each in page.items for thread in _still_there(runtime, each, wanted)]
    return replace(page, items=items)


def _still_there(runtime: StateRuntime, thread: Thread, wanted: ThreadQuery) -> Iterator[Thread]:
    path = thread.rollout_path
    if path is None or thread.home != runtime.home or thread.gone_at is not None or may_be_file(path):
        yield thread
        return
    try:
        _look_again(runtime, thread.id, path)
        with runtime.read() as state:
            now = state.threads.get(thread.id)
    except DatabaseReadOnlyError:
        return
    if now is None or now.archived != wanted.archived:
        return
    is_there = now.gone_at is None and (now.rollout_path is None or may_be_file(now.rollout_path))
    if is_there or wanted.all:
        yield now


def _look_again(runtime: StateRuntime, thread_id: UUID, path: Path) -> None:
    """Take in what became of a thread's file, which isn't where its row says."""
    inside = relative_to(runtime.codex_home, path)
    if inside is not None:
        take_in(runtime, {inside, *known_paths(runtime, thread_id), *_other_places(inside)})
        with runtime.read() as state:
            known = state.rollout_files.get(inside, runtime.home)
        if known is not None or any(may_be_file(runtime.codex_home / each) for each in _other_places(inside)):
            return
        if not is_directory(runtime.codex_home / inside.partition("/")[0]):
            return  # a file on a disk that isn't mounted isn't gone
    elif not is_directory(path.parent):
        return
    with runtime.begin() as state:
        state.threads.mark_gone({thread_id}, runtime.home)
    _log.info("the rollout of thread %s is gone: %s; its row is kept", thread_id, path)


def _other_places(path: str) -> list[str]:
    """Where archiving, bringing back and compressing would have put a file."""
    name = plain_name(path.rpartition("/")[2])
    parts = rollout_date_parts(name)
    directories = [path.rpartition("/")[0], ARCHIVED_SESSIONS_DIRECTORY]
    if parts is not None:
        directories.append("/".join((SESSIONS_DIRECTORY, *parts)))
    return [each for directory in directories for each in (f"{directory}/{name}", f"{directory}/{name}.zst")]


def _made_anew(runtime: StateRuntime, unreadable: Sequence[UnreadableRow]) -> bool:
    """Read the rollouts of threads again whose rows can't be read. Tells whether any was."""
    thread_ids = [spelled for row in unreadable if (spelled := canonical_uuid(row.key)) is not None]
    with runtime.read() as state:
        rows = state.rollout_files.of_threads(thread_ids, runtime.home)
    paths = [path for files in rows.values() for path in paths_of(files)]
    try:
        take_in(runtime, paths)
    except (DatabaseError, UsageError) as error:
        _log.warning("%d rows can't be read, and can't be made anew: %s", len(thread_ids), error)
        return False
    return bool(paths)


def _repair(runtime: StateRuntime, thread_id: UUID, path: Path) -> None:
    """Make the thread's row agree with where its rollout lies. The path is right whether or not that succeeds."""
    inside = relative_to(runtime.codex_home, path)
    try:
        if inside is None:
            index_rollout(runtime, path)
            return
        take_in(runtime, {inside, *known_paths(runtime, thread_id)})
    except (DatabaseError, RolloutError, UsageError) as error:  # the last inside of a write of the caller's
        _log.warning("the row of thread %s can't be repaired: %s", thread_id, error)


def _search(runtime: StateRuntime, thread_id: UUID, archived: bool | None) -> Path | None:  # noqa: FBT001
    """The thread's rollout among the files named after it: one that says so itself, else one that doesn't say."""
    silent = None
    for path in find_rollouts(runtime.codex_home, thread_id, archived=archived):
        owner = owner_of(path)
        if owner == str(thread_id):
            return path
        if owner is None and silent is None:
            silent = path
    try:
        if silent is not None:
            index_rollout(runtime, silent)
    except RolloutError:
        return None
    return silent
