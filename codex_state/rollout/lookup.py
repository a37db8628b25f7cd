"""Finding a thread's rollout, and listing threads, without trusting that rows and files still agree.

A row's path counts only if the file there says that it is this thread's. Otherwise the rollouts of the home are
searched for the id, and the row is repaired by what is found. Only rows of the own home are judged: another home's
files can't be seen from here.

Archiving a thread moves its rollouts to ``archived_sessions`` of their own home, and its row follows. The files move
first. A crash between the two leaves a row that points at the old place, which every lookup, listing and refresh
repairs, because the files' place is what says whether a thread is archived.
"""

from __future__ import annotations

import errno
import filecmp
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from codex_state.errors import (
    DatabaseError,
    DatabaseFullError,
    DatabaseReadOnlyError,
    RolloutError,
    StorageError,
    ThreadNotFoundError,
    UsageError,
)
from codex_state.models import RolloutFileState, Thread, ThreadQuery, ThreadsPage, UnreadableRow
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    find_rollouts,
    is_archived,
    is_directory,
    is_gone,
    may_be_file,
    modified_seconds,
    plain_name,
    rank,
    relative_to,
    rollout_date_parts,
)
from codex_state.rollout.format import canonical_uuid
from codex_state.rollout.index import index_rollout, take_in
from codex_state.rollout.inventory import follow_home, known_paths, paths_of
from codex_state.rollout.reading import owner_of, unreadable
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
    except (DatabaseReadOnlyError, DatabaseFullError, StorageError):
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
        if not is_gone(runtime.codex_home, inside):
            return
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


_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""How file systems say that they can't give a file another name."""


def archive_thread(runtime: StateRuntime, thread_id: UUID) -> Path:
    """Move all files of the thread to ``archived_sessions`` and mark the thread archived. Again is fine.

    Returns:
        Where the thread's newest rollout that can be read lies now.

    Raises:
        ThreadNotFoundError: the thread has no rollout in this home.
        RolloutError: a file can't be moved, or one that isn't the same is in its place.
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
        RolloutError: a file can't be moved, its place isn't known, or one that isn't the same is there.
    """
    with runtime.read() as state:
        thread = state.threads.get(thread_id)

    def target(path: str) -> str:
        """Where it lay by the date in its name, or by that of its thread."""
        if not is_archived(path):
            return path
        name = path.rpartition("/")[2]
        parts = rollout_date_parts(name)
        if parts is None or not all(part.isdigit() for part in parts):
            if thread is None:
                raise RolloutError(
                    f"the name of {path} has no date, so its place under {SESSIONS_DIRECTORY} isn't known; run "
                    "`codex-state backfill`, after which its thread's is"
                )
            parts = f"{thread.created_at:%Y}", f"{thread.created_at:%m}", f"{thread.created_at:%d}"
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
    first_of: dict[str, str] = {}
    for path, to in moved.items():
        with _told_if_refused(home / path, home / to):
            for other in (first_of.setdefault(to, path), to):
                if other != path:
                    _refuse_another(home / path, home / other)
    for path, to in moved.items():
        with _told_if_refused(home / path, home / to):
            if _are_equal(home / path, home / to):
                # The one in ``sessions`` stays: somebody may be writing to it.
                home.joinpath(to if is_archived(to) else path).unlink()
                if not is_archived(to):
                    continue
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
    try:
        return newest, from_epoch_seconds(modified_seconds(newest.stat()))
    except OSError as error:
        raise unreadable(str(newest), error) from error


def _already_there(source: Path, target: Path) -> RolloutError:
    return RolloutError(
        f"can't move {source}: {target} is already there and isn't the same; move the one that isn't wanted elsewhere"
    )


def _refuse_another(source: Path, other: Path) -> None:
    """Refuse to move a file beside or onto another one, unless that holds the same.

    Raises:
        RolloutError: it doesn't, or it is this file by another way.
    """
    try:
        if _is_second_name(source, other) or _are_equal(source, other):
            return
        is_same = os.path.samestat(source.stat(), other.stat())
    except FileNotFoundError:
        is_same = False
        if not other.is_symlink():
            return  # nothing is there, or nothing to be moved, which the move says
    if is_same:
        raise RolloutError(f"can't move {source}: {other} is the same file, by a link that leads there")
    raise _already_there(source, other)


def _are_equal(one: Path, other: Path) -> bool:
    """Whether both are there, are two files and hold the same."""
    try:
        statuses = one.lstat(), other.lstat()
    except FileNotFoundError:
        return False
    if os.path.samestat(*statuses) or not all(stat.S_ISREG(each.st_mode) for each in statuses):
        return False
    filecmp.clear_cache()  # it takes files for unchanged by their size and time
    return filecmp.cmp(one, other, shallow=False)


@contextmanager
def _told_if_refused(source: Path, target: Path) -> Iterator[None]:
    """Have what the system refuses say which file it was that couldn't be moved.

    Raises:
        RolloutError: in place of an ``OSError`` of the block.
    """
    try:
        yield
    except FileExistsError as error:
        raise _already_there(source, target) from error
    except OSError as error:
        raise RolloutError(f"can't move {source} to {target}: {error.strerror or error}") from error


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:
        raise RolloutError(f"can't move {source} to {target}: {error.filename} is not a directory") from error
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_to_another_volume(source, target)


def _rename(source: Path, target: Path) -> None:
    """Rename a file within its volume, and never over another one, whenever that appears.

    Raises:
        FileExistsError: something is at the target.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        if not _is_second_name(source, target):
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


def _is_second_name(source: Path, target: Path) -> bool:
    """Whether the target is this file under another name: a move that was interrupted left both.

    One name that is reached by two ways has one link.
    """
    there = target.lstat()
    return there.st_nlink > 1 and os.path.samestat(there, source.lstat())


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
