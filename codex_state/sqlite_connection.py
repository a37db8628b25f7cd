"""SQLite's connections: what a transaction may do, from its beginning on, and waiting for one's turn to write.

A session of a service's own may read as long as it likes without holding anybody up: each of its statements sees what
is committed, as on PostgreSQL. Its first write begins a transaction that is a writer's, and is run again in it. What is
a write is SQLite's to say: ``PRAGMA query_only`` has it refuse one before it does anything.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Iterable
from enum import Enum, auto
from math import inf
from time import monotonic
from typing import Any, NoReturn, Self, TypeVar

from codex_state.database_errors import StateFileLostError
from codex_state.own_waits import Writer, refuse_own_wait
from codex_state.write_queue import WriteQueue, is_busy

ResultT = TypeVar("ResultT")

_LOOK_SECONDS = 0.2
"""On a connection that is held, statements look so often whether the file is still there."""


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
        rows = rows if isinstance(rows, list | tuple) else list(rows)
        try:
            return super().executemany(sql, rows)
        except sqlite3.OperationalError as error:
            return self._connection.again(error, sql, lambda: sqlite3.Cursor.executemany(self, sql, rows))

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

    def watch_file(self) -> None:
        """From now on, notice when the file isn't the one that was opened any more."""
        status = os.stat(self.place)  # noqa: PTH116 - pathlib takes twice as long
        self._file, self._had_content = (status.st_dev, status.st_ino), status.st_size > 0
        self.look_at = monotonic() + _LOOK_SECONDS

    def require_file(self) -> None:
        """Make sure that what is written reaches the file that others open by its name.

        Raises:
            StateFileLostError: the file was removed, replaced or emptied.
        """
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

    def close(self) -> None:
        """Close the connection and let go of the queue."""
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
