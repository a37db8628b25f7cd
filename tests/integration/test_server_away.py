"""A server that goes away and comes back: what may be repeated is, what can't come right is told at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from relay import Relay
from sqlalchemy import event, make_url, text
from sqlmodel import Session

from codex_state import (
    AsyncStateRuntime,
    DatabaseUnavailableError,
    ServerUnavailableError,
    State,
    StateRuntime,
    StateSettings,
    ThreadQuery,
)
from codex_state.database import Database
from codex_state.database.patience import Patience, waiting
from codex_state.testing.samples import a_thread

AWAY_SECONDS = 1.5


class Outage:
    """A server that can be made to be away: the relay in front of it is closed."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._directory = make_url(url), directory
        self.wire = Relay(self._url, directory)

    def begin(self) -> None:
        self.wire.close()

    def end(self) -> None:
        self.wire = Relay(self._url, self._directory)


@pytest.fixture
def outage(postgres_settings: StateSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    assert postgres_settings.database_url is not None
    made = Outage(postgres_settings.database_url.get_secret_value(), tmp_path_factory.mktemp("r"))
    yield made
    made.begin()


@pytest.fixture
def runtime(postgres_settings: StateSettings, outage: Outage) -> Iterator[StateRuntime]:
    url = outage.wire.url.render_as_string(hide_password=False)
    settings = postgres_settings.model_copy(update={"retry_for": timedelta(seconds=60)})
    with StateRuntime(settings, Database.open(url, retry_for=settings.retry_for)) as opened:
        yield opened


@contextmanager
def away(outage: Outage, seconds: float = AWAY_SECONDS) -> Iterator[None]:
    outage.begin()
    timer = threading.Timer(seconds, outage.end)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def store(state: State) -> int:
    state.threads.upsert(a_thread())
    return len(state.threads.list_ids(ThreadQuery(limit=9)))


def read(state: State) -> int:
    return len(state.threads.list_ids(ThreadQuery(limit=9)))


@pytest.mark.parametrize(("mode", "work", "found"), [("run", store, 2), ("run_read", read, 1)])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_unit_of_work_outlives_a_server_that_is_away_for_a_while(
    runtime: StateRuntime, outage: Outage, mode: str, work: Callable[[State], int], found: int, *, pooled: bool
) -> None:
    assert runtime.run(store) == 1
    if not pooled:
        runtime.engine.dispose()
    with away(outage):
        assert getattr(runtime, mode)(work) == found


@pytest.mark.parametrize("mode", ["begin", "read", "autocommit"])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_block_that_has_not_begun_waits_for_a_server_that_is_away(
    runtime: StateRuntime, outage: Outage, mode: str, *, pooled: bool
) -> None:
    assert runtime.run(store) == 1
    if not pooled:
        runtime.engine.dispose()
    with away(outage, 0.3), getattr(runtime, mode)() as state:
        assert read(state) == 1


def test_sessions_of_a_service_wait_for_a_server_that_is_away(runtime: StateRuntime, outage: Outage) -> None:
    runtime.engine.dispose()
    with away(outage, 0.3), Session(runtime.engine) as session:
        assert State(session).threads.list_ids(ThreadQuery(limit=9)) == []


def test_opening_waits_for_a_server_that_is_away(postgres_settings: StateSettings, outage: Outage) -> None:
    url = SecretStr(outage.wire.url.render_as_string(hide_password=False))
    settings = postgres_settings.model_copy(update={"database_url": url, "retry_for": timedelta(seconds=60)})
    with away(outage, 0.3), StateRuntime.open(settings) as opened:
        assert opened.run(store) == 1


def test_async_callers_wait_for_a_server_that_is_away(postgres_settings: StateSettings, outage: Outage) -> None:
    url = SecretStr(outage.wire.url.render_as_string(hide_password=False))
    settings = postgres_settings.model_copy(update={"database_url": url, "retry_for": timedelta(seconds=60)})

    async def units() -> tuple[int, int]:
        async with AsyncStateRuntime.open(settings) as opened:
            stored = await opened.autocommit(store)
            opened.sync.engine.dispose()
            with away(outage, 0.3):
                return stored, await opened.autocommit(read)

    with away(outage, 0.3):
        assert asyncio.run(units()) == (1, 1)


def test_what_a_service_does_before_each_connection_is_done_before_the_waiting(
    runtime: StateRuntime, outage: Outage
) -> None:
    runtime.engine.dispose()
    asked: list[str] = []
    event.listen(runtime.engine, "do_connect", lambda *_: asked.append("for a password"))
    with away(outage, 0.3):
        assert runtime.run_autocommit(read) == 0
    assert asked == ["for a password"]


def test_whoever_waits_in_a_unit_of_its_own_time_waits_no_longer(runtime: StateRuntime, outage: Outage) -> None:
    outage.begin()
    with pytest.raises(ServerUnavailableError), waiting(Patience(timedelta(0))), runtime.autocommit() as state:
        read(state)


def test_how_often_a_connection_was_refused_does_not_count_as_an_attempt(runtime: StateRuntime, outage: Outage) -> None:
    runtime.engine.dispose()
    with away(outage):
        assert runtime.run(store, attempts=1) == 1


def test_a_server_that_stays_away_is_given_up_after_the_time_to_retry(runtime: StateRuntime, outage: Outage) -> None:
    outage.begin()
    began = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="check the URL's host and port") as told:
        runtime.run(store, retry_for=timedelta(seconds=1))
    assert time.monotonic() - began >= 1
    assert told.value.retryable


def test_a_missing_database_is_told_at_once(postgres_settings: StateSettings) -> None:
    assert postgres_settings.database_url is not None
    url = make_url(postgres_settings.database_url.get_secret_value()).set(database="not_there")
    settings = postgres_settings.model_copy(update={"retry_for": timedelta(hours=1)})
    with (
        StateRuntime(settings, Database.open(url)) as runtime,
        pytest.raises(DatabaseUnavailableError, match="does not exist") as told,
    ):
        runtime.run(store)
    assert not told.value.retryable


@contextmanager
def a_server_that_says(fields: bytes) -> Iterator[str]:
    """A server that answers each connection with one error."""
    error = b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(8192)
                    client.sendall(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"postgresql://somebody@127.0.0.1:{listener.getsockname()[1]}/state?sslmode=disable&gssencmode=disable"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        (b"C57P03\0Mthe database system is starting up\0", True),
        (b"C57P03\0Mthe database system is shutting down\0", True),
        (b"C57P03\0Mthe database system is in recovery mode\0", True),
        (b"C57P01\0Mterminating connection due to unexpected postmaster exit\0", True),
        (b"C57P01\0Mterminating connection due to administrator command\0", True),
        (b"C53300\0Msorry, too many clients already\0", True),
        (b"C08P01\0Mno more connections allowed (max_client_conn)\0", True),
        (b"C08P01\0Mserver login has been failing, try again later (server_login_retry)\0", True),
        (b'C28P01\0Mpassword authentication failed for user "somebody"\0', False),
        (b'C28000\0Mno pg_hba.conf entry for host "127.0.0.1"\0', False),
        (b'C3D000\0Mdatabase "state" does not exist\0', False),
    ],
)
def test_what_a_server_says_when_it_refuses_decides_whether_it_is_asked_again(
    said: bytes, passes: bool, tmp_path: Path
) -> None:
    settings = StateSettings(codex_home=tmp_path, retry_for=timedelta(seconds=0.5))
    with (
        a_server_that_says(b"SFATAL\0VFATAL\0" + said) as url,
        StateRuntime(settings, Database.open(url)) as runtime,
        pytest.raises(DatabaseUnavailableError) as told,
    ):
        runtime.run(store)
    assert isinstance(told.value, ServerUnavailableError) is passes


def test_one_broken_connection_makes_the_pool_give_up_all_of_them(runtime: StateRuntime, outage: Outage) -> None:
    """Else each of them would cost another caller an error after a restart."""
    held = [runtime.database.autocommit() for _ in range(3)]
    for opened in held:
        opened.__enter__().connection()
    for opened in held:
        opened.__exit__(None, None, None)
    outage.begin()
    outage.end()
    assert runtime.run(store, attempts=2) == 1
    for _ in range(3):
        with runtime.begin() as state:
            store(state)


@pytest.mark.parametrize("statement_follows", [True, False])
def test_a_unit_of_work_that_was_ended_for_being_idle_is_run_again(
    postgres_settings: StateSettings, *, statement_follows: bool
) -> None:
    """Also when only its commit was to follow: the server said that it wasn't kept."""
    assert postgres_settings.database_url is not None
    url = make_url(postgres_settings.database_url.get_secret_value())
    impatient = url.update_query_dict({"options": "-c idle_in_transaction_session_timeout=100"})
    tries: list[State] = []

    def work(state: State) -> None:
        tries.append(state)
        state.threads.upsert(a_thread())
        if len(tries) == 1:
            time.sleep(1)
        if statement_follows:
            state.threads.list_ids(ThreadQuery(limit=1))

    with StateRuntime(postgres_settings, Database.open(impatient)) as runtime:
        runtime.run(work)
        assert len(tries) == 2
        assert runtime.run_read(read) == 1


def test_a_connection_has_bounds_on_silence_that_the_url_may_change(postgres_settings: StateSettings) -> None:
    assert postgres_settings.database_url is not None
    url = make_url(postgres_settings.database_url.get_secret_value())
    for given, expected in (({}, "20000"), ({"tcp_user_timeout": "1500"}, "1500")):
        database = Database.open(url.update_query_dict(given))
        with database.read() as session:
            driver = session.connection().connection.driver_connection
            assert driver is not None
            assert driver.info.get_parameters()["tcp_user_timeout"] == expected
            assert driver.info.get_parameters()["keepalives_idle"] == "10"
            # On a Unix socket there is nothing to set; that the server was asked is what can be seen everywhere.
            assert "tcp_keepalives_idle=10" in driver.info.get_parameters()["options"]
            assert session.connection().execute(text("SHOW lock_timeout")).scalar_one() == "5s"
        database.close()
