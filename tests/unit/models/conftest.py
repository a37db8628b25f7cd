"""A table with a column of every type, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from codex_state.database import Database
from tests import postgres, stores
from tests.sample_table import SAMPLES


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with the ``samples`` table."""
    if request.param == "sqlite":
        with stores.opened(f"sqlite:///{tmp_path_factory.mktemp('types')}/samples.sqlite") as database:
            SAMPLES.create(database.engine)
            yield database
    else:
        server: postgres.TestServer = request.getfixturevalue("postgres_server")
        with server.database() as url, stores.opened(url) as database:
            SAMPLES.create(database.engine)
            yield database
