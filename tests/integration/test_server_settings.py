"""What a PostgreSQL server, its database or its role is set to: refused in a sentence, or lived with."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from cli_process import InProcess
from example_home import LISTED, copy_of_the_example_home
from postgres import TestServer
from sqlalchemy import make_url

from codex_state import LogQuery, State, StateRuntime, StateSettings
from codex_state.errors import (
    ConfigurationError,
    ConnectionLostError,
    DatabaseBusyError,
    StateError,
    StatementCancelledError,
)
from codex_state.testing.samples import a_log_line, a_thread


@pytest.fixture
def example_home(tmp_path: Path) -> Path:
    return copy_of_the_example_home(tmp_path / "example")


def administrator(url: str) -> psycopg.Connection:
    """A connection beside ours, of no pool."""
    return psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    )


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_of_another_encoding_is_refused_at_opening(postgres_url: str, tmp_path: Path, encoding: str) -> None:
    name = f"other_{encoding.lower()}_{random.randrange(10**9)}"
    with administrator(postgres_url) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
        url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        try:
            with pytest.raises(ConfigurationError, match=f"has the encoding {encoding}.*ENCODING 'UTF8'"):
                StateRuntime.open(StateSettings(codex_home=tmp_path, database_url=url))
            for command in (("threads", "list"), ("db", "upgrade"), ("db", "current"), ("doctor",)):
                done = InProcess(tmp_path).refused(*command, CODEX_STATE_DATABASE_URL=url)
                assert (done.status, encoding in done.stderr) == (1, True)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_encoding_that_the_client_is_set_to_does_not_matter(
    postgres_settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    thread = a_thread(title="größer 🍂")
    with StateRuntime.open(postgres_settings) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        found = runtime.run_read(lambda state: state.threads.get(thread.id))
    assert found is not None
    assert found.title == thread.title


@pytest.mark.parametrize("threshold", [0, 1, 7])
def test_the_url_may_say_from_when_on_statements_are_prepared(
    postgres_url: str, tmp_path: Path, threshold: int
) -> None:
    url = make_url(postgres_url).update_query_dict({"prepare_threshold": str(threshold)})
    with StateRuntime.open(StateSettings(codex_home=tmp_path, database_url=url)) as runtime:
        runtime.run(lambda state: state.threads.upsert(a_thread()))
        with runtime.engine.connect() as connection:
            assert connection.connection.driver_connection.prepare_threshold == threshold  # type: ignore[union-attr]
    pooled = StateSettings(codex_home=tmp_path, database_url=url, transaction_pooling=True)
    with StateRuntime.open(pooled) as runtime, runtime.engine.connect() as connection:
        assert connection.connection.driver_connection.prepare_threshold is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "option",
    [
        "prepare_threshold=soon",
        "prepare_threshold=-1",
        "prepare_threshold=1&prepare_threshold=2",
        "autocommit=false",
        "row_factory=dict_row",
    ],
)
@pytest.mark.parametrize("pooling", [True, False])
def test_what_the_url_may_not_say_to_psycopg_is_refused(tmp_path: Path, option: str, pooling: bool) -> None:
    url = f"postgresql://u:hunter2@localhost/x?{option}"
    name = option.partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"the database URL('s| can't set) {name}") as refused:
        StateRuntime.open(StateSettings(codex_home=tmp_path, database_url=url, transaction_pooling=pooling))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("seconds", [10**7, 10**10])
def test_a_busy_timeout_of_any_length_can_be_set(
    postgres_settings: StateSettings, sqlite_settings: StateSettings, seconds: int
) -> None:
    for settings in (postgres_settings, sqlite_settings):
        longer = settings.model_copy(update={"busy_timeout": timedelta(seconds=seconds)})
        with StateRuntime.open(longer) as runtime:
            runtime.run(lambda state: state.logs.insert(a_log_line()))


def run_slowly(runtime: StateRuntime, statement: str, pause: float) -> None:
    with runtime.begin() as state:
        connection = state.session.connection()
        connection.exec_driver_sql(statement)
        time.sleep(pause)
        connection.exec_driver_sql("SELECT 1")


TIMEOUTS = {
    "statement_timeout": (StatementCancelledError, "SELECT pg_sleep(10)"),
    "lock_timeout": (DatabaseBusyError, "LOCK TABLE logs IN ACCESS EXCLUSIVE MODE"),
    "idle_in_transaction_session_timeout": (ConnectionLostError, "SELECT 1"),
}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_what_a_timeout_of_the_server_ends_is_told_and_the_next_unit_works(
    postgres_settings: StateSettings, name: str
) -> None:
    """Set for the database, as operators do: a statement, a lock, a transaction that is left open."""
    kind, statement = TIMEOUTS[name]
    assert postgres_settings.database_url is not None
    url = postgres_settings.database_url.get_secret_value()
    with administrator(url) as other:
        other.execute(f'ALTER DATABASE "{make_url(url).database}" SET {name} = 100')
        settings = postgres_settings.model_copy(update={"busy_timeout": timedelta(seconds=0.1)})
        with StateRuntime.open(settings) as runtime:
            with other.transaction():
                other.execute("LOCK TABLE logs IN ACCESS SHARE MODE")
                with pytest.raises(kind) as told:
                    run_slowly(runtime, statement, 0.3 if name.startswith("idle") else 0)
            assert told.value.retryable
            runtime.run(lambda state: state.logs.insert(a_log_line()))
            assert runtime.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_role_that_may_only_read_is_shown_what_is_indexed_and_told_what_it_lacks(
    postgres_settings: StateSettings, example_home: Path
) -> None:
    assert postgres_settings.database_url is not None
    url = make_url(postgres_settings.database_url.get_secret_value())
    role = f"reader_{random.randrange(10**9)}"
    reader = url.set(username=role).render_as_string(hide_password=False)
    cli = InProcess(example_home)
    with administrator(str(url.render_as_string(hide_password=False))) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            cli.ok("backfill", CODEX_STATE_DATABASE_URL=url.render_as_string(hide_password=False))
            listed = cli.ok("threads", "list", CODEX_STATE_DATABASE_URL=reader).stdout
            assert listed.count("\n") == LISTED
            newest = min((example_home / "sessions").rglob("rollout-*.jsonl"))
            newest.write_text(newest.read_text() + "\n")
            done = cli.ok("threads", "list", CODEX_STATE_DATABASE_URL=reader)
            assert done.stdout == listed
            assert "it can't be written" in done.stderr
            refused = cli("threads", "name", listed[:36], "new", CODEX_STATE_DATABASE_URL=reader)
            assert (refused.status, "docs/postgres.md" in refused.stderr) == (1, True)
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def insert_pair(state: State, text: str) -> None:
    state.logs.insert_many([a_log_line(text + "a"), a_log_line(text + "b")])


def test_statements_that_are_cancelled_and_connections_that_are_ended_lose_nothing_and_do_nothing_twice(
    postgres_settings: StateSettings, postgres_server: TestServer
) -> None:
    """What was acknowledged is there once; what wasn't is whole or not at all; nothing stays open."""
    assert postgres_settings.database_url is not None
    url = postgres_settings.database_url.get_secret_value()
    interruptions = int(os.environ.get("CODEX_STATE_INTERRUPTIONS", "20"))
    stop, acknowledged, told = threading.Event(), Counter[str](), Counter[str]()
    lock = threading.Lock()

    def work(runtime: StateRuntime, worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            text = f"{worker}:{number}:"
            try:
                runtime.run(insert_pair, text)
            except StateError as error:  # its outcome may be unknown
                with lock:
                    told[type(error).__name__] += 1
                continue
            with lock:
                acknowledged[text] += 1

    with StateRuntime.open(postgres_settings) as runtime, administrator(url) as other:
        workers = [threading.Thread(target=work, args=(runtime, worker)) for worker in range(3)]
        for worker in workers:
            worker.start()
        done = Counter[str]()
        while min(done["pg_cancel_backend"], done["pg_terminate_backend"]) < interruptions:
            verb = random.choice(["pg_cancel_backend", "pg_terminate_backend"])
            found = other.execute(
                f"SELECT {verb}(pid) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
            ).fetchall()
            done[verb] += len(found)
            time.sleep(0.01)  # so that some work is done in between
        stop.set()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
        assert runtime.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        lines = Counter(line.message or "" for line in runtime.run_read(lambda state: state.logs.query(LogQuery())))
        open_ones = other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        ).fetchone()
    print(f"{sum(acknowledged.values())} acknowledged, {dict(told)} told, {dict(done)}")
    assert max(lines.values()) == 1, "nothing is there twice"
    assert {text + half for text in acknowledged for half in "ab"} <= lines.keys(), "nothing is lost"
    assert {text[:-1] for text in lines if text.endswith("a")} == {text[:-1] for text in lines if text.endswith("b")}
    assert open_ones == (0,)


def test_a_session_that_ended_before_a_statement_of_its_own_transaction_is_told_as_lost(
    postgres_settings: StateSettings,
) -> None:
    """L8: where a pooler is in between, that transaction is begun by an event, and fails there."""
    pooled = postgres_settings.model_copy(update={"transaction_pooling": True})
    assert pooled.database_url is not None
    with StateRuntime.open(pooled) as runtime, administrator(pooled.database_url.get_secret_value()) as other:
        with runtime.autocommit() as state:
            pid = state.session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            with pytest.raises(ConnectionLostError):
                state.session.connection().exec_driver_sql("SELECT 1")
        assert runtime.run(lambda state: state.threads.list()).items == [], "the next unit has another session"
