"""Tracing: who listens to the statements of ``runtime.engine`` hears those of every mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event
from sqlmodel import Session

from codex_state import DatabaseError, LogEntry, LogQuery, State, StateRuntime, ThreadQuery
from codex_state.testing.samples import a_thread

EVENTS = ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"]


class Heard:
    """What a listener of one kind has heard."""

    def __init__(self, target: Any, name: str) -> None:
        self.statements: list[str] = []
        self._listener = target, name, self._hear
        event.listen(*self._listener)

    def _hear(self, _connection: object, second: object, third: object, *_rest: object) -> None:
        self.statements.append(str(third if isinstance(third, str) else second).lower())

    def close(self) -> None:
        event.remove(*self._listener)


@pytest.fixture(params=EVENTS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def heard(runtime: StateRuntime, name: str) -> Iterator[Heard]:
    with closing(Heard(runtime.engine, name)) as heard:
        yield heard


@pytest.mark.parametrize("mode", ["begin", "read", "autocommit"])
def test_who_listens_to_the_engine_hears_the_statements_of_every_mode(
    runtime: StateRuntime, heard: Heard, mode: str
) -> None:
    with getattr(runtime, mode)() as state:
        assert state.threads.get(uuid4()) is None
        assert state.logs.query(LogQuery(limit=1)) == []
        if mode != "read":
            state.threads.upsert(a_thread())
            state.logs.insert(LogEntry(ts=1, ts_nanos=0, level="INFO", target="t"))
    expected = ["from threads", "from logs"] + (["insert into threads", "insert into logs"] if mode != "read" else [])
    for part in expected:
        assert sum(part in statement for statement in heard.statements) == 1, part


def test_who_listens_to_all_engines_hears_ours(runtime: StateRuntime, name: str) -> None:
    with closing(Heard(Engine, name)) as heard:
        for mode in ("begin", "read", "autocommit"):
            with getattr(runtime, mode)() as state:
                state.threads.get(uuid4())
    assert sum("from threads" in statement for statement in heard.statements) == 3


def test_a_listener_may_come_and_go_while_a_session_is_open(runtime: StateRuntime, name: str) -> None:
    with runtime.autocommit() as state:
        state.threads.get(uuid4())
        with closing(Heard(runtime.engine, name)) as heard:
            state.threads.get(uuid4())
        state.threads.get(uuid4())
        with closing(Heard(state.session.connection(), name)) as heard_here:
            state.threads.get(uuid4())
    assert len(heard.statements) == len(heard_here.statements) == 1


def test_a_listener_of_the_engine_for_reading_hears_reads_only(runtime: StateRuntime, name: str) -> None:
    with closing(Heard(runtime.read_engine, name)) as heard:
        with runtime.begin() as state:
            state.threads.upsert(a_thread())
        assert heard.statements == []
        with Session(runtime.read_engine) as session:
            State(session).threads.get(uuid4())
    assert len(heard.statements) == 1


@pytest.mark.parametrize("mode", ["begin", "autocommit"])
def test_every_span_is_ended_by_its_statement_or_by_its_error(runtime: StateRuntime, mode: str) -> None:
    """Spans as OpenTelemetry's instrumentation makes them."""
    begun: list[Any] = []
    ended: list[Any] = []

    def begin(_connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, _many: bool) -> Any:
        begun.append(context)
        return statement + " -- traced", parameters

    def end(_connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        assert statement.endswith(" -- traced")
        ended.append(context)

    def fail(error: Any) -> None:
        ended.append(error.execution_context)

    event.listen(runtime.engine, "before_cursor_execute", begin, retval=True)
    event.listen(runtime.engine, "after_cursor_execute", end)
    event.listen(runtime.engine, "handle_error", fail)
    with getattr(runtime, mode)() as state:
        state.threads.get(uuid4())
    assert len(ended) == 1
    with pytest.raises(DatabaseError), getattr(runtime, mode)() as state:
        state.threads.upsert(a_thread(source=None))
    assert len(ended) == 2
    assert begun == ended


@pytest.mark.parametrize(("name", "count"), [("do_execute", 1), ("do_executemany", 3)])
def test_who_executes_statements_instead_of_the_driver_is_asked(runtime: StateRuntime, name: str, count: int) -> None:
    executed: list[str] = []

    def execute(cursor: Any, statement: str, parameters: Any, _context: object) -> bool:
        getattr(cursor, name.removeprefix("do_"))(statement, parameters)
        executed.append(statement)
        return True

    threads = [a_thread() for _ in range(count)]
    event.listen(runtime.engine, name, execute)
    with runtime.begin() as state:
        state.threads.upsert_many(threads) if count > 1 else state.threads.upsert(threads[0])
    assert ["insert into threads" in statement.lower() for statement in executed] == [True]
    with runtime.read() as state:
        assert len(state.threads.list_ids(ThreadQuery(limit=9))) == count


def test_the_modes_stay_what_they_are_while_somebody_listens(runtime: StateRuntime, heard: Heard) -> None:
    """L6: the views of one engine are told apart."""
    first, second = a_thread(), a_thread()
    with runtime.read() as reading:
        assert reading.threads.get(first.id) is None
        with runtime.autocommit() as state:
            state.threads.upsert(first)
            with runtime.begin() as other:
                other.threads.upsert(second)
            assert state.threads.get(second.id) == second
        assert reading.threads.list_ids(ThreadQuery(limit=9)) == []
    assert heard.statements != []
