"""Calling the caller's function, plain or ``async``, from a worker thread; and blocking passes from asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from codex_state.errors import InvalidInputError, WorkStoppedError
from codex_state.memory import StopReason, StopSignal, current_work
from codex_state.memory.async_bridge import Callee, in_thread, running_loop


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


def plain(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Doubler:
    async def __call__(self, number: int) -> int:
        return await double(number)


def test_a_plain_function_is_called_under_its_signal() -> None:
    signal = StopSignal()
    assert Callee(current_work, None)(signal) is signal


def test_what_is_no_function_is_refused_before_anything_is_claimed() -> None:
    with pytest.raises(InvalidInputError, match="expected a function, not 5"):
        Callee(5, None)  # type: ignore[arg-type]


def test_a_coroutine_function_needs_an_event_loop() -> None:
    for function in (double, Doubler()):
        with pytest.raises(InvalidInputError, match="async variant"):
            Callee(function, None)


def test_an_awaitable_from_a_plain_function_needs_an_event_loop() -> None:
    with pytest.raises(InvalidInputError, match="returned an awaitable"):
        Callee(partial(plain, double), None)(StopSignal(), 1)


def test_coroutines_run_in_the_callers_loop_and_know_their_signal() -> None:
    async def main() -> None:
        loop, signal = running_loop(), StopSignal()

        async def look() -> tuple[object, object]:
            return asyncio.get_running_loop(), current_work()

        for function in (look, partial(plain, look)):
            callee = Callee(function, loop)
            assert await asyncio.to_thread(callee, signal) == (asyncio.get_running_loop(), signal)
            assert callee.interruptible
        assert await asyncio.to_thread(Callee(Doubler(), loop), signal, 4) == 8
        assert current_work() is None

    asyncio.run(main())


def test_a_stopped_coroutine_has_ended_when_its_call_raises() -> None:
    async def main() -> None:
        signal, notes = StopSignal(), list[str]()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                notes.append("cleaned up")

        threading.Timer(0.05, signal.stop, [StopReason.LATE]).start()
        with pytest.raises(WorkStoppedError, match="late"):
            await asyncio.to_thread(Callee(work, running_loop()), signal)
        assert notes == ["cleaned up"]

    asyncio.run(main())


def test_a_cancelled_coroutine_is_an_interruption_and_no_failure() -> None:
    async def main() -> None:
        signal = StopSignal()

        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(60)

        with pytest.raises(WorkStoppedError):
            await asyncio.to_thread(Callee(work, running_loop()), signal)
        assert signal.reason is StopReason.INTERRUPTED

    asyncio.run(main())


def test_errors_and_context_pass_between_task_and_thread() -> None:
    variable: ContextVar[str] = ContextVar("variable")

    def work() -> None:
        raise KeyError(variable.get())

    async def main() -> None:
        variable.set("seen")
        with pytest.raises(KeyError, match="seen"):
            await in_thread(work, lambda: None)

    asyncio.run(main())


def test_a_cancelled_caller_waits_until_its_interrupted_work_has_ended() -> None:
    started, interrupted, notes = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        started.set()
        interrupted.wait(60)
        notes.append("ended")

    async def main() -> None:
        task = asyncio.create_task(in_thread(work, interrupted.set))
        await asyncio.to_thread(started.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes == ["ended"]

    asyncio.run(main())


def test_a_cancelled_caller_is_cancelled_even_if_its_work_fails() -> None:
    started, interrupted = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        interrupted.wait(60)
        raise RuntimeError("stopped")

    async def main() -> None:
        task = asyncio.create_task(in_thread(work, interrupted.set))
        await asyncio.to_thread(started.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
