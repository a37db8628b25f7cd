"""Opening: cheap when current, and never a change to a database that isn't ours or is newer (law L7)."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import stores
from alembic import command
from migrations.described import describe
from migrations.rows import insert_samples, read_all, update
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from codex_state import migrations
from codex_state.database import Database
from codex_state.errors import (
    ForeignSchemaError,
    InvalidInputError,
    SchemaError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StateError,
)
from codex_state.migrations import locking
from codex_state.migrations.environment import configuration
from codex_state.models import metadata

OPENERS: list[Callable[[Engine], object]] = [
    migrations.ensure_current,
    migrations.upgrade,
    lambda engine: migrations.downgrade(engine, "-1"),
]


def revision(database: Database) -> str | None:
    with database.engine.connect() as connection:
        return migrations.current_revision(connection)


def changed(database: Database, *statements: str) -> None:
    with database.engine.begin() as connection:
        for statement in statements:
            update(connection, statement)


def test_a_fresh_database_is_migrated_to_the_head(database: Database) -> None:
    assert revision(database) is None
    outcome = migrations.ensure_current(database.engine)
    assert outcome == migrations.Migrated(None, migrations.HEAD)
    assert outcome.changed
    assert revision(database) == migrations.HEAD


def test_a_current_database_is_left_alone(database: Database) -> None:
    migrations.ensure_current(database.engine)
    outcome = migrations.ensure_current(database.engine)
    assert outcome == migrations.Migrated(migrations.HEAD, migrations.HEAD)
    assert not outcome.changed


def test_opening_a_current_database_imports_no_alembic_and_begins_no_transaction(database: Database, url: str) -> None:
    migrations.ensure_current(database.engine)
    program = (
        "import sys\n"
        "from sqlalchemy import event\n"
        "from codex_state import migrations\n"
        "from codex_state.database import Database\n"
        "database = Database.open(sys.argv[1])\n"
        "event.listen(database.engine, 'begin', lambda connection: sys.exit('began a transaction'))\n"
        "assert not migrations.ensure_current(database.engine).changed\n"
        "database.close()\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'alembic'], 'imported alembic'\n"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)


def test_opening_reads_while_somebody_else_writes(database: Database, url: str) -> None:
    migrations.ensure_current(database.engine)
    with database.begin() as session, stores.opened(url) as other:
        session.connection().exec_driver_sql("UPDATE backfill_state SET last_watermark = 'x'")
        assert not migrations.ensure_current(other.engine).changed


@pytest.mark.parametrize("older", ["0001_baseline", "0009_homes"])
def test_an_older_database_is_refused_when_the_caller_asked_not_to_migrate(database: Database, older: str) -> None:
    migrations.upgrade(database.engine, older)
    with pytest.raises(SchemaOutdatedError, match=rf"is at revision '{older}'.*codex-state db upgrade"):
        migrations.ensure_current(database.engine, migrate=False)
    assert revision(database) == older


def test_an_empty_database_is_refused_when_the_caller_asked_not_to_migrate(database: Database) -> None:
    with pytest.raises(SchemaOutdatedError, match="has no schema yet"):
        migrations.ensure_current(database.engine, migrate=False)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_newer_database_is_refused_and_left_as_it_is(database: Database, opener: Callable[[Engine], object]) -> None:
    migrations.upgrade(database.engine)
    changed(database, "UPDATE codex_state_version SET version_num = '0099_from_the_future'")
    with database.engine.begin() as connection:
        insert_samples(connection)
    with database.engine.connect() as connection:
        before = read_all(connection), describe(connection)
    message = "is at revision '0099_from_the_future'.*Nothing was changed"
    with pytest.raises(SchemaTooNewError, match=message):
        opener(database.engine)
    with database.engine.connect() as connection:
        assert (read_all(connection), describe(connection)) == before
    assert revision(database) == "0099_from_the_future"


@pytest.mark.parametrize("opener", OPENERS)
def test_a_newer_sqlite_file_stays_the_same_to_the_byte(tmp_path: Path, opener: Callable[[Engine], object]) -> None:
    path = tmp_path / "state.sqlite"
    with stores.opened(f"sqlite:///{path}") as database:
        migrations.upgrade(database.engine)
        changed(database, "UPDATE codex_state_version SET version_num = '0099_from_the_future'")
    before = path.read_bytes()
    with stores.opened(f"sqlite:///{path}") as database, pytest.raises(SchemaTooNewError):
        opener(database.engine)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.sqlite"]


@pytest.mark.parametrize("opener", OPENERS)
def test_the_originals_own_file_is_refused_and_stays_the_same_to_the_byte(
    tmp_path: Path, opener: Callable[[Engine], object]
) -> None:
    path = tmp_path / "state_4.sqlite"
    original = sqlite3.connect(path)
    original.executescript(
        "PRAGMA journal_mode = WAL;"
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL);"
        "CREATE TABLE threads (id TEXT PRIMARY KEY, rollout_path TEXT NOT NULL);"
        "INSERT INTO threads VALUES ('t', 'p');"
    )
    original.close()
    before = path.read_bytes()
    with (
        stores.opened(f"sqlite:///{path}") as database,
        pytest.raises(
            ForeignSchemaError, match=r"original Codex runtime; set CODEX_SQLITE_HOME.*CODEX_STATE_DATABASE_URL"
        ),
    ):
        opener(database.engine)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state_4.sqlite"]


def test_tables_of_our_names_that_somebody_else_made_are_refused(database: Database) -> None:
    changed(database, "CREATE TABLE threads (id INTEGER)", "CREATE TABLE logs (id INTEGER)")
    with pytest.raises(ForeignSchemaError, match=r"did not create \(logs, threads\)"):
        migrations.ensure_current(database.engine)
    with database.engine.connect() as connection:
        assert set(describe(connection)) == {"logs", "threads"}


def test_tables_of_our_names_are_refused_whatever_another_programs_alembic_history_says(database: Database) -> None:
    changed(
        database,
        "CREATE TABLE threads (id INTEGER)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        f"INSERT INTO alembic_version VALUES ('{migrations.HEAD}')",
    )
    assert revision(database) is None
    with pytest.raises(ForeignSchemaError, match=r"did not create \(threads\)"):
        migrations.ensure_current(database.engine)


def test_an_unknown_revision_is_a_newer_one_of_ours_even_without_tables_of_ours(database: Database) -> None:
    changed(
        database,
        "CREATE TABLE codex_state_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO codex_state_version VALUES ('0099_from_the_future')",
    )
    with pytest.raises(SchemaTooNewError, match="0099_from_the_future"):
        migrations.ensure_current(database.engine)


def test_a_history_with_several_heads_is_refused(database: Database) -> None:
    migrations.upgrade(database.engine)
    changed(database, "INSERT INTO codex_state_version VALUES ('0010_checks')")
    with pytest.raises(SchemaTooNewError, match=f"0010_checks {migrations.HEAD}"):
        migrations.ensure_current(database.engine)


def test_tables_of_others_may_share_the_database(database: Database) -> None:
    changed(database, "CREATE TABLE customers (id INTEGER)", "INSERT INTO customers VALUES (7)")
    migrations.ensure_current(database.engine)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM customers").scalar_one() == 7


@pytest.mark.parametrize("target", ["0042_nowhere", "+42"])
def test_upgrading_to_what_is_no_revision_is_refused(database: Database, target: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(target.removeprefix("+"))):
        migrations.upgrade(database.engine, target)
    assert revision(database) is None


def test_a_refusal_does_not_tell_the_password() -> None:
    engine = create_engine("postgresql+psycopg://user:hunter2@localhost:1/none", connect_args={"connect_timeout": 1})
    with pytest.raises(StateError) as refusal:
        migrations.ensure_current(engine)
    assert "hunter2" not in str(refusal.value)


def test_a_database_in_memory_is_migrated_on_its_one_connection() -> None:
    with stores.opened("sqlite://") as database:
        assert migrations.ensure_current(database.engine).changed
        assert not migrations.ensure_current(database.engine).changed


def test_a_given_connection_is_used_and_stays_open() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        assert migrations.ensure_current(connection).changed
        assert migrations.check(connection) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM backfill_state").scalar_one() == 1
    engine.dispose()


def test_a_connection_in_a_transaction_is_refused(database: Database) -> None:
    with database.engine.begin() as connection, pytest.raises(InvalidInputError, match="isn't in one"):
        migrations.ensure_current(connection)


def test_an_engine_that_is_not_ours_is_migrated_in_one_transaction(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.sqlite'}")

    @event.listens_for(engine, "before_cursor_execute")
    def _fail_late(_connection, _cursor, statement: str, *_rest) -> None:
        if "ck_threads_archived" in statement:
            raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        migrations.upgrade(engine)
    with engine.connect() as connection:
        assert describe(connection) == {}
        assert migrations.current_revision(connection) is None
    engine.dispose()


def test_foreign_keys_are_enforced_again_after_a_migration(tmp_path: Path) -> None:
    with stores.opened(f"sqlite:///{tmp_path / 'x.sqlite'}") as database, database.engine.connect() as connection:
        migrations.upgrade(connection)
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_alembics_own_commands_refuse_a_transaction_in_which_children_would_be_lost(tmp_path: Path) -> None:
    with stores.opened(f"sqlite:///{tmp_path / 'x.sqlite'}") as database:
        migrations.upgrade(database.engine, "0009_homes")
        with database.engine.begin() as connection, pytest.raises(InvalidInputError, match="foreign keys on"):
            command.upgrade(configuration(connection), "head")
        assert revision(database) == "0009_homes"


def test_alembics_own_commands_take_a_connection_outside_a_transaction(database: Database) -> None:
    with database.engine.connect() as connection:
        command.upgrade(configuration(connection), "head")
        assert migrations.check(connection) == []


def test_a_migration_that_loses_parents_is_rolled_back(tmp_path: Path) -> None:
    with stores.opened(f"sqlite:///{tmp_path / 'x.sqlite'}") as database:
        migrations.upgrade(database.engine)
        with database.engine.begin() as connection:
            insert_samples(connection)
        with (
            database.engine.connect() as connection,
            pytest.raises(StateError, match="without their threads"),
            locking.exclusive_transaction(connection),
        ):
            update(connection, "DELETE FROM threads")
        with database.engine.connect() as connection:
            assert len(read_all(connection)["threads"]) == 2


def test_orphans_that_were_there_before_do_not_stop_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with stores.opened(f"sqlite:///{path}") as database:
        migrations.upgrade(database.engine, "0009_homes")
        with database.engine.begin() as connection:
            insert_samples(connection)
    other = sqlite3.connect(path)  # as any program does that doesn't switch foreign keys on
    other.execute("DELETE FROM threads")
    other.commit()
    other.close()
    with stores.opened(f"sqlite:///{path}") as database:
        assert migrations.ensure_current(database.engine).changed
        with database.engine.connect() as connection:
            assert len(read_all(connection)["thread_memory"]) == 4


def test_what_we_call_ours_are_the_tables_of_the_models_and_the_retired_ones() -> None:
    from codex_state.migrations.revision import our_tables

    assert our_tables() == set(metadata.tables) | {"memory_phase2_jobs"}
