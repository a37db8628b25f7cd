"""A service's own engine and sessions: its transaction is its own, and entities fit its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session

from codex_state import (
    DatabaseBusyError,
    DatabaseReadOnlyError,
    ForeignSchemaError,
    LogEntry,
    MemoryScope,
    Phase1Key,
    State,
    StateRuntime,
    StateSettings,
    ThreadQuery,
)
from codex_state.testing.samples import NOON, a_thread, a_tool
from tests.elsewhere import elsewhere


@pytest.fixture
def settings(tmp_path: Path) -> StateSettings:
    settings = StateSettings(codex_home=tmp_path)
    StateRuntime.open(settings).close()
    return settings


def test_what_a_service_rolls_back_in_a_session_of_its_own_engine_is_gone(settings: StateSettings) -> None:
    """L5: also where Python's driver begins the transaction only before the first write."""
    thread = a_thread()
    engine = create_engine(f"sqlite:///{settings.database_path}")
    with Session(engine) as session:
        state = State(session)
        state.threads.upsert_many([thread])
        state.threads.upsert_from_rollouts([a_thread()])
        state.dynamic_tools.persist([a_tool(thread)])
        state.logs.insert(LogEntry(ts=1, ts_nanos=0, level="INFO", target="t"))
        session.rollback()
    with Session(engine) as session:
        assert State(session).threads.list(ThreadQuery(limit=5)).items == []
        assert State(session).logs.max_id() == 0
        State(session).threads.upsert_many([thread])
        session.commit()
    engine.dispose()
    with StateRuntime.open(settings) as runtime, runtime.read() as state:
        assert state.threads.get(thread.id) == thread


@pytest.mark.parametrize("observed", [True, False])
def test_a_write_that_begins_with_a_query_is_part_of_a_services_transaction(
    settings: StateSettings, observed: bool
) -> None:
    """L5: Python's driver knows a write by its first word, and begins no transaction before WITH."""
    thread = a_thread()
    with StateRuntime.open(settings) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        engine = create_engine(runtime.engine.url)
        if observed:
            event.listen(engine, "before_cursor_execute", lambda *_: None)
        for ends in ("rollback", "commit"):
            with Session(engine) as session:
                assert State(session).threads.take_names([(thread.id, ends, 1)]) == 1
                getattr(session, ends)()
        engine.dispose()
        stored = runtime.run_read(lambda state: state.threads.get(thread.id))
        assert stored is not None
        assert stored.name == "commit"


def on_an_engine_of_its_own(
    url: URL, isolation_level: str | None, enforced: bool, unit: Callable[[State], None]
) -> None:
    """Run and commit a unit as a service would, whether or not it has SQLite hold to foreign keys."""

    def work(session: Session) -> None:
        if enforced:
            session.connection().exec_driver_sql("PRAGMA foreign_keys = ON")
        unit(State(session))
        session.commit()

    async def main() -> None:
        engine = create_async_engine(url, **options)
        async with AsyncSession(engine) as session:
            await session.run_sync(work)
        await engine.dispose()

    options: dict[str, Any] = {} if isolation_level is None else {"isolation_level": isolation_level}
    if url.get_driver_name() == "aiosqlite":
        asyncio.run(main())
        return
    engine = create_engine(url, **options)
    with Session(engine) as session:
        work(session)
    engine.dispose()


either_way = pytest.mark.parametrize(
    ("driver", "isolation_level", "enforced"),
    [
        ("pysqlite", None, False),
        ("pysqlite", "AUTOCOMMIT", False),
        ("pysqlite", None, True),
        ("aiosqlite", None, False),
        ("aiosqlite", "AUTOCOMMIT", True),
    ],
)


@either_way
@pytest.mark.parametrize("verb", ["delete", "delete_gone"])
def test_what_is_a_threads_goes_with_it_also_on_an_engine_that_enforces_no_foreign_keys(
    settings: StateSettings, driver: str, isolation_level: str | None, enforced: bool, verb: str
) -> None:
    """L5: SQLite leaves it to each connection whether it holds to foreign keys, and does not by itself."""
    thread, other = a_thread(), a_thread()
    scope = MemoryScope.user()
    with StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            state.threads.upsert_many([thread, other])
            state.dynamic_tools.persist([a_tool(thread), a_tool(thread, 1), a_tool(other)])
            if verb == "delete":
                for each in (thread, other):
                    state.thread_memories.upsert_for_scope(each.id, scope, "raw", "summary")
                    state.phase1_jobs.try_claim(
                        Phase1Key(each.id, scope), owner=uuid4(), source_updated_at=NOON, lease=timedelta(hours=1)
                    )
            else:
                state.threads.mark_gone([thread.id], thread.home)

        def unit(state: State) -> None:
            if verb == "delete":
                assert state.threads.delete(thread.id) is True
                assert state.threads.delete(uuid4()) is False
            else:
                assert list(state.threads.delete_gone([thread.id, other.id], thread.home)) == [thread.id]

        url = runtime.engine.url.set(drivername=f"sqlite+{driver}")
        on_an_engine_of_its_own(url, isolation_level, enforced, unit)
        with runtime.read() as state:
            assert state.session.connection().exec_driver_sql("PRAGMA foreign_key_check").all() == []
            assert state.threads.get(thread.id) is None
            assert state.dynamic_tools.get(thread.id) is None
            assert state.thread_memories.get(thread.id) is None
            assert state.phase1_jobs.get(Phase1Key(thread.id, scope)) is None
            assert state.dynamic_tools.get(other.id) == [a_tool(other)]
            assert (state.thread_memories.get(other.id) is not None) is (verb == "delete")
            assert (state.phase1_jobs.get(Phase1Key(other.id, scope)) is not None) is (verb == "delete")


@either_way
def test_a_tool_of_a_thread_without_a_row_is_refused_also_on_an_engine_that_enforces_no_foreign_keys(
    settings: StateSettings, driver: str, isolation_level: str | None, enforced: bool
) -> None:
    thread, nobody = a_thread(), a_thread()

    def unit(state: State) -> None:
        state.threads.upsert(thread)
        with pytest.raises(IntegrityError), state.session.begin_nested():
            state.dynamic_tools.persist([a_tool(thread), a_tool(nobody)])
        assert state.dynamic_tools.get(thread.id) is None
        state.dynamic_tools.persist([a_tool(thread, 1)])

    with StateRuntime.open(settings) as runtime:
        url = runtime.engine.url.set(drivername=f"sqlite+{driver}")
        on_an_engine_of_its_own(url, isolation_level, enforced, unit)
        with runtime.read() as state:
            assert state.dynamic_tools.get(thread.id) == [a_tool(thread, 1)]
            assert state.dynamic_tools.get(nobody.id) is None


def test_a_thread_whose_tools_are_being_stored_cannot_be_deleted_meanwhile(settings: StateSettings) -> None:
    """L5: also where the driver begins the transaction only before the first write."""
    thread = a_thread()
    with StateRuntime.open(settings.model_copy(update={"busy_timeout": timedelta(seconds=0.2)})) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        engine = create_engine(runtime.engine.url)

        @event.listens_for(engine, "before_cursor_execute")
        def delete_first(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
            if statement.startswith("INSERT INTO thread_dynamic_tools"):
                with pytest.raises(DatabaseBusyError):
                    elsewhere(lambda: runtime.run(lambda state: state.threads.delete(thread.id), attempts=1))

        with Session(engine) as session:
            State(session).dynamic_tools.persist([a_tool(thread)])
            session.commit()
        engine.dispose()
        assert runtime.run_read(lambda state: state.dynamic_tools.get(thread.id)) == [a_tool(thread)]


def test_a_reading_session_of_a_service_holds_up_no_writer_and_cannot_write(settings: StateSettings) -> None:
    with StateRuntime.open(settings) as runtime, Session(runtime.read_engine) as session:
        assert State(session).threads.list(ThreadQuery(limit=5)).items == []
        with runtime.begin() as state:
            state.threads.upsert(a_thread())
        assert State(session).threads.list(ThreadQuery(limit=5)).items == [], "a session reads one snapshot"
        with pytest.raises(DatabaseReadOnlyError, match="read-only"):
            State(session).threads.upsert(a_thread())


def test_a_snapshot_counts_all_its_fields_as_set(settings: StateSettings) -> None:
    with StateRuntime.open(settings) as runtime, runtime.begin() as state:
        thread = a_thread()
        state.threads.upsert(thread)
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.model_dump(exclude_unset=True) == stored.model_dump()
        copy = stored.model_copy(update={"title": "other"})
        assert (copy.title, stored.title) == ("other", thread.title)


def test_older_state_files_stay_when_the_state_cannot_be_used(tmp_path: Path) -> None:
    """L7: the older version may be what still works."""
    (tmp_path / "state_3.sqlite").write_bytes(b"older")
    settings = StateSettings(codex_home=tmp_path)
    foreign = create_engine(f"sqlite:///{settings.database_path}")
    with foreign.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE threads (id TEXT)")
    foreign.dispose()
    with pytest.raises(ForeignSchemaError):
        StateRuntime.open(settings)
    assert (tmp_path / "state_3.sqlite").read_bytes() == b"older"
