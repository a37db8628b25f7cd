"""A service's own engine and sessions: its transaction is its own, and entities fit its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlmodel import Session

from codex_state import (
    DatabaseReadOnlyError,
    ForeignSchemaError,
    LogEntry,
    State,
    StateRuntime,
    StateSettings,
    ThreadQuery,
)
from codex_state.testing.samples import a_thread, a_tool


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
