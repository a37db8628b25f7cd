"""Fixtures of all tests."""

from __future__ import annotations

import gc
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import compiled_once
import in_memory
import postgres
import pytest
import quick_schema
from hypothesis import HealthCheck, settings

from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

in_memory.have_temporary_files_in_memory()

# Before any test imports the shipped suite.
pytest.register_assert_rewrite("codex_state.testing.conformance")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every child would inherit that: those that
# are interrupted by a test would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast an example runs says something about the machine, nothing about the code. What gates tries the same examples
# each time; ``--hypothesis-profile=search`` looks for new ones.
settings.register_profile("search", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", settings.get_profile("search"), derandomize=True, max_examples=60)
settings.load_profile("gate")


# Tests make many objects, and few circles: to look for those ten times less often saves a twentieth of all.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that compute beside those that wait: all modules in an order that is shuffled, and always the same."""
    modules = sorted({item.path for item in items})
    random.Random(2).shuffle(modules)
    place = {path: number for number, path in enumerate(modules)}
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """What is there now stays until the end: no garbage collection need look through all tests again."""
    gc.collect()
    gc.freeze()


_finished = 0


def pytest_runtest_logfinish() -> None:
    """Now and then, so that what stays of hundreds of tests isn't looked through after each of the next ones."""
    global _finished  # noqa: PLW0603
    _finished += 1
    if _finished % 200 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def schema_written_at_once() -> Iterator[None]:
    """Only tests of migrations have every new file migrated from nothing."""
    with quick_schema.written_at_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def statements_compiled_once() -> Iterator[None]:
    """Each test has engines of its own, and few statements of its own."""
    with compiled_once.compiled_once():
        yield


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


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


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: postgres.TestServer) -> Iterator[str]:
    """The name of a PostgreSQL database with the current schema and no rows, to be copied as a template."""
    with postgres_server.database() as url:
        StateRuntime.open(StateSettings(database_url=url)).close()
        yield postgres.database_name(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the current schema and no rows, to be copied."""
    settings = StateSettings(codex_home=tmp_path_factory.mktemp("migrated"))
    StateRuntime.open(settings).close()
    return settings.database_path
