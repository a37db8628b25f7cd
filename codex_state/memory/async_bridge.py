"""Calling the caller's function, plain or ``async``, from a worker thread; and blocking passes from asyncio.

There is one core, which blocks, and two fronts. Under asyncio the core runs on a thread of its own, and the coroutines
of the caller run where they belong: in the caller's event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from codex_state.async_runtime import AsyncStateRuntime
from codex_state.errors import InvalidInputError, WorkStoppedError
from codex_state.memory.cancellation import StopReason, StopSignal, working_under
from codex_state.runtime import StateRuntime

ResultT = TypeVar("ResultT")


class Callee(Generic[ResultT]):
    """The caller's function, to be called from any thread."""

    def __init__(
        self, function: Callable[..., ResultT | Awaitable[ResultT]], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        """Call ``function``; what it awaits, it awaits in ``loop``.

        Raises:
            InvalidInputError: it is a coroutine function, and there is no loop.
        """
        self._function = function
        self._loop = loop
        self.interruptible = is_async(function)
        if self.interruptible and loop is None:
            raise InvalidInputError(f"{_name_of(function)} is a coroutine function; await the async variant of this")

    def __call__(self, signal: StopSignal, *arguments: Any) -> ResultT:
        """Call the function under ``signal`` and wait for its result.

        Raises:
            WorkStoppedError: the signal was given while a coroutine ran; it was cancelled and has ended.
            Exception: what the function raised.
        """
        if self.interruptible:
            return self._in_loop(signal, lambda: self._function(*arguments))
        with working_under(signal):
            result = self._function(*arguments)
        if not inspect.isawaitable(result):
            return result
        if self._loop is None and inspect.iscoroutine(result):
            result.close()
        self.interruptible = True  # a plain function around a coroutine function, as it turns out
        return self._in_loop(signal, lambda: result)

    def _in_loop(self, signal: StopSignal, call: Callable[[], Any]) -> ResultT:
        if self._loop is None:
            raise InvalidInputError(
                f"{_name_of(self._function)} returned an awaitable; await the async variant of this"
            )

        async def run() -> ResultT:
            with working_under(signal):
                async with signal.cancelling():
                    result: ResultT = await call()
                return result

        try:
            return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
        except CancelledError:
            # Somebody cancelled the task itself, as asyncio.run() does at its end: that is no failure of the work.
            signal.stop(StopReason.INTERRUPTED)
            raise WorkStoppedError("this work must stop: its task was cancelled") from None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling ``function`` makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def underneath(runtime: AsyncStateRuntime | StateRuntime) -> StateRuntime:
    """The runtime that the core works on."""
    return runtime.sync if isinstance(runtime, AsyncStateRuntime) else runtime


async def in_thread(work: Callable[[], ResultT], interrupt: Callable[[], None]) -> ResultT:
    """Run ``work`` on a thread of its own. When this task is cancelled, interrupt the work and wait for its end.

    Not the event loop's default executor: it may be full of what the work itself waits for.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: BaseException | None) -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever awaits
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=copy_context().run, args=(run,), name="codex-state-memory", daemon=True).start()
    cancelled = False
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            cancelled = True
            interrupt()
        except BaseException:  # noqa: BLE001, S110 - raised below, by done.result()
            pass
    if cancelled:
        done.exception()  # has been looked at: the cancellation is what counts
        raise asyncio.CancelledError
    return done.result()


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
