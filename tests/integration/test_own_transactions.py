"""Transactions that a service ends itself, on the connection under its session: as with SQLAlchemy's own execution."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import InvalidRequestError
from sqlmodel import Session

from codex_state import State, StateRuntime, StateSettings, Thread
from codex_state.models import ThreadQuery, metadata
from codex_state.testing.samples import a_thread

Write = Callable[[State, Thread], object]

WRITES = pytest.mark.parametrize(
    "write",
    [
        lambda state, thread: state.threads.upsert(thread),
        lambda state, thread: state.threads.upsert_many([thread]),
    ],
    ids=["one", "many"],
)


def stored(runtime: StateRuntime, thread: Thread) -> bool:
    with runtime.read() as state:
        return state.threads.get(thread.id) is not None


@WRITES
@pytest.mark.parametrize("commit", [True, False], ids=["committed", "rolled back"])
def test_a_write_after_the_connections_rollback_is_of_its_next_transaction(
    runtime: StateRuntime, write: Write, commit: bool
) -> None:
    """L5: what is committed is kept, and what isn't is gone."""
    thread = a_thread()
    with runtime.engine.connect() as connection:
        state = State(Session(connection))
        assert state.threads.list_ids(ThreadQuery(limit=1)) == []
        connection.rollback()
        write(state, thread)
        assert connection.in_transaction()
        if commit:
            connection.commit()
    assert stored(runtime, thread) == commit


def end_of_transaction(state: State, connection: Connection) -> None:
    assert state.threads.list_ids(ThreadQuery(limit=1)) == []
    connection.get_transaction().rollback()  # type: ignore[union-attr]


@WRITES
def test_a_block_whose_transaction_is_over_writes_nothing(runtime: StateRuntime, write: Write) -> None:
    thread = a_thread()
    with runtime.engine.begin() as connection:
        state = State(Session(connection))
        end_of_transaction(state, connection)
        with pytest.raises(InvalidRequestError, match="closed transaction"):
            write(state, thread)
    assert not stored(runtime, thread)


@WRITES
def test_a_block_whose_savepoint_is_over_writes_nothing(runtime: StateRuntime, write: Write) -> None:
    thread = a_thread()
    with runtime.engine.begin() as connection:
        state = State(Session(connection))
        assert state.threads.list_ids(ThreadQuery(limit=1)) == []
        with suppress(InvalidRequestError), connection.begin_nested() as savepoint:
            savepoint.rollback()
            write(state, thread)
    assert not stored(runtime, thread)


def test_an_engine_that_maps_schemas_reaches_the_mapped_one(postgres_settings: StateSettings) -> None:
    with StateRuntime.open(postgres_settings) as runtime:
        thread = a_thread()
        engine = create_engine(runtime.engine.url, execution_options={"schema_translate_map": {None: "tenant"}})
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA tenant")
            metadata.create_all(connection)
            State(Session(connection)).threads.upsert(thread)
        with Session(engine) as session:
            assert State(session).threads.get(thread.id) == thread
        engine.dispose()
        assert not stored(runtime, thread)
