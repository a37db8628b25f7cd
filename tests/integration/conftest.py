"""Fixtures of tests of whole states."""

from __future__ import annotations

import pytest
from loops import Asyncio, Loop, Trio
from memory_support import (
    migrated_home,
    opened,
    postgres_settings,
    runtime,
    settings,
    sqlite_runtime,
    sqlite_settings,
)

from tests.chaos.worlds import host

__all__ = [
    "host",
    "migrated_home",
    "opened",
    "postgres_settings",
    "runtime",
    "settings",
    "sqlite_runtime",
    "sqlite_settings",
]


@pytest.fixture(params=[Asyncio, Trio])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Each of the two event loops."""
    chosen: Loop = request.param
    return chosen
