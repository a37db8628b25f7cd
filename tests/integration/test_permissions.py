"""Without permission, anywhere: what can't be read is named and counted, and never taken for gone or up to date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from unprivileged import Unprivileged, can_be_given_up, without_privileges

from codex_state import StateRuntime, StateSettings, backfill
from codex_state.rollout.files import may_be_file
from tests.example_home import copy_of_the_example_home

pytestmark = pytest.mark.skipif(not can_be_given_up(), reason="root can't give up its privileges here")

READING = ("threads list --limit 1", "doctor", "db current", "db check", "logs", "logs stats", "homes", "jobs list")
WRITING = ("backfill", "db upgrade", "logs prune", "memory run --extractor json:loads --limit 1", "doctor --repair")
COPIES = ("import", "backup copy.sqlite", "restore copy.sqlite --replace")
ALL = (*READING, *WRITING, *COPIES)


@pytest.fixture(scope="module")
def run() -> Iterator[Unprivileged]:
    with without_privileges() as unprivileged:
        yield unprivileged


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = copy_of_the_example_home(tmp_path / "home")
    for broken in home.rglob("*019d65e1-f380-7d82-b082-532b629f6fbe*"):
        broken.unlink()
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
    yield home
    for each in (home, *(path for path in home.rglob("*") if not path.is_symlink())):
        each.chmod(0o700)


def a_rollout_of(home: Path) -> Path:
    return min((home / "sessions").rglob("rollout-*.jsonl"))


def id_of(rollout: Path) -> str:
    return rollout.stem[-36:]


def assert_told(answers: list[tuple[int, str]]) -> None:
    for status, text in answers:
        assert "Traceback" not in text
        assert status in {0, 1, 3}, text


def failed(answer: tuple[int, str]) -> str:
    status, text = answer
    assert status == 1, text
    assert text.startswith("codex-state: error: "), text
    return text


@pytest.mark.parametrize(
    "what", ["home", "home without search", "state", "sessions", "a day", "rollouts", "side files"]
)
def test_no_command_ends_in_a_traceback(run: Unprivileged, home: Path, what: str) -> None:
    state = StateSettings(codex_home=home).database_path
    match what:
        case "home":
            home.chmod(0)
        case "home without search":
            home.chmod(0o444)
        case "state":
            state.chmod(0)
        case "sessions":
            (home / "sessions").chmod(0)
        case "a day":
            a_rollout_of(home).parent.chmod(0)
        case "rollouts":
            for rollout in (home / "sessions").rglob("*.jsonl"):
                rollout.chmod(0)
        case "side files":
            for name in (f"{state.name}-queue", "config.toml", "session_index.jsonl"):
                (home / name).touch()
                (home / name).chmod(0)
    assert_told(run(home, *ALL))


def test_a_directory_that_cannot_be_read_is_named_and_its_threads_are_not_gone(run: Unprivileged, home: Path) -> None:
    rollout = a_rollout_of(home)
    rollout.parent.chmod(0)
    thread = id_of(rollout)
    refreshed, told, listed, shown, path, archived = run(
        home,
        "backfill",
        "threads list --limit 1",
        "threads list --limit 100 --no-refresh --json",
        f"threads show {thread}",
        f"threads path {thread}",
        f"threads archive {thread}",
    )
    assert str(rollout.parent) in refreshed[1]
    assert "1 failed" in refreshed[1]
    assert f"{rollout.parent} can't be looked at: Permission denied (known rollouts out of reach: 2)" in told[1]
    assert thread in listed[1]
    assert (shown[0], path[0], path[1].splitlines()[-1]) == (0, 0, str(rollout))
    assert "Permission denied" in failed(archived)
    rollout.parent.chmod(0o700)
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        assert backfill(runtime, refresh=True).gone == 0


def test_a_place_that_cannot_be_looked_into_is_named_where_a_rollout_is_to_be_moved(
    run: Unprivileged, home: Path
) -> None:
    rollout = a_rollout_of(home)
    thread = id_of(rollout)
    (home / "archived_sessions").chmod(0)
    assert f"can't move {rollout} to " in (told := failed(run(home, f"threads archive {thread}")[0]))
    assert told.endswith(": Permission denied\n")
    (home / "archived_sessions").chmod(0o700)
    (moved,) = run(home, f"threads archive {thread}")
    assert moved[0] == 0, moved[1]
    (home / "sessions" / "2026").chmod(0)
    assert failed(run(home, f"threads unarchive {thread}")[0]).endswith(": Permission denied\n")


def test_roots_that_cannot_be_looked_at_are_named_and_nothing_is_gone(
    run: Unprivileged, home: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(StateSettings(codex_home=home).database_path, elsewhere)
    home.chmod(0o444)
    answers = run(home, "backfill", "threads list", CODEX_SQLITE_HOME=str(elsewhere))
    assert f"{home}/archived_sessions: Permission denied" in answers[0][1]
    assert f"{home}/sessions: Permission denied" in answers[0][1]
    assert "files can't be indexed" in answers[1][1]
    home.chmod(0o700)
    with StateRuntime.open(StateSettings(codex_home=home, sqlite_home=elsewhere)) as runtime:
        assert backfill(runtime, refresh=True).gone == 0


def test_rollouts_that_cannot_be_read_are_counted_and_taken_in_later(run: Unprivileged, home: Path) -> None:
    rollouts = list((home / "sessions").rglob("*.jsonl"))
    for rollout in rollouts:
        rollout.write_text(rollout.read_text() + "\n")
        rollout.chmod(0)
    (_, first), (_, listed) = run(home, "backfill", "threads list --limit 1")
    assert f"{len(rollouts)} failed" in first
    assert f"{len(rollouts)} files can't be indexed" in listed
    for rollout in rollouts:
        rollout.chmod(0o600)
    ((_, again),) = run(home, "backfill")
    assert "0 failed" in again


def test_names_that_cannot_be_read_are_told_each_time(run: Unprivileged, home: Path) -> None:
    names = home / "session_index.jsonl"
    names.touch()
    names.chmod(0)
    (_, first), (_, listed) = run(home, "backfill", "threads list --limit 1")
    assert f"can't read the names in {names}: Permission denied" in first
    assert "can't be indexed" in listed
    names.unlink()
    names.symlink_to(names.name)
    ((_, again),) = run(home, "backfill")
    assert "symbolic links" in again


def test_a_file_that_cannot_be_looked_at_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "loop").symlink_to("loop")
    found = ("there", "missing", "there/below", "loop", "x" * 300, "\0")
    assert [may_be_file(tmp_path / name) for name in found] == [True, False, False, False, False, False]


@pytest.mark.parametrize("name", [b"h\xff\xfeome", b"h\xc0\x80"])
def test_a_home_whose_path_is_not_utf8_is_refused_in_a_sentence(run: Unprivileged, tmp_path: Path, name: bytes) -> None:
    home = tmp_path / os.fsdecode(name)
    home.mkdir()
    link = tmp_path / "link"
    link.symlink_to(home)
    for each in (home, link):
        for answer in run(each, "backfill", "threads list", "doctor", "db current", "backup x"):
            assert "isn't UTF-8" in failed(answer)
    assert list(home.iterdir()) == []
