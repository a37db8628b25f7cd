"""A server that crashes before its last commits were on the disk, because it was told not to wait for that."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from memory_support import OTHER, add_threads, claim, now, user_key
from own_server import OwnServer, own_server

from codex_state import Claimed, HolderWrite, LogQuery, State, StateRuntime, StateSettings, ThreadQuery
from codex_state.testing.samples import a_log_line, a_thread

UNITS = 50


@pytest.fixture
def server() -> Iterator[OwnServer]:
    # Nothing is written for a while after a commit, so that there is something to be lost.
    with own_server("synchronous_commit = off\nwal_writer_delay = 10s\n") as started:
        yield started


@pytest.fixture
def runtime(server: OwnServer, tmp_path: Path) -> Iterator[StateRuntime]:
    settings = StateSettings(codex_home=tmp_path, database_url=server.url, retry_for=timedelta(seconds=60))
    with StateRuntime.open(settings) as opened:
        yield opened


def flush(server: OwnServer) -> None:
    """Commit so that everything until now is on the disk."""
    with psycopg.connect(server.url, options="-c synchronous_commit=on") as connection:
        connection.execute("CREATE TABLE flushed ()")


def crash(server: OwnServer) -> None:
    server.kill(signal.SIGQUIT)
    server.start()


def numbers(state: State) -> tuple[list[int], list[int]]:
    """Of the units of which there is one half, and of those of which there is the other."""
    titles = [int(thread.title) for thread in state.threads.list(ThreadQuery(limit=3 * UNITS)).items]
    return sorted(titles), sorted(int(line.message or "") for line in state.logs.query(LogQuery(limit=3 * UNITS)))


def test_a_crash_without_synchronous_commit_loses_the_last_units_whole_and_none_before_them(
    server: OwnServer, runtime: StateRuntime
) -> None:
    """L5."""

    def store(number: int) -> None:
        def unit(state: State) -> None:
            state.threads.upsert(a_thread(title=str(number)))
            state.logs.insert(a_log_line(str(number)))

        runtime.run(unit)

    for number in range(UNITS):
        store(number)
    flush(server)
    for number in range(UNITS, 2 * UNITS):
        store(number)
    crash(server)
    titles, messages = runtime.run_read(numbers)
    assert titles == messages
    assert titles == list(range(len(titles)))
    assert UNITS <= len(titles) < 2 * UNITS


def test_a_crash_loses_a_grant_with_all_that_was_written_under_it_and_the_job_is_done_again(
    server: OwnServer, runtime: StateRuntime
) -> None:
    """L2."""
    thread = add_threads(runtime)[0]
    flush(server)
    lost = claim(runtime, user_key(thread))
    with runtime.begin() as state:
        assert state.thread_memories.upsert_if_owner(lost, "raw", "summary")
    crash(server)

    assert runtime.run(lambda state: state.phase1_jobs.renew(lost)) is HolderWrite.LEASE_LOST
    again = runtime.run(
        lambda state: state.phase1_jobs.try_claim(
            lost.key, owner=OTHER, source_updated_at=now(), lease=timedelta(hours=1)
        )
    )
    assert isinstance(again, Claimed)
    assert runtime.run_read(lambda state: state.thread_memories.get(thread.id)) is None
    for lease, outcome in ((lost, HolderWrite.LEASE_LOST), (again.lease, HolderWrite.APPLIED)):
        with runtime.autocommit() as state:
            assert state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None) is outcome
