"""Event loops for tests of the asynchronous door: what is needed of asyncio and of trio, behind one face."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import trio

from codex_state import AsyncStateRuntime, State, ThreadQuery
from codex_state.testing.samples import a_thread

Function = Callable[[], Awaitable[Any]]

SECONDS = 60.0


class SiblingError(Exception):
    """Ends a group of tasks."""


class Asyncio:
    """What the tests need of asyncio."""

    cancelled = asyncio.CancelledError
    sleep = staticmethod(asyncio.sleep)

    @staticmethod
    def run(function: Function) -> None:
        asyncio.run(function())  # type: ignore[arg-type]

    @staticmethod
    async def gather(functions: Sequence[Function]) -> None:
        await asyncio.gather(*(function() for function in functions))

    @staticmethod
    @asynccontextmanager
    async def started(function: Function) -> AsyncIterator[Callable[[], None]]:
        """``function`` as a task of its own; what the block gets cancels it. It has ended when the block has."""
        task = asyncio.ensure_future(function())

        def cancel() -> None:
            task.cancel()

        yield cancel
        try:
            await task
        except asyncio.CancelledError:
            assert task.cancelled()

    @staticmethod
    @asynccontextmanager
    async def limited(function: Function) -> AsyncIterator[Callable[[], None]]:
        """The same under a timeout, which is over when the block says so."""
        limit = asyncio.timeout(None)

        async def until() -> None:
            with contextlib.suppress(TimeoutError):
                async with limit:
                    await function()

        task = asyncio.ensure_future(until())
        await asyncio.sleep(0)

        def end() -> None:
            if not task.done():
                limit.reschedule(0)

        yield end
        await task

    @staticmethod
    @asynccontextmanager
    async def grouped(function: Function) -> AsyncIterator[Callable[[], None]]:
        """The same beside a task whose failure the block decides on, and with which the group ends."""
        failing = asyncio.Event()

        async def group() -> None:
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(function())  # type: ignore[arg-type]
                    await failing.wait()
                    raise SiblingError

        task = asyncio.ensure_future(group())
        await asyncio.sleep(0)
        yield failing.set
        failing.set()
        await task

    @staticmethod
    async def with_timeout(seconds: float, function: Function) -> bool:
        """Whether the time was over before ``function`` ended."""
        try:
            async with asyncio.timeout(seconds):
                await function()
        except TimeoutError:
            return True
        return False


class Trio:
    """What the tests need of trio."""

    cancelled = trio.Cancelled
    sleep = staticmethod(trio.sleep)

    @staticmethod
    def run(function: Function) -> None:
        trio.run(function)

    @staticmethod
    async def gather(functions: Sequence[Function]) -> None:
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)

    @staticmethod
    @asynccontextmanager
    async def started(function: Function) -> AsyncIterator[Callable[[], None]]:
        """``function`` as a task of its own; what the block gets cancels it. It has ended when the block has."""
        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await function()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scoped)
            yield scope.cancel

    @staticmethod
    @asynccontextmanager
    async def limited(function: Function) -> AsyncIterator[Callable[[], None]]:
        """The same under a timeout, which is over when the block says so."""
        scope = trio.CancelScope()

        async def until() -> None:
            with scope:
                await function()

        def end() -> None:
            scope.deadline = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until)
            yield end

    @staticmethod
    @asynccontextmanager
    async def grouped(function: Function) -> AsyncIterator[Callable[[], None]]:
        """The same beside a task whose failure the block decides on, and with which the group ends."""
        failing = trio.Event()

        async def group() -> None:
            with contextlib.suppress(ExceptionGroup):
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(function)
                    await failing.wait()
                    raise SiblingError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(group)
            yield failing.set
            failing.set()

    @staticmethod
    async def with_timeout(seconds: float, function: Function) -> bool:
        """Whether the time was over before ``function`` ended."""
        with trio.move_on_after(seconds) as scope:
            await function()
        return scope.cancelled_caught


Loop = type[Asyncio] | type[Trio]


class Gate:
    """Lets a unit go on when it is told to, and tells that the unit has come to it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(SECONDS)

    async def is_reached(self, loop: Loop) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.reached.is_set():
            assert time.monotonic() < deadline
            await loop.sleep(0.001)


def pair(gate: Gate | None = None) -> tuple[Callable[[State], tuple[UUID, UUID]], set[UUID]]:
    """A unit of work that writes two threads, and their ids."""
    first, second = a_thread(), a_thread()

    def work(state: State) -> tuple[UUID, UUID]:
        state.threads.upsert(first)
        if gate is not None:
            gate.wait()
        state.threads.upsert(second)
        return first.id, second.id

    return work, {first.id, second.id}


async def stored(runtime: AsyncStateRuntime) -> set[UUID]:
    """The ids of all threads. To be asked at the end: it proves that the runtime is usable, and that nothing leaked."""
    ids = await runtime.read(lambda state: set(state.threads.list_ids(ThreadQuery(limit=10_000))))
    assert runtime.sync.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    return ids
