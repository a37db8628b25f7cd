"""Leases under asyncio and trio: the task that works is cancelled in time, and the loop is never blocked."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta

import pytest
from lease_rivals import LEASE, LONGER, LONGER_SECONDS, SECONDS, Kind, claim_of, rival, steal
from loops import Asyncio, Loop, Trio
from memory_support import OTHER, add_threads, claim, now, user_key
from relay import relay

from codex_state import (
    AsyncLeaseKeeper,
    AsyncStateRuntime,
    BackfillLease,
    Claimed,
    HolderWrite,
    LockLease,
    Phase1Lease,
    Skipped,
    SkipReason,
    StateRuntime,
    StateSettings,
    StopReason,
    WorkStoppedError,
    current_work,
    trust_clock,
)

Open = Callable[[StateSettings], StateRuntime]


@asynccontextmanager
async def keeping(settings: StateSettings) -> AsyncIterator[tuple[AsyncStateRuntime, AsyncLeaseKeeper]]:
    async with AsyncStateRuntime.open(settings) as runtime, AsyncLeaseKeeper(runtime) as keeper:
        yield runtime, keeper


class Work:
    """Work that would never end by itself, and that notes when it was cancelled."""

    def __init__(self, keeper: AsyncLeaseKeeper, loop: Loop = Asyncio) -> None:
        self._keeper = keeper
        self._loop = loop
        self.cancelled_at: float | None = None
        self.reason: StopReason | None = None

    async def under(
        self, lease: Phase1Lease | LockLease | BackfillLease, requested_at: float, begun: Callable[[], object] = list
    ) -> None:
        async with self._keeper.working(lease, requested_at=requested_at) as kept:
            begun()
            try:
                await self._loop.sleep(60)
            except self._loop.cancelled:
                self.cancelled_at = trust_clock()
                self.reason = kept.signal.reason
                raise


@contextmanager
def locked(settings: StateSettings) -> Iterator[sqlite3.Connection]:
    """Another process holds the write lock of the file, until it commits or the block ends."""
    with closing(sqlite3.connect(settings.database_path, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        yield locker


def test_a_task_keeps_its_lease_past_its_duration_although_the_loop_is_busy(settings: StateSettings) -> None:
    async def main() -> None:
        async with keeping(settings) as (runtime, keeper):
            requested_at = trust_clock()
            lease = await runtime.call(lambda sync: claim_of(sync, Phase1Lease, LONGER))
            assert isinstance(lease, Phase1Lease)
            async with keeper.working(lease, requested_at=requested_at) as kept:
                assert current_work() is kept.signal
                time.sleep(LONGER_SECONDS + 1)  # noqa: ASYNC251 - that is the point
                await asyncio.sleep(0)
                assert kept.trusted
                refused = await runtime.autocommit(
                    lambda state: state.phase1_jobs.try_claim(
                        lease.key, owner=OTHER, source_updated_at=now(), lease=LONGER
                    )
                )
                assert refused == Skipped(SkipReason.RUNNING)
            assert current_work() is None
            assert await runtime.autocommit(lambda state: state.phase1_jobs.fail(kept.lease, "done")) is (
                HolderWrite.APPLIED
            )

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "loop"), [(Phase1Lease, Asyncio), (LockLease, Asyncio), (BackfillLease, Asyncio), (LockLease, Trio)]
)
def test_a_stolen_lease_cancels_the_task_at_the_next_renewal(settings: StateSettings, kind: Kind, loop: Loop) -> None:
    async def main() -> None:
        async with keeping(settings) as (runtime, keeper):
            requested_at = trust_clock()
            lease = await runtime.call(lambda sync: claim_of(sync, kind, LONGER))
            await runtime.call(lambda sync: steal(sync, lease))
            work = Work(keeper, loop)
            with pytest.raises(WorkStoppedError, match="refused"):
                await work.under(lease, requested_at)
            assert work.reason is StopReason.REFUSED
            await loop.sleep(0)  # the task itself goes on

    loop.run(main)


def test_the_task_is_cancelled_before_a_rival_gets_the_lease_when_the_file_is_locked(
    sqlite_settings: StateSettings, opened: Open
) -> None:
    async def main() -> None:
        async with keeping(sqlite_settings) as (runtime, keeper):
            key = user_key((await runtime.call(add_threads))[0])
            requested_at = trust_clock()
            lease = await runtime.call(lambda sync: claim(sync, key, lease=SECONDS))
            work = Work(keeper)
            with locked(sqlite_settings) as locker:
                with pytest.raises(WorkStoppedError, match="late"):
                    await work.under(lease, requested_at)
                with rival(opened(sqlite_settings), key) as won:
                    await asyncio.sleep(SECONDS - (trust_clock() - requested_at))
                    locker.execute("ROLLBACK")
            assert work.cancelled_at is not None
            assert work.cancelled_at < requested_at + SECONDS - 1
            assert not won or work.cancelled_at < won[0]

    asyncio.run(main())


def test_the_task_is_cancelled_before_a_rival_gets_the_lease_when_the_server_is_frozen(
    postgres_settings: StateSettings, opened: Open
) -> None:
    assert postgres_settings.database_url is not None
    rivals = opened(postgres_settings)
    key = user_key(add_threads(rivals)[0])

    async def main(settings: StateSettings, freeze: Callable[[], None], thaw: Callable[[], None]) -> None:
        async with keeping(settings) as (runtime, keeper):
            requested_at = trust_clock()
            lease = await runtime.call(lambda sync: claim(sync, key, lease=SECONDS))
            work = Work(keeper)
            freeze()
            with rival(rivals, key) as won, pytest.raises(WorkStoppedError, match="late"):
                await work.under(lease, requested_at)
            assert work.cancelled_at is not None
            assert work.cancelled_at < won[0]
            thaw()
            assert await runtime.autocommit(lambda state: state.phase1_jobs.fail(lease, "too late")) is (
                HolderWrite.LEASE_LOST
            )

    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        url = wire.url.render_as_string(hide_password=False)
        settings = postgres_settings.model_copy(
            update={"database_url": StateSettings(database_url=url).database_url, "busy_timeout": timedelta(seconds=1)}
        )
        asyncio.run(main(settings, wire.freeze, wire.thaw))


def test_a_slow_database_costs_no_task_its_lease(postgres_settings: StateSettings) -> None:
    assert postgres_settings.database_url is not None

    async def main(settings: StateSettings, freeze: Callable[[], None], thaw: Callable[[], None]) -> None:
        async with keeping(settings) as (runtime, keeper):
            requested_at = trust_clock()
            lease = await runtime.call(lambda sync: claim_of(sync, LockLease, LONGER))
            async with keeper.working(lease, requested_at=requested_at) as kept:
                for _ in range(7):
                    freeze()
                    await asyncio.sleep(0.7)
                    thaw()
                    await asyncio.sleep(0.3)
                assert kept.trusted

    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        url = wire.url.render_as_string(hide_password=False)
        asyncio.run(
            main(StateSettings(codex_home=postgres_settings.codex_home, database_url=url), wire.freeze, wire.thaw)
        )


def test_leaving_waits_for_a_renewal_that_hangs_and_lets_the_loop_go_on(sqlite_settings: StateSettings) -> None:
    """Only the loop can unlock the file, so a keeper that blocked it would wait for the whole busy timeout."""
    happened: list[str] = []

    async def main() -> None:
        async with AsyncStateRuntime.open(sqlite_settings) as runtime:
            lease = await runtime.call(lambda sync: claim_of(sync, LockLease, LEASE))
            with locked(sqlite_settings) as locker:

                async def unlock() -> None:
                    await asyncio.sleep(1)
                    happened.append("unlocked")
                    locker.execute("ROLLBACK")

                async with AsyncLeaseKeeper(runtime) as keeper:
                    with pytest.raises(WorkStoppedError):
                        await Work(keeper).under(lease, trust_clock())
                    unlocking = asyncio.create_task(unlock())
                happened.append("left")
                await unlocking

    asyncio.run(main())
    assert happened == ["unlocked", "left"]


def test_a_cancellation_from_elsewhere_stays_one_and_ends_the_renewals(
    sqlite_settings: StateSettings, loop: Loop
) -> None:
    async def main() -> None:
        async with keeping(sqlite_settings) as (runtime, keeper):
            lease = await runtime.call(lambda sync: claim_of(sync, LockLease, LEASE))
            assert isinstance(lease, LockLease)
            work, working = Work(keeper, loop), threading.Event()
            async with loop.started(lambda: work.under(lease, trust_clock(), working.set)) as cancel:
                while not working.is_set():
                    await loop.sleep(0.001)
                cancel()
            assert work.cancelled_at is not None
            assert work.reason is None
            await loop.sleep(SECONDS + 1)
            taken = await runtime.autocommit(
                lambda state: state.consolidation_locks.try_claim(lease.key, owner=OTHER, lease=LEASE)
            )
            assert isinstance(taken, Claimed)

    loop.run(main)


def test_leaving_while_cancelled_still_ends_the_threads(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            keeper = AsyncLeaseKeeper(runtime)
            await keeper.__aenter__()
            async with loop.started(keeper.close) as cancel:
                await loop.sleep(0)
                cancel()
            assert not any(thread.is_alive() for thread in keeper._keeper._threads)

    loop.run(main)


def test_work_that_takes_too_long_is_cancelled(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with keeping(settings) as (runtime, keeper):
            lease = await runtime.call(lambda sync: claim_of(sync, LockLease, LONGER))
            with pytest.raises(WorkStoppedError, match="timed_out"):
                async with keeper.working(lease, requested_at=trust_clock(), timeout=timedelta(seconds=0.2)):
                    await loop.sleep(60)

    loop.run(main)


def test_a_claim_whose_answer_came_too_late_never_begins(settings: StateSettings, loop: Loop) -> None:
    async def main() -> None:
        async with keeping(settings) as (runtime, keeper):
            lease = await runtime.call(lambda sync: claim_of(sync, LockLease, LEASE))
            begun: list[bool] = []
            with pytest.raises(WorkStoppedError, match="late"):
                await Work(keeper, loop).under(lease, trust_clock() - SECONDS, lambda: begun.append(True))
            assert begun == []

    loop.run(main)
