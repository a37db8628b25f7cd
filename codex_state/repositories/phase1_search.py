"""Which threads a batch claim looks at, as SQL: its claim and its hints ask the same."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, ScalarSelect, bindparam, select
from sqlalchemy import text as sql_text

from codex_state.clock import server_now
from codex_state.errors import InvalidInputError
from codex_state.models import SCOPE_CWD, SCOPE_USER, Thread, open_threads
from codex_state.models.columns import text
from codex_state.repositories.base import seconds_of, table_of

_threads = table_of(Thread)


class Search(NamedTuple):
    """Everything about a search that changes its SQL; the rest are parameters."""

    scope_kinds: tuple[str, ...]
    sources: int
    """How many sources a thread may have."""
    homes: int | None
    """How many homes a thread may have; ``None`` for any home."""


def search_of(
    *, scope_kinds: Collection[str], max_age_seconds: int, sources: Collection[str], home: str | Collection[str] | None
) -> tuple[Search, dict[str, Any]]:
    """A search and its parameters.

    Raises:
        InvalidInputError: a scope kind that isn't ``cwd`` or ``user``.
    """
    if unknown := sorted(set(scope_kinds) - {SCOPE_CWD, SCOPE_USER}):
        raise InvalidInputError(f"unknown scope kinds {unknown}; known: {SCOPE_CWD}, {SCOPE_USER}")
    sources = sorted(set(sources))
    parameters: dict[str, Any] = {"max_age_seconds": max_age_seconds} | _numbered("source", sources)
    homes = None if home is None else sorted({home} if isinstance(home, str) else set(home))
    if homes is not None:
        parameters |= _numbered("home", homes)
    kinds = tuple(sorted(set(scope_kinds)))
    return Search(kinds, len(sources), None if homes is None else len(homes)), parameters


def is_searched(search: Search) -> list[ColumnElement[bool]]:
    """The conditions on a thread."""
    conditions: list[Any] = [
        sql_text(open_threads(search.scope_kinds)),
        _threads.c.source.in_(_parameters("source", search.sources)),
        seconds_of(_threads.c.updated_at) >= seconds_ago("max_age_seconds"),
    ]
    if search.homes is not None:
        conditions.append(_threads.c.home.in_(_parameters("home", search.homes)))
    return conditions


def seconds_ago(parameter: str) -> ScalarSelect[int]:
    """So many seconds before now: told once for the whole statement, so that PostgreSQL seeks it in an index.

    No guard compares with it: one that waited for a row's lock has to know what time it is by then.
    """
    return select(server_now() - bindparam(parameter, type_=BigInteger())).scalar_subquery()


def _numbered(name: str, values: Collection[str]) -> dict[str, str]:
    # A parameter each rather than one list: then the statement's text depends on how many there are, and no more.
    return {f"of_{name}_{number}": value for number, value in enumerate(values)}


def _parameters(name: str, count: int) -> list[ColumnElement[str]]:
    return [bindparam(f"of_{name}_{number}", type_=text) for number in range(count)]
