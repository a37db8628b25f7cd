"""What the suite's tests ask for, made from the ``database`` fixture of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from codex_state.database import Database
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON


@pytest.fixture
def clock(database: Database, tmp_path: Path) -> Iterator[ManualClock]:
    """The database's clock: noon, until a test moves it."""
    with ManualClock(tmp_path / "clock", NOON) as clock:
        clock.install(database)
        yield clock


@pytest.fixture
def state(database: Database, clock: ManualClock) -> Iterator[State]:  # noqa: ARG001 - installed before the session
    """All repositories over one session, on which every statement commits by itself."""
    with database.autocommit() as session:
        yield State(session)
