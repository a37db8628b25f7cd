"""The revisions end where the models are, on both databases, and ``check`` tells when a database doesn't."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import postgres
import pytest
import quick_schema
import stores
from migrations.described import describe
from migrations.rows import update
from sqlalchemy import create_engine

from codex_state import migrations
from codex_state.database import Database, prepare_sqlite_file
from codex_state.errors import NotADatabaseError
from codex_state.models import metadata

STATEMENTS = {
    "ALTER TABLE threads ADD COLUMN colour TEXT": "column threads.colour is not ours",
    "ALTER TABLE threads DROP COLUMN model": "column threads.model is missing",
    "DROP TABLE logs": "table logs is missing",
    "DROP INDEX idx_threads_source": "index idx_threads_source of table threads is missing",
    "CREATE INDEX idx_threads_title ON threads (title)": "index idx_threads_title of table threads is not ours",
    "CREATE TABLE memory_phase2_jobs (id INTEGER)": "table memory_phase2_jobs is not ours",
    "UPDATE codex_state_version SET version_num = '0009_homes'": "the revision is '0009_homes' instead of",
}

POSTGRESQL_STATEMENTS = {
    "ALTER TABLE threads ALTER tokens_used DROP NOT NULL": "nullable of column threads.tokens_used is True instead",
    "ALTER TABLE threads ALTER memory_mode SET DEFAULT 'x'": "default of column threads.memory_mode is 'x'::text",
    "ALTER TABLE threads ALTER tokens_used TYPE integer": "type of column threads.tokens_used is INTEGER instead",
    "ALTER TABLE threads DROP CONSTRAINT ck_threads_archived": "constraint ck_threads_archived of table threads",
    "ALTER TABLE thread_memory DROP CONSTRAINT fk_thread_memory_thread_id_threads": "fk_thread_memory_thread_id",
}

REVERSED_INDEX = (
    "DROP INDEX idx_threads_source",
    "CREATE INDEX idx_threads_source ON threads (source, updated_at, id)",
)


@pytest.fixture
def migrated(url: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database that Alembic made: itself, or a copy of it."""
    with ExitStack() as held:
        if not url.startswith("sqlite"):
            server: postgres.TestServer = request.getfixturevalue("postgres_server")
            url = held.enter_context(server.copy_of(request.getfixturevalue("migrated_postgres")))
        database = held.enter_context(stores.opened(url))
        if database.path is not None:
            prepare_sqlite_file(database)
            held.enter_context(quick_schema.written_at_once())
            migrations.ensure_current(database.engine)
        yield database


@pytest.fixture
def url_of_models(url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    if url.startswith("sqlite"):
        yield f"{url}-of-models"
        return
    with request.getfixturevalue("postgres_server").database() as other:
        yield other


def test_the_schema_that_other_tests_write_at_once_is_the_one_that_alembic_makes(tmp_path: Path) -> None:
    def made(name: str) -> tuple[list[str], list[tuple[str, str]]]:
        with stores.opened(f"sqlite:///{tmp_path / name}") as database:
            prepare_sqlite_file(database)
            migrations.ensure_current(database.engine)
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            # The one row that migrations store says when it was stored.
            dump = [re.sub(r"\b1\d{9}\b", "then", line) for line in connection.iterdump()]
            return dump, connection.execute("SELECT name, sql FROM sqlite_master").fetchall()

    alembics = made("alembic")
    with quick_schema.written_at_once():
        (first_rows, _), (rows, objects) = made("first"), made("later")
    assert first_rows == rows == alembics[0]
    assert sorted(objects) == sorted(alembics[1])


def differences(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        return migrations.check(connection)


def test_the_migrated_schema_is_that_of_the_models_in_every_detail(migrated: Database, url_of_models: str) -> None:
    with stores.opened(url_of_models) as of_models:
        stores.create_schema(of_models)
        with migrated.engine.connect() as found, of_models.engine.connect() as expected:
            assert describe(found) == describe(expected)
            assert set(describe(found)) == set(metadata.tables)


def test_the_description_sees_what_autogeneration_does_not(migrated: Database) -> None:
    with migrated.engine.connect() as connection:
        before = describe(connection)
    with migrated.engine.begin() as connection:
        for statement in REVERSED_INDEX:
            update(connection, statement)
    with migrated.engine.connect() as connection:
        assert describe(connection) != before


def test_check_finds_nothing_in_a_migrated_database(migrated: Database) -> None:
    assert differences(migrated) == []


def test_check_changes_nothing(migrated: Database) -> None:
    with migrated.read() as session:
        assert migrations.check(session.connection()) == []


def test_check_tells_all_that_is_missing_from_an_empty_database(database: Database) -> None:
    found = differences(database)
    assert f"the revision is None instead of '{migrations.HEAD}'" in found
    assert {f"table {name} is missing" for name in metadata.tables} <= set(found)


def test_check_leaves_tables_of_others_alone(migrated: Database) -> None:
    with migrated.engine.begin() as connection:
        update(connection, "CREATE TABLE customers (id INTEGER PRIMARY KEY)")
    assert differences(migrated) == []


def test_check_tells_all_that_differs(migrated: Database) -> None:
    with migrated.engine.begin() as connection:
        for statement in STATEMENTS:
            update(connection, statement)
    found = differences(migrated)
    for sentence in STATEMENTS.values():
        assert any(difference.startswith(sentence) for difference in found), (sentence, found)


def test_check_tells_an_index_in_another_direction(migrated: Database) -> None:
    with migrated.engine.begin() as connection:
        for statement in REVERSED_INDEX:
            update(connection, statement)
    assert "index idx_threads_source of table threads is missing" in differences(migrated)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_check_tells_what_only_postgresql_can_alter(migrated: Database) -> None:
    with migrated.engine.begin() as connection:
        for statement in POSTGRESQL_STATEMENTS:
            update(connection, statement)
    found = differences(migrated)
    for sentence in POSTGRESQL_STATEMENTS.values():
        assert any(sentence in difference for difference in found), (sentence, found)


def test_check_reads_nothing_from_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    engine = create_engine(f"sqlite:///{tmp_path / 'noise'}")
    with engine.connect() as connection, pytest.raises(NotADatabaseError):
        migrations.check(connection)
    engine.dispose()
