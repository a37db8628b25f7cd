"""Processes that race for the same work: one wins, and nobody ever sees a lock error."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from codex_state.models import BackfillLease, LockLease, Phase1Lease, Phase1Status
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    Phase1JobRepository,
    ThreadRepository,
)
from codex_state.testing.grants import add_thread, take, thread_id_of
from codex_state.testing.samples import a_thread
from tests.chaos import worlds
from tests.chaos.processes import Worker, WorkerHost
from tests.chaos.races import KINDS, LEASE
from tests.chaos.worlds import World

host, shared, world = worlds.host, worlds.shared, worlds.world


def _stored_tokens(world: World, kind: str) -> dict[str, str | None]:
    """Who holds what, by the name of the work."""
    with world.database.read() as session:
        match KINDS[kind]:
            case type() as found if found is Phase1Lease:
                jobs = Phase1JobRepository(session).list(limit=1_000_000)
                return {str(job.thread_id): job.ownership_token for job in jobs}
            case type() as found if found is LockLease:
                return {lock.cwd.name: lock.ownership_token for lock in ConsolidationLockRepository(session).list()}
            case type() as found:
                assert found is BackfillLease
                return {state.home: state.ownership_token for state in BackfillRepository(session).list()}


def _race(host: WorkerHost, world: World, directory: Path, kind: str, rounds: int, members: int) -> None:
    workers = [
        host.start(
            "tests.chaos.races:claim_in_rounds",
            url=world.url,
            clock=world.clock_path,
            kind=kind,
            rounds=rounds,
            meeting=directory / "meeting",
            position=position,
            members=members,
        )
        for position in range(members)
    ]
    answers = [worker.receive() for worker in workers]
    winners = Counter(number for answer in answers for number in answer["won"])
    assert winners == Counter(str(number) for number in range(1, rounds + 1))
    refusals = sum((Counter(answer["refused"]) for answer in answers), Counter())
    assert refusals == Counter(running=rounds * (members - 1))
    won = {number: token for answer in answers for number, token in answer["won"].items()}
    if kind == "job":
        won = {str(thread_id_of(number)): token for number, token in won.items()}
    assert _stored_tokens(world, kind) == won
    # Nobody was so slow that there was no race.
    assert min(len(answer["won"]) for answer in answers) > 0


def _add_threads(world: World, count: int, *, first: int = 1) -> None:
    with world.database.begin() as session:
        ThreadRepository(session).upsert_many(
            a_thread(id=thread_id_of(str(number))) for number in range(first, first + count)
        )


def test_of_two_processes_that_claim_the_same_job_exactly_one_gets_it(
    host: WorkerHost, world: World, tmp_path: Path
) -> None:
    """L1: 2,000 jobs, each claimed by both at the same moment."""
    _add_threads(world, 2000)
    _race(host, world, tmp_path, "job", rounds=2000, members=2)


def test_of_many_processes_that_take_over_the_same_stale_job_exactly_one_gets_it(
    host: WorkerHost, world: World, tmp_path: Path
) -> None:
    """L1."""
    _add_threads(world, 500)
    with world.database.begin() as session:
        for number in range(1, 501):
            take(session, Phase1Lease, str(number), "somebody who died", LEASE)
    world.clock.advance(LEASE)
    _race(host, world, tmp_path, "job", rounds=500, members=4)
    with world.database.read() as session:
        assert {job.attempt for job in Phase1JobRepository(session).list(limit=1000)} == {2}


@pytest.mark.parametrize("kind", ["lock", "backfill"])
def test_of_two_processes_that_claim_the_same_lock_or_backfill_exactly_one_gets_it(
    host: WorkerHost, world: World, tmp_path: Path, kind: str
) -> None:
    """L1."""
    _race(host, world, tmp_path, kind, rounds=500, members=2)


def test_eight_processes_finish_each_job_exactly_once(host: WorkerHost, world: World) -> None:
    """L1, L2."""
    jobs = 400
    _add_threads(world, jobs, first=0)
    workers = [
        host.start("tests.chaos.races:finish_all", url=world.url, clock=world.clock_path, jobs=jobs, position=position)
        for position in range(8)
    ]
    answers = _raced(workers)
    assert Counter(number for answer in answers for number in answer["finished"]) == Counter(range(jobs))
    assert [answer["claims"] for answer in answers] == [jobs] * 8
    with world.database.read() as session:
        stored = Phase1JobRepository(session).list(limit=jobs + 1)
        assert Counter((job.status, job.attempt) for job in stored) == {(Phase1Status.SUCCEEDED, 1): jobs}


def test_processes_that_claim_candidates_at_once_never_get_the_same_job(host: WorkerHost, world: World) -> None:
    """L1."""
    _add_threads(world, 300)
    workers = [
        host.start(
            "tests.chaos.races:take_candidates", url=world.url, clock=world.clock_path, position=position, limit=7
        )
        for position in range(4)
    ]
    taken = [tuple(job) for answer in _raced(workers) for job in answer["taken"]]
    expected = {(str(thread_id_of(str(number))), kind) for number in range(1, 301) for kind in ("cwd", "user")}
    assert Counter((thread, kind) for thread, kind, _token in taken) == Counter(expected)
    assert len({token for _thread, _kind, token in taken}) == 600


@pytest.mark.parametrize("shared", ["sqlite"], indirect=True)
def test_a_process_stopped_at_the_head_of_the_write_queue_keeps_nobody_from_writing(
    host: WorkerHost, world: World
) -> None:
    """The others wait less than the busy timeout, or one of them would see a lock error."""
    with world.database.begin() as session:
        add_thread(session, "busy")
    head, *others = (
        host.start("tests.chaos.races:write_memories", url=world.url, clock=world.clock_path, name="busy", times=times)
        for times in (1, 200, 200, 200)
    )
    assert head.receive() == "ready"
    with world.database.begin() as session:
        session.connection()  # everybody else is busy now
        head.send("go")
        _wait_until_queueing(world)
        head.stop()
    assert world.queue_is_taken()
    assert [answer["written"] for answer in _raced(others)] == [200, 200, 200]
    assert world.queue_is_taken()
    head.proceed()
    assert head.receive() == {"written": 1}
    assert not world.queue_is_taken()


@pytest.mark.parametrize("shared", ["sqlite"], indirect=True)
def test_a_process_killed_at_the_head_of_the_write_queue_leaves_it(host: WorkerHost, world: World) -> None:
    with world.database.begin() as session:
        add_thread(session, "busy")
    head = host.start("tests.chaos.races:write_memories", url=world.url, clock=world.clock_path, name="busy", times=1)
    assert head.receive() == "ready"
    with world.database.begin() as session:
        session.connection()
        head.send("go")
        _wait_until_queueing(world)
        head.kill()
        assert not world.queue_is_taken()


def _wait_until_queueing(world: World) -> None:
    deadline = time.monotonic() + 60
    while not world.queue_is_taken():
        assert time.monotonic() < deadline, "it does not queue"
        time.sleep(0.001)


def _raced(workers: list[Worker]) -> list[dict[str, object]]:
    """Start the workers together, and wait for what they have to tell."""
    for worker in workers:
        assert worker.receive() == "ready"
    for worker in workers:
        worker.send("go")
    return [worker.receive() for worker in workers]
