"""Log lines: writing, reading, and keeping them bounded (law L10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, delete, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import insert

from codex_state.clock import server_now
from codex_state.models import LogEntry, LogQuery
from codex_state.models.columns import text
from codex_state.repositories.base import Repository, select_entity, table_of, whole_seconds
from codex_state.sql import byte_length, contains, matches

_logs = table_of(LogEntry)

_FIELDS = tuple(column.key for column in _logs.columns if column.key != "id")
_values = itemgetter(*_FIELDS)
_INSERT = insert(_logs).values({field: bindparam(field, type_=_logs.c[field].type) for field in _FIELDS})

_size = sum(
    (
        byte_length(func.coalesce(_logs.c[field], literal_column("''")))
        for field in ("message", "level", "target", "module_path", "file")
    ),
    literal_column("64", BigInteger()),  # the integers, the row's header and its index entries, roughly
)
_running_size = select(_logs.c.id, func.sum(_size).over(order_by=_logs.c.id.desc()).label("newest_bytes")).subquery()

_DELETE_BEFORE = delete(_logs).where(_logs.c.ts < bindparam("cutoff", type_=BigInteger())).returning(_logs.c.id)
_DELETE_OLDER_THAN = (
    delete(_logs).where(_logs.c.ts < server_now() - bindparam("age_seconds", type_=BigInteger())).returning(_logs.c.id)
)
_nth_newest = (
    select(_logs.c.id)
    .order_by(_logs.c.id.desc())
    .limit(1)
    .offset(bindparam("max_rows", type_=BigInteger()))
    .scalar_subquery()
)
_DELETE_BEYOND_ROWS = delete(_logs).where(_logs.c.id <= _nth_newest).returning(_logs.c.id)
_first_beyond_bytes = (
    select(_running_size.c.id)
    .where(_running_size.c.newest_bytes > bindparam("max_bytes", type_=BigInteger()))
    .order_by(_running_size.c.id.desc())
    .limit(1)
    .scalar_subquery()
)
_DELETE_BEYOND_BYTES = delete(_logs).where(_logs.c.id <= _first_beyond_bytes).returning(_logs.c.id)


class LogRepository(Repository):
    """Reads and writes of the ``logs`` table."""

    def insert(self, entry: LogEntry) -> None:
        """Store one line."""
        self.insert_many((entry,))

    def insert_many(self, entries: Iterable[LogEntry]) -> None:
        """Store lines in their order: all or none."""
        self._many(_INSERT, [dict(zip(_FIELDS, _values(entry.column_values()), strict=True)) for entry in entries])

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

    def delete_before(self, cutoff: int) -> int:
        """Delete the lines from before ``cutoff`` (whole epoch seconds). Returns how many."""
        return len(self._all(_DELETE_BEFORE, {"cutoff": cutoff}))

    def retain(
        self, *, max_age: timedelta | None = None, max_rows: int | None = None, max_bytes: int | None = None
    ) -> int:
        """Delete the oldest lines until the rest is within every bound that is given. Returns how many went.

        Args:
            max_age: by the database's clock.
            max_rows: how many lines stay.
            max_bytes: how much text stays, with about 64 bytes a line for the rest of a row. A single newer line over
                the bound goes as well.
        """
        deleted = 0
        if max_age is not None:
            deleted += len(self._all(_DELETE_OLDER_THAN, {"age_seconds": whole_seconds(max_age)}))
        if max_rows is not None:
            deleted += len(self._all(_DELETE_BEYOND_ROWS, {"max_rows": max(max_rows, 0)}))
        if max_bytes is not None:
            deleted += len(self._all(_DELETE_BEYOND_BYTES, {"max_bytes": max(max_bytes, 0)}))
        return deleted


_Shape = tuple[frozenset[str], int, int, int, bool]
"""Which plain filters are set, how many alternatives of module, file and thread, and whether threadless lines count."""


def _shape_of(query: LogQuery) -> tuple[_Shape, dict[str, Any]]:
    parameters: dict[str, Any] = {}
    if query.level is not None:
        parameters["level"] = query.level.upper()
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
        "level": func.upper(_logs.c.level) == bindparam("level", type_=text),
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
def _max_id_of(shape: _Shape) -> Select[Any]:
    return select(func.max(_logs.c.id).label("max_id")).where(*_filters(shape))
