"""The shipped suite, on an SQLite file, a database in memory and PostgreSQL, and through each front (law L9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codex_state.database import Database
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance import *  # noqa: F403 - this is how it is used
from codex_state.testing.conformance.fronts import Front, Unit, state_of, units_through
from tests import stores


@pytest.fixture
def database(clocked: stores.Clocked) -> Database:
    return clocked.database


@pytest.fixture
def clock(clocked: stores.Clocked) -> ManualClock:
    return clocked.clock


@pytest.fixture(scope="session")
def front(request: pytest.FixtureRequest) -> Front:
    chosen: Front = request.param
    return chosen


@pytest.fixture(scope="session")
def unit(front: Front, shared: stores.Clocked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit | None]:
    """What runs the verbs of a test through an asynchronous front. All tests of a database share it."""
    if front == "direct":
        yield None
    else:
        with units_through(front, shared.database, tmp_path_factory.mktemp("home")) as unit:
            yield unit


@pytest.fixture
def state(unit: Unit | None, database: Database, clock: ManualClock) -> Iterator[State]:
    if unit is not None:
        with state_of(unit, database) as state:
            yield state
    else:
        # The database in memory runs each test in one transaction, the others let every statement commit by itself.
        in_memory = database.dialect == "sqlite" and database.path is None
        with database.begin() if in_memory else database.autocommit() as session:
            yield State(session)
