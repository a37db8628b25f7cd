"""A connection that breaks: what surely wasn't kept may be tried again, what may have been kept is unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlmodel import Session

from codex_state import ConnectionLostError, State, StateRuntime, StateSettings, ThreadQuery, UnknownCommitOutcomeError
from codex_state.database import translate_errors
from codex_state.testing.samples import a_thread


@pytest.fixture
def runtime(postgres_settings: StateSettings) -> Iterator[StateRuntime]:
    with StateRuntime.open(postgres_settings) as opened:
        yield opened


@contextmanager
def own_engine(runtime: StateRuntime) -> Iterator[Engine]:
    engine = create_engine(runtime.engine.url)
    translate_errors(engine)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(params=["the runtime's", "a view of it", "the service's own"])
def engine(request: pytest.FixtureRequest, runtime: StateRuntime) -> Iterator[Engine]:
    if request.param == "the service's own":
        with own_engine(runtime) as engine:
            yield engine
    else:
        yield runtime.engine if request.param == "the runtime's" else runtime.engine.execution_options()


def break_connection(runtime: StateRuntime, session: Session) -> None:
    pid = session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
    with runtime.autocommit() as state:
        state.session.connection().execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).all()


def stored(runtime: StateRuntime) -> int:
    with runtime.read() as state:
        return len(state.threads.list_ids(ThreadQuery(limit=9)))


def test_a_services_session_whose_commit_breaks_has_an_unknown_outcome(runtime: StateRuntime, engine: Engine) -> None:
    with Session(engine) as session:
        State(session).threads.upsert(a_thread())
        break_connection(runtime, session)
        with pytest.raises(
            UnknownCommitOutcomeError, match="during the commit; the unit of work may or may not"
        ) as broken:
            session.commit()
    assert not broken.value.retryable
    assert stored(runtime) == 0


def test_a_services_connection_whose_commit_breaks_has_an_unknown_outcome(
    runtime: StateRuntime, engine: Engine
) -> None:
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM threads"))
        break_connection(runtime, Session(connection))
        with pytest.raises(UnknownCommitOutcomeError):
            connection.commit()


@pytest.mark.parametrize(
    "work",
    [
        lambda session: State(session).threads.upsert(a_thread()),
        lambda session: State(session).threads.list_ids(ThreadQuery(limit=1)),
        lambda session: (session.add(a_thread()), session.flush()),
        lambda session: (session.add(a_thread()), session.commit()),
    ],
    ids=["write", "read", "flush", "flush of a commit"],
)
def test_a_services_session_that_breaks_before_its_commit_kept_nothing(
    runtime: StateRuntime, engine: Engine, work: Callable[[Session], object]
) -> None:
    with Session(engine) as session:
        State(session).threads.upsert(a_thread())
        break_connection(runtime, session)
        with pytest.raises(ConnectionLostError) as broken:
            work(session)
        assert broken.value.retryable
        session.rollback()
    assert stored(runtime) == 0


def test_a_unit_whose_flush_finds_the_connection_broken_is_run_again(runtime: StateRuntime) -> None:
    calls = []

    def work(state: State) -> None:
        calls.append(state)
        state.session.add(a_thread())
        if len(calls) == 1:
            break_connection(runtime, state.session)
            state.session.add(a_thread())

    runtime.run(work)
    assert len(calls) == 2
    assert stored(runtime) == 1


def test_a_connection_whose_answers_match_no_call_is_thrown_away_and_the_unit_runs_again(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the driver found it when a pooler and its server were killed together."""

    def own_process(state: State) -> int:
        process: int = state.session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        return process

    first = runtime.run(own_process)
    execute = psycopg.Connection._exec_command
    confused = []

    def answer_twice(connection: psycopg.Connection[Any], command: Any, *arguments: Any, **options: Any) -> Any:
        if not confused:
            confused.append(connection.info.backend_pid)
            raise psycopg.InternalError("received 2 results from command 'BEGIN'")
        return (yield from execute(connection, command, *arguments, **options))

    monkeypatch.setattr(psycopg.Connection, "_exec_command", answer_twice)
    assert runtime.run(own_process) != first
    assert confused == [first]
