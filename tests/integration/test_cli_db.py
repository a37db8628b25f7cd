"""`codex-state db`: the schema, looked at and moved, and never by surprise."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_process import Cli, InProcess

from codex_state.migrations import HEAD


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return InProcess(tmp_path / "home")


def test_looking_creates_nothing(cli: Cli) -> None:
    assert cli.ok("db", "current", "--json").json == {"revision": None, "head": HEAD, "is_head": False}
    done = cli("db", "check", "--json")
    assert (done.status, done.json["ok"]) == (1, False)
    assert "there is no database at" in done.json["differences"][0]
    assert "there is no database at" in cli.refused("db", "downgrade", "-1").stderr
    assert not cli.home.exists()


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
        assert done.status == 1
        assert "9999_future" in done.stderr
    assert cli.ok("db", "current").stdout == "9999_future\n"
    assert database.read_bytes() == before
