"""A database and its transaction modes.

A unit of work says what it is when it starts (law L6): a writer is a writer from its first statement on, a reader can't
write, and in autocommit mode every guarded statement commits by itself. A service's own sessions become writers with
their first write. All are views of one engine with one connection pool.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Mapper
from sqlalchemy.pool import Pool
from sqlmodel import Session

from codex_state.database import state_files
from codex_state.database.engine import StatePool, Views
from codex_state.database.engine import translate_errors as translate_errors
from codex_state.database.errors import DatabaseUnavailableError, place_of
from codex_state.database.log_bounds import UNFINISHED, LogBounds, LogUpkeep, Sweep, finish
from codex_state.database.patience import wait_for_server
from codex_state.database.postgresql import leave_to_parent, open_postgresql
from codex_state.database.sqlite import Access as Access
from codex_state.database.sqlite import StateConnection, close_inherited, open_sqlite, sqlite_path
from codex_state.database.write_queue import Writer, refuse_own_wait
from codex_state.errors import ConfigurationError, StateError, UsageError
from codex_state.settings import StateSettings

_log = logging.getLogger("codex_state")

_UNBOUNDED = LogBounds()

_LONGEST_WAIT = timedelta(days=20)
"""Longer ones have more milliseconds than PostgreSQL and SQLite can count."""

_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One database: its engine, its pool, and its three transaction modes."""

    def __init__(
        self,
        views: Views,
        opened: weakref.WeakSet[StateConnection],
        log_bounds: LogBounds,
        access: Access = Access.CREATE,
    ) -> None:
        self.access = access
        """What may be done to an SQLite file."""
        self._opened = opened
        self._inherited: list[Pool] = []
        self._closed = False
        self.engine = views.own
        """For sessions of your own. A transaction of theirs reads what is committed, and becomes a writer's with its
        first write, on SQLite by ``BEGIN IMMEDIATE``."""
        self.read_engine = views.reader
        """For sessions of your own that only read: one snapshot each, in which a write fails."""
        self._writer = views.writer
        self._autocommit = views.autocommit
        self._log_upkeep = LogUpkeep(log_bounds)
        self._log_upkeep.watch(self.engine.dialect)
        _databases.add(self)
        reference = weakref.ref(self)

        def refuse_when_closed(*_arguments: object) -> None:
            if (database := reference()) is not None:
                database.refuse_when_closed()

        event.listen(self.engine, "do_connect", refuse_when_closed)

    @classmethod
    def of(cls, settings: StateSettings, access: Access = Access.CREATE) -> Database:
        """The database that the settings name, on SQLite in the file of today's name or of the former one.

        Nothing is made of it yet: see ``prepare_sqlite_file``. With leave to write, a file of ours that has the former
        name is renamed, unless somebody has it open; then it is used where it is.

        Raises:
            ConfigurationError: the settings can't be used.
            DatabaseError: the file with the former name can't be prepared for its new one.
        """

        def opened(url: URL, access: Access) -> Database:
            return cls.open(
                url,
                pool_size=settings.pool_size,
                busy_timeout=settings.busy_timeout,
                retry_for=settings.retry_for,
                transaction_pooling=settings.transaction_pooling,
                log_bounds=LogBounds(
                    max_bytes=settings.log_max_bytes, max_rows=settings.log_max_rows, max_age=settings.log_max_age
                ),
                access=access,
            )

        while settings.database_url is None:
            path = state_files.locate(settings.database_path, adopt=access is not Access.READ_ONLY)
            if path == settings.database_path:
                break
            if access is Access.READ_ONLY:
                return opened(file_url(path), access)
            # Never a new one of that name, which would be taken for the state.
            database = opened(file_url(path), Access.EXISTING)
            if _keeps_its_name(database, path):
                return database
            database.close()
        return opened(url_of(settings), access)

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        pool_size: int = 5,
        busy_timeout: timedelta = timedelta(seconds=5),
        retry_for: timedelta = timedelta(0),
        transaction_pooling: bool = False,
        log_bounds: LogBounds = _UNBOUNDED,
        access: Access = Access.CREATE,
    ) -> Database:
        """Make the engines for ``url``. Nothing is connected yet.

        Args:
            url: an SQLAlchemy URL.
            pool_size: how many connections are kept open at most.
            busy_timeout: how long a statement waits for another's write to end.
            retry_for: how long a connection waits for a server that is away.
            transaction_pooling: the URL leads to a pooler that may give each transaction another connection to the
                server, like PgBouncer with ``pool_mode = transaction``.
            log_bounds: within which the logs are kept by whoever writes to them.
            access: what may be done to an SQLite file.

        Raises:
            ConfigurationError: the URL is malformed or of a database that isn't supported.
        """
        parsed, busy_timeout = _parsed(url), min(busy_timeout, _LONGEST_WAIT)
        match parsed.get_backend_name():
            case "sqlite":
                opened: weakref.WeakSet[StateConnection] = weakref.WeakSet()
                views = open_sqlite(
                    parsed, pool_size=pool_size, busy_timeout=busy_timeout, opened=opened, access=access
                )
                return cls(views, opened, log_bounds, access)
            case "postgresql" | "postgres":
                views = open_postgresql(
                    parsed, pool_size=pool_size, busy_timeout=busy_timeout, transaction_pooling=transaction_pooling
                )
                database = cls(views, weakref.WeakSet(), log_bounds)
                wait_for_server(database.engine, retry_for)
                return database
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

    @property
    def place(self) -> str:
        """The file, or the server and the name."""
        return place_of(self.engine.url)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One write transaction: committed at the end of the block, rolled back when it raises.

        Raises:
            UsageError: the caller is in a write transaction of its own already, which this one would wait for.
        """
        with self._unit(self._writer) as session, self._told_from_own_waits():
            yield session
            with _interrupted_as_such(session):
                session.commit()
        if self._log_upkeep.is_due or UNFINISHED in session.info:
            self._keep_logs(session.info.pop(UNFINISHED, ()))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One read-only snapshot. A write in it fails with ``DatabaseReadOnlyError``."""
        with self._unit(self.read_engine) as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """A held connection on which every statement commits by itself: for workers and heartbeats."""
        with self._unit(self._autocommit) as session:
            yield session

    def close(self) -> None:
        """Close every pooled connection. The database can't be used afterwards."""
        if self._log_upkeep.has_news and not self._closed:
            self._keep_logs()
        self._closed = True
        self.engine.dispose()

    def keep_logs_within_bounds(self) -> int:
        """Delete every log line beyond the bounds, in many small transactions. Returns how many went."""
        with self.autocommit() as session:
            return self._log_upkeep.keep_all(session.connection())

    def _keep_logs(self, unfinished: Iterable[Sweep] = ()) -> None:
        """Delete what the logs have too much, after the work of whoever wrote. It must not fail for that."""
        try:
            with self.autocommit() as session:
                connection = session.connection()
                for sweep in unfinished:
                    finish(connection, sweep)
                self._log_upkeep.keep(connection)
        except (StateError, SQLAlchemyError) as error:
            _log.info("the logs will be kept within their bounds later: %s", error)

    def refuse_when_closed(self) -> None:
        """Make sure that the database is open.

        Raises:
            UsageError: ``close`` was called.
        """
        if self._closed:
            raise UsageError(f"the runtime of {self.place} is closed; open another one, or keep it open for longer")

    @contextmanager
    def _unit(self, engine: Engine) -> Iterator[Session]:
        self.refuse_when_closed()
        session = _UnitSession(engine, expire_on_commit=False, close_resets_only=False)
        try:
            yield session
        finally:
            session.is_over = True
            with _interrupted_as_such(session):
                session.close()

    @contextmanager
    def _told_from_own_waits(self) -> Iterator[None]:
        """A write in a write would wait for ever on SQLite, and on PostgreSQL where both write the same row (L9)."""
        refuse_own_wait(self.engine.url, self.place)
        # A thing that this block has and nobody else, so that it is gone with the block, however that ends.
        block: _Block | None = _Block()
        reference = weakref.ref(block)
        Writer(self.engine.url, lambda _writer: reference() is not None)
        try:
            yield
        finally:
            block = None

    def forget_inherited_connections(self) -> None:
        """After a fork: give up the parent's connections and make the child open its own."""
        path = self.path
        if path is not None:
            # Not through the pool, whose lock a thread of the parent may have held when it forked.
            pool = self.engine.pool
            assert isinstance(pool, StatePool)
            taken: list[object] = [entry.dbapi_connection for entry in pool.take_idle()]
            idle = [connection for connection in self._opened if connection in taken]
            close_inherited(path, idle, set(self._opened) - set(idle))
        elif self.dialect == "sqlite":
            return  # in memory: the child has a copy of its own
        else:
            leave_to_parent(self.engine)
        self._log_upkeep.start_anew()
        # Kept, because drivers warn of connections that are forgotten.
        self._inherited.append(self.engine.pool)
        self.engine.dispose(close=False)


def url_of(settings: StateSettings) -> URL:
    """The URL of the database that the settings name.

    Raises:
        ConfigurationError: the URL of the settings is malformed.
    """
    if settings.database_url is None:
        return file_url(settings.database_path)
    return _parsed(settings.database_url.get_secret_value())


def file_of(settings: StateSettings) -> Path | None:
    """The SQLite file that the settings name, be it there or not; ``None`` in memory and on a server.

    Raises:
        ConfigurationError: the URL of the settings can't be used.
    """
    if settings.database_url is None:
        return state_files.locate(settings.database_path, adopt=False)
    return sqlite_path(url_of(settings))


def file_url(path: Path) -> URL:
    """The URL of an SQLite file. It isn't made as a text: a path may have characters that mean something in a URL."""
    return URL.create("sqlite", database=str(path))


def _parsed(url: str | URL) -> URL:
    # Nothing of the text is shown, nor the error that may quote it: what is malformed may be a password.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("the database URL is malformed; expected sqlite:///path or postgresql://…") from None
    server = parsed.get_backend_name() != "sqlite"
    if "@" in (parsed.host or "") or (server and "@" in (parsed.database or "")):
        # What is read as a host, a port or a name may be the rest of a password.
        raise ConfigurationError(
            "the database URL is malformed: in a password (and in a name) an @ is written as %40, a / as %2F"
        )
    return parsed


def _keeps_its_name(database: Database, path: Path) -> bool:
    """Whether nobody can rename the file any more, because a pooled connection has read it and stays."""
    try:
        with database.autocommit() as session:
            session.connection().exec_driver_sql("SELECT count(*) FROM sqlite_master")
    except DatabaseUnavailableError:
        if not state_files.is_missing(path):
            raise
    return not state_files.is_missing(path)


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


@contextmanager
def _interrupted_as_such(session: Session) -> Iterator[None]:
    """Have an interrupt of SQLAlchemy's own bookkeeping come out, and not what the bookkeeping says of itself then.

    Its connection isn't used again.
    """
    handled = sys.exc_info()[1]  # an older interrupt, in whose handler this is
    try:
        yield
    except BaseException as error:
        first: BaseException | None = error
        while isinstance(first, Exception):
            first = first.__context__
        if first is None or first is handled:
            raise
        with suppress(BaseException):  # what is left of the session may not even know how to end
            session.invalidate()
        if first is error:
            raise
        raise first from None


class _Block:
    """Stands for the block of a unit."""


class _UnitSession(Session):
    """The session of a unit of work, which ends with its block."""

    is_over = False

    def get_bind(self, mapper: Mapper[Any] | type | None = None, **arguments: Any) -> Any:
        """Where everything that reaches the database begins."""
        if self.is_over:
            raise UsageError(
                "this state was used after its block had ended; do the work inside the block, or return from it what "
                "is needed afterwards"
            )
        return super().get_bind(mapper, **arguments)


def _after_fork_in_child() -> None:
    for database in list(_databases):
        database.forget_inherited_connections()


_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:
    _register(after_in_child=_after_fork_in_child)
