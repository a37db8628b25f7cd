"""Databases for tests: fresh ones, cheaply.

SQLite files are copies of one file with the schema in it. A PostgreSQL database with the schema is made once for each
test process and emptied before every test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from codex_state.database import Database, prepare_sqlite_file
from codex_state.models import metadata
from codex_state.settings import StateSettings
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON
from tests import postgres

BUSY_TIMEOUT = timedelta(seconds=30)
"""Longer than the default, because many tests share the machine's cores."""


def create_schema(database: Database) -> None:
    """Make the tables of the models in an empty database."""
    if database.path is not None:
        prepare_sqlite_file(database)
    with database.begin() as session:
        metadata.create_all(session.connection())


def sqlite_template(directory: Path) -> Path:
    """An SQLite file with the schema and nothing else in it, to be copied."""
    path = directory / "template.sqlite"
    database = Database.open(f"sqlite:///{path}")
    create_schema(database)
    database.close()
    return path


def copy_of(template: Path, directory: Path) -> str:
    """The URL of a fresh copy of an SQLite template."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "state.sqlite"
    shutil.copy(template, path)
    return f"sqlite:///{path}"


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """The database behind a URL, closed at the end."""
    database = Database.open(url, busy_timeout=BUSY_TIMEOUT)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def in_memory() -> Iterator[Database]:
    """A database in memory, with the schema."""
    with opened("sqlite://") as database:
        create_schema(database)
        yield database


@contextmanager
def postgres_with_schema(server: postgres.TestServer) -> Iterator[str]:
    """The URL of a new PostgreSQL database with the schema."""
    with server.database() as url:
        with opened(url) as database:
            create_schema(database)
        yield url


class Clocked(NamedTuple):
    """A database and the clock that was installed in it."""

    database: Database
    clock: ManualClock


@contextmanager
def clocked(database: Database, directory: Path) -> Iterator[Clocked]:
    """The database on a clock of its own that shows noon."""
    with ManualClock(directory / "clock", NOON) as clock:
        clock.install(database)
        yield Clocked(database, clock)


@contextmanager
def fresh_settings(
    dialect: str, home: Path, request: pytest.FixtureRequest, /, **values: Any
) -> Iterator[StateSettings]:
    """Settings of a state without rows, whose schema is current: a file in ``home``, or a PostgreSQL database."""
    values = {"codex_home": home, "busy_timeout": BUSY_TIMEOUT} | values
    if dialect == "sqlite":
        settings = StateSettings(**values)
        shutil.copy(request.getfixturevalue("migrated_sqlite"), settings.database_path)
        yield settings
    else:
        server: postgres.TestServer = request.getfixturevalue("postgres_server")
        with server.copy_of(request.getfixturevalue("migrated_postgres")) as url:
            yield StateSettings(database_url=url, **values)
