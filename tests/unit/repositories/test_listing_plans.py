"""How PostgreSQL answers a listing: by an index that has its filter and its order (law L10)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from stores import fresh_settings

from codex_state.models import Anchor, SortKey, ThreadQuery
from codex_state.repositories.thread_listing import Reads, directories_of, statement_of
from codex_state.runtime import State, StateRuntime
from codex_state.testing.samples import NOON

_THREADS = 20_000
_FILL = """
INSERT INTO threads (id, rollout_path, created_at, updated_at, source, model_provider, cwd, title, sandbox_policy,
    approval_mode, archived, archived_at, first_user_message, gone_at)
SELECT gen_random_uuid(), '/rollouts/' || n, :noon - n * 7919 % :threads, :noon - n,
    CASE n % 10 WHEN 0 THEN 'vscode' WHEN 5 THEN 'exec' ELSE 'cli' END, 'openai', '/code', 'a title', 'read-only',
    'on-request',
    CASE WHEN n % 10 = 1 THEN 1 ELSE 0 END, CASE WHEN n % 10 = 1 THEN :noon END,
    CASE WHEN n % 2 = 0 THEN 'a message' ELSE '' END, CASE WHEN n % 3 = 0 THEN :noon END
FROM generate_series(1, :threads) AS numbers (n)
"""


@pytest.fixture(scope="module")
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateRuntime]:
    """A store whose tables nobody has analysed."""
    home: Path = tmp_path_factory.mktemp("home")
    with fresh_settings("postgresql", home, request) as settings, StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            connection = state.session.connection()
            connection.exec_driver_sql("ALTER TABLE threads SET (autovacuum_enabled = off)")
            connection.execute(text(_FILL), {"noon": int(NOON.timestamp()), "threads": _THREADS})
        yield runtime


@pytest.fixture
def state(runtime: StateRuntime) -> Iterator[State]:
    """The same store with statistics, for as long as the test runs."""
    with runtime.begin() as state:
        state.session.connection().exec_driver_sql("ANALYZE threads")
        yield state
        state.session.rollback()


def _plan_of(
    state: State,
    sort_key: SortKey,
    *,
    deep: bool = False,
    reads: Reads = Reads.THREADS,
    limit: int = 51,
    directories: Sequence[str] | None = None,
    **filters: Any,
) -> str:
    anchor = Anchor(NOON.fromtimestamp(NOON.timestamp() - _THREADS / 2, NOON.tzinfo), uuid4()) if deep else None
    query = ThreadQuery(sort_key=sort_key, anchor=anchor, limit=limit, **filters)
    statement, parameters = statement_of(query, reads, directories=directories)
    connection = state.session.connection()
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        sent.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    connection.execute(statement, parameters).close()
    event.remove(connection, "before_cursor_execute", note)
    rows = connection.exec_driver_sql(f"EXPLAIN {sent[0][0]}", sent[0][1])
    return "\n".join(rows.scalars().all())


@pytest.mark.parametrize("deep", [False, True], ids=["first page", "page in the middle"])
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "archived"),
        ({"archived": True}, "archived"),
        ({"sources": ["vscode"]}, "source"),
        ({"sources": ["exec", "vscode"]}, "source"),
        ({"sources": ["exec"], "archived": True}, "source"),
        ({"providers": ["openai"]}, "provider"),
        ({"all": True}, "archived"),
        ({"all": True, "sources": ["exec", "vscode"]}, "source"),
        ({"children": False}, "archived"),
    ],
)
@pytest.mark.parametrize("sort_key", SortKey)
def test_a_page_is_read_from_an_index_in_its_order(
    state: State, sort_key: SortKey, filters: dict[str, Any], index: str, deep: bool
) -> None:
    plan = _plan_of(state, sort_key, deep=deep, **filters)
    branches = max(len(filters.get("sources", ())), 1) if sort_key is SortKey.UPDATED_AT else 1
    wanted = branches * (2 if filters.get("all") else 1)
    assert _scans_of(plan) == [("Index Scan", _index_in_order(index, sort_key))] * wanted
    assert "Sort" not in plan.replace("Sort Key", ""), plan


def test_the_threads_of_several_directories_are_read_from_an_index_in_its_order(state: State) -> None:
    query = ThreadQuery(cwd="/code")
    assert directories_of(query, []) == ["/code"]
    plan = _plan_of(state, SortKey.UPDATED_AT, directories=["/code", "/code/a"])
    assert _scans_of(plan) == [("Index Scan", "idx_threads_cwd")] * 2
    assert "Sort" not in plan.replace("Sort Key", ""), plan


@pytest.mark.parametrize("filters", [{"children": False}, {"home": "local"}])
@pytest.mark.parametrize("sort_key", SortKey)
def test_without_statistics_a_filter_beside_the_index_does_not_have_all_threads_sorted(
    runtime: StateRuntime, sort_key: SortKey, filters: dict[str, Any]
) -> None:
    with runtime.read() as state:
        plan = _plan_of(state, sort_key, limit=2, **filters)
    assert _scans_of(plan) == [("Index Scan", _index_in_order("archived", sort_key))]
    assert "Sort" not in plan, plan


@pytest.mark.parametrize(("filters", "index"), [({}, "archived"), ({"sources": ["exec", "vscode"]}, "source")])
def test_what_is_not_shown_is_counted_by_an_index(state: State, filters: dict[str, Any], index: str) -> None:
    plan = _plan_of(state, SortKey.UPDATED_AT, reads=Reads.UNSHOWN, **filters)
    assert _scans_of(plan) == [("Index Scan", _index_in_order(index, SortKey.UPDATED_AT))] * max(
        len(filters.get("sources", ())), 1
    )


def _index_in_order(index: str, sort_key: SortKey) -> str:
    return f"idx_threads_{'created_at' if sort_key is SortKey.CREATED_AT else index}"


def _scans_of(plan: str) -> list[tuple[str, str]]:
    scans = re.findall(r"(\w[\w ]*Scan)(?: Backward)?(?: using (\w+))?", plan)
    return [scan for scan in scans if scan[0] != "Subquery Scan"]
