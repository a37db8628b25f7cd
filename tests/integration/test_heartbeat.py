"""Heartbeats against real databases: one that is stopped, one that is slow, a lease that was stolen.

A rival process claims again and again, so "in time" means: before anybody else could get the lease.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest
from lease_rivals import LONGER, LONGER_SECONDS, SECONDS, Kind, claim_of, rival, steal
from memory_support import OTHER, OWNER, add_threads, claim, now, user_key
from relay import relay
from sqlalchemy import event

from codex_state import (
    BackfillLease,
    HolderWrite,
    InvalidInputError,
    LeaseKeeper,
    LockLease,
    Phase1Lease,
    Skipped,
    SkipReason,
    StateRuntime,
    StateSettings,
    StopReason,
    WorkStoppedError,
    current_work,
    fence,
    trust_clock,
)
from codex_state.memory import KeptLease

Open = Callable[[StateSettings], StateRuntime]


def told_at(kept: KeptLease[Phase1Lease]) -> list[float]:
    told: list[float] = []
    kept.signal.on_stop(lambda: told.append(trust_clock()))
    return told


def test_every_kind_of_lease_is_kept_past_its_duration(runtime: StateRuntime) -> None:
    with LeaseKeeper(runtime) as keeper:
        kept = []
        for kind in (Phase1Lease, LockLease, BackfillLease):
            requested_at = trust_clock()
            kept.append(keeper.keep(claim_of(runtime, kind, LONGER), requested_at=requested_at))
        time.sleep(LONGER_SECONDS + 1)
        assert all(each.trusted for each in kept)
        job, lock, _ = (each.lease for each in kept)
        assert isinstance(job, Phase1Lease)
        assert isinstance(lock, LockLease)
        with runtime.autocommit() as state:
            claims = [
                state.phase1_jobs.try_claim(job.key, owner=OTHER, source_updated_at=now(), lease=LONGER),
                state.consolidation_locks.try_claim(lock.key, owner=OTHER, lease=LONGER),
                state.backfill.try_claim(owner="another", lease=LONGER),
            ]
        assert claims == [Skipped(SkipReason.RUNNING)] * 3


@pytest.mark.parametrize("kind", [Phase1Lease, LockLease, BackfillLease])
def test_a_stolen_lease_stops_the_work_at_the_next_renewal(runtime: StateRuntime, kind: Kind) -> None:
    with LeaseKeeper(runtime) as keeper:
        kept = keeper.keep(claim_of(runtime, kind), requested_at=trust_clock())
        steal(runtime, kept.lease)
        assert kept.signal.wait(60)
        assert kept.signal.reason is StopReason.REFUSED


def test_work_under_a_kept_lease_can_fence_its_own_rows_until_it_is_over(runtime: StateRuntime) -> None:
    """L2."""
    lease = claim(runtime, user_key(add_threads(runtime)[0]))
    with LeaseKeeper(runtime) as keeper:
        with keeper.working(lease, requested_at=trust_clock()) as kept:
            assert current_work() is kept.signal
            with runtime.begin() as state:
                fence(state)
            steal(runtime, lease)
            with pytest.raises(WorkStoppedError), runtime.begin() as state:
                fence(state)
            assert kept.signal.reason is StopReason.REFUSED
        assert current_work() is None
        with pytest.raises(InvalidInputError, match="no lease"), runtime.begin() as state:
            fence(state)


def test_work_under_a_kept_lease_is_told_when_it_takes_too_long(runtime: StateRuntime) -> None:
    lease = claim(runtime, user_key(add_threads(runtime)[0]))
    with (
        LeaseKeeper(runtime) as keeper,
        keeper.working(lease, requested_at=trust_clock(), timeout=timedelta(seconds=0.1)) as kept,
    ):
        assert kept.signal.wait(60)
        assert kept.signal.reason is StopReason.TIMED_OUT


def test_a_job_that_was_finished_from_elsewhere_stops_the_work(runtime: StateRuntime) -> None:
    lease = claim(runtime, user_key(add_threads(runtime)[0]), lease=SECONDS)
    with LeaseKeeper(runtime) as keeper:
        kept = keeper.keep(lease, requested_at=trust_clock())
        with runtime.autocommit() as state:
            assert state.phase1_jobs.fail(lease, "an operator's decision") is HolderWrite.APPLIED
        assert kept.signal.wait(60)
        assert kept.signal.reason is StopReason.REFUSED


def test_the_work_is_told_before_a_rival_gets_the_lease_when_renewals_hang_in_a_locked_file(
    sqlite_settings: StateSettings, opened: Open
) -> None:
    """The holder's own runtime hangs in a write lock of another process; the rival's clock goes on."""
    runtime = opened(sqlite_settings)
    key = user_key(add_threads(runtime)[0])
    with LeaseKeeper(runtime) as keeper, closing(sqlite3.connect(sqlite_settings.database_path)) as locker:
        requested_at = trust_clock()
        kept = keeper.keep(claim(runtime, key, lease=SECONDS), requested_at=requested_at)
        told = told_at(kept)
        locker.isolation_level = None
        locker.execute("BEGIN IMMEDIATE")
        assert kept.signal.wait(60)
        assert kept.signal.reason is StopReason.LATE
        with rival(opened(sqlite_settings), key) as won:
            time.sleep(SECONDS - (trust_clock() - requested_at))
            locker.execute("ROLLBACK")
        # The renewal that hung is let through first or it isn't; either way the work was told before.
        assert told[0] < requested_at + SECONDS - 1
        assert not won or told[0] < won[0]
    assert not kept.trusted


def test_the_work_is_told_before_a_rival_gets_the_lease_when_the_server_is_frozen(
    postgres_settings: StateSettings, opened: Open
) -> None:
    assert postgres_settings.database_url is not None
    rivals = opened(postgres_settings)
    key = user_key(add_threads(rivals)[0])
    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        settings = StateSettings(
            codex_home=postgres_settings.codex_home,
            database_url=wire.url.render_as_string(hide_password=False),
            busy_timeout=timedelta(seconds=1),
        )
        runtime = opened(settings)
        with LeaseKeeper(runtime) as keeper:
            kept = keeper.keep(claim(runtime, key, lease=SECONDS), requested_at=trust_clock())
            told = told_at(kept)
            wire.freeze()
            with rival(rivals, key) as won:
                assert kept.signal.wait(60)
            assert kept.signal.reason is StopReason.LATE
            assert told[0] < won[0]
            wire.thaw()
        with runtime.autocommit() as state:
            assert state.phase1_jobs.fail(kept.lease, "too late") is HolderWrite.LEASE_LOST


def test_a_slow_database_costs_no_lease_while_renewals_come_in_time(
    postgres_settings: StateSettings, opened: Open
) -> None:
    assert postgres_settings.database_url is not None
    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        url = wire.url.render_as_string(hide_password=False)
        runtime = opened(StateSettings(codex_home=postgres_settings.codex_home, database_url=url))
        lease = claim(runtime, user_key(add_threads(runtime)[0]), lease=LONGER_SECONDS)
        with LeaseKeeper(runtime) as keeper:
            kept = keeper.keep(lease, requested_at=trust_clock())
            for _ in range(7):
                wire.freeze()
                assert not kept.signal.wait(0.7)
                wire.thaw()
                assert not kept.signal.wait(0.3)
            assert kept.trusted


def test_a_broken_connection_is_replaced(postgres_settings: StateSettings, opened: Open) -> None:
    assert postgres_settings.database_url is not None
    runtime = opened(postgres_settings)
    lease = claim(runtime, user_key(add_threads(runtime)[0]), lease=LONGER_SECONDS)
    with LeaseKeeper(runtime) as keeper:
        kept = keeper.keep(lease, requested_at=trust_clock())
        time.sleep(0.5)
        with opened(postgres_settings).begin() as state:
            ended = state.session.connection().exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert len(ended.all()) >= 1
        assert not kept.signal.wait(LONGER_SECONDS + 1)
        assert kept.last_error is None


def test_a_server_that_is_away_is_asked_with_pauses_however_many_leases_wait_for_it(
    postgres_settings: StateSettings, opened: Open
) -> None:
    assert postgres_settings.database_url is not None
    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        url = wire.url.render_as_string(hide_password=False)
        runtime = opened(StateSettings(codex_home=postgres_settings.codex_home, database_url=url))
        add_threads(runtime, 32)
        tried = threading.Semaphore(0)
        with LeaseKeeper(runtime) as keeper:
            requested_at = trust_clock() - 40
            with runtime.begin() as state:
                leases = state.phase1_jobs.claim_candidates(owner=OWNER, lease=timedelta(minutes=1))
            wire.close()
            runtime.engine.dispose()
            event.listen(runtime.engine, "do_connect", lambda *_: tried.release())
            kept = [keeper.keep(lease, requested_at=requested_at) for lease in leases]
            assert tried.acquire(timeout=60)
            time.sleep(2)  # a twentieth of the lease's window, which is the pause, is longer
            assert len(kept) == 64
            assert sum(tried.acquire(blocking=False) for _ in range(64)) < 4
            assert all(each.trusted for each in kept)


def test_renewals_have_a_connection_of_their_own(runtime: StateRuntime) -> None:
    """The work may take every pooled connection that it gets, for longer than a lease lasts."""
    lease = claim(runtime, user_key(add_threads(runtime)[0]), lease=LONGER_SECONDS)
    taken, give_back = threading.Semaphore(0), threading.Event()

    def take() -> None:
        with runtime.autocommit() as state:
            state.session.connection()
            taken.release()
            give_back.wait(60)

    with LeaseKeeper(runtime) as keeper:
        kept = keeper.keep(lease, requested_at=trust_clock())
        time.sleep(0.2)
        takers = [threading.Thread(target=take) for _ in range(runtime.settings.pool_size)]
        for taker in takers:
            taker.start()
        for _ in takers[1:]:
            assert taken.acquire(timeout=60)
        assert not kept.signal.wait(LONGER_SECONDS + 1)
        assert not taken.acquire(blocking=False), "the last connection isn't to be had"
        give_back.set()
        for taker in takers:
            taker.join()


def test_a_pool_of_one_connection_is_shared_with_the_work(sqlite_settings: StateSettings, opened: Open) -> None:
    runtime = opened(sqlite_settings.model_copy(update={"pool_size": 1}))
    lease = claim(runtime, user_key(add_threads(runtime)[0]), lease=LONGER_SECONDS)
    with LeaseKeeper(runtime) as keeper:
        kept = keeper.keep(lease, requested_at=trust_clock())
        for _ in range(70):
            with runtime.read() as state:
                assert state.phase1_jobs.get(lease.key) is not None
            assert not kept.signal.wait(0.1)


def test_128_leases_of_one_pass_are_kept_over_one_connection(runtime: StateRuntime) -> None:
    add_threads(runtime, 64)
    with LeaseKeeper(runtime) as keeper:
        requested_at = trust_clock()
        with runtime.begin() as state:
            leases = state.phase1_jobs.claim_candidates(owner=OWNER, lease=LONGER)
        kept = [keeper.keep(lease, requested_at=requested_at) for lease in leases]
        time.sleep(LONGER_SECONDS + 1)
        assert len(kept) == 128
        assert all(each.trusted for each in kept)
        with runtime.begin() as state:
            assert state.phase1_jobs.claim_candidates(owner=OTHER, lease=LONGER) == []
