"""`codex-state db`: the schema, looked at and moved, and never by surprise."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import alembic.command
import pytest
from alembic.util import CommandError
from cli_process import Cli, InProcess

from codex_state import database
from codex_state.errors import ConnectionLostError
from codex_state.migrations import HEAD
from codex_state.migrations.location import configuration


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "home").mkdir()
    return InProcess(tmp_path / "home")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_looking_creates_nothing(cli: Cli) -> None:
    assert cli.ok("db", "current", "--json").json == {"revision": None, "head": HEAD, "is_head": False}
    done = cli("db", "check", "--json")
    assert (done.status, done.json["ok"]) == (1, False)
    assert "there is no database at" in done.json["differences"][0]
    assert "there is no database at" in cli.refused("db", "downgrade", "-1").stderr
    assert list(cli.home.iterdir()) == []


def test_looking_changes_nothing_also_beside_the_file(cli: Cli) -> None:
    """L12: not even the log and its index that SQLite makes for a reader."""
    cli.ok("db", "upgrade")
    before = contents(cli.home)
    assert before.keys() == {"codex_state_4.sqlite"}
    for command in ("current", "check", "history"):
        cli.ok("db", command)
        assert contents(cli.home) == before


def test_looking_sees_what_is_only_in_the_log_yet(cli: Cli) -> None:
    cli.ok("db", "upgrade")
    with closing(sqlite3.connect(cli.home / "codex_state_4.sqlite")) as connection:
        connection.execute("UPDATE codex_state_version SET version_num = '9999_future'")
        connection.commit()
        assert cli.ok("db", "current").stdout == "9999_future\n"


FOREIGN = {
    "the original's state": (["_sqlx_migrations", "threads", "logs"], "belongs to the original Codex runtime"),
    "another program's": (["threads", "invoices"], "has tables that codex-state did not create (threads)"),
}


@pytest.mark.parametrize(("tables", "said"), FOREIGN.values(), ids=FOREIGN)
def test_whose_a_foreign_database_is_is_said_and_it_stays_the_same(cli: Cli, tables: list[str], said: str) -> None:
    """L7, L12."""
    path = cli.home / "foreign.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for table in tables:
            connection.execute(f"CREATE TABLE {table} (id TEXT)")
    before = contents(cli.home)
    variables = {"CODEX_STATE_DATABASE_URL": f"sqlite:///{path}"}
    for command in (["current"], ["current", "--json"], ["upgrade"]):
        done = cli.refused("db", *command, **variables)
        assert done.status == 1
        assert said in done.stderr
        assert contents(cli.home) == before
    done = cli("db", "check", "--json", **variables)
    assert done.status == 1
    (difference,) = done.json["differences"]
    assert said in difference
    assert contents(cli.home) == before


def test_a_database_of_a_service_without_our_tables_is_named_as_such_and_may_become_ours_as_well(cli: Cli) -> None:
    path = cli.home / "service.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (id TEXT)")
    variables = {"CODEX_STATE_DATABASE_URL": f"sqlite:///{path}"}
    said = "no schema of codex-state in the database yet, only tables of another program (invoices)"
    assert said in cli.ok("db", "current", **variables).stderr
    assert said in cli("db", "check", **variables).stdout
    cli.ok("db", "upgrade", **variables)
    assert cli.ok("db", "current", **variables).stdout == f"{HEAD} (head)\n"


@pytest.mark.parametrize("name", ["a?b=c", "a%20b", "a#b", "a&b", "a'b", "ä b"])
def test_every_command_opens_the_same_file_whatever_characters_the_path_has(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    cli = InProcess(home)
    cli.ok("db", "upgrade")
    cli.ok("threads", "list")
    cli.ok("db", "check")
    assert cli.ok("db", "current").stdout == f"{HEAD} (head)\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in home.iterdir()} == {"codex_state_4.sqlite"}


@pytest.mark.parametrize("pooled", [False, True])
def test_every_command_opens_the_database_with_every_setting(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    asked = []

    def note(url: object, *, transaction_pooling: bool, pool_size: int, **_others: object) -> None:
        asked.append((transaction_pooling, pool_size))
        raise ConnectionLostError("noted")

    monkeypatch.setattr(database, "open_postgresql", note)
    for command in (["db", "current"], ["db", "upgrade"], ["db", "check"], ["threads", "list"]):
        cli.refused(
            *command,
            CODEX_STATE_DATABASE_URL="postgresql://u@127.0.0.1:1/x",
            CODEX_STATE_TRANSACTION_POOLING=str(pooled),
            CODEX_STATE_POOL_SIZE="3",
        )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CODEX_STATE_DATABASE_URL", "postgresql://u@127.0.0.1:1/x")
        environment.setenv("CODEX_STATE_TRANSACTION_POOLING", str(pooled))
        environment.setenv("CODEX_STATE_POOL_SIZE", "3")
        with pytest.raises(CommandError, match="noted"):
            alembic.command.current(configuration())
    assert asked == [(pooled, 3)] * 5


def test_upgrading_creates_the_database_and_again_changes_nothing(cli: Cli) -> None:
    assert cli.ok("db", "upgrade", "--json").json == {"before": None, "after": HEAD, "changed": True}
    assert cli.ok("db", "upgrade", "--json").json == {"before": HEAD, "after": HEAD, "changed": False}
    assert cli.ok("db", "current").stdout == f"{HEAD} (head)\n"
    assert cli.ok("db", "check", "--json").json == {"ok": True, "head": HEAD, "differences": []}


def test_the_schema_goes_back_and_forth_by_revisions_and_steps(cli: Cli) -> None:
    revisions = [item["revision"] for item in cli.ok("db", "history", "--json").json["items"]]
    assert revisions[-1] == HEAD
    assert cli.ok("db", "upgrade", revisions[0], "--json").json["after"] == revisions[0]
    assert cli.ok("db", "upgrade", "+1", "--json").json["after"] == revisions[1]
    check = cli("db", "check", "--json")
    assert (check.status, check.json["ok"]) == (1, False)
    assert any(repr(revisions[1]) in difference for difference in check.json["differences"])
    assert cli.ok("db", "upgrade", "--json").json["after"] == HEAD
    assert cli.ok("db", "downgrade", "-1", "--json").json["after"] == revisions[-2]
    (current,) = [item for item in cli.ok("db", "history", "--json").json["items"] if item["current"]]
    assert current["revision"] == revisions[-2]


def test_looking_at_an_older_schema_does_not_migrate_it(cli: Cli) -> None:
    first = cli.ok("db", "history", "--json").json["items"][0]["revision"]
    cli.ok("db", "upgrade", first)
    cli.ok("db", "current")
    cli("db", "check")
    assert cli.ok("db", "current", "--json").json["revision"] == first
    cli.ok("threads", "list")  # using it does
    assert cli.ok("db", "current", "--json").json["is_head"] is True


def test_drift_is_named(cli: Cli) -> None:
    cli.ok("db", "upgrade")
    with closing(sqlite3.connect(cli.home / "codex_state_4.sqlite")) as connection:
        connection.execute("DROP INDEX idx_threads_created_at")
    done = cli("db", "check")
    assert done.status == 1
    assert "idx_threads_created_at" in done.stdout


def test_a_services_tables_and_alembic_history_in_the_same_database_are_no_drift_and_stay(cli: Cli) -> None:
    cli.ok("db", "upgrade")
    service = {"alembic_version": [("1975ea83b712",)], "customers": [("Ada",)]}
    with closing(sqlite3.connect(cli.home / "codex_state_4.sqlite")) as connection:
        for table, rows in service.items():
            connection.execute(f"CREATE TABLE {table} (value TEXT)")
            connection.executemany(f"INSERT INTO {table} VALUES (?)", rows)
        connection.commit()
    assert cli.ok("db", "check", "--json").json == {"ok": True, "head": HEAD, "differences": []}
    assert cli.ok("db", "current").stdout == f"{HEAD} (head)\n"
    cli.ok("db", "downgrade", "-1")
    cli.ok("db", "upgrade")
    with closing(sqlite3.connect(cli.home / "codex_state_4.sqlite")) as connection:
        assert {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in service} == service


def test_an_unknown_revision_is_refused(cli: Cli) -> None:
    cli.ok("db", "upgrade")
    assert "nosuch" in cli.refused("db", "upgrade", "nosuch").stderr
    assert "nosuch" in cli.refused("db", "downgrade", "nosuch").stderr


def test_a_newer_schema_is_refused_and_left_untouched(cli: Cli) -> None:
    cli.ok("db", "upgrade")
    database = cli.home / "codex_state_4.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE codex_state_version SET version_num = '9999_future'")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = database.read_bytes()
    for command in (["threads", "list"], ["backfill"], ["db", "upgrade"], ["db", "downgrade", "-1"]):
        done = cli.refused(*command)
        assert done.status == 4
        assert "9999_future" in done.stderr
    assert cli.ok("db", "current").stdout == "9999_future\n"
    assert database.read_bytes() == before
