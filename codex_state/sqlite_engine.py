"""SQLite's engine: a transaction is a writer's from its first statement on, and waiting writers queue."""

from __future__ import annotations

import os
import sqlite3
import weakref
from datetime import timedelta
from enum import Enum, auto
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event

from codex_state import forks, write_queue
from codex_state.connection_pool import StatePool
from codex_state.engine_views import Views, refuse_savepoint, translate_errors
from codex_state.errors import ConfigurationError, DatabaseUnavailableError, classify
from codex_state.models.comparisons import checked
from codex_state.sqlite_connection import Mode, StateConnection
from codex_state.state_files import QUEUE_SUFFIX, existing_uri, make_private_file, read_only_uri

_WAL_AUTOCHECKPOINT_PAGES = 4000
"""A checkpoint every 4,000 pages instead of 1,000 makes the slowest writes about ten times faster (16 MB of WAL)."""

_JOURNAL_SIZE_LIMIT = 64 * 1024 * 1024
"""After a checkpoint the WAL is cut back to this many bytes, so one large transaction doesn't keep its space (L10)."""

_MODE = "codex_state_mode"
"""The execution option by which the listeners of SQLite's one engine know its views apart."""


_making = Lock()
"""Held while a new file is made and until it is closed. The system would otherwise drop, at that close, the locks that
another thread's connection took on the file meanwhile."""


class Access(Enum):
    """What may be done to the file of an SQLite database."""

    CREATE = auto()
    """Read and write it; it is made, for its user alone, when it isn't there."""

    EXISTING = auto()
    """Read and write it; none is made when it isn't there."""

    READ_ONLY = auto()
    """Read it, and change neither it nor anything beside it. See ``state_files.read_only_uri``."""


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; ``None`` for a database in memory and for other databases."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:":
        return None
    if name.startswith("file:"):
        raise ConfigurationError("SQLite's file: URIs are not supported; give a plain path, sqlite:///path")
    path = Path(name).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"the path {os.fsencode(path)!r} isn't UTF-8; name another one") from None
    return path


def open_sqlite(
    url: URL,
    *,
    pool_size: int,
    busy_timeout: timedelta,
    opened: weakref.WeakSet[StateConnection],
    access: Access,
) -> Views:
    """The engine of an SQLite database. Its file connections are put into ``opened``."""
    path = sqlite_path(url)
    seconds = busy_timeout.total_seconds()
    queued = path is not None and write_queue.supported()

    def connection_of(name: str, *args: Any, **options: Any) -> sqlite3.Connection:
        if path is None:
            return StateConnection(name, *args, **options)
        if access is Access.CREATE:
            try:
                with _making:
                    make_private_file(path)
            except OSError as error:
                raise DatabaseUnavailableError(
                    f"{path} can't be made: {error.strerror or error}", orig=error
                ) from error
        else:
            name = existing_uri(path) if access is Access.EXISTING else read_only_uri(path)
            options["uri"] = True
        forks.refuse_unsafe(path)
        connection = StateConnection(name, *args, **options)
        connection.key, connection.place = path, str(path)
        connection.watch_file()
        if queued:
            connection.queue = write_queue.WriteQueue(path.with_name(path.name + QUEUE_SUFFIX), seconds)
        connection.reclaim = reclaim
        opened.add(connection)
        return connection

    def reclaim() -> None:
        pool = base.pool
        assert isinstance(pool, StatePool)
        pool.reclaim()

    base = create_engine(
        # Whatever driver the URL names: async callers come through threads, to this one.
        url.set(drivername="sqlite+pysqlite"),
        connect_args={
            "factory": connection_of,
            # No implicit BEGIN from the driver: it would be a deferred one, which can't be upgraded safely (L6).
            "isolation_level": None,
            "timeout": 0 if queued else seconds,
            # The pool hands a connection to one thread at a time.
            "check_same_thread": False,
            "cached_statements": 256,
        },
        poolclass=SqlitePool,
        # A database in memory is its one connection.
        pool_size=1 if path is None else pool_size,
        pool_timeout=seconds,
    )
    translate_errors(base)
    base.dialect.statement_compiler = checked(base.dialect.statement_compiler)
    event.listen(base, "connect", _set_up_sqlite_connection)
    event.listen(base, "begin", _begin)
    event.listen(base, "savepoint", _begin_writing_before)
    # Views of the service's engine, so that who listens to its statements hears theirs as well.
    autocommit = base.execution_options(**{_MODE: Mode.AUTOCOMMIT})
    event.listen(autocommit, "savepoint", refuse_savepoint)
    return Views(
        base,
        writer=base.execution_options(**{_MODE: Mode.WRITER}),
        autocommit=autocommit,
        reader=base.execution_options(**{_MODE: Mode.READER}),
    )


class SqlitePool(StatePool):
    """The pool of SQLite's connections."""

    def is_clean(self, driver: StateConnection) -> bool:
        """Whether no transaction was left open."""
        return not driver.in_transaction


def _set_up_sqlite_connection(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()  # a queueing one: some of these meet the lock of whoever is making the file
    for pragma in (
        "foreign_keys = ON",
        # Safe against a crash of the process in WAL mode; a power cut may lose the last commits but corrupts nothing.
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {_WAL_AUTOCHECKPOINT_PAGES}",
        f"journal_size_limit = {_JOURNAL_SIZE_LIMIT}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    by_itself = options.get("isolation_level") == "AUTOCOMMIT"
    driver = _driver_of(connection)
    try:
        driver.begin(Mode.AUTOCOMMIT if by_itself else options.get(_MODE, Mode.OWN))
    except sqlite3.Error as error:
        raise classify(error, connection.engine.url) or error from error


def _begin_writing_before(connection: Connection, _savepoint: str) -> None:
    """A savepoint outside of a transaction would begin one that isn't a writer's, whatever is written in it (L6)."""
    if connection.get_execution_options().get(_MODE, Mode.OWN) is Mode.OWN:
        begin_writing(connection)


def begin_writing(connection: Connection) -> None:
    """Make the transaction of a service's own a writer's, on a connection of ours."""
    try:
        _driver_of(connection).begin_writing()
    except sqlite3.Error as error:
        raise classify(error, connection.engine.url) or error from error


def _driver_of(connection: Connection) -> StateConnection:
    # On the driver's connection: SQLAlchemy's own execution costs as much again as the statement.
    driver = connection.connection.driver_connection
    assert isinstance(driver, StateConnection)
    return driver


def _forget_inherited_lock() -> None:
    global _making  # noqa: PLW0603 - a thread of the parent may hold it, and won't release the child's copy
    _making = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_lock)
