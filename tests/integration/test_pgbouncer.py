"""PgBouncer in transaction mode: the shipped suite and whole states through a pooler that shares its connections."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pgbouncer
import postgres
import pytest
import stores
from memory_support import OWNER, add_threads, claim, user_key
from own_server import own_server
from sqlalchemy import URL

from codex_state import (
    ConfigurationError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    ExtractedMemory,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadQuery,
    run_phase1,
)
from codex_state.database import Database
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance import (
    TestHolderWrites,
    TestLeaseRules,
    TestTransactionModes,
    front,
    processes,
    state,
)
from codex_state.testing.emptying import empty
from codex_state.testing.samples import a_log_line, a_thread
from tests.elsewhere import another_writer, elsewhere

# What a pooler may break: what a statement leaves behind on its connection, and the writes of leases. The rest of the
# suite is one statement or another, and knows no more of the connection than these.
__all__ = ["TestHolderWrites", "TestLeaseRules", "TestTransactionModes", "front", "processes", "state"]

pytestmark = pgbouncer.NEEDED


@pytest.fixture(scope="module")
def shared(postgres_server: postgres.TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Clocked]:
    with ExitStack() as held:
        direct = held.enter_context(stores.postgres_with_schema(postgres_server))
        url = held.enter_context(pgbouncer.pooled(direct))
        database = Database.open(url, busy_timeout=stores.BUSY_TIMEOUT, transaction_pooling=True)
        held.callback(database.close)
        yield held.enter_context(stores.clocked(database, tmp_path_factory.mktemp("clock")))


@pytest.fixture
def database(shared: stores.Clocked) -> Database:
    empty(shared.database)
    shared.clock.set(stores.NOON)
    return shared.database


@pytest.fixture
def clock(shared: stores.Clocked) -> ManualClock:
    return shared.clock


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[URL]:
    with pgbouncer.pooled(postgres_url) as url:
        yield url


@pytest.fixture
def runtime(pooled_url: URL, tmp_path: Path) -> Iterator[StateRuntime]:
    settings = StateSettings(
        codex_home=tmp_path,
        database_url=pooled_url.render_as_string(hide_password=False),
        busy_timeout=timedelta(seconds=0.3),
        transaction_pooling=True,
    )
    with StateRuntime.open(settings) as opened:
        yield opened


def test_a_state_is_migrated_and_memories_are_extracted_through_a_transaction_pooler(runtime: StateRuntime) -> None:
    add_threads(runtime, 8)

    def extract(thread: Thread) -> ExtractedMemory:
        return ExtractedMemory("raw", f"summary of {thread.id}")

    report = run_phase1(runtime, extract, owner=OWNER)
    assert (report.claimed, report.succeeded) == (16, 16)


def test_statements_may_be_repeated_on_any_of_the_poolers_connections(runtime: StateRuntime) -> None:
    """A driver that prepares a statement after its fifth use would not find it on the next connection."""
    with ExitStack() as held:
        states = [held.enter_context(runtime.autocommit()) for _ in range(4)]
        for number in range(40):
            states[number % 4].threads.upsert(a_thread())
    with runtime.read() as state:
        assert len(state.threads.list_ids(ThreadQuery(limit=50))) == 40


@pytest.mark.parametrize("mode", ["begin", "autocommit"])
def test_waiting_for_a_lock_is_bounded_behind_a_pooler(runtime: StateRuntime, mode: str) -> None:
    job = claim(runtime, user_key(add_threads(runtime)[0]))
    opened = another_writer(runtime) if mode == "begin" else runtime.autocommit()
    with runtime.begin() as holder, opened as waiter:
        assert holder.phase1_jobs.renew(job)
        with pytest.raises(DatabaseBusyError):
            elsewhere(lambda: waiter.phase1_jobs.renew(job))
        waiter.session.rollback()
    with runtime.autocommit() as state:
        assert state.phase1_jobs.renew(job)


def test_an_autocommitted_statement_that_failed_leaves_the_session_usable(runtime: StateRuntime) -> None:
    job = claim(runtime, user_key(add_threads(runtime)[0]))
    with runtime.begin() as holder, runtime.autocommit() as state:
        assert holder.phase1_jobs.renew(job)
        with pytest.raises(DatabaseBusyError):
            elsewhere(lambda: state.phase1_jobs.renew(job))
        state.logs.insert_many([a_log_line("several"), a_log_line("rows")])
    with runtime.read() as state:
        assert state.logs.max_id() > 0


def test_no_setting_stays_behind_on_the_poolers_connections(runtime: StateRuntime) -> None:
    with runtime.begin() as state:
        state.threads.upsert(a_thread())
    with runtime.autocommit() as state:
        state.threads.upsert(a_thread())
    with runtime.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.rollback()
        driver.autocommit = True
        assert driver.execute("SHOW lock_timeout").fetchone() == ("0",)
        driver.autocommit = False


def test_a_server_that_is_restarted_behind_a_pooler_is_waited_for(tmp_path: Path) -> None:
    """The pooler has the connections. It lets one statement wait and refuses the others, which is no attempt."""
    with own_server() as server, pgbouncer.pooled(server.url, "server_login_retry = 1") as url, ExitStack() as held:
        settings = StateSettings(
            codex_home=tmp_path,
            database_url=url.render_as_string(hide_password=False),
            transaction_pooling=True,
            retry_for=timedelta(seconds=60),
        )
        runtime = held.enter_context(StateRuntime.open(settings))
        with runtime.read() as one, runtime.read() as another, runtime.read() as third:
            for state in (one, another, third):
                assert state.threads.list_ids(ThreadQuery(limit=1)) == []
        waiting = held.enter_context(ThreadPoolExecutor())
        server.kill(signal.SIGQUIT)
        runs = []
        for run in (runtime.run, runtime.run, runtime.run_read):
            time.sleep(0.5)
            runs.append(waiting.submit(run, lambda state: state.threads.list_ids(ThreadQuery(limit=1)), attempts=1))
        server.start()
        assert [run.result(60) for run in runs] == [[], [], []]


def test_a_pooler_that_was_not_told_of_says_which_setting_is_missing(pooled_url: URL, tmp_path: Path) -> None:
    settings = StateSettings(codex_home=tmp_path, database_url=pooled_url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnavailableError, match="CODEX_STATE_TRANSACTION_POOLING=true"):
        StateRuntime.open(settings)


def test_the_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODEX_STATE_TRANSACTION_POOLING", "true")
    assert StateSettings(codex_home=tmp_path).transaction_pooling
    monkeypatch.setenv("CODEX_STATE_TRANSACTION_POOLING", "perhaps")
    with pytest.raises(ConfigurationError):
        StateSettings(codex_home=tmp_path)
