"""Engines and transaction modes: everything about connections that differs between SQLite and PostgreSQL.

A unit of work says what it is when it starts (law L6): a writer is a writer from its first statement on, a reader can't
write, and in autocommit mode every guarded statement commits by itself. The three modes are three views of one engine
with one connection pool.
"""

from __future__ import annotations

import os
import sqlite3
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool, QueuePool
from sqlmodel import Session

from codex_state import forks, pooling, write_queue
from codex_state.errors import (
    ConfigurationError,
    ConnectionLostError,
    DatabaseBusyError,
    InvalidInputError,
    StateError,
    UnknownCommitOutcomeError,
    classify,
    classify_connecting,
)

QUEUE_SUFFIX = "-queue"
"""The side file of an SQLite database on which its waiting writers queue."""

_WAL_AUTOCHECKPOINT_PAGES = 4000
"""A checkpoint every 4,000 pages instead of 1,000 makes the slowest writes about ten times faster (16 MB of WAL)."""

_JOURNAL_SIZE_LIMIT = 64 * 1024 * 1024
"""After a checkpoint the WAL is cut back to this many bytes, so one large transaction doesn't keep its space (L10)."""

_IS_WRITER = "codex_state_writer"
"""The execution option by which the listeners of SQLite's one engine know its views apart."""

_COMMITS = frozenset({"do_commit", "do_commit_twophase"})
"""The methods by which an SQLAlchemy dialect commits."""

_ROLLED_BACK = frozenset({"25P03"})
"""What a server says when it ended a session for being idle in a transaction, before a commit came."""

_CLIENT_PATIENCE = {
    # A machine that vanished, or a firewall that forgot the connection, refuses nothing and says nothing.
    "connect_timeout": 10,
    # What was sent and isn't acknowledged for so many milliseconds ends the connection; Linux would try for 15 minutes.
    "tcp_user_timeout": 20_000,
    # While an answer is waited for nothing is sent that could go unacknowledged: only probes find out. Linux would send
    # the first one after two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
"""libpq's parameters for half-open connections: about 20 s until a hung call fails. Unix sockets have none, and ignore
them."""

_SERVER_PATIENCE = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""The same seen from the server: a client that vanished in a transaction keeps its row locks until the server notices.
``idle_in_transaction_session_timeout`` isn't set: it can't tell a dead client from a service that takes its time, so it
is the operator's to choose."""

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One database: its engine, its pool, and its three transaction modes."""

    def __init__(
        self,
        engine: Engine,
        autocommit: Engine,
        reader: Engine,
        opened: weakref.WeakSet[write_queue.QueueingConnection] | None = None,
    ) -> None:
        self._opened = weakref.WeakSet() if opened is None else opened
        self._inherited: list[Pool] = []
        self.engine = engine
        """For sessions of your own that write; on SQLite their transactions start with ``BEGIN IMMEDIATE``."""
        self.read_engine = reader
        """For sessions of your own that only read: one snapshot each, in which a write fails."""
        self._autocommit = autocommit
        _databases.add(self)

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        pool_size: int = 5,
        busy_timeout: timedelta = timedelta(seconds=5),
        transaction_pooling: bool = False,
    ) -> Database:
        """Make the engines for ``url``. Nothing is connected yet.

        Args:
            url: an SQLAlchemy URL.
            pool_size: how many connections are kept open at most.
            busy_timeout: how long a statement waits for another's write to end.
            transaction_pooling: the URL leads to a pooler that may give each transaction another connection to the
                server, like PgBouncer with ``pool_mode = transaction``.

        Raises:
            ConfigurationError: the URL is malformed or of a database that isn't supported.
        """
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise ConfigurationError(
                "the database URL is malformed; expected sqlite:///path or postgresql://…"
            ) from error
        match parsed.get_backend_name():
            case "sqlite":
                return _open_sqlite(parsed, pool_size, busy_timeout)
            case "postgresql" | "postgres":
                return _open_postgresql(parsed, pool_size, busy_timeout, transaction_pooling)
            case other:
                raise ConfigurationError(f"unsupported database {other!r}; use sqlite or postgresql")

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.engine.dialect.name

    @property
    def path(self) -> Path | None:
        """The SQLite file; ``None`` in memory and on PostgreSQL."""
        return sqlite_path(self.engine.url)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One write transaction: committed at the end of the block, rolled back when it raises."""
        with _own_errors(), Session(self.engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One read-only snapshot. A write in it fails with ``DatabaseReadOnlyError``."""
        with _own_errors(), Session(self.read_engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """A held connection on which every statement commits by itself: for workers and heartbeats."""
        with _own_errors(), Session(self._autocommit, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def forget_inherited_connections(self) -> None:
        """After a fork: give up the parent's connections and make the child open its own."""
        path = self.path
        if path is not None:
            # Not through the pool, whose lock a thread of the parent may have held when it forked.
            queue: Any = self.engine.pool._pool.queue  # type: ignore[attr-defined]  # noqa: SLF001
            idle = {record.dbapi_connection for record in queue} & set(self._opened)
            forks.close_inherited(path, idle, set(self._opened) - idle)
        elif self.dialect == "sqlite":
            return  # in memory: the child has a copy of its own
        # On PostgreSQL closing would say good-bye to the server in the parent's name, and so may forgetting.
        self._inherited.append(self.engine.pool)
        self.engine.dispose(close=False)


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; ``None`` for a database in memory and for other databases."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:":
        return None
    if name.startswith("file:"):
        raise ConfigurationError("SQLite's file: URIs are not supported; give a plain path, sqlite:///path")
    return Path(name).absolute()


def translate_errors(engine: Engine) -> None:
    """Make every driver error of ``engine`` surface as a ``StateError`` (law L8).

    Call it for a service's own engine, too.
    """

    @event.listens_for(engine, "handle_error")
    def _translate(context: ExceptionContext) -> StateError | None:
        if context.connection is None:
            # There was none to be lost: the server refused it, or there is no server.
            return classify_connecting(context.original_exception)
        error = classify(context.original_exception)
        if (
            isinstance(error, ConnectionLostError)
            and getattr(context.original_exception, "sqlstate", None) not in _ROLLED_BACK
        ):
            if _is_commit(context):
                return UnknownCommitOutcomeError(
                    f"the connection broke during the commit; the unit of work may or may not have been kept ({error})"
                )
            if _commits_by_itself(context):
                return UnknownCommitOutcomeError(f"{error} (the statement may or may not have been kept)")
        return error


def _is_commit(context: ExceptionContext) -> bool:
    # Seen in the error itself, so that no statement and no commit pays for it: begin, commit and rollback alike come
    # without a statement, but only a commit went through the dialect's method of that name.
    frames = traceback.walk_tb(context.original_exception.__traceback__)
    return context.statement is None and any(frame.f_code.co_name in _COMMITS for frame, _line in frames)


def _commits_by_itself(context: ExceptionContext) -> bool:
    connection = context.connection
    if connection is None or connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        return False
    return not (context.statement or "").lstrip().upper().startswith("SELECT")


def _open_sqlite(url: URL, pool_size: int, busy_timeout: timedelta) -> Database:
    path = sqlite_path(url)
    seconds = busy_timeout.total_seconds()
    queued = path is not None and write_queue.supported()
    opened: weakref.WeakSet[write_queue.QueueingConnection] = weakref.WeakSet()

    def connection_of(*args: Any, **options: Any) -> sqlite3.Connection:
        if path is None or not queued:
            return sqlite3.Connection(*args, **options)
        forks.refuse_unsafe(path)
        connection = write_queue.QueueingConnection(*args, **options)
        connection.queue = write_queue.WriteQueue(path.with_name(path.name + QUEUE_SUFFIX), seconds)
        opened.add(connection)
        return connection

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
        poolclass=QueuePool,
        # A database in memory is its one connection.
        pool_size=1 if path is None else pool_size,
        max_overflow=0,
        pool_timeout=seconds,
    )
    translate_errors(base)
    event.listen(base, "connect", _set_up_sqlite_connection)
    event.listen(base, "begin", _begin_immediate)
    # Views of the writer's engine, so that who listens to its statements hears theirs as well.
    autocommit = base.execution_options(**{_IS_WRITER: False})
    reader = base.execution_options(**{_IS_WRITER: False})
    event.listen(reader, "begin", _begin_read_only)
    event.listen(reader, "commit", _end_read_only)
    event.listen(reader, "rollback", _end_read_only)
    event.listen(autocommit, "savepoint", _refuse_savepoint)
    return Database(base, autocommit, reader, opened)


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


def _run_in_begin(connection: Connection, *statements: str) -> None:
    # On the driver's connection: SQLAlchemy's own execution costs as much again as the statement.
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    cursor = driver.cursor()
    try:
        for statement in statements:
            cursor.execute(statement)
    except sqlite3.Error as error:
        raise classify(error) or error from error
    finally:
        cursor.close()


def _begin_immediate(connection: Connection) -> None:
    if connection.get_execution_options().get(_IS_WRITER, True):
        _run_in_begin(connection, "BEGIN IMMEDIATE")


def _begin_read_only(connection: Connection) -> None:
    _run_in_begin(connection, "PRAGMA query_only = ON", "BEGIN")


def _end_read_only(connection: Connection) -> None:
    # One that was interrupted within a statement, as Ctrl-C does, is thrown away.
    if not connection.invalidated:
        _run_in_begin(connection, "PRAGMA query_only = OFF")


def _refuse_savepoint(_connection: Connection, _name: str) -> None:
    # On SQLite it would begin a transaction that isn't a writer's, whatever is written in it (L6).
    raise InvalidInputError("in autocommit there is no transaction to go back in; use begin()")


def prepare_sqlite_file(database: Database) -> None:
    """Choose the file-wide settings of a new SQLite file: WAL, and space that can be given back (L10).

    They are stored in the file, so an existing file is only looked at: setting them again would need the write lock
    on every start.
    """
    with database.autocommit() as session:
        connection = session.connection()
        if connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal":
            return
        connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")


def _open_postgresql(url: URL, pool_size: int, busy_timeout: timedelta, transaction_pooling: bool) -> Database:  # noqa: FBT001
    options: dict[str, Any] = dict(_patience_of(url))
    if transaction_pooling:
        # The connection to the server is another one in each transaction: a statement prepared on one isn't known to
        # the next, and PgBouncer refuses the parameter ``options``.
        options["prepare_threshold"] = None
    else:
        options["options"] = _server_options(url, busy_timeout)
    try:
        base = create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=busy_timeout.total_seconds(),
            connect_args=options,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError("PostgreSQL needs the extra: pip install 'codex-state[postgres]'") from error
    translate_errors(base)
    event.listen(base, "begin", _name_no_mode)
    autocommit = base.execution_options(isolation_level="AUTOCOMMIT")
    event.listen(autocommit, "savepoint", _refuse_savepoint)
    if transaction_pooling:
        pooling.limit_lock_waits(base, autocommit, _lock_timeout_of(busy_timeout))
    return Database(
        base,
        autocommit,
        # One snapshot for the whole unit, as SQLite gives it.
        reader=base.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
    )


def _name_no_mode(connection: Connection) -> None:
    # Once a reader had the connection, SQLAlchemy has the driver begin with READ WRITE. A standby refuses that as a
    # feature that isn't supported, instead of refusing the write as one.
    driver: Any = connection.connection.driver_connection
    if driver.read_only is False:
        driver.read_only = None


def _lock_timeout_of(busy_timeout: timedelta) -> int:
    """In milliseconds. Zero would mean to wait for ever."""
    return max(1, int(busy_timeout.total_seconds() * 1000))


def _patience_of(url: URL) -> dict[str, int]:
    """What the client does about a server that vanished without a word; the URL's own parameters win."""
    return {name: value for name, value in _CLIENT_PATIENCE.items() if name not in url.query}


def _server_options(url: URL, busy_timeout: timedelta) -> str:
    """The server options of a connection: those of the URL, which win, after ours."""
    given = url.query.get("options", "")
    ours = {"lock_timeout": _lock_timeout_of(busy_timeout)} | _SERVER_PATIENCE
    words = [f"-c {name}={value}" for name, value in ours.items()]
    return " ".join([*words, *([given] if isinstance(given, str) else given)]).strip()


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseBusyError(
            "no pooled connection became free in time; close sessions sooner or raise pool_size"
        ) from error


def _after_fork_in_child() -> None:
    for database in list(_databases):
        database.forget_inherited_connections()


_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:
    _register(after_in_child=_after_fork_in_child)
