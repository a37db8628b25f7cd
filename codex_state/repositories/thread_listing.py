"""The queries of thread listings, built once for each shape of filter.

Two rules keep a page's cost independent of the number of threads. The anchor is compared as one row value,
``(time, id) < (?, ?)``, which both databases answer by seeking in an index; spelled with OR they scan from the top. And
several sources or providers become one branch each, with a limit each, because an index serves one value at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Select, bindparam, literal_column, select, tuple_, union_all
from sqlalchemy.sql import Executable

from codex_state.models import Anchor, SortKey, Thread
from codex_state.models.columns import EpochSeconds, UuidText
from codex_state.repositories.base import columns_of, table_of
from codex_state.sql import unindexed

_threads = table_of(Thread)

_MAX_BRANCHES = 12
"""Beyond so many combinations of source and provider, one query with IN lists is the lesser evil."""


def anchor_of(thread: Thread, sort_key: SortKey) -> Anchor:
    """The anchor of the page that ends with ``thread``."""
    return Anchor(getattr(thread, sort_key.value), thread.id)


class _Shape(NamedTuple):
    """Everything about a listing that changes its SQL; the rest are parameters."""

    sort_key: SortKey
    archived: bool
    anchored: bool
    of_home: bool
    ids_only: bool
    sources: int
    providers: int


def statement_of(
    sort_key: SortKey,
    *,
    archived: bool,
    sources: Collection[str],
    providers: Collection[str],
    anchor: Anchor | None,
    home: str | None,
    limit: int,
    ids_only: bool = False,
) -> tuple[Executable, dict[str, Any]]:
    """The statement of a listing and its parameters."""
    # A value given twice would return its threads twice from two branches.
    wanted_sources, wanted_providers = sorted(set(sources)), sorted(set(providers))
    parameters: dict[str, Any] = {"row_limit": limit}
    if anchor is not None:
        parameters |= {"anchor_ts": anchor.ts, "anchor_id": anchor.id}
    if home is not None:
        parameters["home"] = home
    shape = _Shape(
        sort_key, archived, anchor is not None, home is not None, ids_only, len(wanted_sources), len(wanted_providers)
    )
    if max(shape.sources, 1) * max(shape.providers, 1) > _MAX_BRANCHES:
        parameters |= {"sources": wanted_sources, "providers": wanted_providers}
        return _one_query(shape), parameters
    parameters |= {f"source_{index}": value for index, value in enumerate(wanted_sources)}
    parameters |= {f"provider_{index}": value for index, value in enumerate(wanted_providers)}
    return _branches(shape), parameters


def _unfiltered(shape: _Shape) -> Select[Any]:
    time = _threads.c[shape.sort_key.value]
    columns = (_threads.c.id, time) if shape.ids_only else tuple(columns_of(Thread))
    statement = (
        select(*columns)
        # Literals, not parameters, so that the planner sees them when it picks an index.
        .where(_threads.c.archived == literal_column(str(int(shape.archived))))
        .where(_threads.c.first_user_message != literal_column("''"))
        .order_by(time.desc(), _threads.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )
    if shape.anchored:
        anchor = tuple_(bindparam("anchor_ts", type_=EpochSeconds()), bindparam("anchor_id", type_=UuidText()))
        statement = statement.where(tuple_(time, _threads.c.id) < anchor)
    if shape.of_home:
        statement = statement.where(_threads.c.home == bindparam("home"))
    return statement


@lru_cache(maxsize=512)
def _branches(shape: _Shape) -> Executable:
    base = _unfiltered(shape)
    branches = []
    for source, provider in product(range(shape.sources) or [None], range(shape.providers) or [None]):
        branch = base
        if source is not None:
            branch = branch.where(_threads.c.source == bindparam(f"source_{source}"))
        if provider is not None:
            branch = branch.where(_threads.c.model_provider == bindparam(f"provider_{provider}"))
        branches.append(branch)
    if len(branches) == 1:
        return branches[0]
    merged = union_all(*(select(branch.subquery()) for branch in branches)).subquery()
    return (
        select(merged)
        .order_by(merged.c[shape.sort_key.value].desc(), merged.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )


@lru_cache(maxsize=64)
def _one_query(shape: _Shape) -> Executable:
    # By an index of theirs, SQLite would sort all threads that match for each page.
    statement = _unfiltered(shape)
    if shape.sources:
        statement = statement.where(unindexed(_threads.c.source).in_(bindparam("sources", expanding=True)))
    if shape.providers:
        statement = statement.where(unindexed(_threads.c.model_provider).in_(bindparam("providers", expanding=True)))
    return statement
