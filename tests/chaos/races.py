"""Workers that race for grants, each in a process of its own, with the settings that a caller has by default."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from codex_state.database import Database
from codex_state.models import BackfillLease, Claimed, LockLease, Phase1Lease, Skipped
from codex_state.repositories import Phase1JobRepository, ThreadMemoryRepository
from codex_state.testing.clock import ManualClock
from tests.chaos.channel import Channel
from tests.chaos.grants import GRANTS, Lease, owner_of, thread_id_of

LEASE = timedelta(hours=1)

KINDS: dict[str, type[Lease]] = {"job": Phase1Lease, "lock": LockLease, "backfill": BackfillLease}

_SLOT = struct.Struct("<q")


class Rendezvous:
    """Lets processes start each round at the same moment, as exactly as processes can."""

    def __init__(self, path: Path, position: int, members: int) -> None:
        self._position, self._members = position, members
        with path.open("a+b") as file:
            file.truncate(_SLOT.size * members)
            self._memory = mmap.mmap(file.fileno(), _SLOT.size * members)

    def meet(self, number: int) -> None:
        """Wait until everybody is in round ``number``, counted from one."""
        _SLOT.pack_into(self._memory, self._position * _SLOT.size, number)
        while any(_SLOT.unpack_from(self._memory, member * _SLOT.size)[0] < number for member in range(self._members)):
            os.sched_yield()

    def close(self) -> None:
        self._memory.close()


@contextmanager
def _opened(url: str, clock: str) -> Iterator[Database]:
    database = Database.open(url)
    try:
        with ManualClock(Path(clock)) as manual:
            manual.install(database)
            yield database
    finally:
        database.close()


def claim_in_rounds(
    channel: Channel, url: str, clock: str, kind: str, rounds: int, meeting: str, position: int, members: int
) -> None:
    """Claim the work of each round at the same moment as the others. Tells what was won, by token."""
    rendezvous = Rendezvous(Path(meeting), position, members)
    won: dict[str, str] = {}
    refused: dict[str, int] = {}
    with _opened(url, clock) as database, database.autocommit() as session:
        for number in range(1, rounds + 1):
            rendezvous.meet(number)
            claim = GRANTS[KINDS[kind]].claim(session, str(number), f"worker {position}", LEASE)
            match claim:
                case Claimed(lease):
                    won[str(number)] = lease.ownership_token
                case Skipped(reason):
                    refused[reason] = refused.get(reason, 0) + 1
    rendezvous.close()
    channel.send({"won": won, "refused": refused})


def finish_all(channel: Channel, url: str, clock: str, jobs: int, position: int) -> None:
    """Try to claim every job, in an order of one's own, and finish those that were won."""
    numbers = list(range(jobs))
    random.Random(position).shuffle(numbers)
    finished: list[int] = []
    claims, worst = 0, 0.0
    with _opened(url, clock) as database, database.autocommit() as session:
        channel.send("ready")
        channel.receive()
        started = time.monotonic()
        for number in numbers:
            before = time.monotonic()
            claim = GRANTS[Phase1Lease].claim(session, str(number), f"worker {position}", LEASE)
            claims += 1
            if isinstance(claim, Claimed):
                assert GRANTS[Phase1Lease].finish(session, claim.lease)
                finished.append(number)
            worst = max(worst, time.monotonic() - before)
        seconds = time.monotonic() - started
    channel.send({"finished": finished, "claims": claims, "seconds": seconds, "worst": worst})


def take_candidates(channel: Channel, url: str, clock: str, position: int, limit: int) -> None:
    """Claim candidates in batches, and finish them, until there are none."""
    taken: list[tuple[str, str, str]] = []
    with _opened(url, clock) as database, database.autocommit() as session:
        jobs = Phase1JobRepository(session)
        channel.send("ready")
        channel.receive()
        while leases := jobs.claim_candidates(owner=owner_of(f"worker {position}"), lease=LEASE, limit=limit):
            for lease in leases:
                taken.append((str(lease.key.thread_id), lease.key.scope.kind, lease.ownership_token))
                assert jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
    channel.send({"taken": taken})


def write_memories(channel: Channel, url: str, clock: str, name: str, times: int) -> None:
    """Write one thread's memory again and again. Tells when it is about to begin."""
    with _opened(url, clock) as database, database.autocommit() as session:
        memories = ThreadMemoryRepository(session)
        channel.send("ready")
        channel.receive()
        for number in range(times):
            memories.upsert(thread_id_of(name), f"text {number} of {os.getpid()}", "summary")
    channel.send({"written": times})
