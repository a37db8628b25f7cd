"""Following logs: each line once, in whichever order its transaction ends (issue: ids are given before commits)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cli_process import Cli
from sqlmodel import Session

from codex_state import LogQuery, State, StateRuntime, StateSettings
from codex_state.repositories import LogFollower, logs
from codex_state.testing.samples import a_log_line


@pytest.fixture
def follower(runtime: StateRuntime) -> LogFollower:
    """Follows from now on."""
    follower = LogFollower(LogQuery())
    runtime.run_read(lambda state: follower.begin(state.logs))
    return follower


@pytest.fixture
def server(postgres_settings: StateSettings) -> Iterator[StateRuntime]:
    """A state on PostgreSQL, where transactions overlap."""
    with StateRuntime.open(postgres_settings) as runtime:
        yield runtime


@contextmanager
def transaction(runtime: StateRuntime) -> Iterator[State]:
    """A service's own, beside which others can write."""
    with Session(runtime.engine) as session:
        yield State(session)
        session.commit()


def insert(runtime: StateRuntime, *messages: str) -> None:
    runtime.run(lambda state: state.logs.insert_many([a_log_line(message) for message in messages]))


def read(runtime: StateRuntime, follower: LogFollower, limit: int = 100) -> list[str | None]:
    return [line.message for line in runtime.run_read(lambda state: follower.read(state.logs, limit))]


def test_lines_are_told_once_in_their_order_from_where_following_began(
    runtime: StateRuntime, follower: LogFollower
) -> None:
    insert(runtime, "a", "b", "c")
    assert read(runtime, follower, 2) == ["a", "b"]
    assert read(runtime, follower, 2) == ["c"]
    insert(runtime, "d")
    assert [read(runtime, follower) for _ in range(3)] == [["d"], [], []]


def test_only_lines_that_match_are_told(runtime: StateRuntime) -> None:
    follower = LogFollower(LogQuery(search="b"))
    insert(runtime, "b, before")
    runtime.run_read(lambda state: follower.begin(state.logs))
    insert(runtime, "a", "b", "c")
    assert [read(runtime, follower) for _ in range(3)] == [["b"], [], []]


def nothing_is_kept(runtime: StateRuntime, follower: LogFollower) -> bool:
    """Whether it forgets what can't come any more: once transactions of the server's own have ended, too."""
    for _ in range(500):
        assert read(runtime, follower) == []
        if follower._settled == follower._last and not follower._told:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("when", ["before following", "while following"])
@pytest.mark.parametrize("savepoint", [False, True])
def test_a_line_whose_transaction_ends_after_later_ones_is_told_when_it_ends(
    server: StateRuntime, when: str, savepoint: bool
) -> None:
    follower = LogFollower(LogQuery())
    with ExitStack() as slow:
        if when == "while following":
            server.run_read(lambda state: follower.begin(state.logs))
        state = slow.enter_context(transaction(server))
        with state.session.begin_nested() if savepoint else ExitStack():
            state.logs.insert_many([a_log_line("slow 1"), a_log_line("slow 2")])
        if when == "before following":
            insert(server, "known")
            server.run_read(lambda state: follower.begin(state.logs))
        for number in range(5):
            insert(server, f"quick {number}")
            assert read(server, follower) == [f"quick {number}"]
    assert read(server, follower) == ["slow 1", "slow 2"]
    assert nothing_is_kept(server, follower)


def test_ids_that_never_come_are_not_waited_for(server: StateRuntime) -> None:
    follower = LogFollower(LogQuery())
    server.run_read(lambda state: follower.begin(state.logs))
    with transaction(server) as state:
        state.logs.insert(a_log_line("never"))
        insert(server, "later")
        state.session.rollback()
    assert read(server, follower) == ["later"]
    assert nothing_is_kept(server, follower)


def test_what_is_kept_is_bounded_however_long_a_transaction_stays_open(
    server: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L10."""
    monkeypatch.setattr(logs, "WINDOW", 10)
    follower = LogFollower(LogQuery())
    server.run_read(lambda state: follower.begin(state.logs))
    with transaction(server) as state:
        state.logs.insert(a_log_line("slow"))
        for number in range(30):
            insert(server, f"quick {number}")
            read(server, follower)
        assert len(follower._told) <= 10
        assert len(follower._marks) <= 11


def test_the_command_shows_a_line_whose_transaction_was_slow(server: StateRuntime, tmp_path: Path) -> None:
    url = server.settings.database_url
    assert url is not None
    cli = Cli(tmp_path, CODEX_STATE_DATABASE_URL=url.get_secret_value())
    insert(server, "begin")
    with cli.started("logs", "-f", "--poll-ms", "20", "--json") as process:
        assert process.stdout is not None
        assert '"message":"begin' in process.stdout.readline()
        with transaction(server) as state:
            state.logs.insert(a_log_line("slow"))
            insert(server, "quick")
            assert '"message":"quick' in process.stdout.readline()
        assert '"message":"slow' in process.stdout.readline()
