"""Log lines: writing, reading, following, and keeping them bounded (law L10)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, case, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import insert

from codex_state.database.execute import commits_by_itself, execute_many
from codex_state.database.log_bounds import TURN_SECONDS, UNFINISHED, Sweep, finish, is_over, sizes, upkeep_of
from codex_state.database.sql import contains, matches
from codex_state.models import LogEntry, LogQuery
from codex_state.models.base import table_of
from codex_state.models.columns import text
from codex_state.models.log import LEVELS
from codex_state.repositories.base import Repository, select_entity

_logs = table_of(LogEntry)

_FIELDS = tuple(column.key for column in _logs.columns if column.key != "id")
_values = itemgetter(*_FIELDS)
_INSERT = insert(_logs).values({field: bindparam(field, type_=_logs.c[field].type) for field in _FIELDS})

_SPAN = select(func.min(_logs.c.ts).label("oldest"), func.max(_logs.c.ts).label("newest"))

_OPEN_TRANSACTIONS = select(
    *(
        getattr(func, f"txid_snapshot_{name}")(func.txid_current_snapshot(), type_=BigInteger()).label(label)
        for name, label in (("xmin", "oldest"), ("xmax", "next_one"))
    )
)

_spelled = func.upper(_logs.c.level)
_level = case(  # of lines that a service wrote by itself, too
    *((_spelled == literal_column(f"'{pythons}'"), literal_column(f"'{ours}'")) for pythons, ours in LEVELS.items()),
    else_=_spelled,
)

_LINE_BYTES = 128


class LogStats(NamedTuple):
    """What the logs hold."""

    lines: int
    size: int
    """What they take in an SQLite file with their index entries, in bytes, estimated from above."""
    oldest: int | None
    """Whole epoch seconds; ``None`` without lines."""
    newest: int | None


class LogRepository(Repository):
    """Reads and writes of the ``logs`` table."""

    def insert(self, entry: LogEntry) -> None:
        """Store one line."""
        self.insert_many((entry,))

    def insert_many(self, entries: Iterable[LogEntry]) -> None:
        """Store lines in their order: all or none.

        Now and then this is followed by a short turn of keeping the logs within their bounds: after the unit of work,
        or at once where each statement commits by itself.
        """
        rows = [dict(zip(_FIELDS, _values(entry.column_values()), strict=True)) for entry in entries]
        if not rows:
            return
        connection = self._connection
        execute_many(connection, _INSERT, rows)
        upkeep = upkeep_of(connection)
        if upkeep is not None:
            upkeep.note(sum(len(row["message"] or "") for row in rows) + _LINE_BYTES * len(rows))
            if upkeep.is_due and commits_by_itself(connection):
                upkeep.keep(connection)

    def query(self, query: LogQuery) -> Sequence[LogEntry]:
        """The lines that match, in the order they were written (or backwards)."""
        shape, parameters = _shape_of(query)
        statement = _query_of(shape, query.descending, query.limit is not None)
        if query.limit is not None:
            parameters["row_limit"] = max(query.limit, 0)
        return self._entities(LogEntry, statement, parameters)

    def max_id(self, query: LogQuery | None = None) -> int:
        """The id of the newest line that matches, 0 when none does: where following starts."""
        shape, parameters = _shape_of(query or LogQuery())
        row = self._one(_max_id_of(shape), parameters)
        return int(row.max_id or 0) if row is not None else 0

    def ids(self, query: LogQuery, *, after: int, up_to: int) -> list[int]:
        """The ids of the lines that match, between two."""
        shape, parameters = _shape_of(replace(query, after_id=after))
        return [row.id for row in self._all(_ids_of(shape), parameters | {"up_to": up_to})]

    def open_transactions(self) -> tuple[int, int] | None:
        """The number of the oldest transaction that hasn't ended, and the next one to be given, in this snapshot.

        ``None`` on SQLite, which has one writer at a time.
        """
        if self._connection.dialect.name == "sqlite":
            return None
        (row,) = self._all(_OPEN_TRANSACTIONS)
        return row.oldest, row.next_one

    def delete_before(self, cutoff: int) -> int:
        """Delete the lines from before ``cutoff`` (whole epoch seconds). Returns how many went: see ``retain``."""
        return self._sweep(Sweep(before=cutoff))

    def retain(
        self, *, max_age: timedelta | None = None, max_rows: int | None = None, max_bytes: int | None = None
    ) -> int:
        """Delete the oldest lines until the rest is within every bound that is given. Returns how many went.

        A unit of work deletes for 25 ms at most, so that other writers don't wait. What is left goes right after the
        commit of a unit of the runtime's, in small units of its own, and the space is given back. In a session of your
        own, repeat it until 0 comes back. Where each statement commits by itself, everything goes at once.

        Args:
            max_age: by the lines' own times and the database's clock.
            max_rows: how many lines stay.
            max_bytes: how much space the rest may take: see ``stats``. A single newer line over the bound goes as well.
        """
        return self._sweep(Sweep(max_age=max_age, max_rows=max_rows, max_bytes=max_bytes))

    def stats(self) -> LogStats:
        """How many lines there are, what they take, and from when to when they are. Reads all of them."""
        lines = size = 0
        for _id, bytes_of_line in sizes(self._connection):
            lines, size = lines + 1, size + bytes_of_line
        (span,) = self._all(_SPAN)
        return LogStats(lines, size, span.oldest, span.newest)

    def _sweep(self, sweep: Sweep) -> int:
        connection = self._connection
        if commits_by_itself(connection):
            return finish(connection, sweep)
        until = time.monotonic() + TURN_SECONDS
        deleted = sum(sweep.run(connection, until))
        if is_over(until):
            self._session.info.setdefault(UNFINISHED, []).append(sweep)
        return deleted


_Shape = tuple[frozenset[str], int, int, int, bool]
"""Which plain filters are set, how many alternatives of module, file and thread, and whether threadless lines count."""


def _shape_of(query: LogQuery) -> tuple[_Shape, dict[str, Any]]:
    parameters: dict[str, Any] = {}
    if query.level is not None:
        parameters["level"] = str(query.level).upper()
    if query.from_ts is not None:
        parameters["from_ts"] = query.from_ts
    if query.to_ts is not None:
        parameters["to_ts"] = query.to_ts
    if query.after_id is not None:
        parameters["after_id"] = query.after_id
    if query.search is not None:
        parameters["search"] = query.search
    plain = frozenset(parameters)
    for name, values in (("module", query.module_like), ("file", query.file_like), ("thread", query.thread_ids)):
        parameters |= {f"{name}_{index}": value for index, value in enumerate(values)}
    counts = len(query.module_like), len(query.file_like), len(query.thread_ids)
    return (plain, *counts, query.include_threadless), parameters


def _filters(shape: _Shape) -> list[ColumnElement[bool]]:
    plain, modules, files, threads, threadless = shape
    number = BigInteger()
    known: dict[str, ColumnElement[bool]] = {
        "level": _level == bindparam("level", type_=text),
        "from_ts": _logs.c.ts >= bindparam("from_ts", type_=number),
        "to_ts": _logs.c.ts <= bindparam("to_ts", type_=number),
        "after_id": _logs.c.id > bindparam("after_id", type_=number),
        "search": contains(_logs.c.message, bindparam("search", type_=text)),
    }
    filters = [known[name] for name in sorted(plain)]
    for column, name, count in ((_logs.c.module_path, "module", modules), (_logs.c.file, "file", files)):
        if count:
            part = (bindparam(f"{name}_{index}", type_=text) for index in range(count))
            filters.append(or_(*(matches(column, literal_column("'%'") + p + literal_column("'%'")) for p in part)))
    if threads or threadless:
        wanted = [_logs.c.thread_id == bindparam(f"thread_{index}", type_=text) for index in range(threads)]
        filters.append(or_(*wanted, *([_logs.c.thread_id.is_(None)] if threadless else [])))
    return filters


@lru_cache(maxsize=512)
def _query_of(shape: _Shape, descending: bool, limited: bool) -> Select[Any]:  # noqa: FBT001
    statement = select_entity(LogEntry).where(*_filters(shape))
    statement = statement.order_by(_logs.c.id.desc() if descending else _logs.c.id)
    return statement.limit(bindparam("row_limit", type_=BigInteger())) if limited else statement


@lru_cache(maxsize=512)
def _ids_of(shape: _Shape) -> Select[Any]:
    up_to = _logs.c.id <= bindparam("up_to", type_=BigInteger())
    return select(_logs.c.id).where(*_filters(shape), up_to).order_by(_logs.c.id)


@lru_cache(maxsize=512)
def _max_id_of(shape: _Shape) -> Select[Any]:
    return select(func.max(_logs.c.id).label("max_id")).where(*_filters(shape))


# Following: each line is shown once, also those of a transaction that ends after later ones.

WINDOW = 100_000
"""So many ids before the newest are looked at again on PostgreSQL, at most (law L10). A line is missed only when its
transaction is open while more than that many lines are written."""


class LogFollower:
    """Lines that match, as they become visible.

    SQLite has one writer at a time, so ids become visible in their order. PostgreSQL gives a line its id before its
    transaction commits: ids below the newest may still come. They are looked for until every transaction that could
    have such an id has ended.
    """

    def __init__(self, query: LogQuery) -> None:
        """Follow what ``query`` asks for. Its ``limit``, ``after_id`` and ``descending`` don't count."""
        self._query = replace(query, limit=None, after_id=None, descending=False)
        self._settled = self._last = 0
        """No line comes any more with an id up to the first; all that are visible up to the second are told."""
        self._told: set[int] = set()
        """Ids above ``_settled``."""
        self._marks: deque[tuple[int, int]] = deque()
        """An id, after the first transaction's number that wasn't given when it had long been told."""

    def begin(self, logs: LogRepository) -> None:
        """Take the lines that are visible now for told."""
        self._last = self._settled = logs.max_id()
        if logs.open_transactions() is not None:
            self._settled = max(0, self._last - WINDOW)
            self._told = set(logs.ids(self._query, after=self._settled, up_to=self._last))

    def read(self, logs: LogRepository, limit: int) -> list[LogEntry]:
        """The lines that became visible since the last time, in one snapshot: late ones, then up to ``limit`` others.

        When it raises, nothing counts as told, and it can be called again.
        """
        late, before = self._late(logs), self._last
        new = logs.query(replace(self._query, after_id=before, limit=limit))
        last = (new[-1].id or before) if len(new) == limit else max(logs.max_id(), before)
        open_transactions = logs.open_transactions()
        # From here on nothing can fail.
        self._last = last
        if open_transactions is None:
            self._settled = last
            return list(new)
        oldest, next_one = open_transactions
        # One look late: a transaction is given its number a moment after its first line's id.
        if before > (self._marks[-1][1] if self._marks else self._settled):
            self._marks.append((next_one, before))
        while self._marks and (self._marks[0][0] <= oldest or self._marks[0][1] < last - WINDOW):
            self._settled = self._marks.popleft()[1]
        self._settled = max(self._settled, last - WINDOW)
        found = [*late, *new]
        self._told.update(entry.id for entry in found if entry.id is not None)
        self._told = {each for each in self._told if each > self._settled}
        return found

    def _late(self, logs: LogRepository) -> Sequence[LogEntry]:
        if self._settled == self._last:
            return ()
        missing = deque(
            each for each in logs.ids(self._query, after=self._settled, up_to=self._last) if each not in self._told
        )
        late: list[LogEntry] = []
        while missing:
            page = logs.query(replace(self._query, after_id=missing[0] - 1, limit=min(len(missing), 1000)))
            if not page:
                break
            wanted = set(missing)
            late += [entry for entry in page if entry.id in wanted]
            while missing and missing[0] <= (page[-1].id or 0):
                missing.popleft()
        return late
