"""Keeping leases alive, and stopping the work in time when that fails.

A holder may trust its lease for a *window* that starts before it sent the claim or renewal, not when the answer came,
and that ends before anybody else can take over. The keeper has two threads. One renews, well before the windows end.
The other only looks at the clock: when a window ends without a confirmed renewal, for whatever reason, it gives the
stop signal, also while the first one is stuck in a database that doesn't answer.

Both are threads under asyncio as well: a busy event loop, or a default executor full of slow calls, must not cost a
lease. Tasks hear of a loss as a cancellation (``StopSignal.cancelling``).

``hold`` is leased work in a few lines: claim, keep alive, fence, finish, and give back whatever happens::

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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from sqlalchemy.pool import QueuePool

from codex_state.database.patience import Patience, waiting
from codex_state.database.sql import trust_clock
from codex_state.errors import DatabaseError, InvalidInputError, LeaseLost, StateError
from codex_state.memory.async_bridge import finishing, underneath
from codex_state.memory.cancellation import StopReason, StopSignal, working_under
from codex_state.models import Claimed, HolderWrite, Lease, Skipped
from codex_state.runtime import AsyncStateRuntime, State, StateRuntime

_log = logging.getLogger("codex_state")

LeaseT = TypeVar("LeaseT", bound=Lease[Any])

MINIMUM_LEASE = timedelta(seconds=2)
"""Rows store whole seconds, so a lease may end up to one second early and one of one second may end at once."""

_WHOLE_SECOND = 1.0

_MARGIN_SHARE = 0.1
_MARGIN_SECONDS = (0.1, 10.0)
"""The margin is for what happens between the signal and the work's end, and for clocks that run unevenly."""

_RENEWALS_PER_WINDOW = 3
_RETRIES_PER_WINDOW = 20

_LONGEST_WAIT = 1.0
"""Waiting doesn't count the time for which a machine sleeps, so no thread waits longer without looking at the clock."""


def trust_window(lease: timedelta) -> float:
    """For how many seconds a lease may be trusted, counted from before the request that it answers.

    Raises:
        InvalidInputError: the lease is shorter than ``MINIMUM_LEASE``.
    """
    if lease < MINIMUM_LEASE:
        raise InvalidInputError(
            f"a lease of {lease.total_seconds():g} s can't be kept: it may end as soon as it begins; "
            f"give at least {MINIMUM_LEASE.total_seconds():g} s"
        )
    seconds = float(lease // timedelta(seconds=1))
    shortest, longest = _MARGIN_SECONDS
    return seconds - _WHOLE_SECOND - min(max(seconds * _MARGIN_SHARE, shortest), longest)


def renew(state: State, lease: Lease[Any]) -> HolderWrite:
    """Renew a lease of any kind."""
    return state.leases_like(lease).renew(lease)


class KeptLease(Generic[LeaseT]):
    """A lease that a keeper renews. Its ``signal`` says when the work must stop."""

    def __init__(self, lease: LeaseT, requested_at: float, renewal: Callable[[State, LeaseT], HolderWrite]) -> None:
        """Made by ``LeaseKeeper.keep``."""
        self.lease = lease
        self.signal = StopSignal()
        self.last_error: Exception | None = None
        """What the last renewal failed with, if it did."""
        self._renewal = renewal
        self._window = trust_window(lease.duration)
        self._due_at = self._trusted_until = requested_at
        self._confirm(requested_at)

    @property
    def trusted_until(self) -> float:
        """Until when it may be trusted, on the ``trust_clock``."""
        return self._trusted_until

    @property
    def trusted(self) -> bool:
        """Whether the work may go on now."""
        return not self.signal.stopped and trust_clock() < self._trusted_until

    @property
    def due_at(self) -> float:
        """When the next renewal should be sent."""
        return self._due_at

    def renew(self, state: State) -> None:
        """Send a renewal now. A refusal gives the signal; a late confirmation doesn't take it back."""
        requested_at = trust_clock()
        self.put_off()  # also when it raises: the next try comes after a pause
        try:
            renewed = self._renewal(state, self.lease)
        except Exception as error:
            self.last_error = error
            raise
        self.last_error = None
        if renewed:
            self._confirm(requested_at)
        else:
            self.signal.stop(StopReason.REFUSED)

    def put_off(self) -> None:
        """Let the next renewal be due after a pause, if it isn't due later anyway."""
        self._due_at = max(self._due_at, trust_clock() + self._window / _RETRIES_PER_WINDOW)

    def _confirm(self, requested_at: float) -> None:
        self._trusted_until = requested_at + self._window
        self._due_at = requested_at + self._window / _RENEWALS_PER_WINDOW


_held: ContextVar[Sequence[KeptLease[Any]]] = ContextVar("codex_state_held_leases", default=())


@contextmanager
def holding(leases: Sequence[KeptLease[Any]]) -> Iterator[None]:
    """Make ``leases`` those that ``fence`` asks for in this block."""
    token = _held.set(leases)
    try:
        yield
    finally:
        _held.reset(token)


def fence(state: State) -> None:
    """Make this transaction a holder's write, whatever it writes: it commits only if no lease was taken over.

    Work under a lease calls it first in each transaction that writes rows of its own beside the state's. It renews the
    leases that the work runs under, which keeps their rows locked until the transaction ends, so keep that short. A
    worker that was paused past its lease can't overwrite what its successor wrote.

    Args:
        state: one with a write transaction, from ``begin`` or ``run``.

    Raises:
        LeaseLost: a lease is lost. The work is told to stop, if it wasn't yet.
        InvalidInputError: this code doesn't run under a lease, so there is nothing to guard it with.
    """
    leases = _held.get()
    if not leases:
        raise InvalidInputError(
            "there is no lease to fence with; call this in an extractor, a consolidator, or working"
        )
    for kept in leases:
        if not renew(state, kept.lease):
            kept.signal.stop(StopReason.REFUSED)
            raise LeaseLost("this work must stop: another took over")


class LeaseKeeper:
    """Renews any number of leases from one thread, over one connection of its own."""

    def __init__(self, runtime: StateRuntime) -> None:
        """Use ``runtime``, of which one pooled connection is kept for renewals, unless it has only one."""
        self._runtime = runtime
        self._changed = threading.Condition()
        self._kept: list[KeptLease[Any]] = []
        self._deadlines: list[tuple[float, StopSignal]] = []
        self._closing = False
        self._failing = False
        self._threads = [
            threading.Thread(target=self._renew_until_closed, name="codex-state-renewals", daemon=True),
            threading.Thread(target=self._watch_until_closed, name="codex-state-lease-watch", daemon=True),
        ]

    def keep(
        self,
        lease: LeaseT,
        *,
        requested_at: float | None = None,
        renewal: Callable[[State, LeaseT], HolderWrite] = renew,
    ) -> KeptLease[LeaseT]:
        """Keep a lease alive from now on.

        It is trusted from before its claim was sent. A claim that took long to answer gives less trust, or none: then
        the signal is given at once.

        Args:
            lease: what a claim granted.
            requested_at: the ``trust_clock`` from before the claim was sent, if another moment than the lease's own.
            renewal: how it is renewed.

        Raises:
            InvalidInputError: the lease is too short to be kept.
        """
        kept = KeptLease(lease, lease.requested_at if requested_at is None else requested_at, renewal)
        with self._changed:
            self._kept.append(kept)
            self._changed.notify_all()
        if not kept.trusted:
            kept.signal.stop(StopReason.LATE)
        return kept

    @contextmanager
    def working(
        self,
        lease: LeaseT,
        *,
        requested_at: float | None = None,
        timeout: timedelta | None = None,
        renewal: Callable[[State, LeaseT], HolderWrite] = renew,
    ) -> Iterator[KeptLease[LeaseT]]:
        """Keep a lease alive for the time of the block, which ``current_work`` and ``fence`` then know of.

        The block isn't interrupted: it asks the kept lease's ``signal`` whether to stop.

        Args:
            lease: what a claim granted.
            requested_at: as for ``keep``.
            timeout: after how long the signal is given anyway; ``None`` for no bound.
            renewal: how the lease is renewed.

        Raises:
            InvalidInputError: the lease is too short to be kept.
        """
        kept = self.keep(lease, requested_at=requested_at, renewal=renewal)
        try:
            if timeout is not None:
                self.stop_after(kept.signal, timeout.total_seconds())
            with working_under(kept.signal), holding([kept]):
                yield kept
        finally:
            self.forget(kept)

    def forget(self, kept: KeptLease[Any]) -> None:
        """Stop renewing a lease, because its work is finished. Its signal isn't given any more."""
        with self._changed:
            if kept in self._kept:
                self._kept.remove(kept)

    def stop_after(self, signal: StopSignal, seconds: float) -> None:
        """Give ``signal`` as ``TIMED_OUT`` when so many seconds are over."""
        with self._changed:
            self._deadlines.append((trust_clock() + seconds, signal))
            self._changed.notify_all()

    def close(self) -> None:
        """Stop renewing everything. Leases that are held end by themselves."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # A renewal under way ends with the busy timeout at the latest, or hangs on a connection that nobody answers.
        patience = 2 * self._runtime.settings.busy_timeout.total_seconds() + 1
        for thread in self._threads:
            thread.join(patience)
            if thread.is_alive():
                _log.warning("%s is stuck in a database that doesn't answer; it is left behind", thread.name)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _renew_until_closed(self) -> None:
        # The connection is held, because the work's own sessions may take all others for longer than a lease lasts.
        pool = self._runtime.engine.pool
        holds = isinstance(pool, QueuePool) and pool.size() > 1
        session = ExitStack()
        state: State | None = None
        if holds:
            with suppress(StateError):
                state = _connected(session, self._runtime)
        while (kept := self._next_due()) is not None:
            try:
                state = state or self._connect(session, kept)
                kept.renew(state)
            except Exception as error:  # noqa: BLE001 - this thread must outlive whatever a renewal raises
                self._tell_of_failure(error)
                state = None
            else:
                self._tell_of_recovery()
            if state is None or not holds:
                _close(session)
                state = None
        _close(session)

    def _connect(self, session: ExitStack, due: KeptLease[Any]) -> State:
        try:
            return _connected(session, self._runtime)
        except Exception as error:
            due.last_error = error
            with self._changed:
                # All of them: without a pause each lease that is due would ask a server that is away once more.
                for kept in self._kept:
                    kept.put_off()
            raise

    def _tell_of_failure(self, error: Exception) -> None:
        """Only once, however many leases are tried however often until it is over."""
        if not self._failing:
            self._failing = True
            _log.warning("a lease could not be renewed; each is tried again while it may be trusted: %s", error)

    def _tell_of_recovery(self) -> None:
        """When the last of them that failed was renewed, or is kept no longer."""
        if self._failing:
            with self._changed:
                self._failing = any(kept.last_error and not kept.signal.stopped for kept in self._kept)
            if not self._failing:
                _log.info("leases are renewed again")

    def _next_due(self) -> KeptLease[Any] | None:
        """The lease whose renewal is due, as soon as there is one; ``None`` when the keeper is closed."""
        with self._changed:
            while not self._closing:
                alive = [kept for kept in self._kept if not kept.signal.stopped]
                kept = min(alive, key=lambda kept: kept.due_at, default=None)
                wait = _LONGEST_WAIT if kept is None else kept.due_at - trust_clock()
                if kept is not None and wait <= 0:
                    return kept
                self._changed.wait(min(wait, _LONGEST_WAIT))
        return None

    def _watch_until_closed(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                now = trust_clock()
                late = [kept.signal for kept in self._kept if kept.trusted_until <= now]
                over = [signal for moment, signal in self._deadlines if moment <= now]
                if not late and not over:
                    self._changed.wait(self._until_next_end(now))
                    continue
                self._kept = [kept for kept in self._kept if kept.trusted_until > now]
                self._deadlines = [deadline for deadline in self._deadlines if deadline[0] > now]
            # Outside of the lock: callbacks may come back to the keeper.
            for late_one in late:
                late_one.stop(StopReason.LATE)
            for over_one in over:
                over_one.stop(StopReason.TIMED_OUT)

    def _until_next_end(self, now: float) -> float:
        ends = [kept.trusted_until for kept in self._kept] + [moment for moment, _ in self._deadlines]
        return min(min(ends, default=now + _LONGEST_WAIT) - now, _LONGEST_WAIT)


def _connected(session: ExitStack, runtime: StateRuntime) -> State:
    state = session.enter_context(runtime.autocommit())
    with waiting(Patience(timedelta(0))):  # whoever renews has other leases to look after, and a moment to give up
        state.session.connection()
    return state


def _close(session: ExitStack) -> None:
    try:
        session.close()
    except Exception as error:  # noqa: BLE001 - the connection is broken, which is why it is closed
        _log.debug("a broken connection could not be closed cleanly: %s", error)


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
        requested_at: float | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - the watch must give it, not this loop, which may be busy
        renewal: Callable[[State, LeaseT], HolderWrite] = renew,
    ) -> AsyncIterator[KeptLease[LeaseT]]:
        """Keep a lease alive for the time of the block, and cancel the block when that fails.

        The task that entered is cancelled at its next ``await`` after the signal. The signal comes at once when a
        renewal is refused, and otherwise before anybody else can get the lease, whatever the database does.

        Args:
            lease: what a claim granted.
            requested_at: as for ``keep``.
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
        await finishing(self._keeper.close)

    async def __aenter__(self) -> Self:
        self._keeper.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


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
