"""A page of 50 threads among 1,000, 100,000 and 1,000,000: what it costs must not grow with the store."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from sqlalchemy import Connection, make_url, text

from benchmarks.measure import interleaved, sent_by
from benchmarks.servers import Server, serve
from codex_state import Anchor, SortKey, State, StateRuntime, StateSettings, ThreadQuery

_SIZES = (1_000, 100_000, 1_000_000)
_FEW, _MANY = _SIZES[0], _SIZES[-1]
_PAGE = 50
_CALLS = 20
_START = 1_700_000_000
_FLAT, _BUDGET = 2, 4
_SECONDS = 0.5
"""For a page with filters that no index serves: it looks at so many rows and no more."""

_NUMBERS = {
    "sqlite": "(WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {last}) SELECT n FROM n)",
    "postgresql": "(SELECT n FROM generate_series(CAST(0 AS bigint), {last}) AS numbers (n)) AS numbers",
}
_ID = {
    "sqlite": "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-' || hex(randomblob(2)) || '-' || "
    "hex(randomblob(2)) || '-' || hex(randomblob(6)))",
    "postgresql": "gen_random_uuid()",
}
# Created in another order than updated. A tenth is archived, and one source has 120 threads however many there are.
# The newest half has nothing to show in nine of ten, and every third thread was spawned by another.
_FILL = (
    "INSERT INTO threads (id, rollout_path, created_at, updated_at, source, model_provider, cwd, title, "
    "sandbox_policy, approval_mode, archived, archived_at, parent_thread_id, first_user_message) "
    "SELECT {id}, '/home/sessions/rollout-' || n || '.jsonl', {start} + n * 7919 % {threads}, {start} + n, "
    "CASE WHEN n * 120 % {threads} < 120 THEN 'mcp' WHEN n % 10 = 1 THEN 'vscode' ELSE 'cli' END, "
    "'openai', '/projects/' || (n % 50), 'fix the flaky test', '{{\"type\":\"read-only\"}}', 'on-request', "
    "CASE n % 10 WHEN 3 THEN 1 ELSE 0 END, CASE n % 10 WHEN 3 THEN {start} END, CASE n % 3 WHEN 0 THEN {id} END, "
    "CASE WHEN n > {threads} / 2 AND n % 10 <> n / 10 % 10 THEN '' ELSE 'fix the flaky test' END FROM {numbers}"
)


class _Kind(NamedTuple):
    """What is listed."""

    sort_key: SortKey
    filters: dict[str, Any]
    deep: bool

    @property
    def looks_beside_the_index(self) -> bool:
        query = ThreadQuery(sort_key=self.sort_key, **self.filters)
        return query.by_index() != query

    def __str__(self) -> str:
        spelled = ", ".join(
            f"{name} {'+'.join(value) if isinstance(value, list) else value}" for name, value in self.filters.items()
        )
        return (
            f"by {self.sort_key.value}{', ' if spelled else ''}{spelled}, {'in the middle' if self.deep else 'first'}"
        )


_FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"sources": ["cli"]},
    {"sources": ["mcp"]},
    {"sources": ["cli", "vscode"]},
    {"providers": ["openai"]},
    {"archived": True},
    {"all": True},
    {"all": True, "sources": ["mcp"]},
    {"children": False},
    {"cwd": "/projects/7"},
)
_KINDS = [_Kind(*each) for each in product(SortKey, _FILTERS, (False, True))]


class _Store:
    """A store of so many threads, and a connection of the driver's own to it."""

    def __init__(self, threads: int, runtime: StateRuntime, raw: Any) -> None:
        self.threads, self.runtime, self.raw = threads, runtime, raw
        # In the middle, where a source of 120 threads still has more than a page.
        self._moments = [_START + threads * percent // 100 for percent in range(50, 70)]

    def lists(self, state: State, kind: _Kind) -> Callable[[], object]:
        anchors = cycle(
            [Anchor(datetime.fromtimestamp(moment, UTC), UUID(int=0)) for moment in self._moments]
            if kind.deep
            else [None]
        )
        return lambda: state.threads.list(
            ThreadQuery(limit=_PAGE, sort_key=kind.sort_key, anchor=next(anchors), **kind.filters)
        )

    def lists_raw(self, heard: StateRuntime, kind: _Kind) -> Callable[[], object]:
        """The same statement, whose rows stay as the driver gives them."""
        with heard.read() as state:
            *_, (statement, parameters) = sent_by(heard, self.lists(state, kind))  # after where the page may end
        return lambda: self.raw.execute(statement, parameters).fetchall()


def _fill(connection: Connection, threads: int) -> None:
    dialect = connection.dialect.name
    numbers = _NUMBERS[dialect].format(last=threads - 1)
    connection.execute(text(_FILL.format(id=_ID[dialect], start=_START, threads=threads, numbers=numbers)))


@contextmanager
def _opened(threads: int, server: Server | None) -> Iterator[tuple[_Store, StateRuntime]]:
    """A filled store that nobody has analysed, and a second door to it for who listens."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if server is None:
            settings = StateSettings(codex_home=home)
        else:
            url = stack.enter_context(server.database("off")).render_as_string(hide_password=False)
            settings = StateSettings(codex_home=home, database_url=url)
        runtime, heard = (stack.enter_context(StateRuntime.open(settings)) for _ in range(2))
        with runtime.begin() as state:
            connection = state.session.connection()
            if server is not None:
                connection.exec_driver_sql("ALTER TABLE threads SET (autovacuum_enabled = off)")
            _fill(connection, threads)
        raw: Any = (
            sqlite3.connect(settings.database_path, isolation_level=None)
            if server is None
            else psycopg.connect(
                make_url(url).set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
            )
        )
        yield _Store(threads, runtime, stack.enter_context(closing(raw))), heard


def _measure(stores: Mapping[_Store, StateRuntime], title: str) -> None:
    print(
        f"\n{title}\n  {'us per page among':<58}" + "".join(f"{size:>11,}" for size in _SIZES) + "   growth, x driver"
    )
    with ExitStack() as stack:
        states = {store: stack.enter_context(store.runtime.read()) for store in stores}
        for kind in _KINDS:
            candidates = {str(store.threads): store.lists(state, kind) for store, state in states.items()}
            candidates |= {f"raw {store.threads}": store.lists_raw(heard, kind) for store, heard in stores.items()}
            seconds = interleaved(candidates, calls=_CALLS, rounds=5)
            growth = seconds[str(_MANY)] / seconds[str(_FEW)]
            above = seconds[str(_MANY)] / seconds[f"raw {_MANY}"]
            is_within = growth <= _FLAT and above <= _BUDGET
            if kind.looks_beside_the_index:
                is_within = seconds[str(_MANY)] <= _SECONDS
            verdict = "ok" if is_within else "OVER"
            print(
                f"  {kind!s:<58}"
                + "".join(f"{seconds[str(size)] * 1e6:>11,.0f}" for size in _SIZES)
                + f"{growth:>9.2f}{above:>8.2f}  {verdict}",
                flush=True,
            )


def _side_by_side(database: str, server: Server | None) -> None:
    with ExitStack() as stack:
        stores = dict(stack.enter_context(_opened(size, server)) for size in _SIZES)
        _measure(
            stores, f"{database}, without statistics; budgets: growth {_FLAT}, {_BUDGET} x driver, or {_SECONDS} s"
        )
        analyse = "ANALYZE" if server is None else "VACUUM ANALYZE threads"
        for store in stores:
            with store.runtime.autocommit() as state:
                state.session.connection().exec_driver_sql(analyse)
        _measure(stores, f"{database}, after {analyse}")


def run() -> None:
    _side_by_side("SQLite", None)
    with serve() as server:
        _side_by_side("PostgreSQL", server)
