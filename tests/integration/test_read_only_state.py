"""A state that can't be written, opened by who only reads: the index that is there, or one in memory (L12)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rollout_files import thread_id, write_rollout

from codex_state import (
    ConfigurationError,
    DatabaseReadOnlyError,
    StateRuntime,
    StateSettings,
    migrations,
)
from codex_state.database import Access, Database
from codex_state.rollout import backfill
from codex_state.testing.samples import a_thread
from tests import scripts

_LIST = """
import sys
from codex_state import StateRuntime, StateSettings, ThreadQuery
from codex_state.errors import StateError
from codex_state.rollout import backfill
home, sqlite_home, index, url = sys.argv[1:]
settings = StateSettings(codex_home=home, sqlite_home=sqlite_home or None, database_url=url or None)
try:
    with StateRuntime.open(settings, for_reading=True) as runtime:
        if index:
            backfill(runtime, workers=0)
        with runtime.read() as state:
            ids = [str(id) for id in state.threads.list_ids(ThreadQuery(limit=10, home=runtime.home))]
        print(runtime.is_read_only, runtime.in_memory, *ids)
except StateError as error:
    print(type(error).__name__, error)
"""

_COMMANDS = """
import dataclasses, json, sys
from pathlib import Path
from tests.cli_process import InProcess
cli = InProcess(Path(sys.argv[1]))
print(json.dumps([dataclasses.asdict(cli(*command)) for command in json.loads(sys.argv[2])]))
"""
"""One process for all: what each command finds is the same."""


def listed(medium: Path, home: Path, sqlite_home: Path | None = None, *, index: bool = False, url: str = "") -> str:
    """What a process finds to which ``medium`` is read-only."""
    arguments = [home, sqlite_home or "", "index" if index else "", url]
    done = scripts.start(_LIST, *arguments, read_only=medium).wait()
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An indexed home with one thread."""
    home = tmp_path / "home"
    write_rollout(home, 1)
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
    return home


def contents(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_an_index_on_a_medium_that_cannot_be_written_is_read(home: Path) -> None:
    before = contents(home)
    assert listed(home, home) == f"True False {thread_id(1)}"
    assert contents(home) == before


def test_a_file_there_that_a_url_names_is_read_as_well(home: Path) -> None:
    url = f"sqlite:///{home / 'codex_state_4.sqlite'}"
    assert listed(home, home, url=url) == f"True False {thread_id(1)}"


@pytest.mark.parametrize("killed", [False, True], ids=["in use", "after a kill"])
def test_what_is_only_in_the_log_yet_is_read_as_well(home: Path, tmp_path: Path, killed: bool) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        with runtime.begin() as state:
            state.threads.delete(thread_id(1))
            state.threads.upsert(a_thread(id=thread_id(2)))
        if killed:
            home = shutil.copytree(home, tmp_path / "as after a kill")
        assert (home / "codex_state_4.sqlite-wal").stat().st_size > 0
        assert listed(home, home) == f"True False {thread_id(2)}"


def test_a_log_without_its_index_is_refused_rather_than_passed_over(home: Path, tmp_path: Path) -> None:
    """L7, L8: without the log, what it holds would seem lost."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        with runtime.begin() as state:
            state.threads.upsert(a_thread(id=thread_id(2)))
        copied = shutil.copytree(home, tmp_path / "copied")
    (copied / "codex_state_4.sqlite-shm").unlink()
    answer = listed(copied, copied)
    assert answer.startswith("DatabaseUnavailableError")
    assert "set CODEX_SQLITE_HOME to a directory that can" in answer


def test_a_home_without_an_index_on_such_a_medium_is_indexed_in_memory(home: Path) -> None:
    (home / "codex_state_4.sqlite").unlink()
    assert listed(home, home) == "False True"
    assert listed(home, home, index=True) == f"False True {thread_id(1)}"


def test_an_empty_file_there_is_no_index(home: Path) -> None:
    (home / "codex_state_4.sqlite").write_bytes(b"")
    assert listed(home, home, index=True) == f"False True {thread_id(1)}"


def test_the_directory_of_the_state_may_be_missing_on_such_a_medium(home: Path, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    assert listed(medium, home, medium / "a" / "b", index=True) == f"False True {thread_id(1)}"
    assert list(medium.iterdir()) == []


def test_a_state_that_can_be_written_indexes_a_home_that_cannot(home: Path, tmp_path: Path) -> None:
    assert listed(home, home, tmp_path / "state", index=True) == f"False False {thread_id(1)}"
    assert (tmp_path / "state" / "codex_state_4.sqlite").is_file()


def test_an_older_schema_there_is_refused_with_what_to_do(home: Path) -> None:
    """L8."""
    with closing(sqlite3.connect(home / "codex_state_4.sqlite")) as connection:
        connection.execute("UPDATE codex_state_version SET version_num = '0009_homes'")
        connection.commit()
    answer = listed(home, home)
    assert answer.startswith("SchemaOutdatedError the state is at revision '0009_homes'")
    assert "can't be written; set CODEX_SQLITE_HOME" in answer


def test_a_file_with_the_former_name_is_read_there_and_keeps_its_name(home: Path) -> None:
    (home / "codex_state_4.sqlite").rename(home / "state_4.sqlite")
    before = contents(home)
    assert listed(home, home) == f"True False {thread_id(1)}"
    assert contents(home) == before


def test_commands_that_only_read_work_there_and_others_say_what_is_wrong(home: Path) -> None:
    reading = [["threads", "list"], ["jobs", "list"], ["logs"], ["homes"], ["db", "current"], ["db", "check"]]
    writing = [["backfill"], ["db", "upgrade"]]
    done = scripts.start(_COMMANDS, home, json.dumps(reading + writing), read_only=home).wait()
    assert done.status == 0, done.stderr
    answers = json.loads(done.stdout)
    assert str(thread_id(1)) in answers[0]["stdout"]
    for answer in answers[: len(reading)]:
        assert answer["status"] == 0, answer
    for answer in answers[len(reading) :]:
        assert answer["status"] == 1, answer
        assert answer["stderr"].count("\n") == 1


def test_a_read_only_state_refuses_every_write(home: Path) -> None:
    database = Database.of(StateSettings(codex_home=home), Access.READ_ONLY)
    with StateRuntime(StateSettings(codex_home=home), database) as runtime:
        assert runtime.is_read_only
        with pytest.raises(DatabaseReadOnlyError), runtime.begin() as state:
            state.threads.delete(thread_id(1))
        with runtime.read() as state:
            assert state.threads.get(thread_id(1)) is not None


def test_where_it_can_be_written_a_reader_brings_the_index_up_to_date(home: Path) -> None:
    settings = StateSettings(codex_home=home)
    with StateRuntime.open(settings) as runtime:
        assert not runtime.is_read_only
        assert not runtime.in_memory
        migrations.downgrade(runtime.engine, "-1")
    with StateRuntime.open(settings, for_reading=True) as runtime, runtime.read() as state:
        assert not runtime.is_read_only
        assert state.threads.get(thread_id(1)) is not None
    (home / "codex_state_4.sqlite").unlink()
    with StateRuntime.open(settings, for_reading=True) as runtime:
        assert runtime.database.path == home / "codex_state_4.sqlite"


def test_a_reader_makes_no_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no Codex home at"):
        StateRuntime.open(StateSettings(codex_home=tmp_path / "home"), for_reading=True)
    assert list(tmp_path.iterdir()) == []


def test_a_server_says_itself_whether_it_can_be_written(postgres_settings: StateSettings) -> None:
    """L9."""
    url = postgres_settings.database_url
    assert url is not None
    for parameter, expected in (("off", False), ("on", True)):
        options = f"options=-c%20default_transaction_read_only%3D{parameter}"
        named = f"{url.get_secret_value()}{'&' if '?' in url.get_secret_value() else '?'}{options}"
        settings = StateSettings(codex_home=postgres_settings.codex_home, database_url=named)
        with StateRuntime.open(settings, for_reading=True) as runtime:
            assert runtime.is_read_only is expected
            assert not runtime.in_memory
