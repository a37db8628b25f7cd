"""The queries of thread listings, built once for each shape of filter.

Two rules keep a page's cost independent of the number of threads. The anchor is compared as one row value,
``(time, id) < (?, ?)``, which both databases answer by seeking in an index; spelled with OR they scan from the top. And
several sources or providers become one branch each, with a limit each, because an index serves one value at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from itertools import product
from typing import Any

from sqlalchemy import BigInteger, Select, bindparam, literal_column, select, tuple_, union_all
from sqlalchemy.sql import Executable

from codex_state.models import Anchor, SortKey, Thread
from codex_state.models.columns import EpochSeconds, UuidText
from codex_state.repositories.base import table_of

_threads = table_of(Thread)

_MAX_BRANCHES = 12
"""Beyond so many combinations of source and provider, one query with IN lists is the lesser evil."""


def anchor_of(thread: Thread, sort_key: SortKey) -> Anchor:
    """The anchor of the page that ends with ``thread``."""
    return Anchor(getattr(thread, sort_key.value), thread.id)


def statement_of(
    sort_key: SortKey,
    archived: bool,  # noqa: FBT001
    sources: Collection[str],
    providers: Collection[str],
    anchor: Anchor | None,
    home: str | None,
    *,
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
    shape = (sort_key, archived, anchor is not None, home is not None, ids_only)
    if max(len(wanted_sources), 1) * max(len(wanted_providers), 1) > _MAX_BRANCHES:
        parameters |= {"sources": wanted_sources, "providers": wanted_providers}
        return _one_query(*shape, bool(wanted_sources), bool(wanted_providers)), parameters
    parameters |= {f"source_{index}": value for index, value in enumerate(wanted_sources)}
    parameters |= {f"provider_{index}": value for index, value in enumerate(wanted_providers)}
    return _branches(*shape, len(wanted_sources), len(wanted_providers)), parameters


def _unfiltered(
    sort_key: SortKey,
    archived: bool,  # noqa: FBT001
    anchored: bool,  # noqa: FBT001
    of_home: bool,  # noqa: FBT001
    ids_only: bool,  # noqa: FBT001
) -> Select[Any]:
    time = _threads.c[sort_key.value]
    columns = (_threads.c.id, time) if ids_only else tuple(_threads.columns)
    statement = (
        select(*columns)
        # Literals, not parameters, so that the planner sees them when it picks an index.
        .where(_threads.c.archived == literal_column(str(int(archived))))
        .where(_threads.c.first_user_message != literal_column("''"))
        .order_by(time.desc(), _threads.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )
    if anchored:
        anchor = tuple_(bindparam("anchor_ts", type_=EpochSeconds()), bindparam("anchor_id", type_=UuidText()))
        statement = statement.where(tuple_(time, _threads.c.id) < anchor)
    if of_home:
        statement = statement.where(_threads.c.home == bindparam("home"))
    return statement


@lru_cache(maxsize=512)
def _branches(
    sort_key: SortKey,
    archived: bool,  # noqa: FBT001
    anchored: bool,  # noqa: FBT001
    of_home: bool,  # noqa: FBT001
    ids_only: bool,  # noqa: FBT001
    sources: int,
    providers: int,
) -> Executable:
    base = _unfiltered(sort_key, archived, anchored, of_home, ids_only)
    branches = []
    for source, provider in product(range(sources) or [None], range(providers) or [None]):
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
        .order_by(merged.c[sort_key.value].desc(), merged.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )


@lru_cache(maxsize=256)
def _one_query(
    sort_key: SortKey,
    archived: bool,  # noqa: FBT001
    anchored: bool,  # noqa: FBT001
    of_home: bool,  # noqa: FBT001
    ids_only: bool,  # noqa: FBT001
    by_source: bool,  # noqa: FBT001
    by_provider: bool,  # noqa: FBT001
) -> Executable:
    statement = _unfiltered(sort_key, archived, anchored, of_home, ids_only)
    if by_source:
        statement = statement.where(_threads.c.source.in_(bindparam("sources", expanding=True)))
    if by_provider:
        statement = statement.where(_threads.c.model_provider.in_(bindparam("providers", expanding=True)))
    return statement
