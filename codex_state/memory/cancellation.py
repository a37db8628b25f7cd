"""How work under a lease learns that it must stop.

A ``StopSignal`` is given once, with a reason, from whatever thread notices first. Work in a thread looks at it or waits
for it; work in a task of asyncio or trio is cancelled by it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from enum import StrEnum
from functools import partial

from codex_state.errors import WorkStoppedError

_log = logging.getLogger("codex_state")


class StopReason(StrEnum):
    """Why work must stop. The first two mean that the lease is lost."""

    REFUSED = "refused"
    """A renewal was refused: somebody else took over, or the work was finished from elsewhere."""
    LATE = "late"
    """No renewal was confirmed in time, so somebody else may take over at any moment."""
    TIMED_OUT = "timed_out"
    """The work took longer than its caller allows."""
    INTERRUPTED = "interrupted"
    """The caller stopped the whole pass: Ctrl-C, or a cancelled task."""


class StopSignal:
    """Told once: stop this work. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._reason: StopReason | None = None
        self._callbacks: list[Callable[[], object]] = []

    @property
    def stopped(self) -> bool:
        """Whether the work must stop."""
        return self._event.is_set()

    @property
    def reason(self) -> StopReason | None:
        """Why; ``None`` while the work may go on."""
        return self._reason

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the signal, for ``timeout`` seconds at most. A better ``time.sleep`` for work that polls."""
        return self._event.wait(timeout)

    def check(self) -> None:
        """Return when the work may go on.

        Raises:
            WorkStoppedError: it may not.
        """
        if self._reason is not None:
            raise WorkStoppedError(f"this work must stop: {self._reason.value}")

    def stop(self, reason: StopReason) -> None:
        """Give the signal. Only the first reason counts."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
        self._event.set()
        for callback in callbacks:
            _call(callback)

    def on_stop(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have ``callback`` called once when the signal is given, at once if it was. Returns what takes it back.

        It is called on the thread that gives the signal, so it must be quick and must not wait for anything.
        """
        with self._lock:
            if self._reason is None:
                self._callbacks.append(callback)
                return lambda: self._forget(callback)
        _call(callback)
        return lambda: None

    @asynccontextmanager
    async def cancelling(self) -> AsyncIterator[None]:
        """Cancel this block of the current task when the signal is given.

        Raises:
            WorkStoppedError: in place of that cancellation. A cancellation from elsewhere stays one.
        """
        loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        if loop is None:
            with self._cancelling_under_trio():
                yield
        else:
            async with self._cancelling_under(loop):
                yield

    @contextmanager
    def _cancelling_under_trio(self) -> Iterator[None]:
        import trio

        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            forget = self.on_stop(partial(token.run_sync_soon, scope.cancel))
            try:
                # Given already: the first await would be one too many.
                self.check()
                yield
            finally:
                forget()
        if scope.cancelled_caught:
            self.check()

    @asynccontextmanager
    async def _cancelling_under(self, loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        cancellations_before = task.cancelling()
        inside, cancelled = True, False

        def cancel() -> None:
            nonlocal cancelled
            if inside and not cancelled:
                cancelled = True
                task.cancel()

        forget = self.on_stop(partial(loop.call_soon_threadsafe, cancel))
        try:
            # Given already: the first await would be one too many.
            self.check()
            yield
        except asyncio.CancelledError:
            if cancelled:
                cancelled = False
                if task.uncancel() <= cancellations_before:
                    self.check()
            raise
        finally:
            inside = False
            forget()
            if cancelled:  # the work swallowed it
                task.uncancel()

    def _forget(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:  # noqa: BLE001
        # A broken callback must not keep the others from hearing the signal, nor end the thread that gives it.
        _log.exception("a callback of a stop signal failed")


_current: ContextVar[StopSignal | None] = ContextVar("codex_state_current_work", default=None)


def current_work() -> StopSignal | None:
    """The stop signal of the work that this code runs under; ``None`` outside of a pass.

    A synchronous extractor that takes long asks it now and then (``check``), or sleeps with ``wait``: threads can't be
    cancelled.
    """
    return _current.get()


@contextmanager
def working_under(signal: StopSignal) -> Iterator[None]:
    """Make ``signal`` the answer of ``current_work`` in this block."""
    token = _current.set(signal)
    try:
        yield
    finally:
        _current.reset(token)
