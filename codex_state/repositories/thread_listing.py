"""The queries of thread listings, built once for each shape of filter.

Three rules keep a page's cost independent of the number of threads. The anchor is compared as one row value,
``(time, id) < (?, ?)``, which both databases answer by seeking in an index; spelled with OR they scan from the top.
Several sources or providers become one branch each, with a limit each, because an index serves one value at a time.
And whether a thread is shown is such a value as well, so that all threads are those that are shown and the others.

A filter is a field of ``ThreadQuery`` and a line in ``_FILTERS``.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Select,
    String,
    bindparam,
    false,
    func,
    literal_column,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.sql import Executable
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from codex_state.database.sql import stored_text, unindexed
from codex_state.errors import InvalidRowError
from codex_state.models import IS_SHOWN, SortKey, Thread, ThreadQuery
from codex_state.models.base import columns_of, table_of
from codex_state.models.columns import EpochSeconds, UuidText, text

_threads = table_of(Thread)

_FILTERS: dict[str, ColumnElement[bool]] = {
    "home": _threads.c.home == bindparam("home", type_=text),
}
"""Which rows a field of the query lets through when it isn't ``None``."""

_ALTERNATIVES = {"sources": _threads.c.source, "providers": _threads.c.model_provider}
"""The column whose values a field of the query names, which an index begins with."""

_MAX_BRANCHES = 12
"""Beyond so many combinations of source and provider, one query with IN lists is the lesser evil."""

_NO_PARENT = _threads.c.parent_thread_id.is_(None)
_SHOWN, _UNSHOWN = "true", "false"


class Reads(Enum):
    """What a statement returns."""

    THREADS = "threads"
    IDS = "ids"
    STORED = "stored"
    """Every column as it is stored, with nothing made of it."""
    UNSHOWN = "unshown"
    """How many rows aren't shown, and of how many of them the rollout is gone."""


class _Shape(NamedTuple):
    """Everything about a listing that changes its SQL; the rest are parameters."""

    reads: Reads
    sort_key: SortKey
    archived: bool
    all: bool
    children: bool
    anchored: bool
    stored_anchor: bool
    filters: tuple[str, ...]
    alternatives: tuple[tuple[str, int], ...]


def statement_of(
    query: ThreadQuery, reads: Reads = Reads.THREADS, *, stored_anchor: tuple[Any, Any] | None = None
) -> tuple[Executable, dict[str, Any]]:
    """The statement of a listing and its parameters.

    Args:
        query: what is listed.
        reads: what of it.
        stored_anchor: in place of the query's anchor, the time and id of a row as they are stored.
    """
    parameters: dict[str, Any] = {"row_limit": query.limit}
    if stored_anchor is not None:
        parameters |= zip(("anchor_ts", "anchor_id"), stored_anchor, strict=True)
    elif query.anchor is not None:
        parameters |= {"anchor_ts": query.anchor.ts, "anchor_id": query.anchor.id}
    filters = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
    # A value given twice would return its threads twice from two branches.
    alternatives = {name: values for name in _ALTERNATIVES if (values := sorted(set(getattr(query, name))))}
    shape = _Shape(
        reads,
        query.sort_key,
        query.archived,
        query.all,
        query.children,
        "anchor_ts" in parameters,
        stored_anchor is not None,
        tuple(filters),
        tuple((name, len(values)) for name, values in alternatives.items()),
    )
    parameters |= filters
    if _has_a_branch_each(shape):
        for name, values in alternatives.items():
            parameters |= {f"{name}_{index}": value for index, value in enumerate(values)}
    else:
        parameters |= alternatives
    return _statement(shape), parameters


def _has_a_branch_each(shape: _Shape) -> bool:
    return prod(count for _, count in shape.alternatives) <= _MAX_BRANCHES


@lru_cache(maxsize=512)
def _statement(shape: _Shape) -> Executable:
    if shape.reads is Reads.UNSHOWN:
        found = _ordered(shape, _branches(shape, _UNSHOWN)).subquery()
        return select(func.count().label("unshown"), func.count(found.c.gone_at).label("gone")).select_from(found)
    branches = _branches(shape, _SHOWN)
    if shape.all:
        branches += _branches(shape, _UNSHOWN)
    return _ordered(shape, branches)


def _ordered(shape: _Shape, branches: list[Select[Any]]) -> Select[Any]:
    if len(branches) == 1:
        return branches[0]
    merged = union_all(*(select(branch.subquery()) for branch in branches)).subquery()
    return (
        select(merged)
        .order_by(merged.c[shape.sort_key.value].desc(), merged.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )


def _branches(shape: _Shape, shown: str) -> list[Select[Any]]:
    """The queries of which each is answered by one index in its order."""
    base = _unfiltered(shape, shown)
    if not _has_a_branch_each(shape):
        # By an index of theirs, SQLite would sort all threads that match for each page.
        for name, _ in shape.alternatives:
            base = base.where(unindexed(_ALTERNATIVES[name]).in_(bindparam(name, expanding=True)))
        return [base]
    names = [name for name, _ in shape.alternatives]
    return [
        base.where(*(_ALTERNATIVES[name] == bindparam(f"{name}_{at}") for name, at in zip(names, choice, strict=True)))
        for choice in product(*(range(count) for _, count in shape.alternatives))
    ]


def _unfiltered(shape: _Shape, shown: str) -> Select[Any]:
    time = _threads.c[shape.sort_key.value]
    statement = (
        select(*_read_columns(shape, time))
        # Literals, not parameters, so that the planner sees them when it picks an index.
        .where(_threads.c.archived == literal_column(str(int(shape.archived))))
        .where(literal_column(IS_SHOWN) == literal_column(shown))
        .where(*(_beside_the_index(_FILTERS[name]) for name in shape.filters))
        .order_by(time.desc(), _threads.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )
    if not shape.children:
        statement = statement.where(_beside_the_index(_NO_PARENT))
    if shape.anchored:
        types: tuple[TypeEngine[Any], ...] = (EpochSeconds(), UuidText())
        if shape.stored_anchor:
            types = (NullType(), NullType())
        anchor = tuple_(bindparam("anchor_ts", type_=types[0]), bindparam("anchor_id", type_=types[1]))
        statement = statement.where(tuple_(time, _threads.c.id) < anchor)
    return statement


def _beside_the_index(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """A condition that no index serves, and so mustn't decide between indexes.

    Without statistics PostgreSQL would take it to leave one row in two hundred, expect less than a page, and sort all
    threads. Of a truth value that it can't look into it expects half.
    """
    return func.coalesce(condition, false())


def _read_columns(shape: _Shape, time: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    match shape.reads:
        case Reads.IDS:
            return [_threads.c.id, time]
        case Reads.UNSHOWN:
            return [_threads.c.id, time, _threads.c.gone_at]
        case Reads.STORED:
            return [_as_stored(column).label(column.key) for column in columns_of(Thread)]
        case _:
            return list(columns_of(Thread))


def _as_stored(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return stored_text(column) if _is_text(column.type) else type_coerce(column, NullType())


def _is_text(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind.impl_instance if isinstance(kind, TypeDecorator) else kind, String)


def thread_of(stored: Any, dialect: Dialect) -> Thread:
    """The thread of a row that was read as it is stored.

    Raises:
        InvalidRowError: it holds a value that no version writes.
    """
    values = []
    for column in columns_of(Thread):
        value = getattr(stored, column.key)
        if isinstance(value, bytes):
            value = _decoded(column.key, value)
        read = column.type.dialect_impl(dialect).result_processor(dialect, None)
        values.append(value if read is None else read(value))
    return Thread.snapshot(values)


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRowError(f"the text in {name} is not UTF-8: {value!r:.80}") from error


def stored_key(stored: Any) -> str:
    """The id of a row that was read as it is stored, for people."""
    key = stored.id
    return key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key)


def stored_anchor(stored: Any, sort_key: SortKey) -> tuple[Any, Any]:
    """Where the page that ends with this row ends.

    Raises:
        InvalidRowError: its id is no text, so that nothing can be said to come after it.
    """
    key = stored.id
    return getattr(stored, sort_key.value), _decoded("id", key) if isinstance(key, bytes) else key
