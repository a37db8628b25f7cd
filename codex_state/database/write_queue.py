"""A fair queue for SQLite's writers.

SQLite lets one connection write at a time and makes the others sleep for growing intervals, so under load an unlucky
process waits for seconds while lucky ones overtake it. Here SQLite's own busy handler is off. A connection that finds
the database busy takes a kernel lock on a side file and, while it holds that, retries in quick succession: at most
one waiter competes with the running writers, the others queue behind it.

The side file only orders the waiters. SQLite's own lock stays the authority, so nothing can go wrong when the side
file is missing, on a file system without locks, or held by a process that was stopped: after a while a waiter tries
without it.

A write inside a write of the same thread or task would wait for itself until its time is over. So a writer leaves a
mark in its context (``contextvars``). Who is about to write and sees the mark of a writer that hasn't ended, on the
same thread or in the same task, is told at once. A mark is seen only by what runs inside of the writer's own context:
two requests of a web service share a thread of its pool one after the other, but never a context.

On PostgreSQL two writers meet only at the same row. There a transaction's mark is looked at when a wait for a lock has
taken too long, and counts if the transaction holds any.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from pathlib import Path
from threading import get_ident
from typing import TypeVar

from codex_state.database.state_files import open_side_file
from codex_state.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: SQLite's own busy handler does the waiting
    fcntl = None  # type: ignore[assignment]

ResultT = TypeVar("ResultT")

_RETRY_SECONDS = 0.000_02
"""Between two tries of the waiter at the head of the queue: a fraction of a write's duration."""

_POLL_SECONDS = 0.000_5
"""Between two looks of the others at the queue's lock."""

_IMPATIENT_SECONDS = 0.05
"""After so long without a turn a waiter tries by itself: the head of the queue may be a stopped process."""

working_for: ContextVar[object | None] = ContextVar("codex_state_working_for", default=None)
"""The task that waits for what this worker thread does."""

_innermost: ContextVar[Writer | None] = ContextVar("codex_state_writer", default=None)


def supported() -> bool:
    """Whether this platform has the kernel locks that the queue needs."""
    return fcntl is not None


def is_busy(error: sqlite3.Error) -> bool:
    """Whether trying the same statement again can help.

    ``SQLITE_BUSY_SNAPSHOT`` can't be helped: that transaction read before it wrote, and its snapshot is old (law L6).
    """
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT


class WriteQueue:
    """The queue in front of one SQLite file. One per connection: a file lock belongs to the descriptor that took it."""

    def __init__(self, path: Path, timeout: float) -> None:
        """Queue at the side file ``path``, for at most ``timeout`` seconds in total."""
        self._path = path
        self._timeout = timeout
        self._descriptor: int | None = None

    def retry(self, attempt: Callable[[], ResultT]) -> ResultT:
        """Repeat ``attempt`` until it isn't refused as busy, or the timeout is over and its error is raised."""
        deadline = time.monotonic() + self._timeout
        while True:
            holding = self._wait_for_turn(min(deadline, time.monotonic() + _IMPATIENT_SECONDS))
            try:
                until = deadline if holding else 0.0
                while True:
                    try:
                        return attempt()
                    except sqlite3.OperationalError as error:
                        now = time.monotonic()
                        if not is_busy(error) or now >= deadline:
                            raise
                        if now >= until:
                            break
                    time.sleep(_RETRY_SECONDS)
            finally:
                if holding:
                    self._leave()

    def close(self) -> None:
        """Let go of the side file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait_for_turn(self, until: float) -> bool:
        descriptor = self._open()
        while descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= until:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                return True
        if descriptor is None:
            time.sleep(_POLL_SECONDS)
        return False

    def _leave(self) -> None:
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _open(self) -> int | None:
        if self._descriptor is None:
            try:
                self._descriptor = open_side_file(self._path)
            except OSError:  # a read-only directory, a link: the waiter goes on without the queue
                return None
        return self._descriptor


def _always() -> bool:
    return True


class Writer:
    """A transaction that writes, as long as ``is_writing`` says so."""

    __slots__ = ("holds_locks", "is_writing", "key", "outer", "task", "thread")

    def __init__(
        self, key: Hashable, is_writing: Callable[[Writer], bool], holds_locks: Callable[[], bool] = _always
    ) -> None:
        """Mark the context with a writer of the database ``key``. ``holds_locks`` is asked last, and may take time."""
        self.key = key
        self.is_writing = is_writing
        self.holds_locks = holds_locks
        self.thread = get_ident()
        self.task = _task()
        self.outer: Writer | None = _living(_innermost.get())
        outer = self.outer
        while outer is not None:  # or sessions that overlap would keep all that were before them
            outer.outer = _living(outer.outer)
            outer = outer.outer
        _innermost.set(self)


def _living(writer: Writer | None) -> Writer | None:
    """The writer, or the next one around it, that hasn't ended."""
    while writer is not None and not writer.is_writing(writer):
        writer = writer.outer
    return writer


def refuse_own_wait(key: Hashable, place: str) -> None:
    """Refuse to wait for a writer that waits for us.

    Raises:
        UsageError: the caller is inside of a write of its own.
    """
    if (told := own_wait(key, place)) is not None:
        raise told


def own_wait(key: Hashable, place: str) -> UsageError | None:
    """What ``refuse_own_wait`` raises."""
    if _innermost.get() is None or not _waits_for_us(key):
        return None
    gc.collect()  # an interrupt may have left a transaction in a cycle of objects that nobody uses any more
    if not _waits_for_us(key):
        return None
    return UsageError(
        f"{place}: this would wait for a write that the same thread or task has begun and not ended; do both in "
        "one unit, with the same state or session, or end the first one before"
    )


def _waits_for_us(key: Hashable) -> bool:
    """Whether a writer of the database has begun around the caller and can't end before it returns."""
    thread, task, writer = get_ident(), _task(), _innermost.get()
    while writer is not None:
        same = writer.thread == thread or (task is not None and writer.task is task)
        if same and writer.key == key and writer.is_writing(writer) and writer.holds_locks():
            return True
        writer = writer.outer
    return False


def _task() -> object | None:
    if (task := working_for.get()) is not None:
        return task
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # no loop runs on this thread
        return None


def _forget_inherited_writers() -> None:
    _innermost.set(None)


if hasattr(os, "register_at_fork"):
    # What the parent writes is the parent's to end, whatever its child does.
    os.register_at_fork(after_in_child=_forget_inherited_writers)
