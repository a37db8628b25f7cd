"""The databases that the conformance suite runs against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import event

from tests import stores

pytest.register_assert_rewrite("codex_state.testing.conformance")


@pytest.fixture(scope="session", params=["file", "memory", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Clocked]:
    """A database with the schema and a clock, for tests that find it empty."""
    with ExitStack() as held:
        directory = tmp_path_factory.mktemp("shared")
        match request.param:
            case "file":
                database = held.enter_context(stores.opened(f"sqlite:///{stores.sqlite_template(directory)}"))
            case "memory":
                database = held.enter_context(stores.in_memory())
                # Somebody listens, so statements take SQLAlchemy's own path and not the shorter one.
                event.listen(database.engine, "before_cursor_execute", lambda *_: None)
            case _:
                server = request.getfixturevalue("postgres_server")
                url = held.enter_context(stores.postgres_with_schema(server))
                database = held.enter_context(stores.opened(url))
        yield held.enter_context(stores.clocked(database, directory))


@pytest.fixture
def clocked(shared: stores.Clocked) -> stores.Clocked:
    """A database without rows, whose clock shows noon."""
    stores.empty(shared.database)
    shared.clock.set(stores.NOON)
    return shared
