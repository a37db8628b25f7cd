"""Leases under several sessions at once: one is granted, whoever waits for whom (laws L1 and L2)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlmodel import Session

from codex_state.database import Database
from codex_state.models import Claimed, Phase1Lease, Skipped, SkipReason
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import GRANTS, add_thread, owner_of, take
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from codex_state.testing.samples import a_thread

_LEASE = timedelta(seconds=60)
_SECONDS = 60
_WHILE = 0.1
_WORK = "work"
_WORKERS = ("one", "two", "three", "four")

_EVERY_KIND = pytest.mark.parametrize("kind", GRANTS, ids=lambda kind: kind.__name__)
_EVERY_RENEWAL = pytest.mark.parametrize(
    "renewal", [write for write in HOLDER_WRITES if write.verb == "renew"], ids=lambda write: write.name
)


@pytest.mark.usefixtures("clock")
class TestLeasesAtOnce:
    """Claims and holder writes of several sessions on one piece of work."""

    @_EVERY_KIND
    def test_of_workers_that_claim_at_once_one_is_granted(
        self, database: Database, clock: ManualClock, kind: type
    ) -> None:
        """L1: new work, and then work whose lease is over."""
        _arrange(database)
        for _ in range(3):
            answers = _at_once(database, *(_claiming(kind, worker) for worker in _WORKERS))
            assert sorted(isinstance(answer, Claimed) for answer in answers) == [False, False, False, True]
            assert {answer for answer in answers if isinstance(answer, Skipped)} == {Skipped(SkipReason.RUNNING)}
            clock.advance(_LEASE)

    @_EVERY_KIND
    def test_a_claim_that_meets_an_uncommitted_one_is_refused_once_that_is_committed(
        self, database: Database, kind: type
    ) -> None:
        """L1."""
        _arrange(database)
        with ThreadPoolExecutor(1) as thread:
            with database.begin() as session:
                take(session, kind, _WORK, "holder", _LEASE)
                rival = _meets(thread, database, _claiming(kind, "rival"))
            assert rival.result() == Skipped(SkipReason.RUNNING)

    @_EVERY_KIND
    def test_a_claim_that_meets_an_uncommitted_one_is_granted_once_that_is_rolled_back(
        self, database: Database, kind: type
    ) -> None:
        """L1."""
        _arrange(database)
        with ThreadPoolExecutor(1) as thread:
            with database.begin() as session:
                take(session, kind, _WORK, "holder", _LEASE)
                rival = _meets(thread, database, _claiming(kind, "rival"))
                session.rollback()
            assert isinstance(rival.result(), Claimed)

    @_EVERY_RENEWAL
    def test_of_a_late_renewal_and_a_take_over_at_once_one_is_granted(
        self, database: Database, clock: ManualClock, renewal: RegisteredWrite[Any]
    ) -> None:
        """L2."""
        _arrange(database)
        for _ in range(3):
            with database.autocommit() as session:
                lease = take(session, renewal.lease, _WORK, "holder", _LEASE)
            clock.advance(_LEASE)
            renewed, claimed = _at_once(database, partial(_renewing, renewal, lease), _claiming(renewal.lease, "rival"))
            assert (renewed != renewal.refused) is not isinstance(claimed, Claimed)
            clock.advance(_LEASE)

    @_EVERY_RENEWAL
    def test_a_renewal_that_meets_an_uncommitted_take_over_is_refused(
        self, database: Database, clock: ManualClock, renewal: RegisteredWrite[Any]
    ) -> None:
        """L2."""
        _arrange(database)
        with database.autocommit() as session:
            lease = take(session, renewal.lease, _WORK, "holder", _LEASE)
        clock.advance(_LEASE)
        with ThreadPoolExecutor(1) as thread:
            with database.begin() as session:
                take(session, renewal.lease, _WORK, "rival", _LEASE)
                holder = _meets(thread, database, partial(_renewing, renewal, lease))
            assert holder.result() == renewal.refused

    def test_batches_that_are_claimed_at_once_never_meet(self, database: Database) -> None:
        """L1."""
        threads = [a_thread() for _ in range(32)]
        with database.begin() as session:
            State(session).threads.upsert_many(threads)

        def claiming(worker: str) -> Callable[[Session], list[Phase1Lease]]:
            return lambda session: State(session).phase1_jobs.claim_candidates(
                owner=owner_of(worker), lease=_LEASE, limit=8, scope_kinds=["user"]
            )

        batches = _at_once(database, *(claiming(worker) for worker in _WORKERS))
        # On PostgreSQL a batch may leave out what another was about to claim.
        while batches[-1]:
            batches.append(_by_itself(database, claiming("the rest")))
        claimed = [lease.key.thread_id for batch in batches for lease in batch]
        assert sorted(claimed) == sorted(thread.id for thread in threads)


def _arrange(database: Database) -> None:
    with database.begin() as session:
        add_thread(session, _WORK)


def _claiming(kind: type, worker: str) -> Callable[[Session], Any]:
    return lambda session: GRANTS[kind].claim(session, _WORK, worker, _LEASE)


def _renewing(renewal: RegisteredWrite[Any], lease: Any, session: Session) -> object:
    return renewal.call(session, lease)


def _at_once(database: Database, *works: Callable[[Session], Any]) -> list[Any]:
    """What each answers, in a session and a thread of its own. All start together."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[Session], Any]) -> Any:
        # Before the session: a database in memory has one connection, and then one after another gets it.
        barrier.wait(_SECONDS)
        return _by_itself(database, work)

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


def _by_itself(database: Database, work: Callable[[Session], Any]) -> Any:
    with database.autocommit() as session:
        return work(session)


def _meets(thread: ThreadPoolExecutor, database: Database, work: Callable[[Session], Any]) -> Future[Any]:
    """Start ``work`` while a transaction of ours is in its way. It waits, so it can't have ended after a while."""
    future = thread.submit(_by_itself, database, work)
    done, _ = wait([future], timeout=_WHILE)
    assert not done, f"it did not wait but answered {future.result()}"
    return future
