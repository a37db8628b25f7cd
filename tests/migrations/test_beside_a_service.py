"""Our migrations in a service: inside of its own, beside them, and around what it has built on our tables."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
import sqlmodel
from alembic import command
from alembic.config import Config
from migrations.rows import insert_samples

from codex_state import SchemaError, StateRuntime, StateSettings, migrations
from codex_state.database import Database
from codex_state.migrations import render_item
from codex_state.models.columns import EpochSeconds, UuidText

OLD = "0009_homes"

ENVIRONMENT = """
    from alembic import context, op
    from codex_state import StateRuntime
    from codex_state.migrations import except_codex_state

    attributes = context.config.attributes
    with StateRuntime.open(attributes["settings"]) as runtime, runtime.engine.begin() as connection:
        context.configure(connection=connection, target_metadata=None, include_name=except_codex_state)
        context.run_migrations()
"""

REVISION = """
    import sqlalchemy as sa
    from alembic import context, op
    from codex_state import StateRuntime

    revision, down_revision = "first", None

    def upgrade():
        attributes = context.config.attributes
        op.create_table("mine", sa.Column("id", sa.Integer, primary_key=True))
        if attributes.get("second") is not None:
            StateRuntime.open(attributes["second"]).close()
        op.add_column("mine", sa.Column("thread", sa.Text))
"""


@pytest.fixture
def service(tmp_path: Path, url: str) -> Config:
    """A service whose ``env.py`` opens the state, on a fresh database."""
    directory = tmp_path / "service"
    (directory / "versions").mkdir(parents=True)
    (directory / "env.py").write_text(textwrap.dedent(ENVIRONMENT))
    (directory / "versions" / "first.py").write_text(textwrap.dedent(REVISION))
    config = Config()
    config.set_main_option("script_location", str(directory))
    config.attributes["settings"] = StateSettings(codex_home=tmp_path / "home", database_url=url)
    return config


def test_a_services_environment_may_open_the_state_on_a_fresh_database(service: Config, database: Database) -> None:
    command.upgrade(service, "head")
    command.upgrade(service, "head")
    with database.engine.connect() as connection:
        assert migrations.current_revision(connection) == migrations.HEAD
        assert {column["name"] for column in sa.inspect(connection).get_columns("mine")} == {"id", "thread"}


def test_a_services_revision_may_open_a_state_that_has_to_be_migrated(service: Config, tmp_path: Path) -> None:
    """Alembic's ``op`` and ``context`` stay the service's."""
    service.attributes["second"] = StateSettings(codex_home=tmp_path / "another")
    command.upgrade(service, "head")


def test_a_state_is_migrated_in_a_thread_beside_the_services_own_upgrade(service: Config, tmp_path: Path) -> None:
    def open_states() -> int:
        for number in range(3):
            StateRuntime.open(StateSettings(codex_home=tmp_path / f"beside {number}")).close()
        return number

    with ThreadPoolExecutor(1) as executor:
        beside = executor.submit(open_states)
        for _ in range(20):
            command.upgrade(service, "head")
        assert beside.result() == 2


def test_a_migration_says_nothing_in_a_services_log(
    database: Database, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO):
        migrations.upgrade(database.engine)
        StateRuntime.open(StateSettings(codex_home=tmp_path / "home")).close()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("alembic")] == []


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Database]:
    """An SQLite database of an older revision, with rows and with what a user has built on our tables."""
    database = Database.open(f"sqlite:///{tmp_path / 'state.sqlite'}")
    migrations.upgrade(database.engine, OLD)
    with database.engine.begin() as connection:
        insert_samples(connection)
        for statement in (
            "CREATE TABLE audit (thread TEXT)",
            "CREATE VIEW titles AS SELECT id, title FROM threads",
            "CREATE VIEW long_titles AS SELECT * FROM titles WHERE length(title) > 3",
            "CREATE TRIGGER watch AFTER UPDATE ON threads BEGIN INSERT INTO audit VALUES (new.id); END",
            "CREATE TRIGGER through INSTEAD OF DELETE ON titles BEGIN DELETE FROM threads WHERE id = old.id; END",
            "CREATE INDEX users_own ON threads (lower(title))",
        ):
            connection.exec_driver_sql(statement)
    yield database
    database.close()


def guests(database: Database) -> dict[str, str]:
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL AND name NOT LIKE 'idx_%'"
        )
        return {row.name: row.sql for row in rows}


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_views_triggers_and_indexes_of_a_user_survive(old: Database) -> None:
    """L7."""
    before = guests(old)
    migrations.upgrade(old.engine)
    assert guests(old) == before
    with old.engine.begin() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM titles").scalar_one()
        assert count > 0
        connection.exec_driver_sql("UPDATE threads SET title = 'other'")
        assert connection.exec_driver_sql("SELECT count(*) FROM audit").scalar_one() == count
    migrations.downgrade(old.engine, OLD)
    assert guests(old) == before


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_a_view_of_something_that_the_new_schema_has_not_is_named_before_anything_changes(old: Database) -> None:
    migrations.upgrade(old.engine)
    with old.engine.begin() as connection:
        connection.exec_driver_sql("CREATE VIEW named AS SELECT id, name_at FROM threads")
    before = guests(old)
    with pytest.raises(SchemaError, match=r"the view named can't stay as it is .*Nothing was changed"):
        migrations.downgrade(old.engine, OLD)
    assert guests(old) == before
    with old.engine.connect() as connection:
        assert migrations.current_revision(connection) == migrations.HEAD


def test_types_are_rendered_so_that_a_revision_runs_as_it_is() -> None:
    context = SimpleNamespace(imports=set())
    names = {"sa": sa, "sqlmodel": sqlmodel}
    for item, compiled in ((UuidText(), "TEXT"), (EpochSeconds(), "BIGINT"), (sqlmodel.AutoString(20), "VARCHAR(20)")):
        rendered = render_item("type", item, context)  # type: ignore[arg-type]
        assert isinstance(rendered, str)
        for statement in context.imports:
            exec(statement, names)
        made = eval(rendered, names)
        assert made.compile(dialect=sa.create_engine("sqlite://").dialect) == compiled
    assert render_item("type", sa.Text(), context) is False  # type: ignore[arg-type]
    assert render_item("index", object(), context) is False  # type: ignore[arg-type]
