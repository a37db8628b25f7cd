"""The queries of thread listings, built once for each shape of filter.

Three rules keep a page's cost independent of the number of threads. The anchor is compared as one row value,
``(time, id) < (?, ?)``, which both databases answer by seeking in an index; spelled with OR they scan from the top.
Several sources, providers or directories become one branch each, with a limit each, because an index serves one value
at a time. And whether a thread is shown is such a value as well, so that all threads are those that are shown and the
others.

A filter is a field of ``ThreadQuery`` and a line in ``_FILTERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.sql import Executable
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from codex_state.database.sql import holds, part_pattern, stored_text, unindexed
from codex_state.errors import InvalidRowError
from codex_state.models import IS_SHOWN, SUBAGENT, Anchor, SortKey, Thread, ThreadQuery
from codex_state.models.base import columns_of, table_of
from codex_state.models.columns import (
    EpochSeconds,
    UuidText,
    directory_key,
    fits_directory_key,
    normal_path,
    text,
)
from codex_state.models.directories import spellings_of

_threads = table_of(Thread)

_cwd = normal_path(_threads.c.cwd)


def _in_directory(spelling: int) -> ColumnElement[bool]:
    below = bindparam(f"below_{spelling}", type_=text)
    return or_(
        _cwd == bindparam(f"cwd_{spelling}", type_=text),
        func.substr(_cwd, literal_column("1"), func.length(below)) == below,
    )


IN_DIRECTORY: dict[str | tuple[str, int], ColumnElement[bool]] = {
    ("cwd", count): or_(*(_in_directory(spelling) for spelling in range(count))) for count in (1, 2)
}
"""Whether a thread is in a directory or below that has so many spellings; see ``directory_parameters``."""


def directory_parameters(spellings: Sequence[str]) -> dict[str, str]:
    """The parameters of ``IN_DIRECTORY``, for all that ``spellings_of`` has of a directory."""
    parameters = {f"cwd_{place}": spelling for place, spelling in enumerate(spellings)}
    return parameters | {f"below_{place}": _beginning_below(spelling) for place, spelling in enumerate(spellings)}


def _beginning_below(directory: str) -> str:
    """How the normal spelling begins of what is below a directory."""
    separator = "\\" if "\\" in directory else "/"
    return directory if directory.endswith(separator) else directory + separator


TEXTS = ("name", "title", "first_user_message", "preview")
"""What people know a thread by."""


_FORMS: tuple[Callable[[str], str], ...] = (str, str.lower, str.upper, str.title)
"""In which a part is looked for that isn't ASCII: databases don't know the case of other letters."""

_PARTS = {
    "repository": ("git_origin_url",),
    "model": ("model",),
    "name": ("name",),
    "text": TEXTS,
}
"""Of which columns a part is named, by the field of the query."""


def _part(name: str, forms: int) -> ColumnElement[bool]:
    parts = [bindparam(f"{name}_{form}", type_=text) for form in range(forms)]
    return or_(*(holds(_threads.c[column], part) for column in _PARTS[name] for part in parts))


def _forms_of(part: str) -> list[str]:
    return [part_pattern(form(part)) for form in (_FORMS[:1] if part.isascii() else _FORMS)]


_FILTERS: dict[str | tuple[str, int], ColumnElement[bool]] = {
    "home": _threads.c.home == bindparam("home", type_=text),
    "branch": _threads.c.git_branch == bindparam("branch", type_=text),
    **IN_DIRECTORY,
} | {(name, forms): _part(name, forms) for name in _PARTS for forms in (1, len(_FORMS))}
"""Which rows a field of the query lets through when it isn't ``None``; a part or a directory in so many forms."""

IS_SUBAGENTS = func.substr(_threads.c.source, literal_column("1"), literal_column("11")) == literal_column(
    """'{"subagent"'""", text
)
"""Whether a sub-agent's thread: what ``SUBAGENT`` means among sources."""

LOOK_AT = 10_000
"""So many rows a page looks at for filters that no index serves (law L10)."""

_directory = directory_key(_threads.c.cwd)

_ALTERNATIVES = {"sources": _threads.c.source, "providers": _threads.c.model_provider, "directories": _directory}
"""What indexes by the time of the last change begin with: fields of the query, and the directories it comes to."""

_MAX_BRANCHES = 12
"""Beyond so many combinations of source and provider, one query with IN lists is the lesser evil."""

_NO_PARENT = _threads.c.parent_thread_id.is_(None)
_SHOWN, _UNSHOWN = "true", "false"


_BELOW = _directory >= bindparam("below", type_=text), _directory < bindparam("beyond", type_=text)
_first = select(_directory.label("directory")).where(*_BELOW).order_by(_directory).limit(1).scalar_subquery()
_found = select(_first.label("directory")).cte("found", recursive=True)
_next = select(_directory).where(_directory > _found.c.directory, _BELOW[1]).order_by(_directory).limit(1)
_found = _found.union_all(select(_next.scalar_subquery()).where(_found.c.directory.is_not(None)))

DIRECTORIES = select(_found.c.directory).where(_found.c.directory.is_not(None)).limit(_MAX_BRANCHES)
"""The directories below one that threads are in, by a seek in the index for each: ``directories_parameters``."""


def directories_parameters(query: ThreadQuery) -> list[dict[str, str]] | None:
    """The parameters of ``DIRECTORIES`` for a query, for each spelling that its directory has.

    ``None`` when its directories aren't to be read from the index.

    That has them in the order of the last change, and serves one filter only.
    """
    if query.cwd is None or query.sources or query.providers or query.sort_key is not SortKey.UPDATED_AT:
        return None
    spellings = spellings_of(str(query.cwd))
    if not all(fits_directory_key(spelling) for spelling in spellings):
        return None
    beginnings = [_beginning_below(spelling) for spelling in spellings]
    return [{"below": below, "beyond": below[:-1] + chr(ord(below[-1]) + 1)} for below in beginnings]


def directories_of(query: ThreadQuery, found: Sequence[str]) -> Sequence[str] | None:
    """The directories that the query comes to; ``None`` when they are too many to have a branch each."""
    return None if len(found) >= _MAX_BRANCHES else [*spellings_of(str(query.cwd)), *found]


class Reads(Enum):
    """What a statement returns."""

    THREADS = "threads"
    IDS = "ids"
    TEXTS = "texts"
    """What a search compares, and where it goes on: reading the rest takes three times as long."""
    STORED = "stored"
    """Every column as it is stored, with nothing made of it."""
    UNSHOWN = "unshown"
    """How many rows aren't shown, and of how many of them the rollout is gone."""
    ANCHOR = "anchor"
    """The key of the last row that a page looks at, whatever its filters that no index serves."""
    TOTAL = "total"
    """How many rows there are, up to the limit."""


class _Shape(NamedTuple):
    """Everything about a listing that changes its SQL; the rest are parameters."""

    reads: Reads
    sort_key: SortKey
    archived: bool
    all: bool
    children: bool
    anchored: bool
    stored_anchor: bool
    since: bool
    until: bool
    to_anchor: bool
    subagents: bool
    filters: tuple[str | tuple[str, int], ...]
    alternatives: tuple[tuple[str, int], ...]

    @property
    def has_a_branch_each(self) -> bool:
        """Whether an index serves the alternatives: there is none by the time of creation."""
        return self.sort_key is SortKey.UPDATED_AT and prod(count for _, count in self.alternatives) <= _MAX_BRANCHES


def statement_of(
    query: ThreadQuery,
    reads: Reads = Reads.THREADS,
    *,
    directories: Sequence[str] | None = None,
    stored_anchor: tuple[Any, Any] | None = None,
    to_anchor: Anchor | None = None,
) -> tuple[Executable, dict[str, Any]]:
    """The statement of a listing and its parameters.

    Args:
        query: what is listed.
        reads: what of it.
        directories: those that its directory comes to, when an index is to serve them: see ``directories_of``.
        stored_anchor: in place of the query's anchor, the time and id of a row as they are stored.
        to_anchor: the last row that is looked at.
    """
    parameters: dict[str, Any] = {"row_limit": query.limit}
    if reads is Reads.ANCHOR:
        query, parameters = query.by_index(), {"row_limit": 1, "row_offset": LOOK_AT - 1}
    parameters |= _bounds_of(query, stored_anchor, to_anchor)
    if directories is not None:
        query = replace(query, cwd=None)
    filters: list[str | tuple[str, int]] = []
    for name in ("home", "branch", *_PARTS):
        if (value := getattr(query, name)) is None:
            continue
        if name in _PARTS:
            forms = _forms_of(value)
            filters.append((name, len(forms)))
            parameters |= {f"{name}_{place}": form for place, form in enumerate(forms)}
        else:
            filters.append(name)
            parameters[name] = value
    if query.cwd is not None:
        spellings = spellings_of(str(query.cwd))
        filters.append(("cwd", len(spellings)))
        parameters |= directory_parameters(spellings)
    # A value given twice would return its threads twice from two branches.
    given = {"sources": query.sources, "providers": query.providers, "directories": directories or ()}
    alternatives = {name: values for name in _ALTERNATIVES if (values := sorted(set(given[name])))}
    if subagents := SUBAGENT in query.sources:
        parameters["other_sources"] = alternatives.pop("sources")
    shape = _Shape(
        reads,
        query.sort_key,
        query.archived,
        query.all,
        query.children,
        "anchor_ts" in parameters,
        stored_anchor is not None,
        "since" in parameters,
        "until" in parameters,
        to_anchor is not None,
        subagents,
        tuple(filters),
        tuple((name, len(values)) for name, values in alternatives.items()),
    )
    if shape.has_a_branch_each:
        for name, values in alternatives.items():
            parameters |= {f"{name}_{index}": value for index, value in enumerate(values)}
    else:
        parameters |= alternatives
    return _statement(shape), parameters


def _bounds_of(query: ThreadQuery, stored_anchor: tuple[Any, Any] | None, to_anchor: Anchor | None) -> dict[str, Any]:
    """The parameters of what is read of the order: from where, and to where."""
    bounds = {name: moment for name in ("since", "until") if (moment := getattr(query, name)) is not None}
    if stored_anchor is not None:
        bounds |= zip(("anchor_ts", "anchor_id"), stored_anchor, strict=True)
    elif query.anchor is not None:
        bounds |= {"anchor_ts": query.anchor.ts, "anchor_id": query.anchor.id}
    if to_anchor is not None:
        bounds |= {"last_ts": to_anchor.ts, "last_id": to_anchor.id}
    return bounds


@lru_cache(maxsize=512)
def _statement(shape: _Shape) -> Executable:
    if shape.reads is Reads.UNSHOWN:
        found = _ordered(shape, _branches(shape, _UNSHOWN)).subquery()
        return select(func.count().label("unshown"), func.count(found.c.gone_at).label("gone")).select_from(found)
    branches = _branches(shape, _SHOWN)
    if shape.all:
        branches += _branches(shape, _UNSHOWN)
    if shape.reads is Reads.TOTAL:
        return select(func.count().label("total")).select_from(_ordered(shape, branches).subquery())
    return _ordered(shape, branches)


def _ordered(shape: _Shape, branches: list[Select[Any]]) -> Select[Any]:
    limit: ColumnElement[int] = bindparam("row_limit", type_=BigInteger())
    if len(branches) == 1:
        ordered = branches[0]
    else:
        merged = union_all(*(select(branch.subquery()) for branch in branches)).subquery()
        ordered = select(merged).order_by(merged.c[shape.sort_key.value].desc(), merged.c.id.desc()).limit(limit)
    if shape.reads is Reads.ANCHOR:
        return ordered.offset(bindparam("row_offset", type_=BigInteger()))
    return ordered


def _branches(shape: _Shape, shown: str) -> list[Select[Any]]:
    """The queries of which each is answered by one index in its order."""
    base = _unfiltered(shape, shown)
    if not shape.has_a_branch_each:
        # By an index of theirs, all threads that match would be sorted for each page.
        for name, _ in shape.alternatives:
            among = unindexed(_ALTERNATIVES[name]).in_(bindparam(name, expanding=True))
            base = base.where(_beside_the_index(among))
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
        .limit(_branch_limit(shape))
    )
    if shape.since:
        statement = statement.where(time >= bindparam("since", type_=EpochSeconds()))
    if shape.until:
        statement = statement.where(time <= bindparam("until", type_=EpochSeconds()))
    if shape.to_anchor:
        last = tuple_(bindparam("last_ts", type_=EpochSeconds()), bindparam("last_id", type_=UuidText()))
        statement = statement.where(tuple_(time, _threads.c.id) >= last)
    if shape.subagents:
        others = unindexed(_threads.c.source).in_(bindparam("other_sources", expanding=True))
        statement = statement.where(_beside_the_index(or_(IS_SUBAGENTS, others)))
    if not shape.children:
        statement = statement.where(_beside_the_index(_NO_PARENT))
    if shape.anchored:
        types: tuple[TypeEngine[Any], ...] = (EpochSeconds(), UuidText())
        if shape.stored_anchor:
            types = (NullType(), NullType())
        anchor = tuple_(bindparam("anchor_ts", type_=types[0]), bindparam("anchor_id", type_=types[1]))
        statement = statement.where(tuple_(time, _threads.c.id) < anchor)
    return statement


def _branch_limit(shape: _Shape) -> ColumnElement[int]:
    limit: ColumnElement[int] = bindparam("row_limit", type_=BigInteger())
    if shape.reads is not Reads.ANCHOR or _is_one_branch(shape):
        return limit
    return limit + bindparam("row_offset", type_=BigInteger())  # any of them may be all there is


def _is_one_branch(shape: _Shape) -> bool:
    combinations = prod(count for _, count in shape.alternatives) if shape.has_a_branch_each else 1
    return combinations == 1 and not shape.all


def _beside_the_index(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """A condition that no index serves, and so mustn't decide between indexes.

    Without statistics PostgreSQL would take it to leave one row in two hundred, expect less than a page, and sort all
    threads. Of a truth value that it can't look into it expects half.
    """
    return func.coalesce(condition, false())


def _read_columns(shape: _Shape, time: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    match shape.reads:
        case Reads.IDS | Reads.ANCHOR | Reads.TOTAL:
            return [_threads.c.id, time]
        case Reads.TEXTS:
            return [_threads.c.id, time, _threads.c.rollout_path, *(_threads.c[name] for name in TEXTS)]
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
