"""The shipped suite, on an SQLite file, a database in memory and PostgreSQL, and through each front (law L9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codex_state.database import Database
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance import *  # noqa: F403 - this is how it is used
from codex_state.testing.conformance.fronts import Front, state_through
from tests import stores


@pytest.fixture
def database(clocked: stores.Clocked) -> Database:
    return clocked.database


@pytest.fixture
def clock(clocked: stores.Clocked) -> ManualClock:
    return clocked.clock


@pytest.fixture
def front(request: pytest.FixtureRequest) -> Front:
    chosen: Front = request.param
    return chosen


@pytest.fixture
def state(front: Front, database: Database, clock: ManualClock, tmp_path: Path) -> Iterator[State]:
    if database.dialect == "sqlite" and database.path is None:
        # The database in memory runs each test in one transaction, the others let every statement commit by itself.
        with database.begin() as session:
            yield State(session)
    else:
        with state_through(front, database, tmp_path) as state:
            yield state
