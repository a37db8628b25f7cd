"""Many processes that claim at once: throughput, lock errors that a caller sees, the worst wait, fairness.

On SQLite they claim whatever they like, as often as they can. On PostgreSQL they all want the same jobs, one after the
other: each may be granted to one of them.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import event, make_url

from benchmarks.servers import serve
from benchmarks.statements import new_thread, raw_connection
from codex_state import Claimed, MemoryScope, Phase1Key, StateError, StateRuntime, StateSettings

_SECONDS = 4.0
_Result = tuple[int, int, list[float]]

_PROCESSES, _JOBS, _ROUNDS = 8, 3_000, 3
_PATIENCE = 300.0
_Race = tuple[list[UUID], float, float]
"""What one process was granted, its seconds, and the longest of its claims."""

_Work = Callable[[str, list[UUID], Barrier], _Race]

# What a worker would write that takes a job nobody has, or whose holder is an hour late.
_CLAIM = """
INSERT INTO memory_phase1_jobs AS job (thread_id, scope_kind, scope_key, status, owner_session_id, started_at,
    source_updated_at, ownership_token, attempt)
SELECT id, 'user', 'user', 'running', %s, CAST(extract(epoch FROM clock_timestamp()) AS bigint), %s, %s, 1
FROM threads WHERE id = %s
ON CONFLICT (thread_id, scope_kind, scope_key) DO UPDATE SET status = excluded.status,
    owner_session_id = excluded.owner_session_id, started_at = excluded.started_at, finished_at = NULL,
    failure_reason = NULL, source_updated_at = excluded.source_updated_at, raw_memory_path = NULL, summary_hash = NULL,
    ownership_token = excluded.ownership_token, attempt = job.attempt + 1, retry_at = NULL
WHERE (job.status = 'failed' AND job.retry_at <= extract(epoch FROM clock_timestamp()))
    OR (job.status = 'succeeded' AND job.source_updated_at < excluded.source_updated_at)
    OR (job.status = 'running' AND job.started_at <= extract(epoch FROM clock_timestamp()) - 3600)
RETURNING job.ownership_token, job.attempt
"""
_WHY_NOT = """
SELECT status, retry_at, source_updated_at FROM memory_phase1_jobs
WHERE thread_id = %s AND scope_kind = 'user' AND scope_key = 'user'
"""


def _claim_through_us(home: str, ids: list[UUID], results: multiprocessing.Queue[_Result]) -> None:
    owner, claims, errors, waits = uuid4(), 0, 0, []
    with StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime, runtime.autocommit() as state:
        end = time.perf_counter() + _SECONDS
        while (start := time.perf_counter()) < end:
            key = Phase1Key(random.choice(ids), MemoryScope.user())
            try:
                state.phase1_jobs.try_claim(key, owner=owner, source_updated_at=datetime.now(UTC), lease=timedelta(0))
                claims += 1
            except StateError:
                errors += 1
            waits.append(time.perf_counter() - start)
    results.put((claims, errors, sorted(waits)))


def _claim_by_sqlite3(home: str, ids: list[UUID], results: multiprocessing.Queue[_Result]) -> None:
    """The same statements, while SQLite's own busy handler waits for its turn."""
    claims, waits = 0, []
    statements = _statements_of(home, ids)
    connection = raw_connection(StateSettings(codex_home=Path(home)).database_path)
    connection.execute("PRAGMA busy_timeout = 5000")
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        connection.execute(*random.choice(statements)).fetchall()
        claims += 1
        waits.append(time.perf_counter() - start)
    connection.close()
    results.put((claims, 0, sorted(waits)))


def _statements_of(home: str, ids: list[UUID]) -> list[tuple[str, Any]]:
    """What a claim of each thread sends."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        sent.append((statement, parameters))

    with StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime, runtime.autocommit() as state:
        event.listen(state.session.connection(), "before_cursor_execute", note)
        for thread_id in ids:
            key = Phase1Key(thread_id, MemoryScope.user())
            state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=datetime.now(UTC), lease=timedelta(0))
    return sent


def _claim_all_through_us(url: str, ids: list[UUID], start: Barrier) -> _Race:
    settings = StateSettings(codex_home=Path(tempfile.gettempdir()), database_url=url)
    with StateRuntime.open(settings) as runtime, runtime.autocommit() as state:
        owner, source = uuid4(), new_thread(0).updated_at

        def claim(thread_id: UUID) -> bool:
            key = Phase1Key(thread_id, MemoryScope.user())
            answer = state.phase1_jobs.try_claim(key, owner=owner, source_updated_at=source, lease=timedelta(hours=1))
            return isinstance(answer, Claimed)

        return _race(claim, ids, start)


def _claim_all_by_psycopg(url: str, ids: list[UUID], start: Barrier) -> _Race:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True, prepare_threshold=0) as connection:
        owner, source = uuid4(), int(new_thread(0).updated_at.timestamp())

        def claim(thread_id: UUID) -> bool:
            granted = connection.execute(_CLAIM, (owner, source, uuid4().hex, thread_id)).fetchone()
            if granted is None:
                assert connection.execute(_WHY_NOT, (thread_id,)).fetchone()
            return granted is not None

        return _race(claim, ids, start)


def _race(claim: Callable[[UUID], bool], ids: list[UUID], start: Barrier) -> _Race:
    granted, waits = [], []
    start.wait()
    began = time.perf_counter()
    for thread_id in ids:
        before = time.perf_counter()
        if claim(thread_id):
            granted.append(thread_id)
        waits.append(time.perf_counter() - before)
    return granted, time.perf_counter() - began, max(waits)


def _enter(results: multiprocessing.Queue[_Race], work: _Work, url: str, ids: list[UUID], start: Barrier) -> None:
    results.put(work(url, ids, start))


def _raced(work: _Work, url: str, ids: list[UUID]) -> tuple[float, float, int]:
    """Claims per second of all processes together, the worst wait, and how many jobs had more than one holder."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[_Race] = context.Queue()
    start = context.Barrier(_PROCESSES)
    processes = [context.Process(target=_enter, args=(results, work, url, ids, start)) for _ in range(_PROCESSES)]
    for process in processes:
        process.start()
    races = [results.get(timeout=_PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    grants = Counter(thread_id for granted, _, _ in races for thread_id in granted)
    assert grants.keys() == set(ids), "a job was granted to nobody"
    slowest = max(seconds for _, seconds, _ in races)
    return len(ids) * _PROCESSES / slowest, max(wait for _, _, wait in races), sum(n > 1 for n in grants.values())


def _on_postgresql() -> None:
    print(f"\nPostgreSQL: {_PROCESSES} processes that all claim the same {_JOBS:,} jobs; medians of {_ROUNDS} rounds")
    candidates: dict[str, _Work] = {"psycopg, by hand": _claim_all_by_psycopg, "codex_state": _claim_all_through_us}
    with serve() as server:
        for setting in ("on", "off"):
            outcomes: dict[str, list[tuple[float, float, int]]] = {name: [] for name in candidates}
            for _, (name, work) in product(range(_ROUNDS), candidates.items()):
                with server.database(setting) as place:
                    url = place.render_as_string(hide_password=False)
                    threads = [new_thread(number) for number in range(_JOBS)]
                    settings = StateSettings(codex_home=Path(tempfile.gettempdir()), database_url=url)
                    with StateRuntime.open(settings) as runtime, runtime.begin() as state:
                        state.threads.upsert_many(threads)
                    outcomes[name].append(_raced(work, url, [thread.id for thread in threads]))
            floor = statistics.median(rate for rate, _, _ in outcomes["psycopg, by hand"])
            for name, measured in outcomes.items():
                rate = statistics.median(rate for rate, _, _ in measured)
                print(
                    f"  synchronous_commit = {setting:<4}{name:<20}{rate:>9,.0f} claims/s{floor / rate:>7.2f}x  "
                    f"worst wait {max(wait for _, wait, _ in measured) * 1e3:6.1f} ms  "
                    f"double claims {sum(doubles for _, _, doubles in measured)}",
                    flush=True,
                )


def run() -> None:
    _on_sqlite()
    _on_postgresql()


def _on_sqlite() -> None:
    print("\nProcesses claiming jobs by single statements, 4 s each")
    with tempfile.TemporaryDirectory() as home:
        threads = [new_thread(number) for number in range(1000)]
        with StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime, runtime.begin() as state:
            state.threads.upsert_many(threads)
            for thread in threads:
                key = Phase1Key(thread.id, MemoryScope.user())
                state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=thread.updated_at, lease=timedelta(0))
        ids = [thread.id for thread in threads]
        context = multiprocessing.get_context("spawn")
        for count in (1, 2, 8):
            for name, work in (("sqlite3, its busy handler", _claim_by_sqlite3), ("codex_state", _claim_through_us)):
                results: multiprocessing.Queue[_Result] = context.Queue()
                workers = [context.Process(target=work, args=(home, ids, results)) for _ in range(count)]
                for worker in workers:
                    worker.start()
                outcomes = [results.get() for _ in workers]
                for worker in workers:
                    worker.join()
                claims = [outcome[0] for outcome in outcomes]
                errors = sum(outcome[1] for outcome in outcomes)
                waits = sorted(wait for outcome in outcomes for wait in outcome[2])
                print(
                    f"  {count} x {name:<28}{sum(claims) / _SECONDS:>9.0f}/s  lock errors {errors}  "
                    f"p99.9 {waits[int(len(waits) * 0.999)] * 1e3:6.1f} ms  worst {waits[-1] * 1e3:7.1f} ms  "
                    f"slowest/fastest {min(claims) / max(claims):.2f}"
                )
