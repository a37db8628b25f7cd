"""A fair queue for SQLite's writers.

SQLite lets one connection write at a time and makes the others sleep for growing intervals, so under load an unlucky
process waits for seconds while lucky ones overtake it. Here SQLite's own busy handler is off. A connection that finds
the database busy takes a kernel lock on a side file and, while it holds that, retries in quick succession: at most
one waiter competes with the running writers, the others queue behind it.

The side file only orders the waiters. SQLite's own lock stays the authority, so nothing can go wrong when the side
file is missing, on a file system without locks, or held by a process that was stopped: after a while a waiter tries
without it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from codex_state.state_files import open_side_file

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
