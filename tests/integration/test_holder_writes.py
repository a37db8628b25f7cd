"""A holder that was paused while another took over changes nothing, on any path (law L2).

The tests are generated from the registry of holder writes: for each of them, a real process that holds the grant is
stopped past its lease, another process takes over, and the first goes on with its write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import stores
from sqlalchemy import text

from codex_state.testing.grants import GRANTS, add_thread, take
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from tests.chaos import worlds
from tests.chaos.holder import written
from tests.chaos.processes import WorkerHost
from tests.chaos.worlds import World

host, shared, world = worlds.host, worlds.shared, worlds.world

LEASE = timedelta(seconds=60)
NAME = "work"
EVERY_WRITE = pytest.mark.parametrize("write", HOLDER_WRITES, ids=lambda write: write.name)


@contextmanager
def _holding(host: WorkerHost, world: World, *writes: RegisteredWrite[Any], seconds: int, clock: bool) -> Iterator[Any]:
    worker = host.start("tests.chaos.holder:hold", url=world.url, clock=world.clock_path if clock else None)
    for write in writes:
        worker.call({"do": "take", "write": write.name, "name": _name_of(write), "lease": seconds})
    yield worker
    worker.close()


def _name_of(write: RegisteredWrite[Any]) -> str:
    return f"{NAME} {write.name}"


def _arrange(world: World, *writes: RegisteredWrite[Any]) -> None:
    with world.database.begin() as session:
        for write in writes:
            add_thread(session, _name_of(write))
            write.arrange(session)


def _take_over(world: World, write: RegisteredWrite[Any], lease: timedelta = LEASE) -> Any:
    with world.database.autocommit() as session:
        return take(session, write.lease, _name_of(write), "rival", lease)


@EVERY_WRITE
@pytest.mark.parametrize("mode", ["autocommit", "begin"])
def test_a_holder_stopped_past_its_lease_changes_nothing_after_a_take_over(
    host: WorkerHost, world: World, write: RegisteredWrite[Any], mode: str
) -> None:
    """L2."""
    _arrange(world, write)
    with _holding(host, world, write, seconds=60, clock=True) as holder:
        holder.stop()
        world.clock.advance(LEASE)
        rival = _take_over(world, write)
        before = world.rows()
        holder.send({"do": "write", "write": write.name, "mode": mode})
        holder.proceed()
        answer = holder.receive()
    assert answer["refused"], f"the stopped holder was answered {answer['answer']}"
    assert world.rows() == before
    # What was refused was the holder, not the write: the rival may make the same.
    world.clock.advance(timedelta(seconds=1))
    assert written(world.database, write, rival, mode) is not write.refused
    assert world.rows() != before


@EVERY_WRITE
def test_a_holder_stopped_past_its_lease_changes_nothing_after_the_other_has_finished(
    host: WorkerHost, world: World, write: RegisteredWrite[Any]
) -> None:
    """L2."""
    _arrange(world, write)
    with _holding(host, world, write, seconds=60, clock=True) as holder:
        holder.stop()
        world.clock.advance(LEASE)
        rival = _take_over(world, write)
        with world.database.autocommit() as session:
            assert GRANTS[write.lease].finish(session, rival)
        before = world.rows()
        holder.send({"do": "write", "write": write.name, "mode": "autocommit"})
        holder.proceed()
        assert holder.receive()["refused"]
    assert world.rows() == before


@EVERY_WRITE
def test_a_holder_stopped_while_its_write_waits_for_the_take_over_changes_nothing(
    host: WorkerHost, world: World, write: RegisteredWrite[Any]
) -> None:
    """L2: the write was sent before the take-over was committed, and is decided after it."""
    _arrange(world, write)
    with _holding(host, world, write, seconds=60, clock=True) as holder:
        world.clock.advance(LEASE)
        with world.database.begin() as session:
            take(session, write.lease, _name_of(write), "rival", LEASE)
            holder.send({"do": "write", "write": write.name, "mode": "autocommit"})
            _wait_until_somebody_waits(world)
            holder.stop()
        before = world.rows()
        holder.proceed()
        assert holder.receive()["refused"]
    assert world.rows() == before


def test_by_the_real_clock_a_stopped_holder_of_everything_changes_nothing(host: WorkerHost, world: World) -> None:
    """L2, L3."""
    _arrange(world, *HOLDER_WRITES)
    with (
        stores.opened(world.url) as database,
        _holding(host, world, *HOLDER_WRITES, seconds=1, clock=False) as holder,
    ):
        real = World(world.url, world.clock_path, database, world.clock)
        holder.stop()
        time.sleep(1.1)  # leases are compared in whole seconds, so all of them are over now
        for write in HOLDER_WRITES:
            _take_over(real, write, timedelta(seconds=1))
        before = real.rows()
        for write in HOLDER_WRITES:
            holder.send({"do": "write", "write": write.name, "mode": "autocommit"})
        holder.proceed()
        answers = {write.name: holder.receive() for write in HOLDER_WRITES}
        assert real.rows() == before
    assert [name for name, answer in answers.items() if not answer["refused"]] == []


@pytest.mark.parametrize(
    ("write", "finish"),
    [
        pytest.param(write, finish, id=f"{write.name} after {finish.verb}")
        for write in HOLDER_WRITES
        for finish in HOLDER_WRITES
        if finish.finishes and finish.lease is write.lease
    ],
)
def test_a_holder_that_has_finished_changes_nothing_any_more(
    world: World, write: RegisteredWrite[Any], finish: RegisteredWrite[Any]
) -> None:
    """L2: the token may still be the current one; the work isn't running any more."""
    _arrange(world, write)
    lease = _take_over(world, write)
    assert written(world.database, finish, lease, "autocommit") is not finish.refused
    before = world.rows()
    world.clock.advance(timedelta(seconds=1))
    assert written(world.database, write, lease, "autocommit") is write.refused
    assert world.rows() == before


@EVERY_WRITE
def test_a_holders_token_opens_nothing_but_its_own_work(world: World, write: RegisteredWrite[Any]) -> None:
    """L2."""
    _arrange(world, write)
    with world.database.begin() as session:
        add_thread(session, "other work")
        other = take(session, write.lease, "other work", "holder", LEASE)
        mine = take(session, write.lease, _name_of(write), "holder", LEASE)
    before = world.rows()
    crossed = replace(other, token=mine.token)
    assert written(world.database, write, crossed, "autocommit") is write.refused
    assert world.rows() == before


def _wait_until_somebody_waits(world: World) -> None:
    deadline = time.monotonic() + 60
    waits = World.queue_is_taken if world.database.dialect == "sqlite" else _waits_for_a_lock
    while not waits(world):
        assert time.monotonic() < deadline, "the write does not wait"
        time.sleep(0.001)


def _waits_for_a_lock(world: World) -> bool:
    with world.database.autocommit() as session:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(session.connection().execute(waiting).scalar_one())
