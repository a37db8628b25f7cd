"""One migration at a time: the locks and the transaction in which a schema may change."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Lock

from sqlalchemy import Connection

from codex_state.database.errors import raised_as_ours
from codex_state.database.state_files import open_side_file
from codex_state.errors import DatabaseBusyError, IntegrityViolationError, InvalidInputError
from codex_state.migrations.revision import where

try:
    import fcntl
except ImportError:  # Windows: BEGIN IMMEDIATE alone keeps others out, within their busy timeout
    fcntl = None  # type: ignore[assignment]

WAIT = timedelta(minutes=10)
"""How long one waits for another's migration, which on a large database rewrites tables."""

SIDE_FILE_SUFFIX = "-migration"
"""The file beside an SQLite database that is locked, and there, while somebody migrates it."""

_POLL_SECONDS = 0.01

_ADVISORY_KEY = int.from_bytes(b"codex_st")

_POSTGRESQL_LOCK_TIMEOUT = timedelta(seconds=10)
"""Who waits for a table's exclusive lock makes all later readers wait too, so better give up and be run again."""

_POSTGRESQL_STATEMENT_TIMEOUT = timedelta(minutes=10)
"""Enough to build an index over millions of rows, and an end to what hangs."""

_process_lock = Lock()


@contextmanager
def one_per_process() -> Iterator[None]:
    """One thread of a process migrates at a time, whatever the database: loading scripts isn't made for more.

    Raises:
        DatabaseBusyError: another thread has been migrating for ``WAIT``.
    """
    lock = _process_lock
    if not lock.acquire(timeout=WAIT.total_seconds()):
        raise DatabaseBusyError(f"another thread has been migrating for {WAIT}; try again")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_transaction(connection: Connection) -> Iterator[None]:
    """A transaction in which nobody else migrates or writes; rolled back as a whole when the block raises.

    On SQLite, foreign keys are off inside, so that a table others refer to can be rebuilt without its children being
    deleted. What they guard is checked before the commit.

    Raises:
        InvalidInputError: the connection is in a transaction already.
        DatabaseBusyError: somebody else held the locks for too long.
        IntegrityViolationError: the block left rows without their parents.
    """
    if connection.in_transaction():
        raise InvalidInputError("migrations start their own transaction; give a connection that isn't in one")
    if connection.dialect.name == "sqlite":
        with _side_file_locked(connection), _foreign_keys_off(connection), _immediate_transaction(connection):
            before = _orphans(connection)
            yield
            _refuse_new_orphans(before, _orphans(connection))
    else:
        with connection.begin():
            _set_up_postgresql_transaction(connection)
            yield


def refuse_enforced_foreign_keys(connection: Connection) -> None:
    """Make sure that a transaction begun elsewhere doesn't lose rows to a rebuilt table.

    Raises:
        InvalidInputError: on SQLite, foreign keys are on, and within a transaction they can't be put off.
    """
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        raise InvalidInputError(
            "this SQLite connection is in a transaction with foreign keys on, in which rebuilding a table would delete "
            "the rows that refer to it; give a connection that isn't in a transaction"
        )


def _set_up_postgresql_transaction(connection: Connection) -> None:
    for statement in (
        # Whatever the engine's default: what another process did before we got the lock must be seen.
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET LOCAL statement_timeout = 0",
        f"SET LOCAL lock_timeout = {_milliseconds(WAIT)}",
        f"SELECT pg_advisory_xact_lock({_ADVISORY_KEY})",
        f"SET LOCAL lock_timeout = {_milliseconds(_POSTGRESQL_LOCK_TIMEOUT)}",
        f"SET LOCAL statement_timeout = {_milliseconds(_POSTGRESQL_STATEMENT_TIMEOUT)}",
    ):
        connection.exec_driver_sql(statement)


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


@contextmanager
def _immediate_transaction(connection: Connection) -> Iterator[None]:
    with connection.begin():
        driver = _sqlite_driver(connection)
        if not driver.in_transaction:
            # An engine that isn't ours: the driver would begin only at the first INSERT, after the first DDL.
            _execute(driver, "BEGIN IMMEDIATE")
        yield


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    driver = _sqlite_driver(connection)
    (enforced,) = _execute(driver, "PRAGMA foreign_keys")[0]
    _execute(driver, "PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        if enforced:
            _execute(driver, "PRAGMA foreign_keys = ON")


def _orphans(connection: Connection) -> Counter[tuple[str, str]]:
    rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return Counter((table, parent) for table, _rowid, parent, _key in rows)


def _refuse_new_orphans(before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]) -> None:
    for (table, parent), count in (after - before).items():
        raise IntegrityViolationError(f"the migration would leave rows of {table} without their {parent}: {count}")


@contextmanager
def _side_file_locked(connection: Connection) -> Iterator[None]:
    path = _sqlite_file(_sqlite_driver(connection))
    if path is None or fcntl is None:
        yield
        return
    side_file = path.with_name(path.name + SIDE_FILE_SUFFIX)
    descriptor = _lock_side_file(side_file, where(connection))
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        if os.fstat(descriptor).st_size == 0:  # ours never hold anything
            side_file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_side_file(path: Path, database: str) -> int | None:
    deadline = time.monotonic() + WAIT.total_seconds()
    while True:
        try:
            descriptor = open_side_file(path)
        except OSError:  # a directory that can't be written will be reported by the transaction; a link isn't ours
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise DatabaseBusyError(f"another process has been migrating {database} for {WAIT}; try again")


def _is_still(path: Path, descriptor: int) -> bool:
    # Its last holder removes the file, so a waiter may have got the lock of a file that is gone.
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _sqlite_driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _sqlite_file(driver: sqlite3.Connection) -> Path | None:
    for _number, name, file in _execute(driver, "PRAGMA database_list"):
        if name == "main" and isinstance(file, str) and file:
            return Path(file)
    return None


def _execute(driver: sqlite3.Connection, statement: str) -> list[tuple[object, ...]]:
    with raised_as_ours(), closing(driver.cursor()) as cursor:
        return cursor.execute(statement).fetchall()


def _forget_inherited_lock() -> None:
    global _process_lock  # noqa: PLW0603 - a thread of the parent may hold it, and won't release the child's copy
    _process_lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_lock)
