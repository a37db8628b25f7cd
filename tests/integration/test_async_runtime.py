"""The door for async callers: cancelled at any moment, a unit is whole or never was, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from loops import SECONDS, Gate, Loop, pair, stored

from codex_state import AsyncStateRuntime, InvalidInputError, State, StateRuntime, StateSettings, ThreadQuery


def test_a_unit_that_waits_for_a_thread_never_starts_when_its_caller_is_cancelled(
    loop: Loop, settings: StateSettings
) -> None:
    settings = settings.model_copy(update={"pool_size": 1})

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            gate = Gate()
            holding, held = pair(gate)
            async with loop.started(lambda: runtime.run(holding)):
                await gate.is_reached(loop)
                for _ in range(3):
                    assert await loop.with_timeout(0.01, lambda: runtime.run(pair()[0]))
                async with loop.started(lambda: runtime.run(pair()[0])) as cancel:
                    await loop.sleep(0.01)
                    cancel()
                # Only now, so none of those was waited for.
                gate.opened.set()
            assert await stored(runtime) == held

    loop.run(main)


@pytest.mark.parametrize("times", [1, 3])
def test_a_unit_in_flight_is_waited_for_and_kept_whole(loop: Loop, times: int, settings: StateSettings) -> None:
    """L5."""
    ended: list[str] = []

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            gate = Gate()
            work, ids = pair(gate)

            async def caller() -> None:
                try:
                    assert set(await runtime.run(work)) == ids
                    await loop.sleep(0)
                finally:
                    assert runtime.sync.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
                    ended.append("caller")
                ended.append("not cancelled")

            async with loop.started(caller) as cancel:
                await gate.is_reached(loop)
                for _ in range(times):
                    cancel()
                    await loop.sleep(0.02)
                assert ended == []
                gate.opened.set()
            assert ended == ["caller"]
            assert await stored(runtime) == ids

    loop.run(main)


def test_a_unit_in_flight_that_fails_after_its_caller_was_cancelled_leaves_nothing(
    loop: Loop, settings: StateSettings
) -> None:
    """L5."""

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            gate = Gate()

            def work(state: State) -> None:
                pair(gate)[0](state)
                raise InvalidInputError("the unit's own error")

            async def caller() -> None:
                # Trio delivers the error, as it delivers an answer.
                with pytest.raises((InvalidInputError, asyncio.CancelledError)):
                    await runtime.run(work)

            async with loop.started(caller) as cancel:
                await gate.is_reached(loop)
                cancel()
                gate.opened.set()
            assert await stored(runtime) == set()

    loop.run(main)


def test_a_caller_that_is_cancelled_already_starts_nothing(loop: Loop, settings: StateSettings) -> None:
    started = threading.Event()

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            async with loop.started(lambda: runtime.run(lambda _: started.set())) as cancel:
                cancel()
            assert await stored(runtime) == set()

    loop.run(main)
    assert not started.is_set()


def test_whenever_a_caller_is_cancelled_its_unit_is_whole_or_never_was(loop: Loop, settings: StateSettings) -> None:
    """L5, at many moments: while the unit waits for a thread, while it runs, while it commits, and afterwards."""
    chance = random.Random(4)
    settings = settings.model_copy(update={"pool_size": 2})

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            pairs: list[set[UUID]] = []

            async def cancelled_at_some_moment() -> None:
                work, ids = pair()
                pairs.append(ids)

                def slowly(state: State) -> None:
                    work(state)
                    time.sleep(0.005)

                await loop.with_timeout(chance.uniform(0, 0.05), lambda: runtime.run(slowly))

            for _ in range(10):
                await loop.gather([cancelled_at_some_moment] * 12)
            found = await stored(runtime)
            kept = [ids for ids in pairs if ids <= found]
            assert set().union(*kept) == found
            assert 0 < len(kept) < len(pairs)

    loop.run(main)


def test_many_units_at_once_all_get_their_turn(loop: Loop, settings: StateSettings) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            pairs = [pair() for _ in range(100)]
            await loop.gather([lambda work=work: runtime.run(work) for work, _ in pairs])  # type: ignore[misc]
            assert await stored(runtime) == set().union(*(ids for _, ids in pairs))

    loop.run(main)


def test_units_on_a_database_in_memory_take_turns(loop: Loop, sqlite_settings: StateSettings) -> None:
    settings = StateSettings(
        codex_home=sqlite_settings.codex_home, database_url="sqlite://", busy_timeout=timedelta(seconds=0.1)
    )

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            pairs = [pair() for _ in range(10)]

            async def slow(work: Callable[[State], Any]) -> None:
                def slowly(state: State) -> None:
                    work(state)
                    time.sleep(0.05)

                await runtime.run(slowly, attempts=1)

            await loop.gather([lambda work=work: slow(work) for work, _ in pairs])  # type: ignore[misc]
            assert await stored(runtime) == set().union(*(ids for _, ids in pairs))

    loop.run(main)


class Tracked:
    """Opens a runtime slowly and knows whether it was closed."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.closed = threading.Event()

    def __call__(self, settings: StateSettings | None) -> StateRuntime:
        runtime = StateRuntime.open(settings)
        close = runtime.close

        def closing() -> None:
            close()
            assert runtime.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
            self.closed.set()

        runtime.close = closing  # type: ignore[method-assign]
        with runtime.read() as state:
            assert state.threads.list_ids(ThreadQuery(limit=1)) == []
        self.gate.wait()
        return runtime


def test_a_runtime_whose_opening_was_cancelled_is_closed(loop: Loop, settings: StateSettings) -> None:
    opener = Tracked()

    async def main() -> None:
        async def use() -> None:
            async with AsyncStateRuntime.open(settings, opener=opener):
                await loop.sleep(SECONDS)

        async with loop.started(use) as cancel:
            await opener.gate.is_reached(loop)
            cancel()
            opener.gate.opened.set()
        assert opener.closed.is_set()

    loop.run(main)


def test_a_runtime_is_closed_by_a_cancelled_caller_once_the_units_in_flight_have_ended(
    loop: Loop, settings: StateSettings
) -> None:
    opener = Tracked()
    opener.gate.opened.set()
    settings = settings.model_copy(update={"pool_size": 1})
    runtimes: list[AsyncStateRuntime] = []
    gate = Gate()
    (in_flight, first), (queued, second) = pair(gate), pair()

    async def main() -> None:
        async def use() -> None:
            async with AsyncStateRuntime.open(settings, opener=opener) as runtime:
                runtimes.append(runtime)
                await loop.sleep(SECONDS)

        async with loop.started(use) as cancel:
            while not runtimes:
                await loop.sleep(0.001)
            async with (
                loop.started(lambda: runtimes[0].run(in_flight)),
                loop.started(lambda: runtimes[0].run(queued)),
            ):
                await gate.is_reached(loop)
                for _ in range(3):
                    cancel()
                    await loop.sleep(0.02)
                assert not opener.closed.is_set()
                gate.opened.set()
        assert opener.closed.is_set()

    loop.run(main)
    with StateRuntime.open(settings) as runtime, runtime.read() as state:
        assert set(state.threads.list_ids(ThreadQuery(limit=9))) == first | second


def test_a_failed_opening_says_why(loop: Loop, settings: StateSettings) -> None:
    def opener(_settings: StateSettings | None) -> StateRuntime:
        raise InvalidInputError("no")

    async def main() -> None:
        with pytest.raises(InvalidInputError, match="no"):
            async with AsyncStateRuntime.open(settings, opener=opener):
                pass

    loop.run(main)


@pytest.mark.parametrize("mode", ["run", "read", "autocommit"])
def test_answers_errors_and_context_variables_pass_between_caller_and_unit(
    loop: Loop, mode: str, settings: StateSettings
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set("the caller's")
        async with AsyncStateRuntime.open(settings) as runtime:
            call = getattr(runtime, mode)
            assert await call(lambda _: (variable.get(), threading.current_thread() is threading.main_thread())) == (
                "the caller's",
                False,
            )

            def fail(_state: State) -> None:
                raise LookupError("the unit's")

            with pytest.raises(LookupError, match="the unit's"):
                await call(fail)
            assert await stored(runtime) == set()

    loop.run(main)


def test_a_unit_that_is_itself_cancelled_inside_does_not_hang_its_caller(settings: StateSettings) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:

            def work(state: State) -> None:
                pair()[0](state)
                raise asyncio.CancelledError

            with pytest.raises(asyncio.CancelledError):
                await runtime.run(work)
            assert await stored(runtime) == set()

    asyncio.run(main())
