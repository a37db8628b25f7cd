"""Rows per second of a whole copy, against drivers that read and write the same rows without looking at them."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from benchmarks.statements import new_thread
from codex_state import LogEntry, StateRuntime, StateSettings, copy_state
from tests import postgres

_THREADS = 20_000
_LOGS = 200_000
_BATCH = 1000
_TABLES = ("threads", "logs")


def _fill(settings: StateSettings) -> None:
    with StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            state.threads.upsert_many(new_thread(number) for number in range(_THREADS))
        with runtime.begin() as state:
            state.logs.insert_many(
                LogEntry(ts=1_770_000_000 + number, ts_nanos=0, level="INFO", target="codex", message="tool call done")
                for number in range(_LOGS)
            )


def _batches(path: Path, table: str) -> Iterator[list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        cursor = connection.execute(f"SELECT * FROM {table}")
        while batch := cursor.fetchmany(_BATCH):
            yield batch


def _by_copy(path: Path, url: str) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        for table in _TABLES:
            for batch in _batches(path, table):
                with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                    for row in batch:
                        copy.write_row(row)
                connection.commit()


def _by_executemany(url: str, path: Path) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as source, closing(sqlite3.connect(path)) as target:
        for table in _TABLES:
            cursor = source.cursor(f"all_{table}")
            cursor.execute(f"SELECT * FROM {table}")
            while batch := cursor.fetchmany(_BATCH):
                rows = [tuple(str(value) if hasattr(value, "hex") else value for value in row) for row in batch]
                places = ", ".join("?" * len(rows[0]))
                target.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
                target.commit()


def _through_us(source: StateSettings, target: StateSettings) -> None:
    with StateRuntime.open(source) as opened, StateRuntime.open(target) as into:
        assert copy_state(opened, into).complete


def _timed(name: str, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    print(f"  {name:<44}{seconds:>8.1f} s {(_THREADS + _LOGS) / seconds:>12,.0f} rows/s")


def run() -> None:
    print(f"\nCopying {_THREADS:,} threads and {_LOGS:,} log lines, with the check of every row")
    with postgres.serve() as server, tempfile.TemporaryDirectory() as directory:
        homes = [Path(directory) / name for name in ("source", "back", "floor", "file")]
        source, back, floor, file = (StateSettings(codex_home=home) for home in homes)
        _fill(source)
        StateRuntime.open(floor).close()
        with server.database() as ours, server.database() as theirs:
            there = StateSettings(codex_home=homes[0], database_url=ours)
            StateRuntime.open(StateSettings(codex_home=homes[0], database_url=theirs)).close()
            _timed("to PostgreSQL: sqlite3 and COPY, unchecked", lambda: _by_copy(source.database_path, theirs))
            _timed("to PostgreSQL: codex_state", lambda: _through_us(source, there))
            _timed("to PostgreSQL: codex_state, all there already", lambda: _through_us(source, there))
            _timed("to SQLite: psycopg and executemany, unchecked", lambda: _by_executemany(ours, floor.database_path))
            _timed("to SQLite: codex_state", lambda: _through_us(there, back))
            _timed("file to file: codex_state", lambda: _through_us(source, file))
