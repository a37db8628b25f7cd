"""SQLite: its engine, what a transaction of its connections may do, waiting for one's turn, and what a fork does to it.

A session of a service's own may read as long as it likes without holding anybody up: each of its statements sees what
is committed, as on PostgreSQL. Its first write begins a transaction that is a writer's, and is run again in it. What is
a write is SQLite's to say: ``PRAGMA query_only`` has it refuse one before it does anything.

SQLite notes in the process's memory which locks the process holds on a file, because the system's file locks belong to
processes. A child of a fork inherits the notes but not the locks. If it opened a connection of its own while an
inherited one is still there, SQLite would believe to hold the lock already and take none; whoever closes the file
elsewhere would then remove the WAL under the child, and what the child commits afterwards would be lost. So a child
first closes the inherited connections, which clears the notes. It can do that to idle ones only: one that was in use
may be in the middle of its parent's transaction. Then the file can't be opened safely in this process, and is refused.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from enum import Enum, auto
from math import inf
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, NoReturn, Self, TypeVar

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import ArgumentError

from codex_state.database import write_queue
from codex_state.database.engine import StatePool, Views, refuse_savepoint, translate_errors
from codex_state.database.errors import StateFileLostError
from codex_state.database.state_files import (
    QUEUE_SUFFIX,
    existing_uri,
    make_private_file,
    read_only_uri,
    require_regular,
)
from codex_state.database.write_queue import WriteQueue, Writer, is_busy, refuse_own_wait
from codex_state.errors import ConfigurationError, DatabaseUnavailableError, classify
from codex_state.models.comparisons import checked

ResultT = TypeVar("ResultT")

_LOOK_SECONDS = 0.2
"""On a connection that is held, statements look so often whether the file is still there."""

_WAL_AUTOCHECKPOINT_PAGES = 4000
"""A checkpoint every 4,000 pages instead of 1,000 makes the slowest writes about ten times faster (16 MB of WAL)."""

_JOURNAL_SIZE_LIMIT = 64 * 1024 * 1024
"""After a checkpoint the WAL is cut back to this many bytes, so one large transaction doesn't keep its space (L10)."""

_MODE = "codex_state_mode"
"""The execution option by which the listeners of SQLite's one engine know its views apart."""


_making = Lock()
"""Held while a new file is made and until it is closed. The system would otherwise drop, at that close, the locks that
another thread's connection took on the file meanwhile."""

_unsafe_files: set[tuple[int, int]] = set()
_left_alone: list[sqlite3.Connection] = []
"""Kept alive, because an unreachable connection would be closed."""


class Mode(Enum):
    """What the transactions of a connection are."""

    OWN = auto()
    """A service's own: its first write makes it a writer's."""

    WRITER = auto()
    """A writer's from its first statement on (law L6)."""

    READER = auto()
    """One snapshot, in which a write fails."""

    AUTOCOMMIT = auto()
    """None: each statement commits by itself."""


def _nothing() -> None:
    """Where there is no pool."""


class StateCursor(sqlite3.Cursor):
    """A cursor whose statements begin to write when they must, and queue when the database is busy."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Run one statement, waiting for its turn if need be."""
        if monotonic() >= self._connection.look_at:
            self._connection.require_file()
        try:
            return super().execute(sql, parameters)
        except sqlite3.OperationalError as error:
            return self._connection.again(error, sql, lambda: sqlite3.Cursor.execute(self, sql, parameters))

    def executemany(self, sql: str, rows: Iterable[Any], /) -> Self:
        """Run one statement for each of ``rows``, waiting for its turn if need be."""
        if monotonic() >= self._connection.look_at:
            self._connection.require_file()
        rows = rows if isinstance(rows, list | tuple) else list(rows)
        try:
            return super().executemany(sql, rows)
        except sqlite3.OperationalError as error:
            return self._connection.again(error, sql, lambda: sqlite3.Cursor.executemany(self, sql, rows))

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        """Run several statements. The driver commits before, so the file must be the one that others open."""
        self._connection.require_file()
        return super().executescript(script)

    @property
    def _connection(self) -> StateConnection:
        connection: StateConnection = self.connection  # type: ignore[assignment]
        return connection


class StateConnection(sqlite3.Connection):
    """A connection that knows what its transaction may do."""

    def __init__(self, name: str, /, *args: Any, **options: Any) -> None:
        super().__init__(name, *args, **options)
        self.place: str = name
        self.queue: WriteQueue | None = None
        """Where its statements wait for their turn; ``None`` where SQLite's own busy handler does."""
        self.reclaim: Callable[[], None] = _nothing
        """Ends the transactions of connections that nobody has any more, before another's is waited for."""
        self.key: object = weakref.ref(self)
        """What it has in common with the other connections to its database."""
        self._mode = Mode.AUTOCOMMIT
        self._query_only: bool | None = False
        """``None``: an interrupt came while it was changed."""
        self._writer: Writer | None = None
        self.look_at = inf
        """When to look whether the file is still there, at the latest, by the monotonic clock."""
        self._file: tuple[int, int] | None = None
        self._had_content = False
        self._inherited = False

    def watch_file(self) -> None:
        """From now on, notice when the file isn't the one that was opened any more."""
        status = os.stat(self.place)  # noqa: PTH116 - pathlib takes twice as long
        self._file, self._had_content = (status.st_dev, status.st_ino), status.st_size > 0
        self.look_at = monotonic() + _LOOK_SECONDS

    def leave_to_parent(self) -> None:
        """After a fork: from now on nothing reaches the file, whose locks and transaction are the parent's."""
        self._inherited = True
        self.look_at = -inf

    def require_file(self) -> None:
        """Make sure that what is written reaches the file that others open by its name.

        Raises:
            StateFileLostError: the file was removed, replaced or emptied.
            DatabaseUnavailableError: the connection is that of a parent of this process.
        """
        if self._inherited:
            raise _forked_inside_of_a_session(self.place)
        if self._file is None:
            return
        try:
            status = os.stat(self.place)  # noqa: PTH116 - pathlib takes twice as long
        except FileNotFoundError:
            self._lost("was removed")
        except OSError:
            return  # its directory can't be looked at: that says nothing of the file
        if (status.st_dev, status.st_ino) != self._file:
            self._lost("was replaced by another file")
        if not status.st_size and self._had_content:
            self._lost("was emptied")
        self._had_content = self._had_content or status.st_size > 0
        self.look_at = monotonic() + _LOOK_SECONDS

    def _lost(self, how: str) -> NoReturn:
        raise StateFileLostError(
            f"{self.place} {how} while it was open; what was not yet kept of this unit is lost, and leases that were "
            "granted in it have ended; restart what has it open"
        )

    @property
    def isolation_level(self) -> None:
        """None: Python's driver begins no transaction by itself, which would be one that isn't a writer's (L6)."""
        return

    @isolation_level.setter
    def isolation_level(self, _level: str | None) -> None:
        # What SQLAlchemy sets for AUTOCOMMIT, and sets back after it, is for connections on which the driver begins.
        return

    def cursor(self, factory: Any = None) -> Any:
        """A cursor that waits for its turn."""
        return super().cursor(factory or StateCursor)

    def begin(self, mode: Mode) -> None:
        """Begin a transaction, or what stands for one."""
        self.require_file()
        self._mode, self._writer = mode, None
        self._set_query_only(wanted=mode in {Mode.OWN, Mode.READER})
        if mode is Mode.WRITER:
            self._begin_immediate()
        elif mode is Mode.READER:
            self.cursor().execute("BEGIN")

    def begin_writing(self) -> None:
        """Make a transaction of a service's own a writer's, if it isn't yet."""
        self._set_query_only(wanted=False)
        if not self.in_transaction:
            self._begin_immediate()

    def joins_transaction(self) -> bool:
        """Whether what is written now is part of a transaction, which is begun for it if need be."""
        if self._mode is Mode.OWN:
            self.begin_writing()
        return self.in_transaction

    def again(self, error: sqlite3.OperationalError, sql: str, attempt: Callable[[], ResultT]) -> ResultT:
        """Repeat a statement that was refused with ``error``, when that can help. Otherwise the error is raised."""
        if self._mode is Mode.OWN and self._query_only and _is_read_only(error):
            if sql.lstrip()[:5].upper() == "BEGIN":  # that of a service which begins by itself
                self._set_query_only(wanted=False)
            else:
                self.begin_writing()
            try:
                return attempt()
            except sqlite3.OperationalError as refused:
                error = refused
        if self.queue is None or not is_busy(error):
            raise error
        self.reclaim()
        refuse_own_wait(self.key, self.place)
        return self.queue.retry(attempt)

    def commit(self) -> None:
        """Commit, waiting for its turn if need be. A busy COMMIT leaves its transaction open, so it can be repeated."""
        if self.in_transaction:
            self.require_file()
        try:
            super().commit()
        except sqlite3.OperationalError as error:
            if self.queue is None or not is_busy(error):
                raise
            self.queue.retry(super().commit)

    def rollback(self) -> None:
        """Roll back what is this process's own."""
        if not self._inherited:
            super().rollback()

    def close(self) -> None:
        """Close the connection and let go of the queue."""
        if self._inherited:
            return
        super().close()
        if self.queue is not None:
            self.queue.close()

    def _begin_immediate(self) -> None:
        refuse_own_wait(self.key, self.place)
        self.cursor().execute("BEGIN IMMEDIATE")
        reference = weakref.ref(self)

        def is_writing(writer: Writer) -> bool:
            connection = reference()
            try:
                return connection is not None and connection._writer is writer and connection.in_transaction  # noqa: SLF001
            except sqlite3.ProgrammingError:  # it was closed
                return False

        self._writer = Writer(self.key, is_writing)

    def _set_query_only(self, *, wanted: bool) -> None:
        if self._query_only is not wanted:
            self._query_only = None
            self.cursor().execute(f"PRAGMA query_only = {'ON' if wanted else 'OFF'}")
            self._query_only = wanted


def _is_read_only(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY


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
            require_regular(path)
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
        refuse_unsafe(path)
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

    try:
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
    except ArgumentError:
        # Its text quotes the URL.
        raise ConfigurationError(
            "the database URL is malformed; expected sqlite:///path, without user or host"
        ) from None
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


def close_inherited(path: Path, idle: Collection[StateConnection], in_use: Collection[StateConnection]) -> None:
    """Give up the connections to ``path`` that this process inherited by the fork it was just made by."""
    for connection in idle:
        connection.close()
    if in_use:
        for connection in in_use:
            connection.leave_to_parent()
        _left_alone.extend(in_use)
        _unsafe_files.update(_identities_of(path))


def refuse_unsafe(path: Path) -> None:
    """Refuse a file to which an inherited connection is still open.

    Raises:
        DatabaseUnavailableError: the process was forked while its parent had a session open on the file.
    """
    if _unsafe_files and not _unsafe_files.isdisjoint(_identities_of(path)):
        raise _forked_inside_of_a_session(str(path))


def _forked_inside_of_a_session(place: str) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(
        f"this process was forked while a session of its parent was open on {place}, which SQLite can't share; "
        "fork outside of sessions, or start processes with the 'spawn' or 'forkserver' method"
    )


def _identities_of(path: Path) -> list[tuple[int, int]]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [(status.st_dev, status.st_ino)]
