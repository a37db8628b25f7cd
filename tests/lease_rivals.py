"""Leases of every kind for tests of the keepers, and others who want them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from memory_support import OTHER, OWNER, add_threads, claim, now, user_key

from codex_state import BackfillLease, Claimed, LockLease, Phase1Key, Phase1Lease, StateRuntime, trust_clock

SECONDS = 3
LEASE = timedelta(seconds=SECONDS)

LONGER_SECONDS = 6
LONGER = timedelta(seconds=LONGER_SECONDS)
"""For leases that must be kept, also on a machine that does much else."""

Kind = type[Phase1Lease] | type[LockLease] | type[BackfillLease]


def claim_of(runtime: StateRuntime, kind: Kind, lease: timedelta = LEASE) -> Phase1Lease | LockLease | BackfillLease:
    if kind is Phase1Lease:
        return claim(runtime, user_key(add_threads(runtime)[0]), lease=lease.total_seconds())
    with runtime.autocommit() as state:
        if kind is LockLease:
            lock = state.consolidation_locks.try_claim(Path("/memories"), owner=OWNER, lease=lease)
            assert isinstance(lock, Claimed)
            return lock.lease
        backfill = state.backfill.try_claim(owner="somebody", lease=lease)
        assert isinstance(backfill, Claimed)
        return backfill.lease


def steal(runtime: StateRuntime, lease: Phase1Lease | LockLease | BackfillLease) -> None:
    with runtime.autocommit() as state:
        match lease:
            case Phase1Lease():
                taken: object = state.phase1_jobs.try_claim(
                    lease.key, owner=OTHER, source_updated_at=now(), lease=timedelta(0)
                )
            case LockLease():
                taken = state.consolidation_locks.try_claim(lease.key, owner=OTHER, lease=timedelta(0))
            case BackfillLease():
                taken = Claimed(state.backfill.take_over(owner="another", lease=LEASE))
    assert isinstance(taken, Claimed)


@contextmanager
def rival(runtime: StateRuntime, key: Phase1Key) -> Iterator[list[float]]:
    """Claims the job again and again until it gets it. Yields the list that will hold the moment of its success."""
    won: list[float] = []
    stop = threading.Event()

    def compete() -> None:
        while not stop.wait(0.005):
            with runtime.autocommit() as state:
                outcome = state.phase1_jobs.try_claim(key, owner=OTHER, source_updated_at=now(), lease=LEASE)
            if isinstance(outcome, Claimed):
                won.append(trust_clock())
                return

    thread = threading.Thread(target=compete)
    thread.start()
    try:
        yield won
        thread.join(60)
    finally:
        stop.set()
        thread.join(60)
