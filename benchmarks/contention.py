"""Many processes that claim at once: throughput, lock errors that a caller sees, the worst wait, fairness."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from benchmarks.statements import new_thread, raw_connection
from codex_state import MemoryScope, Phase1Key, StateError, StateRuntime, StateSettings

_SECONDS = 4.0
_Result = tuple[int, int, list[float]]


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
    claims, waits = 0, []
    connection = raw_connection(StateSettings(codex_home=Path(home)).database_path)
    connection.execute("PRAGMA busy_timeout = 5000")
    end = time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        connection.execute(
            "UPDATE memory_phase1_jobs SET started_at = CAST(strftime('%s', 'now') AS INTEGER), ownership_token = ?, "
            "attempt = attempt + 1 WHERE thread_id = ? AND scope_kind = 'user' AND scope_key = 'user' "
            "RETURNING attempt",
            (uuid4().hex, str(random.choice(ids))),
        ).fetchall()
        claims += 1
        waits.append(time.perf_counter() - start)
    connection.close()
    results.put((claims, 0, sorted(waits)))


def run() -> None:
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
