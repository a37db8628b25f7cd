"""A guest in the home (laws L7, L12): our file's name, what is taken over, what is cleaned away, who may read it."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cli_process import InProcess
from elsewhere import elsewhere
from rollout_files import write_rollout

from codex_state import (
    DatabaseBusyError,
    DatabaseError,
    MemoryScope,
    StateRuntime,
    StateSettings,
    ThreadQuery,
    migrations,
)
from codex_state.database.state_files import FORMER_NAME, VERSION_TABLE
from codex_state.memory.files import render
from codex_state.settings import state_database_filename
from codex_state.testing.samples import a_thread
from tests import scripts

NAME = state_database_filename()
THREAD = a_thread(title="named by its user")

SUFFIXES = ["", "-wal", "-shm", "-journal"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def titles(home: Path, **settings: object) -> set[str]:
    with StateRuntime.open(StateSettings(codex_home=home, **settings)) as runtime, runtime.read() as state:
        return {thread.title for thread in state.threads.list(ThreadQuery(limit=100)).items}


def contents(directory: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in directory.iterdir()}


def make_state(directory: Path, name: str = NAME) -> Path:
    """A state with a thread in it, closed, under a name."""
    with StateRuntime.open(StateSettings(codex_home=directory)) as runtime, runtime.begin() as state:
        state.threads.upsert(THREAD)
    (directory / f"{NAME}-queue").unlink(missing_ok=True)
    return (directory / NAME).rename(directory / name)


def make_foreign(path: Path, *, table: str = "invoices", mode: str = "DELETE") -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute(f"CREATE TABLE {table} (id TEXT)")
        connection.execute(f"INSERT INTO {table} VALUES ('precious')")
        connection.commit()


# The name


def test_the_file_has_a_name_that_the_original_does_not_take_for_its_own(home: Path) -> None:
    """It deletes ``state.sqlite`` and ``state_<digits>.sqlite``, with what follows them."""
    make_state(home)
    assert NAME == "codex_state_4.sqlite"
    assert [path.name for path in home.iterdir()] == [NAME]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_of_ours_with_the_former_name_is_taken_over(home: Path, tmp_path: Path, elsewhere: bool) -> None:
    make_state(home, FORMER_NAME)
    settings = {}
    if elsewhere:
        home.rename(tmp_path / "databases")
        home.mkdir()
        settings = {"sqlite_home": tmp_path / "databases"}
    directory = tmp_path / "databases" if elsewhere else home
    (directory / f"{FORMER_NAME}-queue").touch()
    assert titles(home, **settings) == {THREAD.title}
    assert contents(directory).keys() == {NAME, f"{NAME}-queue"}
    assert titles(home, **settings) == {THREAD.title}


@pytest.mark.parametrize("index", [True, False])
def test_what_a_killed_process_left_in_the_log_comes_along(home: Path, tmp_path: Path, index: bool) -> None:
    """L7: everything is in the log here, even the schema."""
    killed = tmp_path / "killed"
    killed.mkdir()
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        with runtime.begin() as state:
            state.threads.upsert(THREAD)
        for suffix in SUFFIXES[: 3 if index else 2]:
            shutil.copy(home / f"{NAME}{suffix}", killed / f"{FORMER_NAME}{suffix}")
    with closing(sqlite3.connect(f"file:{killed / FORMER_NAME}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT * FROM sqlite_master").fetchall() == []
    assert titles(killed) == {THREAD.title}
    assert contents(killed).keys() == {NAME}


def test_a_link_to_a_state_of_ours_is_renamed_and_leads_where_it_led(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    real = make_state(disk, "state")
    (home / FORMER_NAME).symlink_to(real)
    assert titles(home) == {THREAD.title}
    assert (home / NAME).readlink() == real
    assert not (home / FORMER_NAME).is_symlink()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("in_use", [False, True])
def test_the_originals_own_file_of_the_former_name_stays_and_ours_lies_beside_it(
    home: Path, mode: str, in_use: bool
) -> None:
    make_foreign(home / FORMER_NAME, table="threads", mode=mode)
    make_foreign(home / "state_5.sqlite", table="threads", mode=mode)
    with closing(sqlite3.connect(home / FORMER_NAME)) as connection:
        if in_use:
            connection.execute("INSERT INTO threads VALUES ('in the log')")
            connection.commit()
        else:
            connection.close()
        before = contents(home)
        make_state(home)
        after = contents(home)
    after.pop(NAME)
    for files in (before, after):
        files.pop(f"{FORMER_NAME}-shm", None)  # where every reader of a file in use notes how far it reads
    assert after == before


@pytest.mark.parametrize("content", [b"", b"not a database\n" * 1000])
def test_what_is_no_database_of_the_former_name_stays(home: Path, content: bytes) -> None:
    (home / FORMER_NAME).write_bytes(content)
    make_state(home)
    assert (home / FORMER_NAME).read_bytes() == content


def test_when_both_names_are_there_the_former_is_not_touched(home: Path, tmp_path: Path) -> None:
    make_state(home)
    other = make_state(tmp_path / "other", FORMER_NAME).rename(home / FORMER_NAME)
    before = other.read_bytes()
    assert titles(home) == {THREAD.title}
    assert other.read_bytes() == before


def test_a_file_that_somebody_has_open_is_used_where_it_is_and_renamed_when_nobody_has(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log has the name by which the file was opened: under two names there would be two logs."""
    former = make_state(home, FORMER_NAME)
    with closing(sqlite3.connect(former)) as connection:
        connection.execute("SELECT * FROM threads").fetchall()
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            assert runtime.database.path == former
            assert runtime.home == "local"
            with runtime.begin() as state:
                state.threads.upsert(a_thread(title="while it was in use"))
            # Now by us as well.
            connection.execute("SELECT * FROM threads").fetchall()
        assert titles(home) == {THREAD.title, "while it was in use"}
        assert not (home / NAME).exists()
    assert "is open in another process" in caplog.text
    assert titles(home) == {THREAD.title, "while it was in use"}
    assert not former.exists()


def test_a_state_that_is_used_by_its_former_name_is_never_made_anew_there(home: Path) -> None:
    former = make_state(home, FORMER_NAME)
    with closing(sqlite3.connect(former)) as connection:
        connection.execute("SELECT * FROM threads").fetchall()
        runtime = StateRuntime.open(StateSettings(codex_home=home))
    runtime.engine.dispose()  # as after a fork: it may be asked again
    former.rename(home / NAME)
    with pytest.raises(DatabaseError), runtime.read() as state:
        state.threads.get(THREAD.id)
    runtime.close()
    assert not former.exists()


_OPEN = """
import sys
from codex_state import StateRuntime, StateSettings
from codex_state.testing.samples import a_thread
with StateRuntime.open(StateSettings(codex_home=sys.argv[1])) as runtime:
    runtime.run(lambda state: state.threads.upsert(a_thread(title=sys.argv[2])))
    print(runtime.database.path.name)
"""


def test_of_many_that_take_it_over_at_once_none_loses_a_row(home: Path) -> None:
    """L7."""
    make_state(home, FORMER_NAME)
    programs = [scripts.start(_OPEN, home, f"of process {number}") for number in range(6)]
    assert {program.wait() for program in programs} == {scripts.Finished(0, f"{NAME}\n", "")}
    assert titles(home) == {THREAD.title, *(f"of process {number}" for number in range(6))}
    assert not (home / FORMER_NAME).exists()


def test_a_crash_between_taking_the_log_in_and_renaming_leaves_a_whole_state(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_state(home, FORMER_NAME)

    def crash(_path: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            StateRuntime.open(StateSettings(codex_home=home))
    assert contents(home).keys() == {FORMER_NAME}
    assert titles(home) == {THREAD.title}


def test_the_command_line_takes_it_over_too_and_looks_at_it_where_it_is(home: Path) -> None:
    make_state(home, FORMER_NAME)
    cli = InProcess(home)
    before = contents(home)
    for command in (["db", "current"], ["db", "check"], ["db", "history"]):
        cli.ok(*command)
        assert contents(home) == before
    assert cli.ok("db", "current").stdout == f"{migrations.HEAD} (head)\n"
    cli.ok("db", "upgrade")
    assert (home / NAME).is_file()
    assert not (home / FORMER_NAME).exists()


# What is cleaned away


def make_ours(path: Path) -> None:
    make_foreign(path, table=VERSION_TABLE)


OURS_AND_OLDER = ["codex_state_0.sqlite", "codex_state_3.sqlite", "codex_state_03.sqlite"]
NEVER = [
    "state.sqlite", "state_0.sqlite", "state_3.sqlite", "state_5.sqlite", "codex_state.sqlite", "codex_state_.sqlite",
    "codex_state_5.sqlite", "codex_state_40.sqlite", "codex_state_3a.sqlite", "codex_state_3.sqlite.bak",
    "my_codex_state_3.sqlite", "codex_state_٣.sqlite", "Codex_state_3.sqlite", "logs_1.sqlite",
]  # fmt: skip


def test_older_files_of_ours_go_with_their_side_files_and_nothing_else_does(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = [home / name for name in OURS_AND_OLDER]
    kept = [home / name for name in NEVER]
    for path in [*older, *kept]:
        make_ours(path)  # even with our table in it
    side_files = [home / f"{OURS_AND_OLDER[1]}{suffix}" for suffix in SUFFIXES[1:]]
    side_files[2].touch()
    kept_side_files = [home / f"{name}{suffix}" for name in NEVER for suffix in SUFFIXES[1:]]
    for path in kept_side_files:
        path.touch()
    with caplog.at_level(logging.INFO, "codex_state"):
        make_state(home)
    assert [path for path in [*older, *side_files] if path.exists()] == []
    assert [path for path in [*kept, *kept_side_files] if not path.exists()] == []
    removed = {record.getMessage() for record in caplog.records if record.levelno == logging.INFO}
    assert {f"removed the older state file {path}" for path in [*older, side_files[2]]} <= removed
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"left the newer {name} in {home} alone" for name in ("codex_state_40.sqlite", "codex_state_5.sqlite")
    ]


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link_to_ours(path: Path) -> None:
    make_ours(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def a_text(path: Path) -> None:
    path.write_text("not even a database")


@pytest.mark.parametrize("make", [make_foreign, a_directory, a_link_to_ours, a_text, Path.touch])
def test_an_older_name_alone_proves_nothing(home: Path, make: Callable[[Path], None]) -> None:
    make(home / "codex_state_3.sqlite")
    (home / "codex_state_2.sqlite-wal").write_text("of a file that is gone")
    before = contents(home)
    make_state(home)
    after = contents(home)
    after.pop(NAME)
    assert after == before


def test_an_older_file_that_somebody_has_open_stays(home: Path) -> None:
    older = make_state(home, "codex_state_3.sqlite")
    with closing(sqlite3.connect(older)) as connection:
        connection.execute("SELECT * FROM threads").fetchall()
        make_state(home)
        assert older.exists()
    (home / NAME).unlink()
    make_state(home)
    assert not older.exists()


def test_who_only_reads_removes_nothing(home: Path) -> None:
    make_ours(home / "codex_state_3.sqlite")
    StateRuntime.open(StateSettings(codex_home=home), for_reading=True).close()
    InProcess(home).ok("threads", "list")
    InProcess(home).ok("db", "upgrade")
    assert (home / "codex_state_3.sqlite").exists()


def test_with_a_database_elsewhere_no_file_of_the_home_is_touched(home: Path, tmp_path: Path) -> None:
    make_ours(home / "codex_state_3.sqlite")
    make_ours(home / FORMER_NAME)
    before = contents(home)
    StateRuntime.open(StateSettings(codex_home=home, database_url="sqlite://")).close()
    StateRuntime.open(StateSettings(codex_home=home, database_url=f"sqlite:///{tmp_path / 'x.sqlite'}")).close()
    assert contents(home) == before
    settings = StateSettings(codex_home=tmp_path / "none", database_url="sqlite://")
    StateRuntime.open(settings, for_reading=True).close()
    assert not (tmp_path / "none").exists()


# Who may read what we make


@contextmanager
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): oct(stat.S_IMODE(path.lstat().st_mode)) for path in directory.rglob("*")}


def test_what_we_make_is_for_its_user_alone(tmp_path: Path) -> None:
    home, directory = tmp_path / "new" / "home", tmp_path / "databases" / "of mine"
    settings = StateSettings(codex_home=home, sqlite_home=directory)
    with open_umask(), StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            state.threads.upsert(THREAD)
            state.thread_memories.upsert(THREAD.id, "raw", "summary")
        wait_in_vain(runtime)
        render(runtime, MemoryScope.cwd(THREAD.cwd))
        render(runtime, MemoryScope.user())
        found = modes(tmp_path)
    directories = {name for name in found if (tmp_path / name).is_dir()}
    assert {f"databases/of mine/{NAME}{suffix}" for suffix in ("", "-wal", "-shm", "-queue")} <= found.keys()
    assert {"new/home", "new/home/memories/user/memory/raw_memories"} <= directories
    assert len(found) - len(directories) > 7
    assert {name: mode for name, mode in found.items() if mode != ("0o700" if name in directories else "0o600")} == {}


def wait_in_vain(runtime: StateRuntime) -> None:
    """Somebody queues behind a writer."""
    settings = runtime.settings.model_copy(update={"busy_timeout": timedelta(seconds=0.05)})
    with StateRuntime.open(settings) as other, runtime.begin() as state:
        state.threads.upsert(THREAD)
        with pytest.raises(DatabaseBusyError):
            elsewhere(lambda: other.run(lambda state: state.threads.upsert(THREAD), attempts=1))


def test_what_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    make_state(home).chmod(0o640)
    titles(home)
    assert modes(tmp_path) == {"home": "0o755", f"home/{NAME}": "0o640"}


@pytest.mark.parametrize("suffix", ["-queue", "-migration"])
def test_a_link_at_a_side_files_place_is_not_followed(home: Path, tmp_path: Path, suffix: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for target in (precious, tmp_path / "nothing"):
        link = home / f"{NAME}{suffix}"
        link.symlink_to(target)
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            migrations.downgrade(runtime.engine, "-1")
            migrations.upgrade(runtime.engine)
            wait_in_vain(runtime)
        assert link.readlink() == target
        link.unlink()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_file_with_something_in_it_at_a_side_files_place_stays(home: Path) -> None:
    foreign = home / f"{NAME}-migration"
    foreign.write_text("somebody's notes")
    make_state(home)
    assert foreign.read_text() == "somebody's notes"


@pytest.mark.parametrize("name", [".lock"])
def test_a_link_at_the_place_of_the_memories_lock_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    directory = home / "memories" / "user"
    directory.mkdir(parents=True)
    (directory / name).symlink_to(tmp_path / "nothing")
    with (
        StateRuntime.open(StateSettings(codex_home=home)) as runtime,
        pytest.raises(Exception, match="can't write the memories"),
    ):
        render(runtime, MemoryScope.user())
    assert not (tmp_path / "nothing").exists()


def test_a_listing_makes_nothing_in_the_home_but_the_index(home: Path) -> None:
    write_rollout(home, 1)
    before = {str(path) for path in home.rglob("*")}
    InProcess(home).ok("threads", "list")
    assert {str(path) for path in home.rglob("*")} - before == {str(home / NAME)}
