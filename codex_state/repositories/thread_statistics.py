"""Turns and tokens of threads, added up by the database.

A query looks at the rows of the table once and returns no more than its groups. Days are those of any zone on both
databases, which don't know the same zones: the offsets of the zone from UTC, and when they change, are worked out here
and stand in the statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)

from codex_state.models import SUBAGENT, GroupBy, StatisticsQuery, Thread, ThreadStatistics
from codex_state.models.base import table_of
from codex_state.models.columns import EpochSeconds, path_to_text, text
from codex_state.models.directories import spellings_of
from codex_state.repositories.base import seconds_of
from codex_state.repositories.thread_listing import IN_DIRECTORY, IS_SUBAGENTS, directory_parameters

_threads = table_of(Thread)
_DAY = 86_400
_LONGEST_MONTH = 31
_MOST_MONTHS = 12 * 9999
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)
"""Before it the offset from UTC that a zone had then counts: there were no rollouts."""

_GROUPS: dict[GroupBy, ColumnElement[Any]] = {
    GroupBy.CWD: type_coerce(_threads.c.cwd, text),
    GroupBy.MODEL: _threads.c.model,
    GroupBy.PROVIDER: _threads.c.model_provider,
    GroupBy.BRANCH: _threads.c.git_branch,
}
_ALTERNATIVES = {
    "sources": _threads.c.source,
    "providers": _threads.c.model_provider,
    "models": _threads.c.model,
    "branches": _threads.c.git_branch,
}
_since = bindparam("since", type_=EpochSeconds())
_until = bindparam("until", type_=EpochSeconds())
_FILTERS: dict[str | tuple[str, int], ColumnElement[bool]] = {
    "since": _threads.c.created_at >= _since,
    "until": _threads.c.created_at <= _until,
    "home": _threads.c.home == bindparam("home", type_=text),
    "archived": _threads.c.archived == bindparam("archived", type_=_threads.c.archived.type),
    **IN_DIRECTORY,
}


class _Shape(NamedTuple):
    """Everything about a query that changes its SQL; the rest are parameters."""

    by: GroupBy | None
    filters: tuple[str | tuple[str, int], ...]
    alternatives: tuple[str, ...]
    subagents: bool
    children: bool
    offsets: tuple[tuple[int, int], ...]


def statement_of(query: StatisticsQuery, *, grouped: bool) -> tuple[Select[Any], dict[str, Any]]:
    """The statement of a query and its parameters: of its groups and one more than its limit, or of all threads."""
    parameters: dict[str, Any] = {
        name: value for name in _FILTERS if isinstance(name, str) and (value := getattr(query, name)) is not None
    }
    filters: list[str | tuple[str, int]] = [*parameters]
    if query.cwd is not None:
        spellings = spellings_of(path_to_text(query.cwd))
        parameters |= directory_parameters(spellings)
        filters.append(("cwd", len(spellings)))
    alternatives = {name: values for name in _ALTERNATIVES if (values := sorted(set(getattr(query, name))))}
    parameters |= alternatives
    by = GroupBy(query.by) if grouped else None
    if grouped:
        parameters["row_limit"] = query.limit + 1
    if by is GroupBy.MONTH:  # its days, added up by ``groups_of``
        by, parameters["row_limit"] = GroupBy.DAY, _LONGEST_MONTH * (min(query.limit, _MOST_MONTHS) + 1)
    offsets = tuple(offsets_of(query.zone)) if by is GroupBy.DAY else ()
    shape = _Shape(by, tuple(filters), tuple(alternatives), SUBAGENT in query.sources, query.children, offsets)
    return _statement(shape), parameters


@lru_cache(maxsize=64)
def _statement(shape: _Shape) -> Select[Any]:
    columns = _threads.c
    own = _sum(columns.tokens_used - columns.tokens_inherited)
    without_counts = and_(columns.turns.is_(None), columns.rollout_path != literal_column("''", text))
    sums: list[ColumnElement[Any]] = [
        func.count().label("threads"),
        *(_sum(columns[name]).label(name) for name in ("turns", *_KINDS)),
        own.label("tokens_total"),
        _sum(case((without_counts, 1), else_=0)).label("uncounted"),
    ]
    statement = select(*sums).select_from(_threads).where(*(_FILTERS[name] for name in shape.filters))
    for name in shape.alternatives:
        is_any = _ALTERNATIVES[name].in_(bindparam(name, expanding=True))
        statement = statement.where(or_(is_any, IS_SUBAGENTS) if name == "sources" and shape.subagents else is_any)
    if not shape.children:
        statement = statement.where(columns.parent_thread_id.is_(None))
    if shape.by is None:
        return statement
    group = _day(shape.offsets) if shape.by is GroupBy.DAY else func.nullif(_GROUPS[shape.by], literal_column("''"))
    key = group.label("group_key")
    order = [key.desc()] if shape.by is GroupBy.DAY else [own.desc(), key]
    return statement.add_columns(key).group_by(key).order_by(*order).limit(bindparam("row_limit", type_=BigInteger()))


_KINDS = ("tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning")
_NUMBERS = ("threads", "turns", *_KINDS, "tokens_total", "uncounted")


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    # PostgreSQL adds up in numbers of any length, which aren't what anybody counts with.
    return cast(func.coalesce(func.sum(column), literal_column("0")), BigInteger())


def _day(offsets: Iterable[tuple[int, int]]) -> ColumnElement[int]:
    """The number of the day on which a thread was started, since 1970."""
    created = seconds_of(_threads.c.created_at)
    (_, first), *changes = offsets
    shift: ColumnElement[int] = literal_column(str(first), BigInteger())
    if changes:
        # The latest first: most threads are of these days.
        branches: list[tuple[ColumnElement[bool], ColumnElement[Any]]] = [
            (created >= literal_column(str(at)), literal_column(str(to))) for at, to in reversed(changes)
        ]
        shift = case(*branches, else_=shift)
    return (created + shift) // literal_column(str(_DAY), BigInteger())


def offsets_of(zone: tzinfo | None) -> list[tuple[int, int]]:
    """A zone's offsets from UTC in seconds, each with the epoch second from which it holds; the first for all before.

    Args:
        zone: ``None`` for this machine's.
    """
    if zone is UTC:
        return [(0, 0)]

    def offset(at: datetime) -> int:
        local = at.astimezone(zone).utcoffset()
        return 0 if local is None else int(local.total_seconds())

    found = [(0, offset(_FIRST_DAY))]
    low, end = _FIRST_DAY, datetime.now(UTC) + timedelta(days=366)
    while low < end:
        high = low + timedelta(days=14)
        if offset(high) != found[-1][1]:
            after, before = high, low
            while after - before > timedelta(seconds=1):
                middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
                before, after = (before, middle) if offset(middle) != found[-1][1] else (middle, after)
            found.append(((after - _EPOCH) // timedelta(seconds=1), offset(after)))
        low = high
    return found


def groups_of(rows: Iterable[Any], by: GroupBy) -> list[ThreadStatistics]:
    """What the rows of a grouped statement say."""
    groups = [statistics_of(row, by) for row in rows]
    if by is not GroupBy.MONTH:
        return groups
    months = groupby(groups, lambda day: None if day.key is None else day.key[: len("2026-01")])
    return [replace(added_up(days), key=month) for month, days in months]


def statistics_of(row: Any, by: GroupBy | None) -> ThreadStatistics:
    """What a row of a statement says."""
    key: str | None = None if by is None else row.group_key
    if by in {GroupBy.DAY, GroupBy.MONTH}:
        key = _day_of(row.group_key)
    return ThreadStatistics(key, **{name: getattr(row, name) for name in _NUMBERS})


def _day_of(number: int) -> str | None:
    """The day; ``None`` for one that no calendar has."""
    try:
        return (_EPOCH + timedelta(days=number)).date().isoformat()
    except OverflowError:
        return None


def added_up(items: Iterable[ThreadStatistics]) -> ThreadStatistics:
    """All groups together."""
    groups = list(items)
    return ThreadStatistics(None, **{name: sum(getattr(group, name) for group in groups) for name in _NUMBERS})
