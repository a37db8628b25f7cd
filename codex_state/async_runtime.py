"""The same front door for ``async`` code: one hop to a worker thread per unit of work.

Drivers that await every statement cost several hops for each; here a whole unit of work runs on a worker thread, with
the very code that synchronous callers use, so the laws hold in both worlds by construction (law L9). Works under
asyncio and trio.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Self, TypeVar, TypeVarTuple

from sqlalchemy import QueuePool

from codex_state.own_waits import working_for
from codex_state.runtime import State, StateRuntime, ordinary
from codex_state.settings import StateSettings

ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")


class AsyncStateRuntime:
    """An open state for ``async`` callers.

    A caller may be cancelled at any moment: there is no half unit and no leaked connection. A unit of work that still
    waits for a thread never starts. One in flight is waited for until it has been committed or rolled back; then the
    cancellation goes on. Under asyncio the unit's answer is lost with it, and a lease that it claimed runs out like
    any other. Under trio, whose cancellation waits for the next checkpoint, the answer arrives.
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
        settings = StateSettings() if settings is None else settings
        # Kept here, not in an answer that a cancelled caller wouldn't get.
        opened: list[StateRuntime] = []
        executors: list[ThreadPoolExecutor] = []
        opening = ThreadPoolExecutor(1, thread_name_prefix="codex-state-open")

        def close() -> None:
            # First the units that others have in flight: a connection is closed only when it is back in the pool.
            for executor in executors:
                executor.shutdown()
            for runtime in opened:
                runtime.close()

        try:
            await in_executor(opening, lambda: opened.append(opener(settings)))
            executors.append(ThreadPoolExecutor(_connections_of(opened[0]), thread_name_prefix="codex-state"))
            yield cls(opened[0], executors[0])
        finally:
            await in_executor(opening, close, may_be_cancelled=False)
            opening.shutdown(wait=False)

    async def run(
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a unit of work in one write transaction, again when the database says "try again".

        See ``StateRuntime.run``. ``work`` is an ordinary function and runs on a worker thread.
        """
        return await self.call(lambda runtime: runtime.run(work, *args, attempts=attempts, retry_for=retry_for))

    async def run_read(
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a unit of work on one read-only snapshot, again as ``run`` does."""
        return await self.call(lambda runtime: runtime.run_read(work, *args, attempts=attempts, retry_for=retry_for))

    async def read(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """``run_read``, under a short name."""
        return await self.run_read(work, *args)

    async def run_autocommit(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """Run guarded statements that each commit by themselves. None is run again, as the others are kept."""
        return await self.call(lambda runtime: runtime.run_autocommit(work, *args))

    async def autocommit(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """``run_autocommit``, under a short name."""
        return await self.run_autocommit(work, *args)

    async def call(self, function: Callable[[StateRuntime, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """Run anything that takes a runtime on a worker thread, for example a backfill.

        Raises:
            UsageError: the runtime's block has ended, or ``function`` is an ``async`` one.
        """
        self.sync.database.refuse_when_closed()
        return await in_executor(self._executor, lambda: ordinary(function(self.sync, *args)))


def _connections_of(runtime: StateRuntime) -> int:
    """As many threads as connections: a unit never waits for a connection that another unit holds."""
    pool = runtime.engine.pool
    return pool.size() if isinstance(pool, QueuePool) else runtime.settings.pool_size


async def in_executor(
    executor: ThreadPoolExecutor, function: Callable[[], ResultT], *, may_be_cancelled: bool = True
) -> ResultT:
    """What ``function`` returns on a thread of ``executor``, under asyncio or trio.

    A function that has begun is waited for; then a cancellation goes on. One that hasn't never begins, unless it must.
    """
    context = contextvars.copy_context()
    try:
        task: object = asyncio.current_task()
    except RuntimeError:
        import trio

        context.run(working_for.set, trio.lowlevel.current_task())
        return await _under_trio(lambda: executor.submit(context.run, function), may_be_cancelled)
    context.run(working_for.set, task)
    return await _under_asyncio(executor.submit(context.run, function), may_be_cancelled)


async def _under_asyncio(unit: Future[ResultT], may_be_cancelled: bool) -> ResultT:  # noqa: FBT001
    future = asyncio.wrap_future(unit)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # Unlike awaiting it, this doesn't cancel the future, which would only hide from us how the unit ends.
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if may_be_cancelled and unit.cancel():
                raise
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # asyncio warns of one that nobody looked at
    raise cancelled


async def _under_trio(submit: Callable[[], Future[ResultT]], may_be_cancelled: bool) -> ResultT:  # noqa: FBT001
    import trio

    if may_be_cancelled:
        await trio.lowlevel.checkpoint_if_cancelled()
    unit = submit()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def wake(_unit: Future[ResultT]) -> None:
        if not unit.cancelled():
            token.run_sync_soon(trio.lowlevel.reschedule, task)

    def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
        given_up = may_be_cancelled and unit.cancel()
        return trio.lowlevel.Abort.SUCCEEDED if given_up else trio.lowlevel.Abort.FAILED

    unit.add_done_callback(wake)
    await trio.lowlevel.wait_task_rescheduled(abort)
    return unit.result()
