"""The databases that the conformance suite runs against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import event

from codex_state.testing.emptying import empty
from tests import stores

_DATABASES = ("file", "memory", "postgresql")
_FRONTS = [
    *((database, "direct") for database in _DATABASES),
    # An event loop only waits for a thread that works as any other: all verbs by one loop on one database show that.
    ("file", "asyncio"),
]
"""Where the whole suite runs. Behind a pooler, ``tests/integration/test_pgbouncer.py`` runs what depends on one."""

_IN_PART = [("postgresql", "trio")]
"""Where only the writes of holders and transactions run: the other loop, on the other database."""
_PART = {"TestHolderWrites", "TestTransactionModes", "TestBackfills"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"shared", "front"} <= set(metafunc.fixturenames):
        fronts = _FRONTS + (_IN_PART if metafunc.cls is not None and metafunc.cls.__name__ in _PART else [])
        metafunc.parametrize(("shared", "front"), fronts, indirect=True, scope="session")
    elif "shared" in metafunc.fixturenames:
        only_on = metafunc.definition.get_closest_marker("only_on")
        databases = _DATABASES if only_on is None else only_on.args
        metafunc.parametrize("shared", databases, indirect=True, scope="session")


@pytest.fixture(scope="session")
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
    empty(shared.database)
    if shared.clock.now != stores.NOON:
        shared.clock.set(stores.NOON)
    return shared
