"""The worker of the proof that a paused holder changes nothing: it takes a grant and, when told to, writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlmodel import Session

from codex_state.database import Database
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import take
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from tests.chaos.channel import Channel, ChannelClosedError

BY_NAME = {write.name: write for write in HOLDER_WRITES}

BUSY_TIMEOUT = timedelta(seconds=60)
"""Long, because a write that waits for another must be refused for its token and for nothing else."""


@contextmanager
def opened(url: str, clock: Path | None) -> Iterator[Database]:
    """A database, on the manual clock of a file if there is one."""
    with ExitStack() as held:
        database = Database.open(url, busy_timeout=BUSY_TIMEOUT)
        held.callback(database.close)
        if clock is not None:
            held.enter_context(ManualClock(clock)).install(database)
        yield database


def written(database: Database, write: RegisteredWrite[Any], lease: Any, mode: str) -> object:
    """What a holder's write answers, in a transaction of its own (``begin``) or by itself (``autocommit``)."""
    with _session(database, mode) as session:
        return write.call(session, lease)


@contextmanager
def _session(database: Database, mode: str) -> Iterator[Session]:
    with database.begin() if mode == "begin" else database.autocommit() as session:
        yield session


def hold(channel: Channel, url: str, clock: str | None) -> None:
    """Take grants and make writes, as told, until the other side hangs up."""
    leases: dict[str, Any] = {}
    with opened(url, clock and Path(clock)) as database:
        while True:
            try:
                order = channel.receive()
            except ChannelClosedError:
                return
            write = BY_NAME[order["write"]]
            if order["do"] == "take":
                with database.autocommit() as session:
                    lease = take(session, write.lease, order["name"], "holder", timedelta(seconds=order["lease"]))
                leases[write.name] = lease
                channel.send({"token": lease.token})
            else:
                answer = written(database, write, leases[write.name], order["mode"])
                channel.send({"refused": answer == write.refused, "answer": repr(answer)})
