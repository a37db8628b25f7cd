"""Real processes that hold work and are killed: others of their host take it over at once (laws L1 and L2).

The clock stands still meanwhile, so no lease runs out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from codex_state.database import Database
from codex_state.models import (
    BackfillState,
    Claimed,
    ConsolidationLock,
    LockLease,
    NamedLease,
    NamedLock,
    Phase1Job,
    Phase1Lease,
    Skipped,
    SkipReason,
)
from codex_state.models.base import table_of
from codex_state.processes import THIS_HOST
from codex_state.runtime import State
from codex_state.testing.grants import GRANTS, add_thread, thread_id_of
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from tests.chaos import worlds
from tests.chaos.processes import Worker, WorkerHost
from tests.chaos.worlds import World

host, shared, world = worlds.host, worlds.shared, worlds.world

pytestmark = pytest.mark.skipif(THIS_HOST.host() is None, reason="processes have no identity here")

LEASE = timedelta(seconds=60)
WORK = "work"
RENEWALS = [write for write in HOLDER_WRITES if write.verb == "renew"]
EVERY_KIND = pytest.mark.parametrize("renewal", RENEWALS, ids=lambda write: write.lease.__name__)


@contextmanager
def held(host: WorkerHost, world: World, renewal: RegisteredWrite[Any]) -> Iterator[Worker]:
    """A process that holds the work."""
    with world.database.begin() as session:
        add_thread(session, WORK)
    worker = host.start("tests.chaos.holder:hold", url=world.url, clock=world.clock_path)
    worker.call({"do": "take", "write": renewal.name, "name": WORK, "lease": 60})
    yield worker
    worker.close()


def claim(database: Database, renewal: RegisteredWrite[Any]) -> Any:
    with database.autocommit() as session:
        return GRANTS[renewal.lease].claim(session, WORK, "rival", LEASE)


def table(renewal: RegisteredWrite[Any]) -> str:
    of_lease = {Phase1Lease: Phase1Job, LockLease: ConsolidationLock, NamedLease: NamedLock}
    return table_of(of_lease.get(renewal.lease, BackfillState)).name


def owner(world: World, renewal: RegisteredWrite[Any]) -> tuple[str, str]:
    with world.database.read() as session:
        (row,) = session.connection().execute(text(f"SELECT owner_name, owner_process FROM {table(renewal)}")).all()
    return row.owner_name, row.owner_process


@EVERY_KIND
def test_what_a_killed_process_held_is_taken_over_at_once(
    host: WorkerHost, world: World, renewal: RegisteredWrite[Any]
) -> None:
    with held(host, world, renewal) as holder:
        name, process = owner(world, renewal)
        assert f" process {holder.pid}" in name
        assert f":{holder.pid}:" in process
        assert claim(world.database, renewal) == Skipped(SkipReason.RUNNING)
        holder.kill()
        assert isinstance(claim(world.database, renewal), Claimed)
    assert owner(world, renewal)[1] == THIS_HOST.this().process


@EVERY_KIND
def test_what_a_zombie_held_is_taken_over_at_once(
    host: WorkerHost, world: World, renewal: RegisteredWrite[Any]
) -> None:
    """Its parent need not have noticed."""
    with held(host, world, renewal) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while ") Z " not in Path(f"/proc/{holder.pid}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert isinstance(claim(world.database, renewal), Claimed)


@EVERY_KIND
def test_what_a_stopped_process_holds_stays_its_own_until_its_lease_is_over(
    host: WorkerHost, world: World, renewal: RegisteredWrite[Any]
) -> None:
    with held(host, world, renewal) as holder:
        holder.stop()
        world.clock.advance(LEASE - timedelta(seconds=1))
        assert claim(world.database, renewal) == Skipped(SkipReason.RUNNING)
        holder.proceed()
        renewed = holder.call({"do": "write", "write": renewal.name, "mode": "autocommit"})
        assert not renewed["refused"]


@EVERY_KIND
@pytest.mark.parametrize("differs", ["boot id", "PID namespace"])
def test_who_was_killed_on_another_host_is_waited_for(
    host: WorkerHost, world: World, renewal: RegisteredWrite[Any], differs: str
) -> None:
    """Whatever process has its id here."""
    with held(host, world, renewal) as holder:
        boot, namespace, pid, start = owner(world, renewal)[1].split(":")
        moved = f"other:{namespace}:{pid}:{start}" if differs == "boot id" else f"{boot}:1:{pid}:{start}"
        with world.database.begin() as session:
            session.connection().execute(text(f"UPDATE {table(renewal)} SET owner_process = :moved"), {"moved": moved})
        holder.kill()
        world.clock.advance(LEASE - timedelta(seconds=1))
        assert claim(world.database, renewal) == Skipped(SkipReason.RUNNING)
        world.clock.advance(timedelta(seconds=1))
        assert isinstance(claim(world.database, renewal), Claimed)


def test_a_batch_takes_the_jobs_of_a_killed_process_at_once(host: WorkerHost, world: World) -> None:
    (renewal,) = [each for each in RENEWALS if each.lease is Phase1Lease]

    def batch() -> list[UUID]:
        with world.database.autocommit() as session:
            jobs = State(session).phase1_jobs
            leases = jobs.claim_candidates(owner=UUID(int=1), lease=LEASE, scope_kinds=["user"])
        return [lease.key.thread_id for lease in leases]

    with held(host, world, renewal) as holder:
        assert batch() == []
        holder.kill()
        assert batch() == [thread_id_of(WORK)]
        assert batch() == []
