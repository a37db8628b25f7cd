"""Leased work in a few lines: claim, keep alive, fence, finish, and give back whatever happens.

::

    with exit_on_sigterm(), StateRuntime.open(settings) as runtime:
        with hold(runtime, lambda state: state.named_locks.try_claim("report", lease=timedelta(minutes=5))) as work:
            if work is not None:
                report = write_report(may_go_on=work.check)
                runtime.run(lambda state: (work.fence(state), store(state.session, report)))

The same for jobs, which are finished by a verb of their own (``succeed``, ``fail``) in the block; what is left
unfinished when the block ends is given back, and another can claim it at once.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Generic

from codex_state.errors import DatabaseError, InvalidInputError, LeaseLost
from codex_state.memory.async_bridge import finishing
from codex_state.memory.cancellation import StopSignal
from codex_state.memory.leases import AsyncLeaseKeeper, KeptLease, LeaseKeeper, LeaseT, fence
from codex_state.models import Claimed, Skipped
from codex_state.runtime import AsyncStateRuntime, State, StateRuntime

_log = logging.getLogger("codex_state")

Claim = Callable[[State], Claimed[LeaseT] | Skipped | LeaseT | list[LeaseT] | None]
"""A claim of one piece of work: what ``try_claim`` answers, or ``claim_candidates`` with ``limit=1``."""

_UNFINISHED = "its worker left it unfinished"
_INTERRUPTED = "its worker was interrupted"


class HeldWork(Generic[LeaseT]):
    """One piece of work, and the lease under which it is done."""

    def __init__(self, kept: KeptLease[LeaseT]) -> None:
        """Made by ``hold`` and ``ahold``."""
        self.lease = kept.lease
        """For the verbs that finish the work."""
        self.signal: StopSignal = kept.signal
        """When to stop, and why."""

    def check(self) -> None:
        """Return when the work may go on. Work in a thread calls it now and then: nobody can interrupt it.

        Raises:
            WorkStoppedError: the lease is lost, or the time is over.
        """
        self.signal.check()

    def fence(self, state: State) -> None:
        """Make a transaction a holder's write, whatever it writes: see ``codex_state.fence``.

        Raises:
            LeaseLost: another took over. The transaction must not be committed.
        """
        fence(state)


@contextmanager
def hold(
    runtime: StateRuntime, claim: Claim[LeaseT], *, timeout: timedelta | None = None
) -> Iterator[HeldWork[LeaseT] | None]:
    """Claim one piece of work, and keep its lease alive for the time of the block.

    Args:
        runtime: an open state.
        claim: claims it, in a transaction of its own.
        timeout: after how long the work is told to stop; ``None`` for no bound.

    Yields:
        The work, or ``None`` when nothing was granted.

    Raises:
        DatabaseError: the claim failed.
        Exception: what the block raised, after the work was given back.
    """
    lease = _claimed(runtime, claim)
    if lease is None:
        yield None
        return
    try:
        runtime.run(_begin, lease)
        with LeaseKeeper(runtime) as keeper, keeper.working(lease, timeout=timeout) as kept:
            yield HeldWork(kept)
    except BaseException as error:
        _give_back(runtime, lease, _reason_of(error))
        raise
    _give_back(runtime, lease, _UNFINISHED)


@asynccontextmanager
async def ahold(
    runtime: AsyncStateRuntime,
    claim: Claim[LeaseT],
    *,
    timeout: timedelta | None = None,  # noqa: ASYNC109 - the watch must give it, not this loop, which may be busy
) -> AsyncIterator[HeldWork[LeaseT] | None]:
    """``hold`` under asyncio and trio. When the lease is lost or the time is over, the block is cancelled.

    Raises:
        WorkStoppedError: in place of that cancellation.
    """
    # Kept here, not in an answer that a cancelled caller wouldn't get.
    granted: list[LeaseT] = []

    def keep(sync: StateRuntime) -> None:
        lease = _claimed(sync, claim)
        if lease is not None:
            granted.append(lease)

    reason = _UNFINISHED
    try:
        await runtime.call(keep)
        if not granted:
            yield None
            return
        (lease,) = granted
        await runtime.run(_begin, lease)
        async with AsyncLeaseKeeper(runtime) as keeper, keeper.working(lease, timeout=timeout) as kept:
            yield HeldWork(kept)
    except BaseException as error:
        reason = _reason_of(error)
        raise
    finally:
        for lease in granted:
            await finishing(partial(_give_back, runtime.sync, lease, reason))


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise ``SystemExit`` in this block, so that what it holds is given back. For the main thread.

    Without it a signal ends the process as it is, and others wait until its leases are over or it is seen to be dead.
    """

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _claimed(runtime: StateRuntime, claim: Claim[LeaseT]) -> LeaseT | None:
    # In the claim's transaction: one that granted too much is taken back.
    lease: LeaseT | None = runtime.run(lambda state: _granted(claim(state)))
    return lease


def _granted(answer: Any) -> Any:
    if isinstance(answer, list):
        if len(answer) > 1:
            raise InvalidInputError("hold does one piece of work at a time: claim with limit=1")
        return answer[0] if answer else None
    if isinstance(answer, Claimed):
        return answer.lease
    return None if isinstance(answer, Skipped) else answer


def _begin(state: State, lease: LeaseT) -> None:
    state.leases_like(lease).begin(lease).required()


def _reason_of(error: BaseException) -> str:
    if isinstance(error, Exception) and not isinstance(error, LeaseLost):
        return f"{type(error).__name__}: {error}"[:2000]
    return _INTERRUPTED


def _give_back(runtime: StateRuntime, lease: LeaseT, reason: str) -> None:
    try:
        # What is finished, or lost, stays as it is: the token says so.
        runtime.run(lambda state: state.leases_like(lease).release(lease, reason))
    except DatabaseError as error:
        _log.warning("unfinished work could not be given back; its lease ends by itself: %s", error)
