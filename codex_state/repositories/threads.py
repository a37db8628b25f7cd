"""Threads: the index of rollouts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, func, null, or_, select, update
from sqlalchemy.dialects.postgresql import Insert, insert

from codex_state.models import LOCAL_HOME, Anchor, Phase1Job, SortKey, Thread, ThreadMemory, ThreadsPage
from codex_state.models.columns import EpochSeconds, IntegerFlag, PathText, UuidText, text
from codex_state.repositories import thread_listing, thread_names
from codex_state.repositories.base import Repository, columns_of, select_entity, table_of
from codex_state.repositories.given_rows import parameters_of, storable
from codex_state.repositories.prepared import atomically

# One insert construct serves both databases: what PostgreSQL's ON CONFLICT renders, SQLite's dialect renders as well.
_threads = table_of(Thread)
_memories = table_of(ThreadMemory)
_jobs = table_of(Phase1Job)
_columns = columns_of(Thread)
_insert = insert(_threads).values({column.key: bindparam(column.key, type_=column.type) for column in _columns})
_BY_ID = _threads.c.id == bindparam("thread_id", type_=UuidText())


def _unless_moved_to(cwd: ColumnElement[Any]) -> ColumnElement[Any]:
    """Whether the thread's directory is settled, which another directory isn't: it is another scope."""
    return case((_threads.c.cwd == cwd, _threads.c.cwd_settled_for), else_=null())


def _overwrite(*kept: str, where: ColumnElement[bool] | None = None, **instead: Any) -> Insert:
    updates: dict[str, ColumnElement[Any]] = {
        column.key: _insert.excluded[column.key] for column in _columns if column.key not in {"id", *kept}
    }
    updates["cwd_settled_for"] = _unless_moved_to(_insert.excluded.cwd)
    return _insert.on_conflict_do_update(index_elements=["id"], set_=updates | instead, where=where)


_GET = select_entity(Thread).where(_BY_ID)
_UPSERT = _overwrite("memory_mode")
_INSERT_IF_ABSENT = _insert.on_conflict_do_nothing(index_elements=["id"]).returning(_threads.c.id)

_has_explicit_title = and_(
    func.trim(_threads.c.title) != "",
    func.trim(_threads.c.title) != func.trim(_threads.c.first_user_message),
)
# A thread that was seen in two homes belongs to the one whose rollout was written last.
_is_of_this_home = or_(_threads.c.home == _insert.excluded.home, _threads.c.updated_at <= _insert.excluded.updated_at)
_UPSERT_FROM_ROLLOUT = _overwrite(
    where=_is_of_this_home,
    title=case((_has_explicit_title, _threads.c.title), else_=_insert.excluded.title),
    **{
        field: func.coalesce(_threads.c[field], _insert.excluded[field])
        for field in ("git_sha", "git_branch", "git_origin_url")
    },
)

_PATH = select(_threads.c.rollout_path).where(_BY_ID)
_ROLLOUTS_OF = select(_threads.c.id, _threads.c.rollout_path, _threads.c.updated_at).where(
    _threads.c.id.in_(bindparam("thread_ids", expanding=True, type_=UuidText()))
)
_ROLLOUTS_AT = select(_threads.c.rollout_path, _threads.c.updated_at).where(
    _threads.c.rollout_path.in_(bindparam("paths", expanding=True, type_=PathText()))
)
_ALL_PATHS = select(_threads.c.rollout_path).where(_threads.c.home == bindparam("of_home", type_=text))
_PATH_ARCHIVED = {flag: _PATH.where(_threads.c.archived == flag) for flag in (True, False)}

_SET_ARCHIVED = (
    update(_threads)
    .where(_BY_ID)
    .values(
        archived=bindparam("new_archived", type_=IntegerFlag()),
        archived_at=bindparam("new_archived_at", type_=EpochSeconds()),
        rollout_path=bindparam("new_rollout_path", type_=PathText()),
        updated_at=func.coalesce(bindparam("new_updated_at", type_=EpochSeconds()), _threads.c.updated_at),
    )
    .returning(_threads.c.id)
)
_RELOCATE = (
    update(_threads)
    .where(_BY_ID, _threads.c.home == bindparam("of_home", type_=text))
    .values(
        rollout_path=bindparam("new_rollout_path", type_=PathText()),
        cwd=bindparam("new_cwd", type_=PathText()),
        cwd_settled_for=_unless_moved_to(bindparam("new_cwd", type_=PathText())),
        archived=bindparam("new_archived", type_=IntegerFlag()),
        archived_at=bindparam("new_archived_at", type_=EpochSeconds()),
    )
    .returning(_threads.c.id)
)
_SET_MEMORY_MODE = (
    update(_threads).where(_BY_ID).values(memory_mode=bindparam("new_memory_mode")).returning(_threads.c.id)
)
_SET_TITLE = update(_threads).where(_BY_ID).values(title=bindparam("new_title")).returning(_threads.c.id)
_has_primary_data = or_(
    select(_memories.c.thread_id).where(_memories.c.thread_id == _threads.c.id).exists(),
    select(_jobs.c.thread_id).where(_jobs.c.thread_id == _threads.c.id).exists(),
    _has_explicit_title,
)
_DELETE_VANISHED = (
    delete(_threads)
    .where(
        _BY_ID,
        _threads.c.home == bindparam("of_home", type_=text),
        _threads.c.rollout_path == bindparam("missing_path", type_=PathText()),
        ~_has_primary_data,
    )
    .returning(_threads.c.id)
)
_OF_HOME = _threads.c.home == bindparam("of_home", type_=text)
_SET_ARCHIVED_OF_HOME = _SET_ARCHIVED.where(_OF_HOME)
_ROLLOUTS_WITH_HOMES = _ROLLOUTS_OF.add_columns(_threads.c.home)
_ROLLOUTS_OF_HOME_AT = _ROLLOUTS_AT.where(_OF_HOME)
_LOCK = select(_threads.c.id).where(_BY_ID).with_for_update()
_DELETE = delete(_threads).where(_BY_ID).returning(_threads.c.id)


class ThreadRepository(Repository):
    """Reads and writes of the ``threads`` table."""

    def get(self, thread_id: UUID) -> Thread | None:
        """The thread, or ``None``.

        Raises:
            InvalidRowError: the row holds a value that no version writes.
        """
        return self._entity(Thread, _GET, {"thread_id": thread_id})

    def upsert(self, thread: Thread) -> None:
        """Insert the thread, or replace every column of its row but ``memory_mode``, which belongs to its creation."""
        self._all(_UPSERT, _row_of(thread))

    def upsert_many(self, threads: Iterable[Thread]) -> None:
        """``upsert`` for many threads: all or none."""
        self._many(_UPSERT, [_row_of(thread) for thread in threads])

    def upsert_from_rollouts(self, threads: Iterable[Thread]) -> None:
        """Write what rollouts say, keeping what they can't know: all threads or none.

        Each git field that the row already has stays. So does a title that was given by the user, which shows by
        differing from the first message. Everything else, ``memory_mode`` included, is taken from the rollout. A row
        of another home stays as it is when its rollout was written later than this one: the thread has moved there.
        """
        self._many(_UPSERT_FROM_ROLLOUT, [_row_of(thread) for thread in threads])

    def insert_if_absent(self, thread: Thread) -> bool:
        """Insert the thread unless it has a row, which then stays as it is. Tells whether a row was inserted."""
        return self._one(_INSERT_IF_ABSENT, _row_of(thread)) is not None

    def list(
        self,
        *,
        page_size: int,
        anchor: Anchor | None = None,
        sort_key: SortKey = SortKey.UPDATED_AT,
        sources: Collection[str] = (),
        providers: Collection[str] = (),
        archived: bool = False,
        home: str | None = None,
    ) -> ThreadsPage:
        """One page of threads that have a first user message, newest first.

        Args:
            page_size: how many threads the page holds at most; 0 gives an empty page.
            anchor: the previous page's ``next_anchor``; ``None`` for the first page.
            sort_key: the time to sort by; threads of one second are ordered by id.
            sources: only threads of these sources; empty means all.
            providers: only threads of these model providers; empty means all.
            archived: only archived threads, or only the others.
            home: only threads of this home; ``None`` means all.
        """
        if page_size <= 0:
            return ThreadsPage([], None, 0)
        statement, parameters = thread_listing.statement_of(
            sort_key,
            archived=archived,
            sources=sources,
            providers=providers,
            anchor=anchor,
            home=home,
            limit=page_size + 1,
        )
        found = self._entities(Thread, statement, parameters)
        items = found[:page_size]
        following = thread_listing.anchor_of(items[-1], sort_key) if len(found) > page_size else None
        return ThreadsPage(items, following, len(found))

    def list_ids(
        self,
        *,
        limit: int,
        anchor: Anchor | None = None,
        sort_key: SortKey = SortKey.UPDATED_AT,
        sources: Collection[str] = (),
        providers: Collection[str] = (),
        archived: bool = False,
        home: str | None = None,
    ) -> Sequence[UUID]:
        """The ids that ``list`` would give, at most ``limit`` of them."""
        if limit <= 0:
            return []
        statement, parameters = thread_listing.statement_of(
            sort_key,
            archived=archived,
            sources=sources,
            providers=providers,
            anchor=anchor,
            home=home,
            limit=limit,
            ids_only=True,
        )
        return [row.id for row in self._all(statement, parameters)]

    def find_rollout_path(self, thread_id: UUID, *, archived: bool | None = None) -> Path | None:
        """Where the row says the rollout lies, without looking at the file.

        Args:
            thread_id: the thread.
            archived: only if the thread is (or isn't) archived; ``None`` for either.
        """
        statement = _PATH if archived is None else _PATH_ARCHIVED[archived]
        row = self._one(statement, {"thread_id": thread_id})
        return None if row is None else row.rollout_path

    def rollout_paths(self, home: str = LOCAL_HOME) -> Sequence[Path]:
        """Where all rows of a home say their rollouts lie: about 200 bytes each in memory."""
        return [row.rollout_path for row in self._all(_ALL_PATHS, {"of_home": home})]

    def mark_archived(
        self,
        thread_id: UUID,
        rollout_path: Path,
        archived_at: datetime,
        *,
        updated_at: datetime | None = None,
        home: str | None = None,
    ) -> bool:
        """Mark the thread archived, its rollout now at ``rollout_path``. Tells whether the thread has a row.

        Args:
            thread_id: the thread.
            rollout_path: where the rollout lies now.
            archived_at: since when it is archived.
            updated_at: the rollout's modification time; ``None`` leaves the row's.
            home: only if the row is this home's; ``None`` for whichever.
        """
        return self._set_archived(thread_id, rollout_path, archived_at, updated_at, home)

    def mark_unarchived(
        self, thread_id: UUID, rollout_path: Path, *, updated_at: datetime | None = None, home: str | None = None
    ) -> bool:
        """Mark the thread not archived, its rollout now at ``rollout_path``. Tells whether the thread has a row.

        The arguments are those of ``mark_archived``.
        """
        return self._set_archived(thread_id, rollout_path, None, updated_at, home)

    def _set_archived(
        self,
        thread_id: UUID,
        rollout_path: Path,
        archived_at: datetime | None,
        updated_at: datetime | None,
        home: str | None,
    ) -> bool:
        parameters: dict[str, Any] = {
            "thread_id": thread_id,
            "new_archived": archived_at is not None,
            "new_archived_at": archived_at,
            "new_rollout_path": rollout_path,
            "new_updated_at": updated_at,
        }
        if home is None:
            return self._one(_SET_ARCHIVED, parameters) is not None
        return self._one(_SET_ARCHIVED_OF_HOME, parameters | {"of_home": home}) is not None

    def relocate(
        self, thread_id: UUID, rollout_path: Path, *, cwd: Path, archived_at: datetime | None, home: str = LOCAL_HOME
    ) -> bool:
        """Repair where the thread's rollout lies, its directory, and since when it is archived (``None``: it isn't).

        Tells whether the thread has a row of this home. Another home's row isn't touched.
        """
        parameters = {
            "thread_id": thread_id,
            "of_home": home,
            "new_rollout_path": rollout_path,
            "new_cwd": cwd,
            "new_archived": archived_at is not None,
            "new_archived_at": archived_at,
        }
        return self._one(_RELOCATE, parameters) is not None

    def rollouts_of(self, thread_ids: Collection[UUID]) -> dict[UUID, tuple[Path, datetime, str]]:
        """Where the rollouts of these threads lie, when they were last written, and in which home, by their rows.

        For a few hundred threads at once.
        """
        rows = self._all(_ROLLOUTS_WITH_HOMES, {"thread_ids": list(thread_ids)}) if thread_ids else ()
        return {row.id: (row.rollout_path, row.updated_at, row.home) for row in rows}

    def rollouts_at(self, paths: Collection[str], home: str = LOCAL_HOME) -> Sequence[tuple[Path, datetime]]:
        """Which of these paths rows of a home point at, and when those rollouts were last written, by their rows.

        For a few hundred paths at once. No index serves it: it reads every row.
        """
        parameters = {"paths": [Path(path) for path in paths], "of_home": home}
        rows = self._all(_ROLLOUTS_OF_HOME_AT, parameters) if paths else ()
        return [(row.rollout_path, row.updated_at) for row in rows]

    def set_memory_mode(self, thread_id: UUID, memory_mode: str) -> bool:
        """Say what may be remembered of the thread. Tells whether the thread has a row."""
        parameters = {"thread_id": thread_id, "new_memory_mode": memory_mode}
        return self._one(_SET_MEMORY_MODE, parameters) is not None

    def set_title(self, thread_id: UUID, title: str) -> bool:
        """Give the thread a title of the user's, which a rebuild from rollouts keeps. Tells whether it has a row."""
        return self._one(_SET_TITLE, {"thread_id": thread_id, "new_title": title}) is not None

    def take_names(self, names: Iterable[tuple[UUID, str, int]]) -> int:
        """Take names that were given elsewhere, each with its thread and the epoch second when it was given.

        A name that is older than the row's, or as old, changes nothing; a name whose thread has no row is left out.
        For a few hundred threads at once.

        Returns:
            How many rows were changed.
        """
        return len(self._all(thread_names.TAKE_NAMES, _names_given(names)))

    def take_original_names(self, names: Iterable[tuple[UUID, str, int]]) -> set[UUID]:
        """Take what the original's database calls threads, each name with its thread and the thread's last change.

        Only a name that differs from what that database said the last time is news. It replaces a name that came from
        there, or one that is older than the thread's last change. For a few hundred threads at once.

        Returns:
            The threads that have another name now.
        """
        given = _names_given(names)
        with atomically(self._connection):
            taken = {row.id for row in self._all(thread_names.TAKE_NAMES_OF_THE_ORIGINAL, given)}
            self._all(thread_names.NOTE_NAMES_OF_THE_ORIGINAL, given)
        return taken

    def delete(self, thread_id: UUID) -> bool:
        """Delete the thread with its tools, memories and jobs. Tells whether it had a row."""
        return self._one(_DELETE, {"thread_id": thread_id}) is not None

    def delete_vanished(self, thread_id: UUID, rollout_path: Path, home: str) -> bool:
        """Delete the row of a thread whose rollout is gone, unless something would be lost with it (law L7).

        A row with memories, extraction jobs or a title of the user's stays: those are not in any rollout. So does a
        row that meanwhile points elsewhere, or that belongs to another home, which alone may judge its files.

        Returns:
            Whether the row was deleted.
        """
        parameters = {"thread_id": thread_id, "missing_path": rollout_path, "of_home": home}
        connection = self._connection
        if connection.dialect.name != "postgresql":
            return self._one(_DELETE_VANISHED, parameters) is not None
        # A statement that waits for a row judges other tables as they were before it waited. So the wait comes first:
        # from then on nobody can insert a row that refers to the thread, and what is there is seen.
        with atomically(connection):
            self._one(_LOCK, parameters)
            return self._one(_DELETE_VANISHED, parameters) is not None


def _row_of(thread: Thread) -> dict[str, Any]:
    return {**thread.column_values(), "archived": thread.archived_at is not None}


def _names_given(names: Iterable[tuple[UUID, str, int]]) -> dict[str, str]:
    """One name for each thread: a statement wouldn't say which of two it took."""
    latest: dict[UUID, tuple[UUID, str, int]] = {}
    for thread_id, name, at in names:
        if thread_id not in latest or latest[thread_id][2] <= at:
            latest[thread_id] = (thread_id, storable(name), at)
    return parameters_of(latest.values())
