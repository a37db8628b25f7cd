"""Bytes per row and bytes of WAL per write on PostgreSQL: the figures that docs/postgres.md reckons with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection

from benchmarks.servers import serve
from benchmarks.statements import new_thread
from codex_state import Claimed, LogEntry, MemoryScope, Phase1Key, Phase1Lease, State, StateRuntime, StateSettings

_THREADS, _WRITES, _LINES, _BATCH = 20_000, 5_000, 200_000, 1_000


def run() -> None:
    with serve() as server, server.database("off") as url, tempfile.TemporaryDirectory() as home:
        settings = StateSettings(codex_home=Path(home), database_url=url.render_as_string(hide_password=False))
        with StateRuntime.open(settings) as runtime:
            leases = _claimed(runtime)
            with runtime.autocommit() as state:
                _measure(runtime, state, leases)


def _claimed(runtime: StateRuntime) -> list[Phase1Lease]:
    threads, leases = [new_thread(number) for number in range(_THREADS)], []
    with runtime.begin() as state:
        state.threads.upsert_many(threads)
        for thread in threads:
            answer = state.phase1_jobs.try_claim(
                Phase1Key(thread.id, MemoryScope.user()),
                owner=uuid4(),
                source_updated_at=thread.updated_at,
                lease=timedelta(hours=1),
            )
            assert isinstance(answer, Claimed)
            leases.append(answer.lease)
    return leases


def _measure(runtime: StateRuntime, state: State, leases: list[Phase1Lease]) -> None:
    connection = state.session.connection()

    def renew() -> None:
        for lease in leases[:_WRITES]:
            assert state.phase1_jobs.renew(lease)

    def succeed() -> None:
        for lease in leases[:_WRITES]:
            assert state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m"), summary_hash="a" * 64)

    def log() -> None:
        for batch in _batches(leases):
            with runtime.begin() as writer:
                writer.logs.insert_many(batch)

    connection.exec_driver_sql("VACUUM ANALYZE")
    connection.exec_driver_sql("CHECKPOINT")
    print("\nPostgreSQL: bytes of WAL per write")
    _wal(connection, "renewal, the first after a checkpoint", renew, _WRITES)
    _wal(connection, "renewal", renew, _WRITES)
    _wal(connection, "succeed", succeed, _WRITES)
    _wal(connection, f"log line, {_BATCH} in a transaction", log, _LINES)
    connection.exec_driver_sql("VACUUM ANALYZE")
    print("PostgreSQL: bytes per row, of the table, of its indexes, in all")
    for table, rows in (("threads", _THREADS), ("memory_phase1_jobs", _THREADS), ("logs", _LINES)):
        sizes = connection.exec_driver_sql(
            f"SELECT pg_relation_size('{table}'), pg_indexes_size('{table}'), pg_total_relation_size('{table}')"
        ).one()
        print(f"  {table:<46}" + "".join(f"{size / rows:>9.0f}" for size in sizes))
    updated, hot = connection.exec_driver_sql(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'memory_phase1_jobs'"
    ).one()
    print(f"  heap-only updates of jobs: {hot} of {updated}")


def _wal(connection: Connection, name: str, work: Callable[[], None], writes: int) -> None:
    before = _position(connection)
    work()
    print(f"  {name:<46}{(_position(connection) - before) / writes:>9.0f}")


def _position(connection: Connection) -> Any:
    return connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").scalar_one()


def _batches(leases: list[Phase1Lease]) -> Iterator[list[LogEntry]]:
    for first in range(0, _LINES, _BATCH):
        yield [
            LogEntry(
                ts=1_770_000_000 + number // 100,
                ts_nanos=number,
                level="INFO",
                target="agent",
                message=f"line {number} " + "m" * 100,
                module_path="agent::loop",
                file="loop.py",
                line=number,
                thread_id=str(leases[number % _BATCH].key.thread_id),
            )
            for number in range(first, first + _BATCH)
        ]
