"""The shipped suite, against an SQLite file, a database in memory, and PostgreSQL (law L9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codex_state.database import Database
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance import *  # noqa: F403 - this is how it is used
from tests import stores


@pytest.fixture
def database(clocked: stores.Clocked) -> Database:
    return clocked.database


@pytest.fixture
def clock(clocked: stores.Clocked) -> ManualClock:
    return clocked.clock


@pytest.fixture
def state(database: Database, clock: ManualClock) -> Iterator[State]:
    # The database in memory runs each test in one transaction, the others let every statement commit by itself.
    in_memory = database.dialect == "sqlite" and database.path is None
    with database.begin() if in_memory else database.autocommit() as session:
        yield State(session)
