"""How work under a lease learns that it must stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import pytest

from codex_state.errors import WorkStoppedError
from codex_state.memory import StopReason, StopSignal, current_work


def test_only_the_first_reason_counts() -> None:
    signal = StopSignal()
    assert (signal.stopped, signal.reason) == (False, None)
    signal.check()
    signal.stop(StopReason.LATE)
    signal.stop(StopReason.REFUSED)
    assert (signal.stopped, signal.reason) == (True, StopReason.LATE)
    with pytest.raises(WorkStoppedError, match="late"):
        signal.check()


def test_waiting_work_wakes_up_at_the_signal() -> None:
    signal = StopSignal()
    assert signal.wait(0) is False
    threading.Timer(0.05, signal.stop, [StopReason.REFUSED]).start()
    assert signal.wait() is True


def test_a_callback_is_called_once_also_when_it_comes_after_the_signal() -> None:
    signal, calls = StopSignal(), list[str]()
    signal.on_stop(lambda: calls.append("before"))
    forget = signal.on_stop(lambda: calls.append("taken back"))
    forget()
    signal.stop(StopReason.LATE)
    signal.stop(StopReason.LATE)
    signal.on_stop(lambda: calls.append("after"))
    assert calls == ["before", "after"]


def test_a_broken_callback_does_not_keep_others_from_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    signal, calls = StopSignal(), list[str]()
    signal.on_stop(lambda: 1 / 0)
    signal.on_stop(lambda: calls.append("second"))
    with caplog.at_level(logging.ERROR):
        signal.stop(StopReason.LATE)
    assert calls == ["second"]
    assert "callback" in caplog.text


def test_there_is_no_current_work_outside_of_a_pass() -> None:
    assert current_work() is None


def stop_soon(signal: StopSignal) -> None:
    threading.Timer(0.05, signal.stop, [StopReason.LATE]).start()


def test_the_signal_cancels_a_task_in_the_block() -> None:
    async def main() -> None:
        signal = StopSignal()
        stop_soon(signal)
        with pytest.raises(WorkStoppedError, match="late"):
            async with signal.cancelling():
                await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_work_does_not_even_begin_after_the_signal() -> None:
    async def main() -> None:
        signal = StopSignal()
        signal.stop(StopReason.REFUSED)
        with pytest.raises(WorkStoppedError, match="refused"):
            async with signal.cancelling():
                pytest.fail("the block was entered")

    asyncio.run(main())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def main() -> None:
        signal = StopSignal()

        async def work() -> None:
            async with signal.cancelling():
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_cancellation_from_elsewhere_wins_over_the_signal() -> None:
    async def main() -> None:
        signal = StopSignal()

        async def work() -> None:
            async with signal.cancelling():
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        signal.stop(StopReason.LATE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_work_that_swallows_its_cancellation_leaves_no_trace_of_it() -> None:
    async def main() -> None:
        signal = StopSignal()
        stop_soon(signal)
        async with signal.cancelling():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


def test_a_signal_after_the_block_cancels_nothing() -> None:
    async def main() -> None:
        signal = StopSignal()
        async with signal.cancelling():
            await asyncio.sleep(0)
        signal.stop(StopReason.LATE)
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_timeout_of_the_caller_works_around_the_block() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), StopSignal().cancelling():
                await asyncio.sleep(60)

    asyncio.run(main())
