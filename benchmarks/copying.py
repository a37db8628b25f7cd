"""Rows per second of a whole copy, against drivers that read and write the same rows without looking at them."""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import psycopg
from sqlalchemy import make_url

from benchmarks.statements import new_thread
from codex_state import LogEntry, StateRuntime, StateSettings, copy_state
from tests import postgres

_THREADS = 10_000
_LOGS = 100_000
_BATCH = 1000
_ROUNDS = 5
_TABLES = ("threads", "logs")


class _Places(NamedTuple):
    """The empty, migrated databases of one round."""

    server_by_hand: str
    server: StateSettings
    back_by_hand: Path
    back: StateSettings
    file_by_hand: Path
    file: StateSettings


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


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _insert(target: sqlite3.Connection, table: str, rows: list[tuple[object, ...]]) -> None:
    target.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    target.commit()


def _by_copy(path: Path, url: str) -> None:
    with psycopg.connect(_plain(url)) as connection:
        for table in _TABLES:
            for batch in _batches(path, table):
                with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                    for row in batch:
                        copy.write_row(row)
                connection.commit()


def _by_executemany(url: str, path: Path) -> None:
    with psycopg.connect(_plain(url)) as source, closing(sqlite3.connect(path)) as target:
        for table in _TABLES:
            cursor = source.cursor(f"all_{table}")
            cursor.execute(f"SELECT * FROM {table}")
            while batch := cursor.fetchmany(_BATCH):
                _insert(
                    target,
                    table,
                    [tuple(str(value) if hasattr(value, "hex") else value for value in row) for row in batch],
                )


def _from_file_to_file(source: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as target:
        for table in _TABLES:
            for batch in _batches(source, table):
                _insert(target, table, batch)


def _through_us(source: StateSettings, target: StateSettings) -> None:
    with StateRuntime.open(source) as opened, StateRuntime.open(target) as into:
        assert copy_state(opened, into).complete


def _measured(source: StateSettings, to: _Places) -> dict[str, dict[str, Callable[[], object]]]:
    """What is copied in one round; the first of each group is the floor of the others."""
    url = to.server.database_url
    assert url is not None
    return {
        "to PostgreSQL": {
            "sqlite3 and COPY, unchecked": lambda: _by_copy(source.database_path, to.server_by_hand),
            "codex_state": lambda: _through_us(source, to.server),
            "codex_state, all there already": lambda: _through_us(source, to.server),
        },
        "to SQLite": {
            "psycopg and executemany, unchecked": lambda: _by_executemany(url.get_secret_value(), to.back_by_hand),
            "codex_state": lambda: _through_us(to.server, to.back),
        },
        "file to file": {
            "sqlite3 and executemany, unchecked": lambda: _from_file_to_file(source.database_path, to.file_by_hand),
            "codex_state": lambda: _through_us(source, to.file),
        },
    }


def _new_places(server: postgres.TestServer, stack: ExitStack) -> _Places:
    homes = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(6)]
    urls = [stack.enter_context(server.database()) for _ in range(2)]
    on_server = [StateSettings(codex_home=home, database_url=url) for home, url in zip(homes, urls, strict=False)]
    files = [StateSettings(codex_home=home) for home in homes[2:]]
    for settings in (*on_server, *files):
        StateRuntime.open(settings).close()
    return _Places(urls[0], on_server[1], files[0].database_path, files[1], files[2].database_path, files[3])


def run() -> None:
    rows = _THREADS + _LOGS
    seconds: dict[tuple[str, str], list[float]] = {}
    with postgres.serve() as server, tempfile.TemporaryDirectory() as home:
        source = StateSettings(codex_home=Path(home))
        _fill(source)
        for _ in range(_ROUNDS):
            with ExitStack() as stack:
                for way, candidates in _measured(source, _new_places(server, stack)).items():
                    for name, copy in candidates.items():
                        start = time.perf_counter()
                        copy()
                        seconds.setdefault((way, name), []).append(time.perf_counter() - start)
    medians = {what: statistics.median(each) for what, each in seconds.items()}
    print(f"\nCopying {_THREADS:,} threads and {_LOGS:,} log lines, with the check of every row; medians of {_ROUNDS}")
    floor = 0.0
    for (way, name), median in medians.items():
        floor = floor if name.startswith("codex_state") else median
        print(f"  {f'{way}: {name}':<50}{rows / median:>10,.0f} rows/s{median / floor:>8.2f}x")
