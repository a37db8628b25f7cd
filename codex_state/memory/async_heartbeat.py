"""Keeping leases alive under asyncio and trio: the work is a task, and a lost lease cancels it.

Renewals and the watch stay on the threads of a ``LeaseKeeper``, so that a busy event loop costs no lease. What concerns
the loop is here: entering and leaving never block it, and the task that works under a lease is cancelled in time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from codex_state.async_runtime import AsyncStateRuntime, in_executor
from codex_state.memory.calling import underneath
from codex_state.memory.heartbeat import KeptLease, LeaseKeeper, LeaseT, renew
from codex_state.runtime import State, StateRuntime


class AsyncLeaseKeeper:
    """Renews any number of leases while tasks of this event loop work under them.

    ``LeaseKeeper`` for asyncio and trio.
    """

    def __init__(self, runtime: AsyncStateRuntime | StateRuntime) -> None:
        """Use ``runtime``, of which one pooled connection is kept for renewals, unless it has only one."""
        self._keeper = LeaseKeeper(underneath(runtime))

    @asynccontextmanager
    async def working(
        self,
        lease: LeaseT,
        *,
        requested_at: float,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - the watch must give it, not this loop, which may be busy
        renewal: Callable[[State, LeaseT], LeaseT | None] = renew,
    ) -> AsyncIterator[KeptLease[LeaseT]]:
        """Keep a lease alive for the time of the block, and cancel the block when that fails.

        The task that entered is cancelled at its next ``await`` after the signal. The signal comes at once when a
        renewal is refused, and otherwise before anybody else can get the lease, whatever the database does.

        Args:
            lease: what a claim granted.
            requested_at: the ``trust_clock`` from *before* the claim was sent.
            timeout: how long the block may take; ``None`` for no bound.
            renewal: how the lease is renewed.

        Raises:
            InvalidInputError: the lease is too short to be kept.
            WorkStoppedError: in place of the cancellation. The ``signal`` of the kept lease has the reason. A
                cancellation from elsewhere stays one.
        """
        under = self._keeper.working(lease, requested_at=requested_at, timeout=timeout, renewal=renewal)
        with under as kept:
            async with kept.signal.cancelling():
                yield kept

    async def close(self) -> None:
        """Stop renewing everything. Leases that are held end by themselves.

        A renewal under way is waited for, on a thread; a cancellation goes on when that is over.
        """
        # Not the runtime's threads: work that hangs may have them all.
        executor = ThreadPoolExecutor(1, thread_name_prefix="codex-state-leaving")
        try:
            await in_executor(executor, self._keeper.close, may_be_cancelled=False)
        finally:
            executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        self._keeper.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
