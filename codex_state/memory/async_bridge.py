"""Calling the caller's function, plain or ``async``, from a worker thread; and blocking passes from asyncio and trio.

There is one core, which blocks, and two fronts. For async callers the core runs on a thread of its own, and their
coroutines run where they belong: in the caller's event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Generic, Protocol, TypeVar

from codex_state.errors import InvalidInputError, WorkStoppedError
from codex_state.memory.cancellation import StopReason, StopSignal, working_under
from codex_state.runtime import AsyncStateRuntime, StateRuntime, in_executor

ResultT = TypeVar("ResultT")


class EventLoop(Protocol):
    """The caller's event loop, as worker threads see it."""

    def run(self, function: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run a coroutine function there, and wait for its result.

        Raises:
            LoopEndedError: the loop ends, and cancelled it.
        """


class LoopEndedError(Exception):
    """The task of a coroutine was cancelled by its loop."""


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, function: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        try:
            return asyncio.run_coroutine_threadsafe(function(), self._loop).result()
        except CancelledError:
            raise LoopEndedError from None


class _Trio:
    def __init__(self, token: Any) -> None:
        self._token = token

    def run(self, function: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        import trio

        try:
            return trio.from_thread.run(function, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise LoopEndedError from None


def running_loop() -> EventLoop:
    """The loop that runs this code: asyncio's or trio's."""
    with suppress(RuntimeError):
        return _Asyncio(asyncio.get_running_loop())
    import trio

    return _Trio(trio.lowlevel.current_trio_token())


class Callee(Generic[ResultT]):
    """The caller's function, to be called from any thread."""

    def __init__(self, function: Callable[..., ResultT | Awaitable[ResultT]], loop: EventLoop | None) -> None:
        """Call ``function``; what it awaits, it awaits in ``loop``.

        Raises:
            InvalidInputError: it is a coroutine function, and there is no loop; or no function at all.
        """
        if not callable(function):
            raise InvalidInputError(f"expected a function, not {function!r}")
        self._function = function
        self._loop = loop
        self.interruptible = is_async(function)
        if self.interruptible and loop is None:
            raise InvalidInputError(f"{_name_of(function)} is a coroutine function; await the async variant of this")

    def __call__(self, signal: StopSignal, *arguments: Any) -> ResultT:
        """Call the function under ``signal`` and wait for its result.

        Raises:
            WorkStoppedError: the signal was given while a coroutine ran; it was cancelled and has ended.
            InvalidInputError: a plain function called ``sys.exit``.
            Exception: what the function raised.
        """
        if self.interruptible:
            return self._in_loop(signal, lambda: self._function(*arguments))
        try:
            with working_under(signal):
                result = self._function(*arguments)
        except SystemExit as stop:
            # No signal comes to the threads that it is called on: it is the function's own, made of a program perhaps.
            name = _name_of(self._function)
            raise InvalidInputError(f"{name} called sys.exit({stop.code!r}); return or raise an error") from None
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
            return self._loop.run(run)
        except LoopEndedError:
            # Somebody cancelled the task itself, as asyncio.run() does at its end: that is no failure of the work.
            signal.stop(StopReason.INTERRUPTED)
            raise WorkStoppedError("this work must stop: its task was cancelled") from None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling ``function`` makes a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def underneath(runtime: AsyncStateRuntime | StateRuntime) -> StateRuntime:
    """The runtime that the core works on."""
    return runtime.sync if isinstance(runtime, AsyncStateRuntime) else runtime


async def finishing(function: Callable[[], object]) -> None:
    """Run ``function`` on a thread of its own, whatever is cancelled meanwhile; a cancellation goes on afterwards."""
    # Not the runtime's threads: work that hangs may have them all.
    executor = ThreadPoolExecutor(1, thread_name_prefix="codex-state-leaving")
    try:
        await in_executor(executor, function, may_be_cancelled=False)
    finally:
        executor.shutdown(wait=False)


async def in_thread(work: Callable[[], ResultT], interrupt: Callable[[], None]) -> ResultT:
    """Run ``work`` on a thread of its own. When this task is cancelled, interrupt the work and wait for its end.

    Not the event loop's default executor: it may be full of what the work itself waits for.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return await _in_thread_under_trio(work, interrupt)
    return await _in_thread_under_asyncio(loop, work, interrupt)


async def _in_thread_under_asyncio(
    loop: asyncio.AbstractEventLoop, work: Callable[[], ResultT], interrupt: Callable[[], None]
) -> ResultT:
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

    _start(run)
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


async def _in_thread_under_trio(work: Callable[[], ResultT], interrupt: Callable[[], None]) -> ResultT:
    import trio

    done, token = trio.Event(), trio.lowlevel.current_trio_token()
    ended: Future[ResultT] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever awaits
            ended.set_exception(error)
        token.run_sync_soon(done.set)

    _start(run)
    try:
        await done.wait()
    except trio.Cancelled:
        interrupt()
        with trio.CancelScope(shield=True):
            await done.wait()
        raise
    return ended.result()


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=copy_context().run, args=(run,), name="codex-state-memory", daemon=True).start()


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
