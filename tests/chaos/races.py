"""Workers that race for grants, each in a process of its own, with the settings that a caller has by default."""

from __future__ import annotations

import mmap
import os
import random
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from codex_state.database import Database
from codex_state.models import BackfillLease, Claimed, Lease, LockLease, Phase1Lease, Skipped
from codex_state.repositories import Phase1JobRepository, ThreadMemoryRepository
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import GRANTS, owner_of, thread_id_of
from tests.chaos.channel import Channel

LEASE = timedelta(hours=1)

KINDS: dict[str, type[Lease[Any]]] = {"job": Phase1Lease, "lock": LockLease, "backfill": BackfillLease}

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
            time.sleep(0)

    def close(self) -> None:
        self._memory.close()


@contextmanager
def _opened(url: str, clock: str | None) -> Iterator[Database]:
    with ExitStack() as held:
        database = Database.open(url)
        held.callback(database.close)
        if clock is not None:
            held.enter_context(ManualClock(Path(clock))).install(database)
        yield database


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
                    won[str(number)] = lease.token
                case Skipped(reason):
                    refused[reason] = refused.get(reason, 0) + 1
    # Whoever left now would be dead, and the last round's work free.
    rendezvous.meet(rounds + 1)
    rendezvous.close()
    channel.send({"won": won, "refused": refused})


def finish_all(channel: Channel, url: str, clock: str | None, jobs: int, position: int) -> None:
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


_RAW_CLAIM = """
INSERT INTO memory_phase1_jobs (thread_id, scope_kind, scope_key, status, owner_session_id, started_at,
    source_updated_at, ownership_token, attempt)
SELECT id, 'user', 'user', 'running', ?, CAST(strftime('%s', 'now') AS INTEGER), ?, ?, 1 FROM threads WHERE id = ?
ON CONFLICT (thread_id, scope_kind, scope_key) DO UPDATE SET status = excluded.status,
    owner_session_id = excluded.owner_session_id, started_at = excluded.started_at, finished_at = NULL,
    failure_reason = NULL, source_updated_at = excluded.source_updated_at, raw_memory_path = NULL, summary_hash = NULL,
    ownership_token = excluded.ownership_token, attempt = attempt + 1, retry_at = NULL
WHERE status = 'failed' AND retry_at <= CAST(strftime('%s', 'now') AS INTEGER)
    OR status = 'succeeded' AND source_updated_at < excluded.source_updated_at
    OR status = 'running' AND started_at <= CAST(strftime('%s', 'now') AS INTEGER) - 3600
RETURNING ownership_token
"""
_RAW_FINISH = """
UPDATE memory_phase1_jobs SET status = 'succeeded', finished_at = CAST(strftime('%s', 'now') AS INTEGER)
WHERE thread_id = ? AND scope_kind = 'user' AND scope_key = 'user' AND status = 'running' AND ownership_token = ?
RETURNING attempt
"""


def finish_all_raw(channel: Channel, path: str, jobs: int, position: int) -> None:
    """The floor: the same work by the same statements on the standard library's ``sqlite3``, with its busy handler."""
    numbers = list(range(jobs))
    random.Random(position).shuffle(numbers)
    finished, worst = 0, 0.0
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        channel.send("ready")
        channel.receive()
        started = time.monotonic()
        for number in numbers:
            before = time.monotonic()
            thread, token = str(thread_id_of(str(number))), uuid4().hex
            if connection.execute(_RAW_CLAIM, (str(owner_of("raw")), 1, token, thread)).fetchall():
                finished += len(connection.execute(_RAW_FINISH, (thread, token)).fetchall())
            worst = max(worst, time.monotonic() - before)
        seconds = time.monotonic() - started
    channel.send({"finished": finished, "claims": jobs, "seconds": seconds, "worst": worst})


def take_candidates(channel: Channel, url: str, clock: str, position: int, limit: int) -> None:
    """Claim candidates in batches, and finish them, until there are none."""
    taken: list[tuple[str, str, str]] = []
    with _opened(url, clock) as database, database.autocommit() as session:
        jobs = Phase1JobRepository(session)
        channel.send("ready")
        channel.receive()
        while leases := jobs.claim_candidates(owner=owner_of(f"worker {position}"), lease=LEASE, limit=limit):
            for lease in leases:
                taken.append((str(lease.key.thread_id), lease.key.scope.kind, lease.token))
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
