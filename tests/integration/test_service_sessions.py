"""Sessions as services use them: whatever interrupts them, whichever driver they have, and what is misused is told."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, exc, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Field, Session, SQLModel

from codex_state import (
    AsyncStateRuntime,
    ConfigurationError,
    DatabaseBusyError,
    IntegrityViolationError,
    InvalidInputError,
    LogEntry,
    MemoryScope,
    Phase1Key,
    SchemaChangedError,
    State,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadQuery,
    ThreadRepository,
    UsageError,
)
from codex_state.database import translate_errors
from codex_state.errors import StatementRefusedError
from codex_state.testing.samples import a_log_line, a_thread, a_tool
from tests.elsewhere import elsewhere


def stored(runtime: StateRuntime) -> int:
    return len(runtime.run_read(lambda state: state.threads.list_ids(ThreadQuery(limit=100))))


# Misuse is told at once, and in the same words on both databases.


def test_a_state_is_over_with_its_block(runtime: StateRuntime) -> None:
    with runtime.begin() as written:
        written.threads.upsert(a_thread())
    with runtime.read() as read:
        pass
    with runtime.autocommit() as committed:
        pass
    for state in (written, read, committed):
        with pytest.raises(UsageError, match="after its block"):
            state.threads.get(uuid4())
        with pytest.raises(UsageError, match="after its block"):
            state.session.connection()
        with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
            state.session.add(LogEntry(**a_log_line("x").model_dump()))


def test_a_closed_runtime_says_so_whatever_is_asked_of_it(settings: StateSettings) -> None:
    runtime = StateRuntime.open(settings)
    runtime.run(lambda state: state.threads.upsert(a_thread()))
    runtime.close()
    runtime.close()

    def own_session() -> None:
        with Session(runtime.engine) as session:
            session.connection()

    for use in (
        lambda: runtime.run(lambda state: state.threads.list()),
        lambda: runtime.run_read(lambda state: state.threads.list()),
        lambda: runtime.begin().__enter__(),
        lambda: runtime.read().__enter__(),
        lambda: runtime.autocommit().__enter__(),
        own_session,
    ):
        with pytest.raises(UsageError, match="is closed"):
            use()


def test_a_closed_async_runtime_says_so(sqlite_settings: StateSettings) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(sqlite_settings) as runtime:
            assert await runtime.run(lambda state, number: number, 7) == 7
            assert await runtime.read(lambda state, number: number, 7) == 7
            assert await runtime.run_read(lambda state: 7) == 7
            assert await runtime.autocommit(lambda state, number: number, 7) == 7
        for use in (runtime.run, runtime.run_read, runtime.read, runtime.run_autocommit, runtime.autocommit):
            with pytest.raises(UsageError, match="is closed"):
                await use(lambda state: 1)

    asyncio.run(main())


def test_an_async_function_is_no_unit_of_work(runtime: StateRuntime) -> None:
    async def work(state: State) -> None:
        raise AssertionError("it never runs")

    for run in (runtime.run, runtime.run_read, runtime.run_autocommit):
        with pytest.raises(UsageError, match="ordinary function"):
            run(work)


def test_a_unit_gets_the_arguments_that_are_given_with_it(runtime: StateRuntime) -> None:
    thread = a_thread()
    runtime.run(lambda state, one: state.threads.upsert(one), thread)
    assert runtime.run_read(lambda state, key, default: state.threads.get(key) or default, thread.id, None) == thread
    assert runtime.run_autocommit(lambda state, key: state.threads.set_name(key, "n"), thread.id) is True


def test_a_write_inside_of_a_write_is_told_at_once(runtime: StateRuntime) -> None:
    began = time.monotonic()
    with runtime.begin() as state:
        state.threads.upsert(a_thread())
        with pytest.raises(UsageError, match="same thread or task"):
            runtime.run(lambda inner: inner.threads.upsert(a_thread()))
        with pytest.raises(UsageError, match="same thread or task"), runtime.begin() as inner:
            inner.threads.upsert(a_thread())
        assert runtime.run_read(lambda inner: inner.threads.list_ids(ThreadQuery(limit=1))) == []
    assert time.monotonic() - began < runtime.settings.busy_timeout.total_seconds()
    runtime.run(lambda inner: inner.threads.upsert(a_thread()))
    assert stored(runtime) == 2


def test_a_write_inside_of_an_own_sessions_write_is_told_at_once_on_sqlite(sqlite_runtime: StateRuntime) -> None:
    with Session(sqlite_runtime.engine) as session:
        State(session).threads.upsert(a_thread())
        for write in (
            lambda: sqlite_runtime.run(lambda state: state.threads.upsert(a_thread())),
            lambda: sqlite_runtime.run_autocommit(lambda state: state.threads.upsert(a_thread())),
        ):
            with pytest.raises(UsageError, match="same thread or task"):
                write()
        session.commit()
        sqlite_runtime.run(lambda state: state.threads.upsert(a_thread()))
    assert stored(sqlite_runtime) == 2


def patient_for_a_moment(settings: StateSettings) -> StateSettings:
    return settings.model_copy(update={"busy_timeout": timedelta(seconds=0.3)})


def test_a_write_that_waits_for_an_own_sessions_write_is_told_so_on_postgresql(
    postgres_settings: StateSettings,
) -> None:
    """Not at once: only where both write the same row does one wait for the other."""
    one, other = a_thread(), a_thread()
    with StateRuntime.open(patient_for_a_moment(postgres_settings)) as runtime:

        def named(state: State, thread: Thread) -> None:
            state.threads.set_name(thread.id, "b")

        runtime.run(lambda state: state.threads.upsert_many([one, other]))
        with Session(runtime.engine) as session:
            State(session).threads.set_name(one.id, "a")
            runtime.run(named, other)
            attempts: list[str] = []
            for write in (
                lambda: runtime.run(lambda state: (attempts.append("run"), named(state, one))),
                lambda: runtime.run_autocommit(named, one),
            ):
                with pytest.raises(UsageError, match="same thread or task"):
                    write()
            with pytest.raises(UsageError, match="same thread or task"), Session(runtime.engine) as second:
                named(State(second), one)
            assert attempts == ["run"], "it isn't tried again"
            session.commit()
            runtime.run(named, one)
        with runtime.begin() as state, Session(runtime.engine) as second:
            state.threads.set_name(one.id, "a")
            with pytest.raises(UsageError, match="same thread or task"):
                named(State(second), one)


def test_a_task_that_waits_for_its_own_sessions_write_is_told_so(postgres_settings: StateSettings) -> None:
    thread = a_thread()

    async def main() -> None:
        async with AsyncStateRuntime.open(patient_for_a_moment(postgres_settings)) as runtime:
            await runtime.run(lambda state: state.threads.upsert(thread))
            with Session(runtime.sync.engine) as session:
                State(session).threads.set_name(thread.id, "a")
                with pytest.raises(UsageError, match="same thread or task"):
                    await runtime.run(lambda state: state.threads.set_name(thread.id, "b"))
                session.rollback()
                await runtime.run(lambda state: state.threads.set_name(thread.id, "b"))

    asyncio.run(main())


@pytest.mark.parametrize("own", ["reads", "was rolled back", "has no transaction", "failed", "is elsewhere"])
def test_who_waits_for_others_beside_an_own_session_is_not_told_of_itself(
    postgres_settings: StateSettings, own: str
) -> None:
    thread = a_thread()
    with (
        StateRuntime.open(patient_for_a_moment(postgres_settings)) as runtime,
        StateRuntime.open(postgres_settings) as others,
        Session(runtime.engine) as session,
        Session(others.engine) as holder,
    ):
        state = State(session)
        runtime.run(lambda state: state.threads.upsert(thread))
        match own:
            case "reads":
                assert state.threads.get(thread.id) == thread
            case "was rolled back":
                state.threads.upsert(a_thread())
                session.rollback()
            case "failed":
                state.threads.upsert(a_thread())
                with pytest.raises(exc.IntegrityError):
                    state.dynamic_tools.persist([a_tool(a_thread())])
            case "is elsewhere":
                elsewhere(lambda: state.threads.upsert(a_thread()))
        elsewhere(lambda: State(holder).threads.set_name(thread.id, "a"))
        with pytest.raises(DatabaseBusyError):
            runtime.run(lambda state: state.threads.set_name(thread.id, "b"), attempts=2)


def test_who_asks_for_a_lock_without_waiting_is_told_that_it_is_taken(postgres_settings: StateSettings) -> None:
    thread = a_thread()
    with StateRuntime.open(postgres_settings) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        with Session(runtime.engine) as session, Session(runtime.engine) as second:
            State(session).threads.set_name(thread.id, "a")
            with pytest.raises(DatabaseBusyError):
                second.connection().exec_driver_sql("SELECT id FROM threads FOR UPDATE NOWAIT")


def test_a_task_that_writes_inside_of_its_own_write_is_told_at_once(sqlite_settings: StateSettings) -> None:
    async def main() -> None:
        async with AsyncStateRuntime.open(sqlite_settings) as runtime:
            with runtime.sync.begin() as state:
                state.threads.upsert(a_thread())
                with pytest.raises(UsageError, match="same thread or task"):
                    await runtime.run(lambda inner: inner.threads.upsert(a_thread()))
            await runtime.run(lambda inner: inner.threads.upsert(a_thread()))
            with pytest.raises(UsageError, match="same thread or task"):
                await runtime.run(lambda state: runtime.sync.run(lambda inner: inner.threads.upsert(a_thread())))

    asyncio.run(main())


def test_two_requests_that_share_a_thread_one_after_the_other_are_not_one_caller(sqlite_runtime: StateRuntime) -> None:
    """A web service enters a dependency on one thread of its pool, and may leave it on another."""
    from contextvars import copy_context

    block = sqlite_runtime.begin()
    copy_context().run(lambda: block.__enter__().threads.upsert(a_thread()))

    def leave() -> None:
        time.sleep(0.2)
        block.__exit__(None, None, None)

    from threading import Thread as OsThread

    leaving = OsThread(target=leave)
    leaving.start()
    copy_context().run(sqlite_runtime.run, lambda state: state.threads.upsert(a_thread()))
    leaving.join()
    assert stored(sqlite_runtime) == 2


def test_what_is_no_session_or_no_settings_is_told_with_what_would_be(tmp_path: Path) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(UsageError, match="run_sync"):
        State(AsyncSession(engine))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Session\(runtime.engine\)"):
        ThreadRepository(engine)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="StateSettings"):
        StateRuntime.open(str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="did you mean 'codex_home'"):
        StateSettings(codex_hom=tmp_path)
    with pytest.raises(InvalidInputError, match="did you mean 'updated_at'"):
        ThreadQuery(sort_key="update_at")  # type: ignore[arg-type]
    assert ThreadQuery(sort_key="created_at").sort_key == "created_at"  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"give \['cli'\]"):
        ThreadQuery(sources="cli")
    with pytest.raises(InvalidInputError, match=r"Anchor\.parse"):
        ThreadQuery(anchor="2026|1")  # type: ignore[arg-type]


def test_a_duration_without_a_unit_is_refused(runtime: StateRuntime) -> None:
    thread = a_thread()
    runtime.run(lambda state: state.threads.upsert(thread))
    key = Phase1Key(thread.id, MemoryScope.user())
    with pytest.raises(InvalidInputError, match="timedelta"), runtime.autocommit() as state:
        state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=thread.updated_at, lease=3600)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="timedelta"):
        runtime.run(lambda state: None, retry_for=30)  # type: ignore[arg-type]


# Connections come back clean.


@contextmanager
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Runs a function that a signal's handler interrupts, between any two steps of Python, after a time by a number."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)
    # What SQLAlchemy logs of an interrupted return has frames in it, and pytest would keep them.
    logging.disable(logging.CRITICAL)

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    def run(number: int, function: Callable[[], None]) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 30 * 0.0001)
            function()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield run
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateRuntime]:
    settings = StateSettings(codex_home=tmp_path, pool_size=2, busy_timeout=timedelta(seconds=5))
    with StateRuntime.open(settings) as runtime:
        yield runtime


def test_whatever_interrupts_readers_the_next_writer_writes(
    small: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> None:
        with small.read() as state:
            state.logs.max_id()

    with interrupting(monkeypatch) as run:
        for number in range(1000):
            run(number, read)
            if number % 10 == 0:
                small.run(lambda state: state.logs.insert(a_log_line("x")), attempts=1)
    assert small.run_read(lambda state: state.logs.max_id()) == 100


def test_whatever_interrupts_writers_others_write(small: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """L5: and what they wrote is whole."""

    def write() -> None:
        with small.begin() as state:
            state.threads.upsert_many([a_thread(), a_thread()])

    with interrupting(monkeypatch) as run:
        for number in range(600):
            run(number, write)
            if number % 10 == 0:
                small.run(lambda state: state.logs.insert(a_log_line("x")), attempts=1)
    assert small.run_read(lambda state: state.logs.max_id()) == 60
    assert len(small.run_read(lambda state: state.threads.list_ids(ThreadQuery(limit=10_000)))) % 2 == 0


def test_whatever_interrupts_a_services_own_sessions_others_write(
    small: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with Session(small.engine) as session:
            State(session).threads.list_ids(ThreadQuery(limit=1))
            State(session).threads.upsert_many([a_thread(), a_thread()])
            session.commit()

    with interrupting(monkeypatch) as run:
        for number in range(600):
            with suppress(AssertionError, exc.InvalidRequestError):  # SQLAlchemy's, of its interrupted session
                run(number, write)
            if number % 10 == 0:
                small.run(lambda state: state.logs.insert(a_log_line("x")), attempts=1)
    assert len(small.run_read(lambda state: state.threads.list_ids(ThreadQuery(limit=10_000)))) % 2 == 0


def test_an_interrupt_of_a_unit_comes_out_as_what_it_is(runtime: StateRuntime) -> None:

    def work(state: State) -> None:
        state.threads.upsert(a_thread())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runtime.run(work)
    assert stored(runtime) == 0
    runtime.run(lambda state: state.threads.upsert(a_thread()))


def test_a_reader_that_nobody_closed_leaves_its_connection_fit_for_writing(runtime: StateRuntime) -> None:
    for _ in range(2 * runtime.settings.pool_size):
        session = Session(runtime.read_engine)
        State(session).threads.list_ids(ThreadQuery(limit=1))
        del session
        gc.collect()
        runtime.run(lambda state: state.threads.upsert(a_thread()), attempts=1)


def test_a_writer_that_nobody_closed_is_no_obstacle(runtime: StateRuntime) -> None:
    for _ in range(2 * runtime.settings.pool_size):
        session = Session(runtime.engine)
        State(session).threads.upsert(a_thread())
        del session
        runtime.run(lambda state: state.threads.upsert(a_thread()), attempts=1)
    assert stored(runtime) == 2 * runtime.settings.pool_size


def test_a_connection_that_comes_back_in_a_transaction_is_not_used_again(runtime: StateRuntime) -> None:
    raw = runtime.engine.raw_connection()
    driver: Any = raw.driver_connection
    entry: Any = raw._connection_record
    driver.execute("BEGIN")
    entry.checkin()
    assert entry.dbapi_connection is None
    raw._connection_record = None  # type: ignore[attr-defined]
    runtime.run(lambda state: state.threads.upsert(a_thread()))


class Hero(SQLModel, table=True):
    """As in FastAPI's tutorial."""

    __tablename__ = "service_hero"

    id: int | None = Field(default=None, primary_key=True)
    name: str


def test_add_commit_refresh_return_does_not_hold_the_writer(runtime: StateRuntime) -> None:
    """L6: the session reads after its commit, and is closed only after the background task."""
    SQLModel.metadata.create_all(runtime.engine, tables=[SQLModel.metadata.tables["service_hero"]])
    thread = a_thread()
    runtime.run(lambda state: state.threads.upsert(thread))
    app = FastAPI()

    def new_session() -> Iterator[Session]:
        with Session(runtime.engine) as session:
            yield session

    def note() -> None:
        assert runtime.run(lambda state: state.threads.set_name(thread.id, "seen"), attempts=1)

    @app.post("/heroes")
    def create(name: str, later: BackgroundTasks, session: Session = Depends(new_session)) -> str:  # noqa: B008
        hero = Hero(name=name)
        session.add(hero)
        session.commit()
        session.refresh(hero)
        later.add_task(note)
        return hero.name

    create.__annotations__.update(session=Session, later=BackgroundTasks)
    assert TestClient(app).post("/heroes", params={"name": "x"}).json() == "x"
    named = runtime.run_read(lambda state: state.threads.get(thread.id))
    assert named is not None
    assert named.name == "seen"


def test_a_connection_that_the_server_ended_is_noticed_before_it_is_used(postgres_settings: StateSettings) -> None:
    with StateRuntime.open(postgres_settings) as runtime:
        thread = a_thread()
        runtime.run(lambda state: state.threads.upsert(thread))

        def own_session() -> None:
            with Session(runtime.engine) as session:
                State(session).threads.set_name(thread.id, "x")
                session.commit()

        def unit(opened: Callable[[], Any]) -> Callable[[], None]:
            def use() -> None:
                with opened() as state:
                    state.threads.get(thread.id)

            return use

        admin = create_engine(runtime.engine.url, isolation_level="AUTOCOMMIT")
        for use in (unit(runtime.begin), unit(runtime.read), unit(runtime.autocommit), own_session):
            with runtime.read() as one:
                one.threads.get(thread.id)
            with admin.connect() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            use()
        admin.dispose()


def test_a_statement_that_was_prepared_before_its_table_was_changed_is_run_again(
    postgres_settings: StateSettings,
) -> None:
    with StateRuntime.open(postgres_settings) as runtime:
        admin = create_engine(runtime.engine.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE TABLE service_notes (id int, body text)"))

        def read(state: State) -> int:
            return len(state.session.connection().exec_driver_sql("SELECT * FROM service_notes").all())

        for _ in range(10):
            runtime.run(read)
        with admin.connect() as connection:
            connection.execute(text("ALTER TABLE service_notes ADD COLUMN at int"))
        assert runtime.run(read) == 0
        for _ in range(10):
            runtime.run_autocommit(read)
        with admin.connect() as connection:
            connection.execute(text("ALTER TABLE service_notes ADD COLUMN more int"))
        with pytest.raises(SchemaChangedError):
            runtime.run_autocommit(read)
        assert runtime.run_autocommit(read) == 0, "the next connection doesn't know the old statement"
        admin.dispose()


# Engines of a service's own, by whichever driver.


def everything(state: State, thread: Thread) -> None:
    state.threads.upsert(thread)
    state.threads.upsert_many([a_thread()])
    state.threads.upsert_from_rollouts([thread])
    state.dynamic_tools.persist([a_tool(thread)])
    state.logs.insert(a_log_line("x"))
    state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(hours=1), max_age=timedelta(days=99_999))
    assert state.threads.get(thread.id) is not None


@asynccontextmanager
async def async_session(settings: StateSettings, driver: str) -> AsyncIterator[AsyncSession]:
    with StateRuntime.open(settings) as runtime:
        url = runtime.engine.url
    engine = create_async_engine(url.set(drivername=f"{url.get_backend_name()}+{driver}"))
    translate_errors(engine)
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


ASYNC_DRIVERS = [("sqlite", "aiosqlite"), ("postgres", "asyncpg"), ("postgres", "psycopg")]


@pytest.mark.parametrize(("dialect", "driver"), ASYNC_DRIVERS)
def test_repositories_work_in_a_services_async_session(
    dialect: str, driver: str, request: pytest.FixtureRequest
) -> None:
    settings: StateSettings = request.getfixturevalue(f"{dialect}_settings")
    thread = a_thread()

    async def main() -> None:
        async with async_session(settings, driver) as session:
            await session.run_sync(lambda sync: everything(State(sync), thread))
            await session.rollback()
            assert await session.run_sync(lambda sync: State(sync).threads.list_ids(ThreadQuery(limit=9))) == []
            await session.run_sync(lambda sync: everything(State(sync), thread))
            await session.commit()

    asyncio.run(main())
    with StateRuntime.open(settings) as runtime:
        assert stored(runtime) == 2


@pytest.mark.parametrize(("dialect", "driver"), ASYNC_DRIVERS)
def test_errors_of_an_async_engine_are_translated(dialect: str, driver: str, request: pytest.FixtureRequest) -> None:
    """L8."""

    async def main() -> None:
        async with async_session(request.getfixturevalue(f"{dialect}_settings"), driver) as session:
            with pytest.raises(StatementRefusedError, match="no_such_table"):
                await session.execute(text("SELECT * FROM no_such_table"))
            await session.rollback()
            session.add(a_thread(tokens_used=-1))
            with pytest.raises(IntegrityViolationError):
                await session.commit()

    asyncio.run(main())


@pytest.mark.skipif("CODEX_STATE_TEST_DATABASE_URL" in os.environ, reason="its server's socket isn't known")
@pytest.mark.parametrize("driver", ["psycopg2", "pg8000", "psycopg"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_rows_that_belong_together_stay_together_by_any_driver_of_postgresql(
    postgres_settings: StateSettings, driver: str, autocommit: bool
) -> None:
    """L5."""
    with StateRuntime.open(postgres_settings) as runtime:
        url = runtime.engine.url.set(drivername=f"postgresql+{driver}")
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        if driver == "pg8000":
            options["connect_args"] = {"unix_sock": f"{url.query['host']}/.s.PGSQL.5432"}
            url = url.set(query={})
        assert_whole(create_engine(url, **options), runtime)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"isolation_level": None}]
    + ([{"autocommit": True}, {"autocommit": False}] if sys.version_info >= (3, 12) else []),
    ids=str,
)
def test_rows_that_belong_together_stay_together_on_any_engine_of_sqlite(
    sqlite_settings: StateSettings, arguments: dict[str, Any]
) -> None:
    """L5."""
    with StateRuntime.open(sqlite_settings) as runtime:
        assert_whole(create_engine(runtime.engine.url, connect_args=arguments), runtime)


def assert_whole(engine: Engine, runtime: StateRuntime) -> None:
    with pytest.raises(exc.IntegrityError), Session(engine) as session:
        State(session).threads.upsert_many([a_thread(), a_thread(tokens_used=-1)])
    assert stored(runtime) == 0
    with Session(engine) as session:
        everything(State(session), a_thread())
        session.commit()
    engine.dispose()
    assert stored(runtime) == 2


def test_autocommit_asked_of_our_engine_is_autocommit(runtime: StateRuntime) -> None:
    engine = runtime.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        State(session).threads.upsert(a_thread())
        assert elsewhere(lambda: stored(runtime)) == 1
    with Session(runtime.engine) as session:
        State(session).threads.upsert(a_thread())
        session.rollback()
    assert stored(runtime) == 1
    for _ in range(runtime.settings.pool_size):
        with runtime.autocommit() as state:
            state.threads.upsert(a_thread())
    assert stored(runtime) == 1 + runtime.settings.pool_size, "each connection is as it was before"
