"""Waiting for oneself: a write inside a write of the same thread or task would wait until its time is over.

A writer leaves a mark in its context (``contextvars``). Who is about to write and sees the mark of a writer that hasn't
ended, on the same thread or in the same task, is told at once. A mark is seen only by what runs inside of the writer's
own context: two requests of a web service share a thread of its pool one after the other, but never a context.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from threading import get_ident

from codex_state.errors import UsageError

working_for: ContextVar[object | None] = ContextVar("codex_state_working_for", default=None)
"""The task that waits for what this worker thread does."""

_innermost: ContextVar[Writer | None] = ContextVar("codex_state_writer", default=None)


class Writer:
    """A transaction that writes, as long as ``is_writing`` says so."""

    __slots__ = ("is_writing", "key", "outer", "task", "thread")

    def __init__(self, key: Hashable, is_writing: Callable[[Writer], bool]) -> None:
        """Mark the context with a writer of the database ``key``."""
        self.key = key
        self.is_writing = is_writing
        self.thread = get_ident()
        self.task = _task()
        outer = _innermost.get()
        self.outer = outer if outer is not None and outer.is_writing(outer) else None
        _innermost.set(self)


def refuse_own_wait(key: Hashable, place: str) -> None:
    """Refuse to wait for a writer that waits for us.

    Raises:
        UsageError: the caller is inside of a write of its own.
    """
    if _innermost.get() is None or not _waits_for_us(key):
        return
    gc.collect()  # an interrupt may have left a transaction in a cycle of objects that nobody uses any more
    if _waits_for_us(key):
        raise UsageError(
            f"{place}: this would wait for a write that the same thread or task has begun and not ended; do both in "
            "one unit, with the same state or session, or end the first one before"
        )


def _waits_for_us(key: Hashable) -> bool:
    """Whether a writer of the database has begun around the caller and can't end before it returns."""
    thread, task, writer = get_ident(), _task(), _innermost.get()
    while writer is not None:
        same = writer.thread == thread or (task is not None and writer.task is task)
        if same and writer.key == key and writer.is_writing(writer):
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
