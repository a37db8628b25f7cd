"""What the suite's tests ask for, made from the ``database`` fixture of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codex_state.database import Database
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance.fronts import Front, state_through
from codex_state.testing.processes import ManualProcesses
from codex_state.testing.samples import NOON


@pytest.fixture
def clock(database: Database, tmp_path: Path) -> Iterator[ManualClock]:
    """The database's clock: noon, until a test moves it."""
    with ManualClock(tmp_path / "clock", NOON) as clock:
        clock.install(database)
        yield clock


@pytest.fixture
def processes(database: Database) -> Iterator[ManualProcesses]:
    """The processes that claim: a test says which one is at work, and which are dead."""
    processes = ManualProcesses()
    with processes.installed(database):
        yield processes


@pytest.fixture
def front() -> Front:
    """The door that the tests go through; a fixture of yours may say ``asyncio`` or ``trio``."""
    return "direct"


@pytest.fixture
def state(
    front: Front,
    database: Database,
    clock: ManualClock,  # noqa: ARG001 - installed before the session
    tmp_path: Path,
) -> Iterator[State]:
    """All repositories, on which every statement commits by itself."""
    with state_through(front, database, tmp_path) as state:
        yield state
