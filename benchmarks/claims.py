"""What a batch claim costs when much is done already: 64 threads beside 1,000 and beside 100,000 finished ones."""

from __future__ import annotations

import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, text

from benchmarks.measure import report
from benchmarks.servers import serve
from benchmarks.statements import new_thread
from codex_state import StateRuntime, StateSettings

_FEW, _MANY = 1_000, 100_000
_BATCH = 64
_CALLS = 15
_AT_ONCE = 5_000

_FINISH_ALL = text(
    "INSERT INTO memory_phase1_jobs "
    "(thread_id, scope_kind, scope_key, status, source_updated_at, finished_at, attempt, ownership_token) "
    "SELECT id, kind, CASE kind WHEN 'cwd' THEN cwd ELSE 'user' END, "
    "CASE updated_at % 2 WHEN 0 THEN 'failed' ELSE 'succeeded' END, updated_at, updated_at, 1, 'earlier' "
    "FROM threads CROSS JOIN (SELECT 'cwd' AS kind UNION ALL SELECT 'user') AS kinds"
)


def _store(runtime: StateRuntime, count: int, newest: datetime) -> None:
    for first in range(0, count, _AT_ONCE):
        threads = [new_thread(number) for number in range(min(_AT_ONCE, count - first))]
        for number, thread in enumerate(threads):
            thread.updated_at = newest - timedelta(seconds=first + number)
        with runtime.begin() as state:
            state.threads.upsert_many(threads)


def _claim(runtime: StateRuntime) -> int:
    with runtime.autocommit() as state:
        return len(state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(hours=1), max_threads=_BATCH))


def _median_of_a_claim(url: str | URL | None, finished: int) -> tuple[float, float]:
    """Seconds of a full batch, and of one that finds nothing."""
    with tempfile.TemporaryDirectory() as home:
        given = {} if url is None else {"database_url": url}
        with StateRuntime.open(StateSettings(codex_home=Path(home), **given)) as runtime:
            now = datetime.now(UTC).replace(microsecond=0)
            _store(runtime, finished, now - timedelta(minutes=5))
            with runtime.begin() as state:
                state.session.connection().execute(_FINISH_ALL)
            while _is_settling(runtime):
                _claim(runtime)
            if url is not None:
                # What a server's autovacuum does by itself after so many rows have changed.
                with runtime.autocommit() as state:
                    state.session.connection().exec_driver_sql("VACUUM ANALYZE")
            full, idle = [], []
            for number in range(_CALLS):
                _store(runtime, _BATCH, now + timedelta(minutes=2 * number))
                full.append(_seconds_of_a_claim(runtime, 2 * _BATCH))
                idle.append(_seconds_of_a_claim(runtime, 0))
    return statistics.median(full), statistics.median(idle)


def _is_settling(runtime: StateRuntime) -> bool:
    with runtime.read() as state:
        row = state.session.connection().exec_driver_sql("SELECT 1 FROM threads WHERE user_settled_for IS NULL LIMIT 1")
        return row.first() is not None


def _seconds_of_a_claim(runtime: StateRuntime, expected: int) -> float:
    start = time.perf_counter()
    claimed = _claim(runtime)
    seconds = time.perf_counter() - start
    if claimed != expected:
        raise AssertionError(f"{claimed} leases instead of {expected}")
    return seconds


def _compare(database: str, few: tuple[float, float], many: tuple[float, float]) -> None:
    for number, what in enumerate((f"A batch claim of {_BATCH} threads", "A batch claim that finds nothing")):
        names = [f"beside {count:,} finished threads" for count in (_FEW, _MANY)]
        report(f"{what}, {database}", {names[0]: few[number], names[1]: many[number]}, names[0], {names[1]: 2})


def run() -> None:
    _compare("SQLite", _median_of_a_claim(None, _FEW), _median_of_a_claim(None, _MANY))
    with serve() as server:
        results = []
        for finished in (_FEW, _MANY):
            with server.database("on") as url:
                results.append(_median_of_a_claim(url.render_as_string(hide_password=False), finished))
    _compare("PostgreSQL", results[0], results[1])
