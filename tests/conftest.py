"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import postgres
import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.TestServer]:
    """The PostgreSQL server of this test run."""
    with postgres.serve() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: postgres.TestServer) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty PostgreSQL database."""
    with postgres_server.database() as url:
        yield url
