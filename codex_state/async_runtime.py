"""The same front door for ``async`` code: one hop to a worker thread per unit of work.

Drivers that await every statement cost several hops for each; here a whole unit of work runs on a worker thread, with
the very code that synchronous callers use, so the laws hold in both worlds by construction (law L9). Works under
asyncio and trio.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Self, TypeVar

from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings

ResultT = TypeVar("ResultT")


class AsyncStateRuntime:
    """An open state for ``async`` callers.

    A caller that is cancelled waits until its unit of work in flight has been committed or rolled back, then the
    cancellation goes on: no half unit, no leaked connection. The unit's answer is lost with the caller; a lease that it
    claimed runs out like any other.
    """

    def __init__(self, runtime: StateRuntime, executor: ThreadPoolExecutor) -> None:
        """Use ``AsyncStateRuntime.open``."""
        self.sync = runtime
        """The runtime underneath, for code that runs in ``call``."""
        self._executor = executor

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: StateSettings | None = None,
        *,
        opener: Callable[[StateSettings | None], StateRuntime] = StateRuntime.open,
    ) -> AsyncIterator[Self]:
        """Open the state for the block and close it afterwards.

        Args:
            settings: where and how; read from the environment when not given.
            opener: ``codex_state.open_state`` to bring the index up to date first.

        Raises:
            StateError: see ``StateRuntime.open``.
        """
        settings = settings or StateSettings()
        # As many threads as connections: a unit never waits for a connection that another unit holds.
        executor = ThreadPoolExecutor(settings.pool_size, thread_name_prefix="codex-state")
        try:
            runtime = await _in_thread(executor, lambda: opener(settings))
            try:
                yield cls(runtime, executor)
            finally:
                await _in_thread(executor, runtime.close)
        finally:
            executor.shutdown(wait=False)

    async def run(self, work: Callable[[State], ResultT], *, attempts: int = 5) -> ResultT:
        """Run a unit of work in one write transaction, again when the database says "try again".

        See ``StateRuntime.run``. ``work`` is an ordinary function and runs on a worker thread.
        """
        return await self.call(lambda runtime: runtime.run(work, attempts=attempts))

    async def read(self, work: Callable[[State], ResultT]) -> ResultT:
        """Run a unit of work on one read-only snapshot."""

        def unit(runtime: StateRuntime) -> ResultT:
            with runtime.read() as state:
                return work(state)

        return await self.call(unit)

    async def autocommit(self, work: Callable[[State], ResultT]) -> ResultT:
        """Run guarded statements that each commit by themselves."""

        def unit(runtime: StateRuntime) -> ResultT:
            with runtime.autocommit() as state:
                return work(state)

        return await self.call(unit)

    async def call(self, function: Callable[[StateRuntime], ResultT]) -> ResultT:
        """Run anything that takes a runtime on a worker thread, for example a backfill."""
        return await _in_thread(self._executor, lambda: function(self.sync))


async def _in_thread(executor: ThreadPoolExecutor, function: Callable[[], ResultT]) -> ResultT:
    context = contextvars.copy_context()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        result: ResultT = await trio.to_thread.run_sync(lambda: executor.submit(context.run, function).result())
        return result
    future = loop.run_in_executor(executor, context.run, function)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            # Shielded, because cancelling the future would only stop us from hearing how the unit ended.
            answer = await asyncio.shield(future)
            break
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise
            cancelled = error
        except BaseException:
            if cancelled is not None:
                raise cancelled from None
            raise
    if cancelled is not None:
        raise cancelled
    return answer
