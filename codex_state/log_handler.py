"""A handler of Python's ``logging`` that writes to the state's logs, and never gets in its caller's way.

``emit`` puts a record into a queue and returns. A thread of the handler's own writes what is there in batches: once 128
lines wait, or two seconds after the first of them, or on ``flush``. When the database is slower than its writers the
queue is full at some point; further lines are dropped, counted, and a line in the log says how many. So are lines that
the database refuses.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from uuid import UUID

from codex_state.models import LogEntry
from codex_state.models.log import level_of
from codex_state.runtime import StateRuntime

_BATCH_LINES = 128
_BATCH_SECONDS = 2.0
_FLUSH_SECONDS = 5.0
_LONGEST_MESSAGE = 256 * 1024
_CUT = " … (cut)"

_TOO_FAST = "they came faster than they could be written"
_NOT_WRITTEN = "the database could not be written to"
_UNREADABLE = "their records could not be read"
"""Why lines are dropped, as a line in the log says it."""

_PLAIN = logging.Formatter()

_thread: ContextVar[str | None] = ContextVar("codex_state_log_thread", default=None)

_handlers: weakref.WeakSet[StateLogHandler] = weakref.WeakSet()


@contextmanager
def log_thread(thread_id: UUID | str) -> Iterator[None]:
    """What is logged in the block, in this task or thread, belongs to the thread of this id."""
    token = _thread.set(str(thread_id))
    try:
        yield
    finally:
        _thread.reset(token)


class StateLogHandler(logging.Handler):
    """Writes records to the logs of a state.

    A line's thread is the ``thread_id`` of the record (``extra={"thread_id": …}``), else that of ``log_thread``.
    Nothing here is raised into the caller, and no call but ``flush`` and ``close`` waits. After a fork the child has a
    thread and a queue of its own; at the end of the interpreter ``logging`` itself flushes and closes the handler.
    """

    def __init__(self, runtime: StateRuntime, *, level: int | str = logging.NOTSET, capacity: int = 10_000) -> None:
        """Write to ``runtime``, which its opener closes, after the handler.

        Args:
            runtime: where to.
            level: as for every handler.
            capacity: how many lines may wait at most.
        """
        super().__init__(level)
        self._runtime = runtime
        self._capacity = capacity
        self._closed = False
        self._start_anew()
        _handlers.add(self)

    @property
    def dropped(self) -> int:
        """How many lines were lost so far: the queue was full, they could not be written, or nothing was in them."""
        return sum(self._dropped.values())

    def createLock(self) -> None:  # noqa: N802 - as logging calls it
        """None is needed: the queue has its own, which is never held for long."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. It is formatted here, while its arguments are what they were.

        One that can't be formatted is stored as its text and its arguments are.
        """
        if self._closed or threading.get_ident() == self._writer_ident:
            return  # what writing logs has to say would never end
        try:
            if self._queue.qsize() >= self._capacity:
                self._dropped[_TOO_FAST] += 1
                return
            self._queue.put(self._entry_of(record))
            self._start()
        except Exception:  # noqa: BLE001 - a record may have been made by anybody, of anything
            self._dropped[_UNREADABLE] += 1

    def flush(self) -> None:
        """Wait until what was taken before is written, for five seconds at most."""
        if self._closed or threading.get_ident() == self._writer_ident or self._writer is None:
            return
        written = threading.Event()
        self._queue.put(written)
        written.wait(_FLUSH_SECONDS)

    def close(self) -> None:
        """Write what was taken, within five seconds, and take nothing more."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._queue.put(None)
        super().close()

    def _start_anew(self) -> None:
        self._queue: SimpleQueue[LogEntry | threading.Event | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._writer_ident: int | None = None
        self._starting = threading.Lock()
        self._dropped = dict.fromkeys((_TOO_FAST, _NOT_WRITTEN, _UNREADABLE), 0)
        self._told_dropped = self._dropped.copy()

    def _start(self) -> None:
        if self._writer is not None or not self._starting.acquire(blocking=False):
            return
        try:
            if self._writer is None:
                # A daemon: the interpreter doesn't wait for it, but for logging's own end, which flushes.
                writer = threading.Thread(target=self._write_all, name="codex_state log writer", daemon=True)
                writer.start()
                self._writer = writer
        finally:
            self._starting.release()

    def _entry_of(self, record: logging.LogRecord) -> LogEntry:
        seconds, fraction = divmod(record.created, 1)
        thread_id = getattr(record, "thread_id", None) or _thread.get()
        return LogEntry(
            ts=int(seconds),
            ts_nanos=int(fraction * 1_000_000) * 1000,
            level=level_of(_storable(record.levelname)),
            target=_storable(record.name),
            message=_storable(self._message_of(record)),
            module_path=_storable(record.module),
            file=_storable(record.pathname),
            line=record.lineno,
            thread_id=None if thread_id is None else _storable(thread_id),
        )

    def _message_of(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001 - arguments of any kind are formatted, and may raise anything
            text = record.msg if isinstance(record.msg, str) else _by_repr(record.msg)
            given = record.args if isinstance(record.args, tuple) else (record.args,)
            words = ["not formatted", *(["with", ", ".join(map(_by_repr, given))] if record.args else [])]
            told = f"{text} ({' '.join(words)}: {type(error).__name__})"
            return _PLAIN.format(logging.makeLogRecord(vars(record) | {"msg": told, "args": None}))

    def _write_all(self) -> None:
        self._writer_ident = threading.get_ident()
        goes_on = True
        while goes_on:
            batch, flushed, goes_on = self._next_batch()
            if batch or self._dropped != self._told_dropped:
                self._write(batch)
            for event in flushed:
                event.set()

    def _next_batch(self) -> tuple[list[LogEntry], list[threading.Event], bool]:
        batch: list[LogEntry] = []
        until: float | None = None
        while True:
            try:
                item = self._queue.get(timeout=None if until is None else max(until - time.monotonic(), 0.0))
            except Empty:
                return batch, [], True
            if item is None:
                return batch, [], False
            if isinstance(item, threading.Event):
                return batch, [item], True
            batch.append(item)
            until = until or time.monotonic() + _BATCH_SECONDS
            if len(batch) >= _BATCH_LINES:
                return batch, [], True

    def _write(self, batch: list[LogEntry]) -> None:
        dropped = self._dropped.copy()
        news = {why: count - self._told_dropped[why] for why, count in dropped.items()}
        entries = [*batch, *(self._note_of(lost, why) for why, lost in news.items() if lost)]
        try:
            self._runtime.run(lambda state: state.logs.insert_many(entries))
        except Exception:  # noqa: BLE001 - the thread goes on whatever a driver raises
            self._dropped[_NOT_WRITTEN] += len(batch)
        else:
            self._told_dropped = dropped

    @staticmethod
    def _note_of(lost: int, why: str) -> LogEntry:
        now = time.time()
        return LogEntry(
            ts=int(now),
            ts_nanos=int(now % 1 * 1_000_000) * 1000,
            level="WARN",
            target=__name__,
            message=f"{lost:,} log lines were dropped: {why}",
        )


def _by_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - as in formatting
        return f"<{type(value).__name__}>"


def _storable(value: object) -> str:
    """The text as both databases store it: within bounds, without NUL and halves of characters."""
    text = str(value)
    if len(text) > _LONGEST_MESSAGE:
        text = text[: _LONGEST_MESSAGE - len(_CUT)] + _CUT
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _after_fork_in_child() -> None:
    for handler in list(_handlers):
        handler._start_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
