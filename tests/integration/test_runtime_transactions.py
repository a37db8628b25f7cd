"""The modes of a unit of work: what commits, what doesn't, what others see, and what is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import MetaData, create_engine, event, exc, text
from sqlalchemy.orm import registry
from sqlmodel import Field, Session, SQLModel, select

from codex_state.database import Database
from codex_state.errors import (
    ConnectionLostError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseReadOnlyError,
    IntegrityViolationError,
    InvalidInputError,
    TransactionAbortedError,
    TransactionConflictError,
    UnknownCommitOutcomeError,
    UsageError,
)
from codex_state.models import Claimed, MemoryScope, Phase1Key, Thread, ThreadQuery
from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import NOON, a_thread, a_tool
from tests import stores
from tests.elsewhere import elsewhere

own = MetaData()


class OwnModel(SQLModel, registry=registry(metadata=own)):
    """The base of a service's own tables."""


class Note(OwnModel, table=True):
    """A table of a service's own, in the same database."""

    id: int | None = Field(default=None, primary_key=True)
    body: str


@pytest.fixture(params=["sqlite", "postgresql"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateRuntime]:
    with stores.fresh_settings(request.param, tmp_path, request) as settings, StateRuntime.open(settings) as runtime:
        yield runtime


@pytest.fixture
def impatient(runtime: StateRuntime) -> Iterator[StateRuntime]:
    """A second runtime on the same database, which waits for a short time only."""
    settings = runtime.settings.model_copy(update={"busy_timeout": timedelta(seconds=0.3)})
    with StateRuntime.open(settings) as second:
        yield second


def _ids(runtime: StateRuntime) -> set[UUID]:
    with runtime.read() as state:
        return set(state.threads.list_ids(ThreadQuery(limit=1000)))


def test_a_unit_of_work_commits_at_its_end(runtime: StateRuntime) -> None:
    thread = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(thread)
        assert _ids(runtime) == set()
    assert _ids(runtime) == {thread.id}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_unit_of_work_that_raises_leaves_nothing(runtime: StateRuntime, error: type[BaseException]) -> None:
    """L5."""
    thread = a_thread()
    with pytest.raises(error), runtime.begin() as state:  # noqa: PT012 - the block is the unit of work
        state.threads.upsert(thread)
        state.dynamic_tools.persist([a_tool(thread)])
        raise error
    assert _ids(runtime) == set()


def test_an_error_of_the_database_in_the_middle_takes_the_whole_unit_with_it(runtime: StateRuntime) -> None:
    """L5."""
    thread = a_thread()
    with pytest.raises(IntegrityViolationError), runtime.begin() as state:  # noqa: PT012
        state.threads.upsert(thread)
        state.dynamic_tools.persist([a_tool(a_thread())])
    assert _ids(runtime) == set()


def test_a_savepoint_can_be_given_up_without_the_rest(runtime: StateRuntime) -> None:
    kept, given_up = a_thread(), a_thread()
    with runtime.begin() as state:
        state.threads.upsert(kept)
        savepoint = state.session.begin_nested()
        state.threads.upsert(given_up)
        savepoint.rollback()
    assert _ids(runtime) == {kept.id}


def test_a_unit_of_work_may_commit_in_between_and_go_on(runtime: StateRuntime) -> None:
    first, second = a_thread(), a_thread()
    with runtime.begin() as state:
        state.threads.upsert(first)
        state.session.commit()
        assert _ids(runtime) == {first.id}
        state.threads.upsert(second)
        state.session.rollback()
    assert _ids(runtime) == {first.id}


def test_a_write_in_a_read_is_refused(runtime: StateRuntime) -> None:
    """L6."""
    with runtime.read() as state, pytest.raises(DatabaseReadOnlyError):
        state.threads.upsert(a_thread())
    assert _ids(runtime) == set()


def test_a_write_in_a_read_is_refused_after_its_commit_and_its_rollback_too(runtime: StateRuntime) -> None:
    """L6."""
    with runtime.read() as state:
        state.threads.list_ids(ThreadQuery(limit=1))
        for end in (state.session.commit, state.session.rollback):
            end()
            with pytest.raises(DatabaseReadOnlyError):
                state.threads.upsert(a_thread())
            state.session.rollback()
    assert _ids(runtime) == set()


def test_a_read_leaves_its_connection_fit_for_writing(tmp_path: Path) -> None:
    settings = StateSettings(codex_home=tmp_path, pool_size=1)
    with StateRuntime.open(settings) as runtime:
        with runtime.read() as state:
            state.threads.list_ids(ThreadQuery(limit=1))
        with pytest.raises(RuntimeError), runtime.read() as state:  # noqa: PT012
            state.threads.list_ids(ThreadQuery(limit=1))
            raise RuntimeError
        with pytest.raises(DatabaseReadOnlyError), runtime.read() as state:
            state.threads.upsert(a_thread())
        with runtime.begin() as state:
            state.threads.upsert(a_thread())
        with runtime.autocommit() as state:
            state.threads.upsert(a_thread())
        assert len(_ids(runtime)) == 2


def test_a_read_that_is_interrupted_within_a_statement_says_so_and_leaves_the_runtime_usable(tmp_path: Path) -> None:
    def interrupt(_text: bytes) -> str:
        raise KeyboardInterrupt

    with StateRuntime.open(StateSettings(codex_home=tmp_path, pool_size=1)) as runtime:
        with pytest.raises(KeyboardInterrupt), runtime.read() as state:  # noqa: PT012
            connection = state.session.connection()
            connection.connection.driver_connection.text_factory = interrupt  # type: ignore[union-attr]
            connection.execute(text("SELECT 'a text'")).all()
        runtime.run(lambda state: state.threads.upsert(a_thread()))
        assert len(_ids(runtime)) == 1


def test_a_read_is_one_snapshot(runtime: StateRuntime) -> None:
    first = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(first)
    with runtime.read() as reader:
        assert set(reader.threads.list_ids(ThreadQuery(limit=10))) == {first.id}
        with runtime.begin() as writer:
            writer.threads.upsert(a_thread())
            writer.threads.delete(first.id)
        assert set(reader.threads.list_ids(ThreadQuery(limit=10))) == {first.id}
        assert reader.threads.get(first.id) == first
    assert first.id not in _ids(runtime)


def test_readers_do_not_wait_for_a_writer(runtime: StateRuntime, impatient: StateRuntime) -> None:
    with runtime.begin() as state:
        state.threads.upsert(a_thread())
        assert _ids(impatient) == set()


def test_in_autocommit_each_statement_is_seen_at_once_and_survives_an_error(runtime: StateRuntime) -> None:
    thread = a_thread()
    with pytest.raises(RuntimeError), runtime.autocommit() as state:  # noqa: PT012
        state.threads.upsert(thread)
        assert _ids(runtime) == {thread.id}
        raise RuntimeError
    assert _ids(runtime) == {thread.id}


def test_in_autocommit_a_failed_statement_does_not_end_the_session(runtime: StateRuntime) -> None:
    with runtime.autocommit() as state:
        with pytest.raises(IntegrityViolationError):
            state.dynamic_tools.persist([a_tool(a_thread())])
        with pytest.raises(InvalidInputError):
            state.threads.upsert(a_thread(title="\ud800"))
        state.threads.upsert(a_thread())
    assert len(_ids(runtime)) == 1


Run = Callable[[StateRuntime, Callable[[State], None]], None]


def _in_an_own_session(runtime: StateRuntime, work: Callable[[State], None]) -> None:
    with Session(runtime.engine) as session:
        work(State(session))
        session.commit()


either_writer = pytest.mark.parametrize("run", [StateRuntime.run, _in_an_own_session])


@either_writer
@pytest.mark.parametrize("goes_on", [True, False])
def test_what_is_done_after_an_error_was_caught_is_told_what_became_of_the_transaction(
    run: Run, goes_on: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """L8: also where the driver would take the server's rollback for a commit."""

    def work(state: State) -> None:
        state.threads.upsert(a_thread())
        with pytest.raises(IntegrityViolationError):
            state.dynamic_tools.persist([a_tool(a_thread())])
        if goes_on:
            with pytest.raises(TransactionAbortedError, match="begin_nested"):
                state.threads.list_ids()

    with stores.fresh_settings("postgresql", tmp_path, request) as settings, StateRuntime.open(settings) as runtime:
        with pytest.raises(TransactionAbortedError, match="begin_nested"):
            run(runtime, work)
        assert _ids(runtime) == set()
        run(runtime, lambda state: state.threads.upsert(a_thread()))
        assert len(_ids(runtime)) == 1


@either_writer
def test_what_may_fail_and_be_caught_is_rolled_back_alone_in_a_savepoint(runtime: StateRuntime, run: Run) -> None:
    """L9."""
    before, within, after = a_thread(), a_thread(), a_thread()

    def work(state: State) -> None:
        state.threads.upsert(before)
        with suppress(IntegrityViolationError), state.session.begin_nested():
            state.threads.upsert(within)
            state.dynamic_tools.persist([a_tool(a_thread())])
        state.threads.upsert(after)

    run(runtime, work)
    assert _ids(runtime) == {before.id, after.id}


def test_in_autocommit_there_is_no_savepoint(runtime: StateRuntime) -> None:
    """L6: on SQLite it would begin a transaction that is upgraded later."""
    with runtime.autocommit() as state:
        with pytest.raises(InvalidInputError, match="begin"), state.session.begin_nested():
            state.threads.upsert(a_thread())
        state.session.rollback()
        state.threads.upsert(a_thread())
    assert len(_ids(runtime)) == 1


def test_in_autocommit_a_batch_is_stored_whole_or_not_at_all(runtime: StateRuntime) -> None:
    """L5."""
    threads = [a_thread(), a_thread(), a_thread(tokens_used=-1)]
    with runtime.autocommit() as state:
        with pytest.raises(IntegrityViolationError):
            state.threads.upsert_many(threads)
        assert _ids(runtime) == set()
        state.threads.upsert_many(threads[:2])
    assert _ids(runtime) == {thread.id for thread in threads[:2]}


@pytest.mark.parametrize("mode", ["begin", "autocommit"])
@pytest.mark.parametrize("values", [{"title": "\udfff"}, {"tokens_used": 2**63}, {"cwd": Path("/\ud800")}])
def test_a_value_that_cannot_be_stored_is_refused_as_bad_input(
    runtime: StateRuntime, mode: str, values: dict[str, Any]
) -> None:
    """L8."""
    with getattr(runtime, mode)() as state:
        with pytest.raises(InvalidInputError):
            state.threads.upsert(a_thread(**values))
        state.session.rollback()
    assert _ids(runtime) == set()


def test_many_writers_that_read_first_meet_no_lock_error(runtime: StateRuntime) -> None:
    """L6: the pattern that fails at once when a transaction is upgraded from reading to writing."""
    thread = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(thread)

    def count_up(_: int) -> None:
        with runtime.begin() as state:
            row = state.session.connection().execute(text("SELECT tokens_used FROM threads" + locked)).one()
            state.session.connection().execute(text("UPDATE threads SET tokens_used = :new"), {"new": row[0] + 1})

    locked = " FOR UPDATE" if runtime.database.dialect == "postgresql" else ""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(200)))
    with runtime.read() as state:
        stored = state.threads.get(thread.id)
    assert stored is not None
    assert stored.tokens_used == 200


def test_who_waits_longer_than_the_busy_timeout_is_told_so(runtime: StateRuntime, impatient: StateRuntime) -> None:
    """L8."""
    thread = a_thread()
    with runtime.begin() as state:
        state.threads.upsert(thread)

        def try_to_write() -> None:
            with pytest.raises(DatabaseBusyError) as busy, impatient.begin() as blocked:
                blocked.threads.upsert(a_thread(id=thread.id))
            assert busy.value.retryable
            assert isinstance(busy.value, exc.OperationalError)
            assert impatient.database.place in str(busy.value)
            with impatient.autocommit() as blocked, pytest.raises(DatabaseBusyError):
                blocked.threads.upsert(a_thread(id=thread.id))

        elsewhere(try_to_write)
    with impatient.begin() as state:
        state.threads.upsert(thread)


def test_who_finds_no_free_connection_is_told_so(tmp_path: Path) -> None:
    settings = StateSettings(codex_home=tmp_path, pool_size=1, busy_timeout=timedelta(seconds=0.1))
    with StateRuntime.open(settings) as runtime, runtime.read() as held:
        held.threads.list_ids(ThreadQuery(limit=1))

        def read() -> None:
            with pytest.raises(DatabaseBusyError, match="pool_size"), runtime.read() as second:
                second.threads.list_ids(ThreadQuery(limit=1))

        elsewhere(read)
        with pytest.raises(UsageError, match="this thread itself holds all"), runtime.read() as second:
            second.threads.list_ids(ThreadQuery(limit=1))


@pytest.mark.parametrize("error", [DatabaseBusyError, TransactionConflictError, ConnectionLostError])
def test_run_repeats_a_unit_that_may_be_repeated_from_its_beginning(
    runtime: StateRuntime, error: type[Exception]
) -> None:
    seen: list[State] = []

    def work(state: State) -> str:
        seen.append(state)
        state.threads.upsert(a_thread())
        if len(seen) < 3:
            raise error("not now")
        return "done"

    assert runtime.run(work) == "done"
    assert len({id(state) for state in seen}) == 3
    assert len(_ids(runtime)) == 1


@pytest.mark.parametrize(
    "error", [UnknownCommitOutcomeError, IntegrityViolationError, DatabaseReadOnlyError, ValueError]
)
def test_run_does_not_repeat_what_may_have_happened_or_will_not_change(
    runtime: StateRuntime, error: type[Exception]
) -> None:
    calls = []

    def work(state: State) -> None:
        calls.append(state)
        raise error("no")

    with pytest.raises(error, match="no"):
        runtime.run(work)
    assert len(calls) == 1


def test_run_gives_up_after_so_many_attempts(runtime: StateRuntime) -> None:
    calls = []

    def work(state: State) -> None:
        calls.append(state)
        raise TransactionConflictError(f"attempt {len(calls)}")

    with pytest.raises(TransactionConflictError, match="attempt 3"):
        runtime.run(work, attempts=3)
    assert len(calls) == 3


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_the_victims_of_deadlocks_are_run_again(runtime: StateRuntime) -> None:
    first, second = a_thread(title="0"), a_thread(title="0")
    with runtime.begin() as state:
        state.threads.upsert_many([first, second])
    both_hold_one = threading.Barrier(2)
    met = threading.Event()

    def cross(order: tuple[UUID, UUID]) -> None:
        def work(state: State) -> None:
            state.threads.set_name(order[0], "x")
            if not met.is_set():
                both_hold_one.wait(30)
                met.set()
            state.threads.set_name(order[1], str(order[0]))

        runtime.run(work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cross, [(first.id, second.id), (second.id, first.id)]))
    with runtime.read() as state:
        names = [state.threads.get(thread.id).name for thread in (first, second)]  # type: ignore[union-attr]
    assert sorted(names) in (sorted(["x", str(first.id)]), sorted(["x", str(second.id)]))


def _kill_backend(runtime: StateRuntime, victim: State) -> None:
    pid = victim.session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
    with runtime.autocommit() as state:
        state.session.connection().execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid}).all()


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_in_a_unit_of_work_is_replaced_and_the_unit_run_again(runtime: StateRuntime) -> None:
    calls = []

    def work(state: State) -> None:
        calls.append(state)
        state.threads.upsert(a_thread())
        if len(calls) == 1:
            _kill_backend(runtime, state)
        state.threads.upsert(a_thread())

    runtime.run(work)
    assert len(calls) == 2
    assert len(_ids(runtime)) == 2


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_during_the_commit_leaves_the_outcome_unknown(runtime: StateRuntime) -> None:
    calls = []

    def work(state: State) -> None:
        calls.append(state)
        state.threads.upsert(a_thread())
        event.listen(state.session, "before_commit", lambda _session: _kill_backend(runtime, state))

    with pytest.raises(UnknownCommitOutcomeError):
        runtime.run(work)
    assert len(calls) == 1


@pytest.mark.parametrize("runtime", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda state: state.threads.upsert(a_thread()), UnknownCommitOutcomeError),
        (lambda state: state.threads.upsert_many([a_thread(), a_thread()]), UnknownCommitOutcomeError),
        (lambda state: state.threads.list_ids(ThreadQuery(limit=1)), ConnectionLostError),
    ],
    ids=["write", "batch", "read"],
)
def test_a_connection_that_breaks_in_autocommit_leaves_the_outcome_of_a_write_unknown(
    runtime: StateRuntime, work: Callable[[State], None], expected: type[DatabaseError]
) -> None:
    with runtime.autocommit() as state:
        state.threads.list_ids(ThreadQuery(limit=1))
        _kill_backend(runtime, state)
        with pytest.raises(expected) as broken:
            work(state)
        assert broken.value.retryable is (expected is ConnectionLostError)
    with runtime.autocommit() as state:
        state.threads.upsert(a_thread())


def test_a_database_in_memory_serves_one_unit_after_the_other(tmp_path: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=tmp_path, database_url="sqlite://")) as runtime:
        assert runtime.database.path is None

        def insert(_: int) -> None:
            runtime.run(lambda state: state.threads.upsert(a_thread()))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(insert, range(20)))
        assert len(_ids(runtime)) == 20
        with runtime.autocommit() as state:
            assert state.threads.insert_if_absent(a_thread()) is True


def test_a_service_combines_its_own_rows_with_ours_in_its_own_session(runtime: StateRuntime) -> None:
    own.create_all(runtime.engine)
    thread = a_thread()
    with Session(runtime.engine) as session:
        state = State(session)
        session.add(Note(body="about a thread"))
        session.add(Thread(**thread.model_dump()))
        # Not flushed: the repository's statement refers to the row nevertheless.
        memory = state.thread_memories.upsert(thread.id, "raw", "summary")
        assert memory not in session
        session.commit()
    with Session(runtime.engine) as session:
        session.add(Note(body="never kept"))
        State(session).threads.set_name(thread.id, "never kept")
        session.flush()
        session.rollback()
    with Session(runtime.engine) as session:
        assert [note.body for note in session.exec(select(Note)).all()] == ["about a thread"]
        assert session.exec(select(Thread)).one().name is None
        assert State(session).thread_memories.get(thread.id) == memory


def test_an_entity_of_the_services_own_session_shows_our_writes_after_a_refresh(runtime: StateRuntime) -> None:
    thread = a_thread()
    with Session(runtime.engine) as session:
        mine = Thread(**thread.model_dump())
        session.add(mine)
        session.commit()
        State(session).threads.set_name(thread.id, "ours")
        session.refresh(mine)
        assert mine.name == "ours"
        mine.name = "mine"
        session.commit()
        assert State(session).threads.get(thread.id).name == "mine"  # type: ignore[union-attr]


def test_a_services_own_session_is_a_writer_from_its_first_write_on_and_gets_our_errors(
    runtime: StateRuntime, impatient: StateRuntime
) -> None:
    """L6, L8."""
    thread = a_thread()
    with Session(runtime.engine) as session:
        session.add(Thread(**thread.model_dump()))
        session.flush()

        def write() -> None:
            with Session(impatient.engine) as second:
                second.add(Thread(**thread.model_dump()))
                with pytest.raises(DatabaseBusyError):
                    second.flush()

        elsewhere(write)
        session.commit()
    with Session(runtime.engine) as session:
        session.add(Thread(**thread.model_dump()))
        with pytest.raises(IntegrityViolationError):
            session.flush()


@pytest.mark.parametrize("expire_on_commit", [True, False])
def test_repositories_work_on_an_engine_that_is_not_ours(runtime: StateRuntime, *, expire_on_commit: bool) -> None:
    """L8: errors are translated there as well."""
    engine = create_engine(runtime.engine.url)
    thread = a_thread()
    try:
        with Session(engine, expire_on_commit=expire_on_commit) as session:
            state = State(session)
            state.threads.upsert(thread)
            outcome = state.phase1_jobs.try_claim(
                Phase1Key(thread.id, MemoryScope.user()),
                owner=uuid4(),
                source_updated_at=NOON,
                lease=timedelta(hours=1),
            )
            assert isinstance(outcome, Claimed)
            session.commit()
            assert state.threads.get(thread.id) == thread
            with pytest.raises(IntegrityViolationError):
                state.threads.upsert(a_thread(tokens_used=-1))
            session.rollback()
            with pytest.raises(InvalidInputError):
                state.threads.upsert(a_thread(title="\ud800"))
            session.rollback()
    finally:
        engine.dispose()


def test_closed_connections_are_really_closed(runtime: StateRuntime) -> None:
    database: Database = runtime.database
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(runtime.read()).threads.list_ids(ThreadQuery(limit=1))
    assert database.engine.pool.checkedin() == 3  # type: ignore[attr-defined]
    runtime.close()
    assert database.engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_what_is_no_unit_of_work_is_refused_at_once(runtime: StateRuntime) -> None:
    def generator(state: State) -> Iterator[int]:
        state.threads.set_name(UUID(int=1), "never")
        yield 1

    with pytest.raises(UsageError, match="a generator would run after its transaction"):
        runtime.run(generator)
    with pytest.raises(UsageError, match="a function that gets a State, not 5"):
        runtime.run(5)  # type: ignore[arg-type]


def test_arguments_of_another_kind_are_refused_by_name(runtime: StateRuntime) -> None:
    thread, wrong = a_thread(), {"limit": 5}
    source = {"owner": uuid4(), "source_updated_at": NOON, "lease": timedelta(hours=1)}
    with pytest.raises(InvalidInputError, match=r"no memory mode: 'disable'.*did you mean 'disabled'"):
        runtime.run(lambda state: state.threads.set_memory_mode(thread.id, "disable"))
    with pytest.raises(UsageError, match="at least once"):
        runtime.run(lambda state: None, attempts=0)
    attempts: list[Callable[[State], object]] = [
        lambda state: state.threads.set_name(thread.id, 5),  # type: ignore[arg-type]
        lambda state: state.threads.upsert({"id": thread.id}),  # type: ignore[arg-type]
        lambda state: state.threads.upsert(None),  # type: ignore[arg-type]
        lambda state: state.threads.list(None),  # type: ignore[arg-type]
        lambda state: state.threads.list_ids(wrong),  # type: ignore[arg-type]
        lambda state: state.phase1_jobs.try_claim(None, **source),  # type: ignore[arg-type]
        lambda state: state.phase1_jobs.succeed("x", raw_memory_path=None, summary_hash=None),  # type: ignore[arg-type]
        lambda state: state.phase1_jobs.renew(None),  # type: ignore[arg-type]
    ]
    for attempt in attempts:
        with pytest.raises(InvalidInputError, match="expected a"):
            runtime.run(attempt)
