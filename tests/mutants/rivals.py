"""Checks of what a single session can't see: whether a rival can get between the parts of a verb (law L1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection

from codex_state.database import Database
from codex_state.errors import DatabaseBusyError, UsageError
from codex_state.models import Claimed, ThreadQuery
from codex_state.repositories import ThreadRepository, base
from codex_state.testing.grants import GRANTS, add_thread, take
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from tests.chaos.worlds import World
from tests.mutants.bench import Bench, Check

SECOND = timedelta(seconds=1)
LEASE = 60 * SECOND


@contextmanager
def _after_statement(number: int, database: Database, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``act`` as soon as so many statements on ``database`` have run. Gives the numbers of those that ran."""
    ran: list[int] = []
    execute = base.execute

    def counted(connection: Connection, *arguments: Any, **options: Any) -> Any:
        answer = execute(connection, *arguments, **options)
        if connection.engine.pool is database.engine.pool:
            ran.append(len(ran) + 1)
            if len(ran) == number:
                act()
        return answer

    with patch.object(base, "execute", counted):
        yield ran


@contextmanager
def _two(bench: Bench) -> Iterator[tuple[World, Database]]:
    """A world, and a rival's own access to it, which doesn't wait: nobody but itself could end the waiting."""
    with bench.world() as world:
        rival = Database.open(world.url, busy_timeout=timedelta(0))
        try:
            world.clock.install(rival)
            yield world, rival
        finally:
            rival.close()


def _claim_check(kind: type, *, left_behind: bool) -> Check:
    def run_within(number: int, bench: Bench) -> bool:
        with _two(bench) as (world, other):
            with world.database.begin() as session:
                add_thread(session, "work")
                if left_behind:
                    take(session, kind, "work", "somebody who died", LEASE)
            world.clock.advance(LEASE)
            claims = []

            def claim(database: Database, owner: str) -> None:
                with database.autocommit() as session:
                    claims.append(GRANTS[kind].claim(session, "work", owner, LEASE))

            with _after_statement(number, world.database, lambda: claim(other, "rival")) as ran:
                claim(world.database, "first")
            assert sum(isinstance(answer, Claimed) for answer in claims) == 1, claims
            return number <= len(ran)

    def run(bench: Bench) -> None:
        number = 1
        while run_within(number, bench):
            number += 1

    state = "left behind" if left_behind else "free"
    return Check(f"of two that claim a {kind.__name__} that is {state}, one within the other, one gets it", run)


def _write_check(write: RegisteredWrite[Any]) -> Check:
    def run_within(number: int, bench: Bench) -> bool:
        with _two(bench) as (world, other):
            with world.database.begin() as session:
                add_thread(session, "work")
                write.arrange(session)
                lease = take(session, write.lease, "work", "holder", LEASE)
            world.clock.advance(LEASE)
            taken_over = []

            def take_over() -> None:
                # Within a transaction of the holder's nobody gets in between.
                with suppress(DatabaseBusyError, UsageError), other.autocommit() as session:
                    if isinstance(GRANTS[write.lease].claim(session, "work", "rival", LEASE), Claimed):
                        taken_over.append(world.rows())
                world.clock.advance(SECOND)  # or a wrong renewal would change nothing

            with (
                world.database.autocommit() as session,
                _after_statement(number, world.database, take_over) as ran,
            ):
                write.call(session, lease)
            if taken_over:
                assert world.rows() == taken_over[0], "rows changed after the take-over"
            return number <= len(ran)

    def run(bench: Bench) -> None:
        number = 1
        while run_within(number, bench):
            number += 1

    return Check(f"no row changes after a take-over within {write.name}", run)


def _a_writer_that_has_read_can_write(bench: Bench) -> None:
    """Law L6. The rival, who doesn't wait, is refused as busy."""
    with _two(bench) as (world, other):
        with world.database.begin() as session:
            add_thread(session, "work")
        with world.database.begin() as session:
            assert ThreadRepository(session).list_ids(ThreadQuery(limit=1))
            with suppress(DatabaseBusyError, UsageError), other.autocommit() as rival:
                add_thread(rival, "rival")
            add_thread(session, "more work")


def rival_checks() -> Iterator[Check]:
    """A check for every claim, and for every write of a holder."""
    for kind in GRANTS:
        yield _claim_check(kind, left_behind=False)
        yield _claim_check(kind, left_behind=True)
    for write in HOLDER_WRITES:
        yield _write_check(write)
    yield Check("a writer that has read can write", _a_writer_that_has_read_can_write)
