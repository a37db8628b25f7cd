"""What both engines share: clear errors, and a pool that keeps its word whatever interrupts its callers.

A signal's handler may raise between any two steps of Python, in SQLAlchemy's own pool as well: a connection that was
just taken is lost then, and its place with it; a lock that was just taken is never let go. Here a place in the pool
*is* the object that stands for its connection. Whoever lost that has given the place back, and all waiting is done by
a queue that is one step for Python. What comes back in the middle of a transaction isn't used again.
"""

from __future__ import annotations

import gc
import time
import traceback
import weakref
from queue import Empty, SimpleQueue
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.pool import ConnectionPoolEntry, Pool, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord

from codex_state.database.errors import (
    ConnectionLostError,
    DatabaseError,
    SchemaChangedError,
    UnknownCommitOutcomeError,
    classify,
    classify_connecting,
    sqlstate_of,
)
from codex_state.errors import DatabaseBusyError, InvalidInputError, StateError, UsageError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_COMMITS = frozenset({"do_commit", "do_commit_twophase"})
"""The methods by which an SQLAlchemy dialect commits."""

_ROLLED_BACK = frozenset({"25P03", "25P04"})
"""What a server says when it ended a session for its transaction's being idle, or lasting, for too long."""

_LOOK_SECONDS = 0.05
"""How often one who waits looks whether a place has become free by itself."""

_RETURNING_SECONDS = 0.02
"""How long another thread may take to return a connection that Python has collected."""

_ABANDONED = "codex_state_abandoned"
_HOLDER = "codex_state_thread"
RETURNED = "codex_state_returned_at"
"""Under this name in an entry's ``record_info``: when it last came back, by the monotonic clock."""


class Views(NamedTuple):
    """One engine with one pool, by the mode of the transactions that are begun on it."""

    own: Engine
    """For a service's own sessions."""
    writer: Engine
    autocommit: Engine
    reader: Engine


def translate_errors(engine: Engine | AsyncEngine) -> None:
    """Make every driver error of ``engine`` surface as a ``StateError`` (law L8).

    Call it for a service's own engine, too, be it asynchronous.
    """

    @event.listens_for(getattr(engine, "sync_engine", engine), "handle_error")
    def _translate(context: ExceptionContext) -> StateError | None:
        url = engine.url
        if context.connection is None:
            # There was none to be lost: the server refused it, or there is no server.
            return classify_connecting(context.original_exception, url)
        error = classify(context.original_exception, url)
        if isinstance(error, SchemaChangedError):
            # Its connection, and those beside it, would go on refusing what they have prepared.
            context.is_disconnect = True
        elif isinstance(error, ConnectionLostError):
            # Whatever the driver thinks of it: nobody uses this connection again.
            context.is_disconnect = True
            if sqlstate_of(context.original_exception) not in _ROLLED_BACK:
                if _is_commit(context):
                    error = UnknownCommitOutcomeError(
                        "the connection broke during the commit; the unit of work may or may not have been kept "
                        f"({error})",
                        orig=context.original_exception,
                    )
                elif _commits_by_itself(context):
                    error = UnknownCommitOutcomeError(
                        f"{error} (the statement may or may not have been kept)", orig=context.original_exception
                    )
        if isinstance(error, DatabaseError):
            error.statement, error.params = context.statement, context.parameters
            error.connection_invalidated = context.is_disconnect
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


def refuse_savepoint(_connection: Connection, _name: str) -> None:
    """A listener of the autocommit view."""
    # On SQLite it would begin a transaction that isn't a writer's, whatever is written in it (L6).
    raise InvalidInputError("in autocommit there is no transaction to go back in; use begin()")


class StatePool(QueuePool):
    """At most ``pool_size`` connections, each used by one thread at a time."""

    def __init__(self, creator: Any, pool_size: int = 5, timeout: float = 30.0, **options: Any) -> None:
        """See ``QueuePool``. There is no overflow."""
        Pool.__init__(self, creator, **options)
        self._size = pool_size
        self._timeout = timeout
        self._idle: SimpleQueue[ConnectionPoolEntry] = SimpleQueue()
        self._entries: list[weakref.ref[ConnectionPoolEntry]] = []
        self._making = Lock()
        self._disposed = False

    def is_clean(self, driver: Any) -> bool:
        """Whether a connection that comes back may be used again."""
        raise NotImplementedError

    def _do_get(self) -> ConnectionPoolEntry:
        if self._idle.qsize() < len(self._entries):
            self.reclaim()
        entry = self._now() or self._after_waiting()
        info = entry.record_info
        assert info is not None
        info[_HOLDER] = get_ident()
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        driver, info = record.dbapi_connection, record.record_info
        assert info is not None
        if driver is not None and (self._disposed or _ABANDONED in info or not self.is_clean(driver)):
            record.invalidate()
        if _ABANDONED in info:
            return
        info[RETURNED] = time.monotonic()
        self._idle.put(record)

    def reclaim(self) -> None:
        """Take back connections that nobody has any more, and that nobody brought back.

        An interrupt may come where Python has collected one who had a connection, and is about to return it. Then it
        would stay with Python's list of finalizers, and a transaction in it open.
        """
        lost = self._lost()
        if lost:
            time.sleep(_RETURNING_SECONDS)  # another thread may be about to return it
        for entry in lost:
            if entry in self._lost():
                info = entry.record_info
                assert info is not None
                info[_ABANDONED] = True
                entry.invalidate()
                with self._making:
                    self._entries = [reference for reference in self._entries if reference() is not entry]

    def _lost(self) -> list[ConnectionPoolEntry]:
        entries = [reference() for reference in self._entries]
        return [entry for entry in entries if isinstance(entry, _ConnectionRecord) and entry.needs_gc]

    def _now(self) -> ConnectionPoolEntry | None:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._made()

    def _made(self) -> ConnectionPoolEntry | None:
        # A lock that is one step for Python, so that no interrupt comes between it and the block.
        with self._making:
            entries = [reference for reference in self._entries if reference() is not None]
            made = None
            if len(entries) < self._size:
                made = _ConnectionRecord(self, connect=False)  # whoever takes it connects
                entries.append(weakref.ref(made))
            self._entries = entries
            return made

    def _after_waiting(self) -> ConnectionPoolEntry:
        # Sessions that an interrupt left behind are cycles of objects, which may keep their connections for long.
        gc_at = time.monotonic() + self._timeout / 2
        deadline = time.monotonic() + self._timeout
        if self._all_are_ours():
            gc.collect()
            self.reclaim()
            if (entry := self._now()) is not None:
                return entry
            if self._all_are_ours():
                raise UsageError(
                    f"this thread itself holds all connections of the pool, which are {self._size}, and would wait for "
                    "one of them for ever; end a session or block before, or raise pool_size"
                )
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self._idle.get(timeout=min(left, _LOOK_SECONDS))
            except Empty:
                if time.monotonic() > gc_at:
                    gc_at = deadline
                    gc.collect()
                    self.reclaim()
                if (entry := self._now()) is not None:
                    return entry
        if (entry := self._now()) is not None:
            return entry
        raise DatabaseBusyError(
            f"no pooled connection became free within {self._timeout:g} s; close sessions sooner or raise pool_size"
        )

    def _all_are_ours(self) -> bool:
        holders = {
            (entry.record_info or {}).get(_HOLDER) for reference in self._entries if (entry := reference()) is not None
        }
        return holders == {get_ident()}

    def recreate(self) -> Self:
        """A new pool of the same kind."""
        return type(self)(
            self._creator,
            pool_size=self._size,
            timeout=self._timeout,
            recycle=self._recycle,
            echo=self.echo,
            pre_ping=self._pre_ping,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what is idle now, and the others when they come back."""
        self._disposed = True
        for entry in self.take_idle():
            entry.close()

    def made(self) -> list[Any]:
        """The driver's connections, idle or in use."""
        entries = [reference() for reference in self._entries]
        return [entry.dbapi_connection for entry in entries if entry is not None and entry.dbapi_connection is not None]

    def take_idle(self) -> list[ConnectionPoolEntry]:
        """Take every idle entry out of the pool."""
        taken = []
        while True:
            try:
                taken.append(self._idle.get_nowait())
            except Empty:
                return taken

    def size(self) -> int:
        """How many connections there may be."""
        return self._size

    def checkedin(self) -> int:
        """How many are idle."""
        return self._idle.qsize()

    def overflow(self) -> int:
        """How many there are beyond ``size``: by SQLAlchemy's way of counting, a negative number of those that miss."""
        return sum(reference() is not None for reference in self._entries) - self._size

    def checkedout(self) -> int:
        """How many are in use."""
        return self._size + self.overflow() - self.checkedin()
