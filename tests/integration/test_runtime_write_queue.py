"""The fair queue in front of SQLite's write lock: whoever waits gets a turn, or an error in time."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from datetime import timedelta
from pathlib import Path

import pytest

from codex_state.database import Database, write_queue
from codex_state.database.state_files import QUEUE_SUFFIX
from codex_state.database.write_queue import Writer
from codex_state.errors import DatabaseBusyError
from codex_state.repositories import LogRepository, ThreadRepository
from codex_state.testing.samples import a_log_line, a_thread
from tests import stores


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return stores.sqlite_template(tmp_path)


@contextmanager
def _opened(path: Path, seconds: float) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{path}", busy_timeout=timedelta(seconds=seconds))
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _held_by_another_program(path: Path, seconds: float) -> Iterator[None]:
    """Somebody who knows nothing of the queue holds the write lock for a while."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(seconds, lambda: other.execute("COMMIT"))
    release.start()
    try:
        yield
    finally:
        release.join()
        other.close()


def _seconds_of(work: object) -> float:
    start = time.monotonic()
    work()  # type: ignore[operator]
    return time.monotonic() - start


@pytest.mark.parametrize("kind", ["unit of work", "statement", "batch"])
def test_a_write_waits_for_its_turn_and_then_happens(path: Path, kind: str) -> None:
    with _opened(path, 20) as database:

        def write() -> None:
            if kind == "unit of work":
                with database.begin() as session:
                    ThreadRepository(session).upsert(a_thread())
            else:
                with database.autocommit() as session:
                    if kind == "batch":
                        LogRepository(session).insert_many([a_log_line("a"), a_log_line("b")])
                    else:
                        ThreadRepository(session).upsert(a_thread())

        with _held_by_another_program(path, 0.4):
            assert 0.2 < _seconds_of(write) < 10


@pytest.mark.parametrize("waiters", [1, 3])
def test_the_wait_ends_with_the_busy_timeout_in_total(path: Path, waiters: int) -> None:
    with _opened(path, 0.5) as database:

        def write(_: int) -> float:
            def refused() -> None:
                with database.autocommit() as session, pytest.raises(DatabaseBusyError):
                    ThreadRepository(session).upsert(a_thread())

            return _seconds_of(refused)

        with _held_by_another_program(path, 3), ThreadPoolExecutor(waiters) as pool:
            waits = list(pool.map(write, range(waiters)))
        assert all(0.45 <= wait < 2 for wait in waits), waits


def test_without_contention_the_side_file_is_never_made(path: Path) -> None:
    with _opened(path, 5) as database:
        for _ in range(10):
            with database.begin() as session:
                ThreadRepository(session).upsert(a_thread())
    assert not path.with_name(path.name + QUEUE_SUFFIX).exists()


def test_without_its_side_file_the_queue_is_unfair_but_nobody_fails(path: Path) -> None:
    path.with_name(path.name + QUEUE_SUFFIX).mkdir()
    with _opened(path, 20) as database:
        assert _hammer(database, workers=4, seconds=0.5).errors == []


def test_on_a_platform_without_kernel_locks_sqlite_itself_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "fcntl", None)
    with _opened(path, 20) as database:
        with database.autocommit() as session:
            assert session.connection().exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 20_000
        with _held_by_another_program(path, 0.3), database.begin() as session:
            ThreadRepository(session).upsert(a_thread())


class _Waits:
    def __init__(self) -> None:
        self.longest = 0.0
        self.writes: list[int] = []
        self.errors: list[BaseException] = []


def _hammer(database: Database, workers: int, seconds: float) -> _Waits:
    """Many threads that do nothing but write, each on its own connection."""
    waits = _Waits()
    deadline = time.monotonic() + seconds

    def write(_: int) -> None:
        count = 0
        try:
            with database.autocommit() as session:
                repository = ThreadRepository(session)
                thread = a_thread()
                while time.monotonic() < deadline:
                    waits.longest = max(waits.longest, _seconds_of(lambda: repository.upsert(thread)))
                    count += 1
        except BaseException as error:  # noqa: BLE001 - the test judges
            waits.errors.append(error)
        waits.writes.append(count)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(workers)))
    return waits


def test_under_load_every_writer_gets_its_share(path: Path) -> None:
    with _opened(path, 20) as database:
        waits = _hammer(database, workers=5, seconds=1.5)
    assert waits.errors == []
    # SQLite's own handler starves some writers completely; shared cores make the bound generous.
    assert min(waits.writes) * 10 > max(waits.writes), waits.writes
    assert waits.longest < 5


def test_a_stale_snapshot_is_not_waited_for(path: Path) -> None:
    """L6: waiting can't help a transaction that read before it wrote."""
    with _opened(path, 20) as database:
        connection = database.engine.raw_connection()
        other = sqlite3.connect(path, isolation_level=None)
        try:
            cursor = connection.cursor()
            cursor.execute("BEGIN")
            cursor.execute("SELECT * FROM threads").fetchall()
            other.execute("INSERT INTO logs (ts, ts_nanos, level, target) VALUES (1, 1, '', '')")

            def upgrade() -> None:
                with pytest.raises(sqlite3.OperationalError) as refusal:
                    cursor.execute("DELETE FROM logs")
                assert refusal.value.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT

            assert _seconds_of(upgrade) < 2
            cursor.execute("ROLLBACK")
        finally:
            other.close()
            connection.close()


def test_writers_that_overlap_keep_none_that_have_ended() -> None:
    def overlap() -> list[Writer]:
        living: set[Writer] = set()
        last: Writer | None = None
        for _ in range(10):
            writer = Writer("a database", living.__contains__)
            living.add(writer)
            living.discard(last)  # type: ignore[arg-type]
            last = writer
        chain = []
        while last is not None:
            chain.append(last)
            last = last.outer
        return chain

    assert len(Context().run(overlap)) <= 2
