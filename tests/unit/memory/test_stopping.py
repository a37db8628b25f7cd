"""How work under a lease learns that it must stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import pytest
from loops import Asyncio, Loop, Trio

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


@pytest.fixture(params=[Asyncio, Trio])
def loop(request: pytest.FixtureRequest) -> Loop:
    chosen: Loop = request.param
    return chosen


def test_the_signal_cancels_a_task_in_the_block(loop: Loop) -> None:
    async def main() -> None:
        signal = StopSignal()
        stop_soon(signal)
        with pytest.raises(WorkStoppedError, match="late"):
            async with signal.cancelling():
                await loop.sleep(60)
        # The task itself goes on.
        await loop.sleep(0)
        if loop is Asyncio:
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    loop.run(main)


def test_work_does_not_even_begin_after_the_signal(loop: Loop) -> None:
    async def main() -> None:
        signal = StopSignal()
        signal.stop(StopReason.REFUSED)
        with pytest.raises(WorkStoppedError, match="refused"):
            async with signal.cancelling():
                pytest.fail("the block was entered")
        await loop.sleep(0)

    loop.run(main)


@pytest.mark.parametrize("given_as_well", [False, True])
def test_a_cancellation_from_elsewhere_stays_one_and_wins_over_the_signal(loop: Loop, given_as_well: bool) -> None:
    async def main() -> None:
        signal, ended = StopSignal(), list[type[BaseException]]()

        async def work() -> None:
            try:
                async with signal.cancelling():
                    await loop.sleep(60)
            except BaseException as error:
                ended.append(type(error))
                raise

        async with loop.started(work) as cancel:
            await loop.sleep(0.01)
            if given_as_well:
                signal.stop(StopReason.LATE)
            cancel()
        assert ended == [loop.cancelled]

    loop.run(main)


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


def test_a_signal_after_the_block_cancels_nothing(loop: Loop) -> None:
    async def main() -> None:
        signal = StopSignal()
        async with signal.cancelling():
            await loop.sleep(0)
        signal.stop(StopReason.LATE)
        await loop.sleep(0.01)

    loop.run(main)


def test_the_timeout_of_the_caller_works_around_the_block(loop: Loop) -> None:
    async def work() -> None:
        async with StopSignal().cancelling():
            await loop.sleep(60)

    async def main() -> None:
        assert await loop.with_timeout(0.02, work)

    loop.run(main)
