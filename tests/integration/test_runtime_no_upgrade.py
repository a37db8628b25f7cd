"""Law L6 as the drivers see it: a transaction that writes began as a writer, and nobody meets a stale snapshot."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event
from sqlmodel import Session

from codex_state.errors import DatabaseReadOnlyError
from codex_state.models import Claimed, LogQuery, MemoryScope, Phase1Key, Thread, ThreadQuery
from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import NOON, a_log_line, a_thread, a_tool

_WRITE = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|WITH\b.*\b(INSERT|UPDATE|DELETE)\b)", re.IGNORECASE | re.DOTALL)


class Tracer:
    """What every connection of an engine ran, in order, as SQLite itself reports it."""

    def __init__(self, engine: Any) -> None:
        self.scripts: list[list[str]] = []
        event.listen(engine.pool, "connect", self._trace)
        engine.dispose()

    def _trace(self, connection: sqlite3.Connection, _record: object) -> None:
        script: list[str] = []
        self.scripts.append(script)
        connection.set_trace_callback(script.append)

    @property
    def upgrades(self) -> list[str]:
        """The writes that were done in a transaction that began as a reader."""
        found = []
        for script in self.scripts:
            reading = False
            for statement in script:
                word = statement.strip().upper()
                if word.startswith(("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "COMMIT", "ROLLBACK", "END")):
                    reading = False
                elif word.startswith("BEGIN"):
                    reading = True
                elif reading and _WRITE.match(statement):
                    found.append(statement)
        return found

    @property
    def writes(self) -> int:
        return sum(bool(_WRITE.match(statement)) for script in self.scripts for statement in script)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=tmp_path)) as runtime:
        yield runtime


def _everything(state: State) -> None:
    """Every kind of write, most after a read."""
    hour = timedelta(hours=1)
    thread = a_thread()
    assert state.threads.get(thread.id) is None
    state.threads.upsert(thread)
    state.threads.upsert_many([a_thread(), a_thread()])
    state.threads.upsert_from_rollouts([thread])
    state.threads.insert_if_absent(thread)
    state.threads.mark_archived(thread.id, Path("/a"), NOON)
    state.threads.mark_unarchived(thread.id, Path("/a"))
    state.threads.set_name(thread.id, "t")
    state.threads.set_memory_mode(thread.id, "enabled")
    state.threads.list(ThreadQuery(limit=5))
    state.dynamic_tools.persist([a_tool(thread, 0), a_tool(thread, 1)])
    scope = MemoryScope.user()
    claimed = state.phase1_jobs.try_claim(
        Phase1Key(thread.id, scope), owner=uuid4(), source_updated_at=NOON, lease=hour
    )
    assert isinstance(claimed, Claimed)
    state.phase1_jobs.renew(claimed.lease)
    state.thread_memories.upsert_if_owner(claimed.lease, "r", "s")
    state.phase1_jobs.fail(claimed.lease, "f")
    state.phase1_jobs.requeue(claimed.lease.key)
    state.phase1_jobs.claim_candidates(owner=uuid4(), lease=hour, max_age=timedelta(days=99_999), max_running=3)
    state.thread_memories.record_use(thread.id, scope)
    state.thread_memories.invalidate(thread.id, scope, "r")
    state.memory_scopes.mark_clean(scope, seen=state.memory_scopes.mark_dirty(scope))
    lock = state.consolidation_locks.try_claim(Path("/r"), owner=uuid4(), lease=hour)
    assert isinstance(lock, Claimed)
    state.consolidation_locks.renew(lock.lease)
    state.consolidation_locks.release(lock.lease)
    backfill = state.backfill.take_over(owner="me", lease=hour)
    state.backfill.checkpoint(backfill, "a")
    state.backfill.complete(backfill)
    state.logs.query(LogQuery())
    state.logs.insert_many([a_log_line("a"), a_log_line("b")])
    state.logs.retain(max_rows=1, max_age=hour, max_bytes=10)
    state.threads.delete(thread.id)


@pytest.mark.parametrize("mode", ["begin", "autocommit", "own session"])
def test_whatever_writes_began_as_a_writer(runtime: StateRuntime, mode: str) -> None:
    """L6."""
    tracer = Tracer(runtime.engine)
    if mode == "own session":
        with Session(runtime.engine) as session:
            session.add(Thread(**a_thread().model_dump()))
            _everything(State(session))
            session.commit()
    else:
        with getattr(runtime, mode)() as state:
            _everything(state)
    assert tracer.writes > 30
    assert tracer.upgrades == []


def test_a_session_of_the_service_that_reads_first_begins_as_a_writer_with_its_first_write(
    runtime: StateRuntime,
) -> None:
    """L6: until then it holds up nobody, and sees what others commit."""
    tracer = Tracer(runtime.engine)
    first, second = a_thread(), a_thread()
    with Session(runtime.engine) as session:
        assert session.get(Thread, first.id) is None
        with runtime.begin() as state:
            state.threads.upsert(first)
        assert session.get(Thread, first.id) is not None
        session.add(Thread(**second.model_dump()))
        session.commit()
        assert session.get(Thread, second.id) is not None
        with runtime.begin() as state:
            assert state.threads.delete(second.id)
    script = tracer.scripts[0]
    begun = script.index("BEGIN IMMEDIATE")
    assert not any(statement.startswith("BEGIN") for statement in script[:begun])
    assert any("INSERT" in statement for statement in script[begun:])
    assert tracer.upgrades == []


@pytest.mark.parametrize("write", ["flush", "many", "savepoint", "repository"])
def test_whatever_a_session_of_the_service_writes_after_a_read_is_one_transaction(
    runtime: StateRuntime, write: str
) -> None:
    """L5, L6."""
    threads = [a_thread(), a_thread()]
    with Session(runtime.engine) as session:
        assert State(session).threads.list_ids(ThreadQuery(limit=1)) == []
        match write:
            case "flush":
                session.add_all(Thread(**thread.model_dump()) for thread in threads)
                session.flush()
            case "many":
                State(session).threads.upsert_many(threads)
            case "savepoint":
                with session.begin_nested():
                    State(session).threads.upsert(threads[0])
                with session.begin_nested() as savepoint:
                    State(session).threads.upsert(threads[1])
                    savepoint.rollback()
                assert State(session).threads.list_ids(ThreadQuery(limit=9)) == [threads[0].id]
            case _:
                State(session).threads.upsert(threads[0])
        with runtime.read() as state:
            assert state.threads.list_ids(ThreadQuery(limit=9)) == []
        session.rollback()
    with runtime.read() as state:
        assert state.threads.list_ids(ThreadQuery(limit=9)) == []


def test_the_tracer_sees_an_upgrade(runtime: StateRuntime) -> None:
    engine = create_engine(runtime.engine.url, connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    tracer = Tracer(engine)
    try:
        with Session(engine) as session:
            State(session).threads.upsert(a_thread())
            session.commit()
    finally:
        engine.dispose()
    assert len(tracer.upgrades) == 1


def test_reading_before_writing_meets_no_stale_snapshot_though_it_would_by_itself(runtime: StateRuntime) -> None:
    """L6: of two deferred transactions that both read before they write, one is always refused; ours are not."""
    thread = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(thread)
    both_have_read = threading.Barrier(2)

    def ours(_: int) -> None:
        for _round in range(50):
            with runtime.begin() as state:
                stored = state.threads.get(thread.id)
                assert stored is not None
                state.threads.upsert(stored)

    def deferred(_: int) -> bool:
        connection = sqlite3.connect(runtime.settings.database_path, isolation_level=None, timeout=5)
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM threads").fetchall()
            both_have_read.wait(30)
            connection.execute("UPDATE threads SET title = title || '.'")  # an update to the same changes no page
            connection.execute("COMMIT")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ours, range(4)))
        assert sorted(pool.map(deferred, range(2))) == [False, True]


def test_a_reader_that_wants_to_write_is_told_so_whatever_others_wrote_meanwhile(runtime: StateRuntime) -> None:
    """L6: refused as a reader, not as one with an old snapshot."""
    with runtime.read() as reader:
        reader.threads.list(ThreadQuery(limit=1))
        with runtime.begin() as state:
            state.threads.upsert(a_thread())
        with pytest.raises(DatabaseReadOnlyError):
            reader.threads.upsert(a_thread())
