"""Databases that several processes share, for tests: emptied before each, on a clock that is moved by hand."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table

from codex_state.database import Database
from codex_state.database.state_files import QUEUE_SUFFIX
from codex_state.models import metadata
from codex_state.testing.clock import ManualClock
from codex_state.testing.emptying import empty
from codex_state.testing.samples import NOON
from tests import postgres, stores
from tests.chaos.processes import WorkerHost, shared_host

Rows = Mapping[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class World:
    """A database, and what another process needs to open it."""

    url: str
    clock_path: Path
    database: Database
    clock: ManualClock

    def rows(self) -> Rows:
        """Every row of every table, as the driver gives it."""
        with self.database.read() as session:
            connection = session.connection()
            return {
                table.name: [tuple(row) for row in connection.exec_driver_sql(_all_of(table))]
                for table in metadata.sorted_tables
            }

    def queue_is_taken(self) -> bool:
        """Whether a process stands at the head of the SQLite file's queue of writers."""
        path = self.database.path
        assert path is not None
        descriptor = os.open(path.with_name(path.name + QUEUE_SUFFIX), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _all_of(table: Table) -> str:
    keys = ", ".join(column.name for column in table.primary_key)
    return f"SELECT * FROM {table.name} ORDER BY {keys}"


@pytest.fixture(scope="module")
def host() -> Iterator[WorkerHost]:
    """Starts the worker processes of a module's tests."""
    host = shared_host()
    yield host
    host.end_workers()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A database of each kind, with the schema."""
    directory = tmp_path_factory.mktemp("world")
    with ExitStack() as held:
        if request.param == "sqlite":
            url = f"sqlite:///{stores.sqlite_template(directory)}"
        else:
            server: postgres.TestServer = request.getfixturevalue("postgres_server")
            url = held.enter_context(stores.postgres_with_schema(server))
        database = held.enter_context(stores.opened(url))
        clock = held.enter_context(ManualClock(directory / "clock", NOON))
        clock.install(database)
        yield World(url, directory / "clock", database, clock)


@pytest.fixture
def world(shared: World) -> World:
    """A database of each kind, without rows, at noon."""
    empty(shared.database)
    shared.clock.set(NOON)
    return shared
