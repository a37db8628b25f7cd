"""`codex-state db copy`: what it prints, how it ends, and what it never does."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from copied_states import fill, held, log_row, put, thread_row, tool_row

from codex_state import StateRuntime, StateSettings
from codex_state.models import metadata
from codex_state.transfer.tables import OF_ONE_DATABASE


@pytest.fixture
def home(tmp_path: Path, migrated_sqlite: Path) -> Path:
    """A home whose state has rows in every table."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_sqlite, home / "codex_state_4.sqlite")
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        fill(runtime)
    return home


@pytest.fixture
def cli(home: Path) -> Cli:
    return InProcess(home)


def opened(home: Path, url: str | None = None) -> StateRuntime:
    return StateRuntime.open(StateSettings(codex_home=home, database_url=url))


def sqlite_url(directory: Path, name: str = "target") -> str:
    return f"sqlite:///{directory / f'{name}.sqlite'}"


def test_the_target_is_created_and_every_table_is_listed(cli: Cli, postgres_url: str) -> None:
    done = cli.ok("db", "copy", "--to", postgres_url)
    listed = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert listed.keys() == metadata.tables.keys() - OF_ONE_DATABASE
    assert done.stderr == ""
    with opened(cli.home) as source, opened(cli.home, postgres_url) as target:
        for name, rows in held(source.database).items():
            assert listed[name][1] == str(len(rows)) == listed[name][-2]
            assert len(listed[name]) == 10
        assert held(target.database, "thread_memory") == held(source.database, "thread_memory")


def test_programs_are_told_what_became_of_each_table(cli: Cli, tmp_path: Path) -> None:
    first = cli.ok("db", "copy", "--to", sqlite_url(tmp_path), "--json").json
    again = cli.ok("db", "copy", "--to", sqlite_url(tmp_path), "--json").json
    assert first["complete"] is again["complete"] is True
    assert first["left"] == again["left"] == []
    assert sum(table["rows"] for table in first["tables"]) == first["rows"] == again["rows"]
    for before, after in zip(first["tables"], again["tables"], strict=True):
        assert before["rows"] == before["checked"] == before["inserted"] + before["updated"] == after["unchanged"]
        assert before["checksum"] == after["checksum"]
        assert before.keys() == {
            "name", "rows", "inserted", "updated", "unchanged", "kept", "conflict", "refused", "checked", "checksum"
        }  # fmt: skip


def test_logs_stay_when_asked_to(cli: Cli, tmp_path: Path) -> None:
    done = cli.ok("db", "copy", "--to", sqlite_url(tmp_path), "--without-logs", "--json")
    assert "logs" not in {table["name"] for table in done.json["tables"]}
    with opened(cli.home, sqlite_url(tmp_path)) as target:
        assert held(target.database, "logs") == {"logs": []}


def test_rows_that_are_left_are_named_with_status_1(cli: Cli) -> None:
    with opened(cli.home, sqlite_url(cli.home)) as target:
        put(target, "logs", *(log_row(number, message="taken") for number in range(1, 1201)))
        put(target, "threads", thread_row(1))
        put(target, "thread_dynamic_tools", tool_row(thread_row(1), name="other\x1b[31m"))
    done = cli("db", "copy", "--to", sqlite_url(cli.home), "--json")
    assert done.status == 1
    assert done.json["complete"] is False
    tables = {table["name"]: table for table in done.json["tables"]}
    assert tables["thread_dynamic_tools"]["conflict"] == 1
    assert done.json["left"][0]["key"] == [thread_row(1)["id"], 0]
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"codex-state: not copied: thread_dynamic_tools {thread_row(1)['id']} 0: the target has")
    assert len(lines) == len(done.json["left"]) == 1 + tables["logs"]["conflict"]
    with opened(cli.home) as source:
        put(source, "logs", *(log_row(number) for number in range(100, 200)))
    lines = cli("db", "copy", "--to", sqlite_url(cli.home)).stderr.splitlines()
    assert len(lines) == 21
    assert lines[-1].startswith("codex-state: and more; --json names the first 1")


def test_a_missing_source_is_not_created(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "empty")
    cli.home.mkdir()
    done = cli.refused("db", "copy", "--to", sqlite_url(cli.home))
    assert done.status == 1
    assert "there is no database at" in done.stderr
    assert list(cli.home.iterdir()) == []
    named = cli.refused(
        "db", "copy", "--to", sqlite_url(tmp_path), CODEX_STATE_DATABASE_URL=sqlite_url(tmp_path, "none")
    )
    assert f"there is no database at {tmp_path / 'none.sqlite'}" in named.stderr
    assert list(tmp_path.iterdir()) == [cli.home]


def test_the_same_database_is_wrong_usage(cli: Cli) -> None:
    done = cli.refused("db", "copy", "--to", f"sqlite:///{cli.home}/../home/codex_state_4.sqlite")
    assert done.status == 2
    assert "are the same database" in done.stderr


@pytest.mark.parametrize(
    "url", ["mysql://u:hidden@host/db", "/a/path/hidden", "postgresql://u:hidden@host:port/db", ""]
)
def test_a_target_that_is_no_url_is_wrong_usage_and_never_repeated(cli: Cli, url: str) -> None:
    done = cli.refused("db", "copy", "--to", url)
    assert done.status == 2
    assert "postgresql://" in done.stderr
    assert "hidden" not in done.stderr


def test_a_password_is_not_shown_when_the_server_does_not_answer(cli: Cli) -> None:
    patience = {"CODEX_STATE_RETRY_FOR": "PT0.2S"}
    done = cli("db", "copy", "--to", "postgresql://ada:hidden@127.0.0.1:1/db", **patience)
    assert done.status == 1
    assert "waiting for the server" in done.stderr
    assert "hidden" not in done.stderr


def test_a_target_that_somebody_holds_is_reported_with_status_3(cli: Cli, tmp_path: Path) -> None:
    cli.ok("db", "copy", "--to", sqlite_url(tmp_path))
    with opened(cli.home) as source:
        put(source, "threads", thread_row(50))
    with closing(sqlite3.connect(tmp_path / "target.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        done = cli.refused("db", "copy", "--to", sqlite_url(tmp_path), CODEX_STATE_BUSY_TIMEOUT="0.1")
    assert done.status == 3
    cli.ok("db", "copy", "--to", sqlite_url(tmp_path))


def test_a_terminal_shows_a_bar_and_then_the_table(home: Path, tmp_path: Path) -> None:
    done = InProcess(home).on_terminal("db", "copy", "--to", sqlite_url(tmp_path), columns=150)
    assert done.status == 0
    assert "Checking" in done.stdout
    assert " rows, logs" in done.stdout
    assert "conflict" in done.stdout
    assert "thread_dynamic_tools" in done.stdout
    narrow = InProcess(home).on_terminal("db", "copy", "--to", sqlite_url(tmp_path), columns=80)
    assert "checksum" not in narrow.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_copy_goes_on_where_it_stopped(home: Path, number: signal.Signals, status: int) -> None:
    with opened(home) as source:
        put(source, "threads", *(thread_row(number) for number in range(1000, 3000)))
        put(source, "logs", *(log_row(number) for number in range(2000, 14000)))
    url = sqlite_url(home)
    with Cli(home).started("db", "copy", "--to", url) as process:
        wait_for_threads(home / "target.sqlite")
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert stdout == ""
    assert ("interrupted" in stderr) is (number is signal.SIGINT)
    assert "Traceback" not in stderr
    rest = InProcess(home).ok("db", "copy", "--to", url, "--json").json
    assert rest["complete"]
    tables = {table["name"]: table for table in rest["tables"]}
    assert tables["threads"]["unchanged"] > 0
    with opened(home) as source, opened(home, url) as target:
        assert held(target.database) == held(source.database)


def wait_for_threads(path: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
                if connection.execute("SELECT count(*) FROM threads").fetchone()[0]:
                    return
        except sqlite3.OperationalError:
            pass  # not there yet
        time.sleep(0.002)
    raise AssertionError("no threads were copied within a minute")
