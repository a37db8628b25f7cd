"""Threads: the index of rollouts, with their tools, the home that each belongs to, and the rows that refer to them.

Of two names of a thread the one that was given later stays. A line of ``session_index.jsonl`` says when a name was
given. The original's database doesn't: all that is known is the time of the thread's last change, which moves on while
the name stays. Taken as the name's, it would make an old name win over one that was given here, as soon as the thread
goes on in the original. So the row notes what that database said last, and only another name there is news.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    column,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
    type_coerce,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import Insert, insert

from codex_state.database.errors import place_of
from codex_state.database.execute import atomically, by_index, enforces_foreign_keys, execute
from codex_state.database.sql import server_now
from codex_state.errors import IntegrityViolationError, InvalidInputError, InvalidRowError, one_of, required
from codex_state.models import (
    LOCAL_HOME,
    MEMORY_MODES,
    Anchor,
    BackfillState,
    DynamicTool,
    GroupBy,
    StatisticsPage,
    StatisticsQuery,
    Thread,
    ThreadQuery,
    ThreadsPage,
    ThreadStatistics,
    UnreadableRow,
    UnshownThreads,
    nanoseconds_of,
)
from codex_state.models.base import columns_of, table_of
from codex_state.models.columns import EpochSeconds, IntegerFlag, OptionalPath, UuidText, path_to_text, text
from codex_state.repositories import thread_listing, thread_statistics
from codex_state.repositories.base import (
    Repository,
    given_rows,
    later_than,
    parameters_of,
    seconds_of,
    select_entity,
    storable,
)
from codex_state.repositories.memory_scopes import MemoryScopeRepository
from codex_state.repositories.rollout_files import ROLLOUT_COLUMNS, UPSERT_FROM_ROLLOUTS, still_settled
from codex_state.repositories.thread_listing import Reads, statement_of

_COUNTED_UNSHOWN = 1000
"""Where counting threads that aren't shown ends."""

_MOST_UNREADABLE = 1000
"""So many rows that can't be read are passed over in one page."""

# One insert construct serves both databases: what PostgreSQL's ON CONFLICT renders, SQLite's dialect renders as well.
_threads = table_of(Thread)
_columns = columns_of(Thread)
_given = {column.key: bindparam(column.key, type_=column.type) for column in _columns}
# A name that comes without a time is given now.
_name_at = case(
    (and_(_given["name"].is_not(None), _given["name_at"].is_(None)), server_now()),
    else_=_given["name_at"],
)
_insert = insert(_threads).values(_given | {"name_at": _name_at})
_BY_ID = _threads.c.id == bindparam("thread_id", type_=UuidText())
_IN_IDS = _threads.c.id.in_(bindparam("thread_ids", expanding=True, type_=UuidText()))
_OF_HOME = _threads.c.home == bindparam("of_home", type_=text)
_HAS_ROLLOUT = _threads.c.rollout_path != literal_column("''")


def _overwrite(*kept: str, where: ColumnElement[bool] | None = None, **instead: Any) -> Insert:
    updates: dict[str, ColumnElement[Any]] = {
        column.key: _insert.excluded[column.key] for column in _columns if column.key not in {"id", *kept}
    }
    # Another directory is another scope, which nobody has settled.
    updates |= still_settled(_insert.excluded)
    return _insert.on_conflict_do_update(index_elements=["id"], set_=updates | instead, where=where)


_GET = select_entity(Thread).where(_BY_ID)
# Of two names the newer one stays; no name is none.
_brings_a_name = and_(
    _insert.excluded.name.is_not(None),
    or_(_threads.c.name_at.is_(None), _threads.c.name_at <= _insert.excluded.name_at),
)
_UPSERT = _overwrite(
    "memory_mode",
    "memory_mode_chosen_at",
    "original_name",
    name=case((_brings_a_name, _insert.excluded.name), else_=_threads.c.name),
    name_at=case((_brings_a_name, _insert.excluded.name_at), else_=_threads.c.name_at),
    # What was said of a file holds until another one is named.
    gone_at=case(
        (_threads.c.rollout_path == _insert.excluded.rollout_path, _threads.c.gone_at),
        else_=_insert.excluded.gone_at,
    ),
)
_INSERT_IF_ABSENT = _insert.on_conflict_do_nothing(index_elements=["id"]).returning(_threads.c.id)

_PATH = select(_threads.c.rollout_path).where(_BY_ID)
_PATH_ARCHIVED = {flag: _PATH.where(_threads.c.archived == flag) for flag in (True, False)}

_SET_ARCHIVED = (
    update(_threads)
    .where(_BY_ID)
    .values(
        archived=bindparam("new_archived", type_=IntegerFlag()),
        archived_at=bindparam("new_archived_at", type_=EpochSeconds()),
        rollout_path=bindparam("new_rollout_path", type_=OptionalPath()),
        gone_at=null(),
        updated_at=func.coalesce(bindparam("new_updated_at", type_=EpochSeconds()), _threads.c.updated_at),
    )
    .returning(_threads.c.id)
)
_SET_MEMORY_MODE = (
    update(_threads)
    .where(_BY_ID)
    .values(memory_mode=bindparam("new_memory_mode", type_=text), memory_mode_chosen_at=server_now())
    .returning(_threads.c.id)
)
_SET_NAME = (
    update(_threads)
    .where(_BY_ID)
    .values(name=bindparam("new_name", type_=text), name_at=later_than(_threads.c.name_at, server_now()))
    .returning(_threads.c.id)
)
_MARK_GONE = (
    update(_threads)
    .where(_IN_IDS, _OF_HOME, _HAS_ROLLOUT, _threads.c.gone_at.is_(None))
    .values(gone_at=server_now())
    .returning(_threads.c.id)
)
_DELETE_GONE = (
    delete(_threads)
    .where(
        _IN_IDS,
        _OF_HOME,
        _threads.c.gone_at.is_not(None),
        _threads.c.name.is_(None),
        _threads.c.memory_mode_chosen_at.is_(None),
        _threads.c.pinned == literal_column("0"),
    )
    .returning(_threads.c.id)
)
_SET_ARCHIVED_OF_HOME = _SET_ARCHIVED.where(_OF_HOME)
_LOCK_ALL = select(_threads.c.id).where(_IN_IDS).order_by(_threads.c.id).with_for_update()
_DELETE = delete(_threads).where(_BY_ID).returning(_threads.c.id)
_refers = [
    key.parent for each in _threads.metadata.sorted_tables for key in each.foreign_keys if key.references(_threads)
]
_DELETE_PARTS = [
    delete(part.table).where(part.in_(bindparam("thread_ids", expanding=True, type_=UuidText()))) for part in _refers
]

_given_names = given_rows(thread_id=UuidText(), name=text, name_at=BigInteger())

_IS_OLDER = or_(_threads.c.name_at.is_(None), seconds_of(_threads.c.name_at) < _given_names.c.name_at)
_IS_NEWS = and_(
    _threads.c.id == _given_names.c.thread_id, _threads.c.original_name.is_distinct_from(_given_names.c.name)
)
_IS_NAMED = _threads.c.id == _given_names.c.thread_id

_TAKE_NAMES = (
    update(_threads)
    .where(_IS_NAMED, _IS_OLDER)
    .values(name=_given_names.c.name, name_at=_given_names.c.name_at)
    .returning(_threads.c.id)
)
_TAKE_NAMES_OF_THE_ORIGINAL = (
    update(_threads)
    # A name that came from there is replaced whatever the times say: renaming doesn't have to move the thread's.
    .where(_IS_NEWS, or_(_IS_OLDER, _threads.c.name == _threads.c.original_name))
    .where(_threads.c.name.is_distinct_from(_given_names.c.name))
    .values(
        name=_given_names.c.name,
        name_at=case((_IS_OLDER, _given_names.c.name_at), else_=_threads.c.name_at),
        original_name=_given_names.c.name,
    )
    .returning(_threads.c.id)
)
_NOTE_NAMES_OF_THE_ORIGINAL = (
    update(_threads).where(_IS_NEWS).values(original_name=_given_names.c.name).returning(_threads.c.id)
)

_EVERYTHING = ThreadQuery()
_IDS_BETWEEN = (
    select(_threads.c.id)
    .where(_threads.c.id >= bindparam("first_id", type_=UuidText()))
    .where(_threads.c.id <= bindparam("last_id", type_=UuidText()))
    .order_by(_threads.c.id)
    .limit(bindparam("row_limit", type_=BigInteger()))
)
_others = _threads.alias("others")
_before = select(_others.c.id).where(_others.c.id < _threads.c.id).order_by(_others.c.id.desc()).limit(1)
_after = select(_others.c.id).where(_others.c.id > _threads.c.id).order_by(_others.c.id).limit(1)
_NEIGHBOURS = select(
    _threads.c.id, _before.scalar_subquery().label("before"), _after.scalar_subquery().label("after")
).where(_IN_IDS)
_inside = bindparam("directory", type_=text)
_stored_path = type_coerce(_threads.c.rollout_path, text)
_BY_HOME = (
    select(_threads.c.home, func.count().label("threads"))
    .where(func.substr(_stored_path, 1, func.length(_inside)) == _inside)
    .group_by(_threads.c.home)
)
_IDS_AT_ONCE = 500
_ALL_DAYS = StatisticsQuery()

_Readable = tuple[list[Thread], list[UnreadableRow], int]


class ThreadTexts(NamedTuple):
    """What a search compares of a thread before it looks into the rollouts."""

    id: UUID
    at: datetime
    """The time by which the threads are ordered."""
    rollout_path: Path | None
    texts: tuple[str | None, ...]
    """What people know it by."""


def _following(query: ThreadQuery, found: Sequence[Any], last_looked_at: Anchor | None) -> Anchor | None:
    """Where the next page begins, after one for which one row more than its limit was asked for."""
    if len(found) <= query.limit:
        return last_looked_at
    last = found[query.limit - 1]
    return Anchor(getattr(last, query.sort_key.value), last.id)


class ThreadRepository(Repository):
    """Reads and writes of the ``threads`` table."""

    def get(self, thread_id: UUID) -> Thread | None:
        """The thread, or ``None``.

        Raises:
            InvalidRowError: the row holds a value that no version writes.
        """
        return self._entity(Thread, _GET, {"thread_id": thread_id})

    def upsert(self, thread: Thread) -> None:
        """Insert the thread, or replace the columns of its row, but for what this thread can't know better.

        - The memory mode stays: it belongs to the row's creation, and to whoever chose it since.
        - A name stays unless this thread has one that isn't older; one without a time is given now. ``set_name``
          takes a name away.
        - That the rollout is gone stays known while the thread names the same one, and what the original's database
          last called the thread stays noted.
        """
        self._all(_UPSERT, _row_of(thread))

    def upsert_many(self, threads: Iterable[Thread]) -> None:
        """``upsert`` for many threads: all or none."""
        self._many(_UPSERT, [_row_of(thread) for thread in threads])

    def upsert_from_rollouts(self, threads: Iterable[Thread]) -> None:
        """Write what rollouts say, keeping what they can't know: all threads or none.

        Each git field that the row already has stays. So do its pin, and a memory mode that somebody chose; of two
        names the newer one does. Everything else is taken from the rollout. A row of another home stays as it is when
        its rollout was written later than this one: the thread has moved there.
        """
        told = (*ROLLOUT_COLUMNS, "home")
        rows = [_row_of(thread) for thread in threads]
        with atomically(self._connection):
            scopes = MemoryScopeRepository(self._session)
            scopes.mark_dirty_of_changed((str(row["id"]), row["memory_mode"]) for row in rows)
            self._many(
                UPSERT_FROM_ROLLOUTS,
                [{name: row[name] for name in told} | {"memory_mode_said_at": None} for row in rows],
            )

    def insert_if_absent(self, thread: Thread) -> bool:
        """Insert the thread unless it has a row, which then stays as it is. Tells whether a row was inserted."""
        return self._one(_INSERT_IF_ABSENT, _row_of(thread)) is not None

    def list(self, query: ThreadQuery = _EVERYTHING) -> ThreadsPage:
        """One page of threads, newest first; those of one second are ordered by id.

        A row that can't be read doesn't count: the page names it beside the threads. With filters that no index serves,
        a page looks at no more than 10,000 rows (law L10): it may be short, even empty, and have a ``next_anchor``.

        Raises:
            InvalidRowError: a thousand rows in a row can't be read.
        """
        if required(query, ThreadQuery).limit <= 0:
            return ThreadsPage([], None, 0)
        wanted = replace(query, limit=query.limit + 1)
        unreadable: Sequence[UnreadableRow] = ()
        bounds = self._bounds_of(query)
        try:
            found = self._entities(Thread, *statement_of(wanted, **bounds))
            scanned = len(found)
        except InvalidRowError:
            found, unreadable, scanned = self._readable(wanted, bounds)
        following = _following(query, found, bounds["to_anchor"])
        return ThreadsPage(found[: query.limit], following, scanned, tuple(unreadable))

    def list_texts(self, query: ThreadQuery = _EVERYTHING) -> tuple[Sequence[ThreadTexts], Anchor | None]:
        """Of the page that ``list`` would give, what a search compares; and the ``next_anchor``.

        Rows of which nothing but another column can't be read are among them.

        Raises:
            InvalidRowError: a thousand rows in a row can't be read.
        """
        if required(query, ThreadQuery).limit <= 0:
            return [], None
        wanted = replace(query, limit=query.limit + 1)
        bounds = self._bounds_of(query)
        rows: Sequence[Any]
        try:
            rows = self._all(*statement_of(wanted, Reads.TEXTS, **bounds))
        except InvalidRowError:
            rows, _, _ = self._readable(wanted, bounds)
        at, texts = attrgetter(query.sort_key.value), attrgetter(*thread_listing.TEXTS)
        found = [ThreadTexts(row.id, at(row), row.rollout_path, texts(row)) for row in rows[: query.limit]]
        return found, _following(query, rows, bounds["to_anchor"])

    def _bounds_of(self, query: ThreadQuery) -> dict[str, Any]:
        """What of all threads a page of the query looks at, as ``statement_of`` takes it."""
        directories = self._directories_of(query)
        return {"directories": directories, "to_anchor": self._last_looked_at(query, directories)}

    def _directories_of(self, query: ThreadQuery) -> Sequence[str] | None:
        """The directories that a query's directory comes to, if an index is to serve them."""
        spellings = thread_listing.directories_parameters(query)
        if spellings is None:
            return None
        found = {row.directory for below in spellings for row in self._all(thread_listing.DIRECTORIES, below)}
        return thread_listing.directories_of(query, sorted(found))

    def _last_looked_at(self, query: ThreadQuery, directories: Sequence[str] | None) -> Anchor | None:
        """The last row that a page looks at; ``None`` when it looks at as many as there are."""
        beside = query if directories is None else replace(query, cwd=None)
        if beside.by_index() == beside:
            return None
        try:
            row = self._one(*statement_of(query, Reads.ANCHOR, directories=directories))
        except InvalidRowError:
            return None  # rare enough to look at more
        return None if row is None else Anchor(getattr(row, query.sort_key.value), row.id)

    def count(self, query: ThreadQuery = _EVERYTHING) -> int:
        """How many threads the query would list on all its pages, counted up to its limit."""
        counted = replace(query, anchor=None)
        row = self._one(*statement_of(counted, Reads.TOTAL, directories=self._directories_of(query)))
        return 0 if row is None else int(row.total)

    def _readable(self, query: ThreadQuery, bounds: Mapping[str, Any]) -> _Readable:
        """The threads that can be read, the rows between them that can't, and how many rows were looked at."""
        threads: list[Thread] = []
        unreadable: list[UnreadableRow] = []
        dialect = self._connection.dialect
        statement, parameters = statement_of(query, Reads.STORED, **bounds)
        scanned = 0
        while len(unreadable) <= _MOST_UNREADABLE:
            rows = self._all(statement, parameters)
            for row in rows:
                scanned += 1
                try:
                    threads.append(thread_listing.thread_of(row, dialect))
                except InvalidRowError as error:
                    unreadable.append(UnreadableRow(thread_listing.stored_key(row), str(error)))
                if len(threads) == query.limit:
                    return threads, unreadable, scanned
            if len(rows) < query.limit:
                return threads, unreadable, scanned
            anchor = thread_listing.stored_anchor(rows[-1], query.sort_key)
            statement, parameters = statement_of(query, Reads.STORED, stored_anchor=anchor, **bounds)
        raise InvalidRowError(
            f"more than {_MOST_UNREADABLE:,} rows of threads can't be read, the first of them {unreadable[0].key!r}: "
            f"{unreadable[0].reason}"
        )

    def list_ids(self, query: ThreadQuery = _EVERYTHING) -> Sequence[UUID]:
        """The ids of the page that ``list`` would give.

        Raises:
            InvalidRowError: an id or a time among them can't be read.
        """
        if required(query, ThreadQuery).limit <= 0:
            return []
        directories = self._directories_of(query)
        return [row.id for row in self._all(*statement_of(query, Reads.IDS, directories=directories))]

    def ids_between(self, first: UUID, last: UUID, *, limit: int) -> Sequence[UUID]:
        """The ids from one to another, both included, in their order."""
        return [row.id for row in self._all(_IDS_BETWEEN, {"first_id": first, "last_id": last, "row_limit": limit})]

    def count_by_home(self, directory: Path) -> dict[str, int]:
        """How many threads each home has whose rollouts lie below a directory. Looks at the rows of all threads."""
        rows = self._all(_BY_HOME, {"directory": f"{path_to_text(directory).rstrip('/')}/"})
        return {row.home: row.threads for row in rows}

    def shortest_beginnings(self, thread_ids: Collection[UUID], *, digits: int = 8) -> dict[UUID, str]:
        """How each id begins that no other thread's id begins with, for people to type.

        Args:
            thread_ids: the ids. Those without a thread are left out.
            digits: so many hexadecimal digits at least.
        """
        beginnings = {}
        ordered = sorted(thread_ids)
        for start in range(0, len(ordered), _IDS_AT_ONCE):
            for row in self._all(_NEIGHBOURS, {"thread_ids": ordered[start : start + _IDS_AT_ONCE]}):
                neighbours = [neighbour for neighbour in (row.before, row.after) if neighbour is not None]
                shared = max((_digits_shared(row.id, neighbour) for neighbour in neighbours), default=0)
                needed = max(shared + 1, digits)
                hyphens = sum(needed > place for place in (8, 12, 16, 20))
                beginnings[row.id] = str(row.id)[: needed + hyphens]
        return beginnings

    def count_unshown(self, query: ThreadQuery = _EVERYTHING) -> UnshownThreads:
        """How many threads aren't shown that the query would list if it were for all: up to a thousand are counted."""
        counted = replace(query, anchor=None, limit=_COUNTED_UNSHOWN)
        row = self._one(*statement_of(counted, Reads.UNSHOWN, directories=self._directories_of(query)))
        if row is None:
            raise AssertionError("a count has one row")
        return UnshownThreads(row.unshown - row.gone, row.gone, row.unshown < _COUNTED_UNSHOWN)

    def statistics(self, query: StatisticsQuery = _ALL_DAYS) -> StatisticsPage:
        """How many turns and tokens threads took, added up by the query's groups.

        What a fork took over from its parent counts for the parent alone. Each call looks at the rows of all threads.
        """
        if query.limit <= 0:
            groups: list[ThreadStatistics] = []
        else:
            rows = self._all(*thread_statistics.statement_of(query, grouped=True))
            groups = thread_statistics.groups_of(rows, GroupBy(query.by))
        if 0 < len(groups) <= query.limit:
            return StatisticsPage(groups, thread_statistics.added_up(groups), more=False)
        (row,) = self._all(*thread_statistics.statement_of(query, grouped=False))
        total = thread_statistics.statistics_of(row, None)
        return StatisticsPage(groups[: max(query.limit, 0)], total, more=bool(total.threads))

    def find_rollout_path(self, thread_id: UUID, *, archived: bool | None = None) -> Path | None:
        """Where the row says the rollout lies, without looking at the file; ``None`` when it doesn't say.

        Args:
            thread_id: the thread.
            archived: only if the thread is (or isn't) archived; ``None`` for either.
        """
        statement = _PATH if archived is None else _PATH_ARCHIVED[archived]
        row = self._one(statement, {"thread_id": thread_id})
        return None if row is None else row.rollout_path

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

    def set_memory_mode(self, thread_id: UUID, memory_mode: str) -> bool:
        """Choose what may be remembered of the thread; a rebuild keeps the choice. Tells whether it has a row.

        Of a thread whose mode isn't ``enabled`` no memory is handed out. The scopes of its memories are dirty: what was
        derived from them is made anew.

        Raises:
            InvalidInputError: there is no such mode.
        """
        parameters = {"thread_id": thread_id, "new_memory_mode": one_of(memory_mode, MEMORY_MODES, "memory mode")}
        with atomically(self._connection):
            MemoryScopeRepository(self._session).mark_dirty_of(thread_id)
            return self._one(_SET_MEMORY_MODE, parameters) is not None

    def set_name(self, thread_id: UUID, name: str | None) -> bool:
        """Call the thread by a name, or by none. Tells whether it has a row.

        It is the newest from now on, so no older name comes back from a rollout or an index of names, also not where
        this one is ``None``.

        Raises:
            InvalidInputError: the name is blank.
        """
        if name is not None and not required(name, str).strip():
            raise InvalidInputError("a name can't be blank; None takes it away")
        return self._one(_SET_NAME, {"thread_id": thread_id, "new_name": name}) is not None

    def mark_gone(self, thread_ids: Collection[UUID], home: str) -> Sequence[UUID]:
        """Note that the rollouts of these threads are gone: from now on they aren't shown, and nothing is deleted.

        Only a home's own rows, which alone it may judge, and only those that have a rollout. For a few hundred at once.

        Returns:
            The threads whose rollout wasn't known to be gone.
        """
        if not thread_ids:
            return []
        return [row.id for row in self._all(_MARK_GONE, {"thread_ids": list(thread_ids), "of_home": home})]

    def take_names(self, names: Iterable[tuple[UUID, str, int]]) -> int:
        """Take names that were given elsewhere, each with its thread and the epoch second when it was given.

        A name that is older than the row's, or as old, changes nothing; a name whose thread has no row is left out.
        For a few hundred threads at once.

        Returns:
            How many rows were changed.
        """
        return len(self._all(_TAKE_NAMES, _names_given(names)))

    def take_original_names(self, names: Iterable[tuple[UUID, str, int]]) -> set[UUID]:
        """Take what the original's database calls threads, each name with its thread and the thread's last change.

        Only a name that differs from what that database said the last time is news. It replaces a name that came from
        there, or one that is older than the thread's last change. For a few hundred threads at once.

        Returns:
            The threads that have another name now.
        """
        given = _names_given(names)
        with atomically(self._connection):
            taken = {row.id for row in self._all(_TAKE_NAMES_OF_THE_ORIGINAL, given)}
            self._all(_NOTE_NAMES_OF_THE_ORIGINAL, given)
        return taken

    def delete(self, thread_id: UUID) -> bool:
        """Delete the thread with its tools, memories and jobs. Tells whether it had a row.

        The scopes of its memories are dirty then: what was derived from them is made anew without them.
        """
        with atomically(self._connection):
            MemoryScopeRepository(self._session).mark_dirty_of(thread_id)
            deleted = self._one(_DELETE, {"thread_id": thread_id}) is not None
            self._delete_parts([thread_id])
        return deleted

    def delete_gone(self, thread_ids: Collection[UUID], home: str) -> Sequence[UUID]:
        """Delete the rows of threads whose rollouts are gone, unless something would be lost with them (law L7).

        For repairs that were asked for. A row stays that has a name, a pin or a chosen memory mode, and one that
        another row refers to by a foreign key, whosever table that is in: memories and extraction jobs do. Only tools
        go with their thread, whose rollout they are from. For a few hundred at once.

        Args:
            thread_ids: the threads; those whose rollout isn't known to be gone stay.
            home: only rows of this home.

        Returns:
            The threads whose rows were deleted.
        """
        if not thread_ids:
            return []
        parameters = {"thread_ids": list(thread_ids), "of_home": home}
        connection = self._connection
        # Which tables refer to threads is looked up and used in one transaction.
        with atomically(connection):
            if connection.dialect.name == "postgresql":
                # A statement that waits for a row judges other tables as they were before it waited. So the wait comes
                # first: from then on nobody can insert a row that refers to the thread, and what is there is seen.
                self._all(_LOCK_ALL, parameters)
            statement = _DELETE_GONE.where(*_unreferenced(connection))
            deleted = [row.id for row in self._all(statement, parameters)]
            self._delete_parts(deleted)
        return deleted

    def _delete_parts(self, thread_ids: Collection[UUID]) -> None:
        """Delete what goes with its thread, where the database doesn't do that by itself."""
        if thread_ids and not enforces_foreign_keys(self._connection):
            for statement in _DELETE_PARTS:
                self._all(statement, {"thread_ids": thread_ids})


def _row_of(thread: Thread) -> dict[str, Any]:
    return {
        **required(thread, Thread).column_values(),
        "archived": thread.archived_at is not None,
        "name": thread.name or None,
        "updated_ns": nanoseconds_of(thread.updated_at) or thread.updated_ns,
    }


def _names_given(names: Iterable[tuple[UUID, str, int]]) -> dict[str, str]:
    """One name for each thread: a statement wouldn't say which of two it took."""
    latest: dict[UUID, tuple[UUID, str, int]] = {}
    for thread_id, name, at in names:
        if thread_id not in latest or latest[thread_id][2] <= at:
            latest[thread_id] = (thread_id, storable(name), at)
    return parameters_of(latest.values())


_tools = table_of(DynamicTool)

_GET_TOOLS = (
    select_entity(DynamicTool)
    .where(_tools.c.thread_id == bindparam("of_thread", type_=UuidText()))
    .order_by(_tools.c.position)
)
_PERSIST_TOOLS = (
    insert(_tools)
    .values({column.key: bindparam(column.key, type_=column.type) for column in _tools.columns})
    .on_conflict_do_nothing(index_elements=["thread_id", "position"])
)


# It changes nothing: a write, so that nobody can delete the thread until the transaction ends.
_HOLD = update(_threads).where(_BY_ID).values(title=_threads.c.title).returning(_threads.c.id)


class DynamicToolRepository(Repository):
    """Reads and writes of the ``thread_dynamic_tools`` table."""

    def get(self, thread_id: UUID) -> list[DynamicTool] | None:
        """The thread's tools in their order, or ``None`` when it has none."""
        return self._entities(DynamicTool, _GET_TOOLS, {"of_thread": thread_id}) or None

    def persist(self, tools: Iterable[DynamicTool]) -> None:
        """Store tools, of one thread or of many. A position that is stored already stays as it is.

        Tools are defined when a thread starts, so what was stored first is right. Call it in a transaction when there
        is more than one tool: it isn't one statement.

        Raises:
            IntegrityViolationError: a tool's thread has no row.
        """
        rows = [tool.column_values() for tool in tools]
        if rows:
            connection = self._connection
            with atomically(connection), by_index(connection):
                if not enforces_foreign_keys(connection):
                    self._require_threads({row["thread_id"] for row in rows})
                self._many(_PERSIST_TOOLS, rows)

    def _require_threads(self, thread_ids: Iterable[UUID]) -> None:
        """Refuse tools of threads that have no row, where the database doesn't do that by itself."""
        for thread_id in thread_ids:
            if self._one(_HOLD, {"thread_id": thread_id}) is None:
                place = place_of(self._connection.engine.url)
                raise IntegrityViolationError(f"{place}: a tool of thread {thread_id}, which has no row")


_backfills = table_of(BackfillState)

_UNNAMED = and_(
    _threads.c.home == LOCAL_HOME,
    # Not LIKE, in which a path's characters could mean something.
    _threads.c.rollout_path >= bindparam("first_path", type_=text),
    _threads.c.rollout_path < bindparam("after_paths", type_=text),
    # Looked for until the home is indexed: then it has what is its own.
    ~exists().where(_backfills.c.home == bindparam("of_home", type_=text)),
)
_HAS_UNNAMED = select(_threads.c.id).where(_UNNAMED).limit(1)
_GIVE_HOME = update(_threads).where(_UNNAMED).values(home=bindparam("of_home", type_=text)).returning(_threads.c.id)


class HomeRepository(Repository):
    """Gives threads that were stored under no home's name to the home that their rollouts lie in."""

    def has_unnamed(self, home: str, directory: Path) -> bool:
        """Whether there are such threads with rollouts below ``directory``, and the home was never indexed."""
        return self._one(_HAS_UNNAMED, _below(home, directory)) is not None

    def name(self, home: str, directory: Path) -> int:
        """Give those threads to the home, and say how many they were."""
        return len(self._all(_GIVE_HOME, _below(home, directory)))


def _below(home: str, directory: Path) -> dict[str, Any]:
    # "0" is the character after "/".
    return {"of_home": home, "first_path": f"{directory}/", "after_paths": f"{directory}0"}


_PARTS_OF_A_THREAD = {table_of(DynamicTool).name}
"""Tables whose rows are written with their thread's, from the same rollout."""

_COLUMNS = [column(name, Text()) for name in ("name", "schema", "referring", "theirs", "ours")]
"""A row for each pair of columns of a foreign key: the key, the table that refers, its column, and ours."""

_FOREIGN_KEYS = {
    "sqlite": sql(
        "SELECT referring.name || '/' || key.id AS name, NULL AS schema, referring.name AS referring, "
        'key."from" AS theirs, coalesce(key."to", \'id\') AS ours '
        "FROM sqlite_master AS referring, pragma_foreign_key_list(referring.name) AS key "
        "WHERE referring.type = 'table' AND lower(key.\"table\") = :threads ORDER BY name"
    ).columns(*_COLUMNS),
    "postgresql": sql(
        "SELECT CAST(key.oid AS text) AS name, schemas.nspname AS schema, referring.relname AS referring, "
        "theirs.attname AS theirs, ours.attname AS ours "
        "FROM pg_constraint AS key "
        "JOIN pg_class AS referring ON referring.oid = key.conrelid "
        "JOIN pg_namespace AS schemas ON schemas.oid = referring.relnamespace "
        "CROSS JOIN LATERAL unnest(key.conkey, key.confkey) AS pair (theirs, ours) "
        "JOIN pg_attribute AS theirs ON theirs.attrelid = key.conrelid AND theirs.attnum = pair.theirs "
        "JOIN pg_attribute AS ours ON ours.attrelid = key.confrelid AND ours.attnum = pair.ours "
        "WHERE key.contype = 'f' AND key.confrelid = CAST(:threads AS regclass) ORDER BY name"
    ).columns(*_COLUMNS),
}


def _unreferenced(connection: Connection) -> list[ColumnElement[bool]]:
    """For a statement on ``threads``: conditions that no row of another table refers to the thread."""
    found = execute(connection, _FOREIGN_KEYS[connection.dialect.name], {"threads": _threads.name})
    keys = [list(pairs) for _, pairs in groupby(found, key=lambda row: row.name)]
    return [_no_row_refers_by(pairs) for pairs in keys if pairs[0].referring not in _PARTS_OF_A_THREAD]


def _no_row_refers_by(pairs: list[Any]) -> ColumnElement[bool]:
    referring = table(pairs[0].referring, *(column(pair.theirs) for pair in pairs), schema=pairs[0].schema).alias()
    refers = and_(*(referring.c[pair.theirs] == _threads.c[pair.ours] for pair in pairs))
    return ~select(referring.c[pairs[0].theirs]).where(refers).exists()


def _digits_shared(one: UUID, other: UUID) -> int:
    """With how many hexadecimal digits in common two ids begin."""
    return (128 - (one.int ^ other.int).bit_length()) // 4
