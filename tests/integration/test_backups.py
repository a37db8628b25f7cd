"""``codex-state backup`` and ``restore``: what was backed up comes back, and nothing that is there is lost (law L7)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_process import Cli, InProcess

from codex_state import StateRuntime, StateSettings, backfill, migrations
from codex_state.errors import ConfigurationError, RestoreRefusedError, SchemaTooNewError
from codex_state.testing.samples import a_log_line, a_thread
from codex_state.transfer import back_up_file, restore_file, restore_into_server
from tests.example_home import copy_of_the_example_home

NAMED = a_thread()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = copy_of_the_example_home(tmp_path / "a home? 100%")
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
        runtime.run(lambda state: state.threads.upsert(NAMED))
        runtime.run(lambda state: state.threads.set_name(NAMED.id, "mine"))
        runtime.run(lambda state: state.logs.insert_many([a_log_line(f"{n} log") for n in range(100)]))
    return home


@pytest.fixture
def cli(home: Path) -> Cli:
    return InProcess(home)


@pytest.fixture
def copy(cli: Cli, tmp_path: Path) -> Path:
    cli.ok("backup", tmp_path / "copy.sqlite")
    return tmp_path / "copy.sqlite"


def path_of(home: Path) -> Path:
    return StateSettings(codex_home=home).database_path


def name_in(home: Path, **values: Any) -> str | None:
    with StateRuntime.open(StateSettings(codex_home=home, **values)) as runtime, runtime.read() as state:
        thread = state.threads.get(NAMED.id)
        return None if thread is None else thread.name


def without_a_state(home: Path) -> None:
    for each in home.glob("codex_state_4.sqlite*"):
        each.unlink()


def files_of(home: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in home.glob("codex_state_4.sqlite*")}


def test_a_backup_is_whole_while_others_write(cli: Cli, home: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            while not stop.is_set():
                runtime.run(lambda state: state.logs.insert_many([a_log_line("pair"), a_log_line("pair")]))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = cli.ok("backup", tmp_path / "copy.sqlite", "--json").json
    finally:
        stop.set()
        writer.join()
    copy = tmp_path / "copy.sqlite"
    assert done == {"file": str(copy), "bytes": copy.stat().st_size}
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (pairs,) = connection.execute("SELECT count(*) FROM logs WHERE message = 'pair'").fetchone()
        assert pairs % 2 == 0
        assert connection.execute("SELECT count(*) FROM logs WHERE message <> 'pair'").fetchone() == (100,)
    assert sorted(each.name for each in tmp_path.glob("copy*")) == ["copy.sqlite"]


def test_a_backup_overwrites_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with pytest.raises(ConfigurationError, match="is there already"):
        back_up_file(path_of(home), tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="can't write"):
        back_up_file(path_of(home), tmp_path / "nowhere" / "copy")
    assert (tmp_path / "copy").read_text() == "precious"


def test_a_backup_comes_back_where_no_state_is_left(cli: Cli, home: Path, copy: Path) -> None:
    without_a_state(home)
    before = copy.read_bytes()
    done = cli.ok("restore", copy, "--json").json
    assert (done["place"], done["revision"], done["set_aside"]) == (str(path_of(home)), migrations.HEAD, None)
    assert done["rows"]["logs"] == 100
    assert [each.name for each in home.glob("codex_state_4*")] == ["codex_state_4.sqlite"]
    assert path_of(home).stat().st_mode & 0o777 == 0o600
    assert name_in(home) == "mine"
    assert cli.ok("doctor", "--json").json["ok"]
    assert copy.read_bytes() == before
    assert "named" not in cli.ok("threads", "list").stderr


def test_a_log_that_a_lost_file_left_does_not_get_into_the_restored_one(cli: Cli, home: Path, copy: Path) -> None:
    without_a_state(home)
    for suffix in ("-wal", "-shm", "-journal"):
        path_of(home).with_name(path_of(home).name + suffix).write_bytes(b"of another file")
    cli.ok("restore", copy)
    assert name_in(home) == "mine"
    aside = sorted(each.name.rpartition("-")[2] for each in home.glob("codex_state_4.sqlite.before-restore-*"))
    assert aside == ["journal", "shm", "wal"]


def test_a_state_that_holds_rows_stays_unless_it_is_told_and_then_it_is_set_aside(
    cli: Cli, home: Path, copy: Path
) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run(lambda state: state.threads.set_name(NAMED.id, "later"))
    before = files_of(home)
    assert "of threads" in cli.refused("restore", copy).stderr
    assert files_of(home) == before

    aside = Path(cli.ok("restore", copy, "--replace", "--json").json["set_aside"])
    assert name_in(home) == "mine"
    assert aside.parent == home
    with closing(sqlite3.connect(aside)) as connection:
        assert ("later",) in connection.execute("SELECT name FROM threads").fetchall()


def test_a_state_that_somebody_has_open_stays_whatever_is_told(cli: Cli, home: Path, copy: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        with runtime.read() as state:
            state.logs.max_id()
        done = cli.refused("restore", copy, "--replace")
        assert (done.status, "has" in done.stderr, "open" in done.stderr) == (3, True, True)
        runtime.run(lambda state: state.threads.set_name(NAMED.id, "later"))
    assert name_in(home) == "later"
    assert not list(home.glob("*restor*"))


def test_a_damaged_state_is_set_aside_like_any_other(cli: Cli, home: Path, copy: Path) -> None:
    path_of(home).write_bytes(b"not a database, " * 1000)
    assert "doctor --repair" in cli.refused("restore", copy).stderr
    aside = Path(cli.ok("restore", copy, "--replace", "--json").json["set_aside"])
    assert aside.read_bytes() == b"not a database, " * 1000
    assert name_in(home) == "mine"


def test_another_programs_file_stays_whatever_is_told(cli: Cli, home: Path, copy: Path) -> None:
    without_a_state(home)
    with closing(sqlite3.connect(path_of(home))) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = files_of(home)
    assert "another program" in cli.refused("restore", copy, "--replace").stderr
    assert files_of(home) == before


@pytest.mark.parametrize("kind", ["missing", "garbage", "cut", "damaged", "foreign", "newer", "directory", "itself"])
def test_what_is_no_whole_backup_of_ours_is_refused_and_nothing_changes(
    home: Path, copy: Path, tmp_path: Path, kind: str
) -> None:
    settings = StateSettings(codex_home=home)
    match kind:
        case "missing":
            copy.unlink()
        case "garbage":
            copy.write_bytes(b"x" * 10_000)
        case "cut":
            copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
        case "damaged":
            with copy.open("r+b") as file:
                for page in range(8, copy.stat().st_size // 4096, 2):
                    file.seek(page * 4096)
                    file.write(b"\xff" * 2048)
        case "foreign":
            copy.unlink()
            with closing(sqlite3.connect(copy)) as connection:
                connection.execute("CREATE TABLE theirs (x)")
        case "newer":
            with closing(sqlite3.connect(copy)) as connection:
                connection.execute("UPDATE codex_state_version SET version_num = '0099_from_the_future'")
                connection.commit()
        case "directory":
            copy.unlink()
            copy.mkdir()
        case "itself":
            copy = path_of(home)
    before = files_of(home)
    with pytest.raises((RestoreRefusedError, SchemaTooNewError), match=copy.name) as refused:
        restore_file(copy, settings, replace=True)
    assert "doctor" not in str(refused.value), "which mends the state, not a backup"
    assert files_of(home) == before


def test_a_backup_of_another_home_is_refused_unless_it_is_told(
    cli: Cli, home: Path, copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = InProcess(tmp_path / "other")
    assert "none of the rollouts" in other.refused("restore", copy).stderr
    other.ok("restore", copy, "--any-home")
    moved = home.rename(tmp_path / "moved")
    without_a_state(moved)
    InProcess(moved).ok("restore", copy)
    assert name_in(moved) == "mine"


def test_a_backup_of_a_file_that_serves_other_homes_is_refused(home: Path, tmp_path: Path) -> None:
    shared, lone = tmp_path / "shared", tmp_path / "lone"
    with StateRuntime.open(StateSettings(codex_home=home, sqlite_home=shared)) as runtime:
        backfill(runtime)
    back_up_file(shared / "codex_state_4.sqlite", tmp_path / "backup.sqlite")
    lone.mkdir()
    with pytest.raises(RestoreRefusedError, match="of another home"):
        restore_file(tmp_path / "backup.sqlite", StateSettings(codex_home=lone))
    assert list(lone.iterdir()) == []


def test_an_older_backup_gets_todays_schema(home: Path, copy: Path) -> None:
    without_a_state(home)
    shutil.copy(copy, path_of(home))
    runtime = StateRuntime.open(StateSettings(codex_home=home))
    migrations.downgrade(runtime.engine, "0016_lease_owners", accept_loss=True)
    runtime.close()
    copy.unlink()
    back_up_file(path_of(home), copy)
    without_a_state(home)
    restored = restore_file(copy, StateSettings(codex_home=home))
    assert restored.revision == "0016_lease_owners"
    with StateRuntime.open(StateSettings(codex_home=home, migrate=False)) as runtime, runtime.read() as state:
        assert migrations.check(state.session.connection()) == []
    assert name_in(home) == "mine"


def test_a_disk_that_fills_leaves_what_is_there(home: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(home)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        restore_file(copy, StateSettings(codex_home=home), replace=True)
    assert files_of(home) == before


def test_a_server_is_backed_up_into_a_file_and_restored_from_it(
    home: Path, cli: Cli, tmp_path: Path, postgres_url: str, migrated_postgres: str, postgres_server: Any
) -> None:
    copy = tmp_path / "of a server?.sqlite"
    with StateRuntime.open(StateSettings(codex_home=home, database_url=postgres_url)) as runtime:
        backfill(runtime)
        runtime.run(lambda state: state.threads.upsert(NAMED))
        runtime.run(lambda state: state.threads.set_name(NAMED.id, "mine"))
    cli.ok("backup", copy, CODEX_STATE_DATABASE_URL=postgres_url)
    assert sorted(each.name for each in tmp_path.glob("of a*")) == [copy.name]
    assert "holds" in cli.refused("restore", copy, CODEX_STATE_DATABASE_URL=postgres_url).stderr
    assert cli.refused("restore", copy, "--replace", CODEX_STATE_DATABASE_URL=postgres_url).status == 2
    with postgres_server.copy_of(migrated_postgres) as url:
        cli.ok("restore", copy, CODEX_STATE_DATABASE_URL=url)
        assert name_in(home, database_url=url) == "mine"
        with StateRuntime.open(StateSettings(codex_home=home, database_url=url)) as runtime, runtime.read() as state:
            (backed_up,) = [each for each in state.backfill.list() if each.home == runtime.home]
            assert backed_up.status == "complete"
        with (
            StateRuntime.open(StateSettings(codex_home=home, database_url=url)) as runtime,
            pytest.raises(RestoreRefusedError, match="holds"),
        ):
            restore_into_server(copy, runtime)
    without_a_state(home)
    cli.ok("restore", copy)  # and into a file, as a home of its own
    assert name_in(home) == "mine"
