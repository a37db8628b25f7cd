"""Homes, runtimes and threads for tests of the memory pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import postgres
import pytest
from sqlalchemy import text

from codex_state import (
    Claimed,
    MemoryScope,
    Phase1Key,
    Phase1Lease,
    StateRuntime,
    StateSettings,
    Thread,
)
from codex_state.testing.samples import a_thread

OWNER = UUID("0195fd6c-6a00-7000-8000-0000000000aa")
OTHER = UUID("0195fd6c-6a00-7000-8000-0000000000bb")
CWD = Path("/code/project")


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose state is up to date and empty, to be copied."""
    home = tmp_path_factory.mktemp("migrated")
    StateRuntime.open(StateSettings(codex_home=home)).close()
    return home


@pytest.fixture
def sqlite_settings(migrated_home: Path, tmp_path: Path) -> StateSettings:
    """A fresh home with an SQLite file."""
    shutil.copytree(migrated_home, tmp_path / "home")
    return StateSettings(codex_home=tmp_path / "home", busy_timeout=timedelta(seconds=20))


@pytest.fixture
def postgres_settings(
    migrated_postgres: str, postgres_server: postgres.TestServer, tmp_path: Path
) -> Iterator[StateSettings]:
    """A fresh home and a PostgreSQL database."""
    with postgres_server.copy_of(migrated_postgres) as url:
        yield StateSettings(codex_home=tmp_path / "home", database_url=url, busy_timeout=timedelta(seconds=20))


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest) -> StateSettings:
    """A fresh home on each of the two databases."""
    name = "sqlite_settings" if request.param == "sqlite" else "postgres_settings"
    chosen: StateSettings = request.getfixturevalue(name)
    return chosen


@pytest.fixture
def runtime(settings: StateSettings) -> Iterator[StateRuntime]:
    """An open state, on each of the two databases."""
    with StateRuntime.open(settings) as opened:
        yield opened


@pytest.fixture
def sqlite_runtime(sqlite_settings: StateSettings) -> Iterator[StateRuntime]:
    """An open state on SQLite."""
    with StateRuntime.open(sqlite_settings) as opened:
        yield opened


@pytest.fixture
def opened() -> Iterator[Callable[[StateSettings], StateRuntime]]:
    """Opens more states, which are closed at the end."""
    with ExitStack() as held:
        yield lambda settings: held.enter_context(StateRuntime.open(settings))


def now() -> datetime:
    """The time of this machine in whole seconds, which in tests is that of the database."""
    return datetime.now(UTC).replace(microsecond=0)


def add_threads(runtime: StateRuntime, count: int = 1, **values: Any) -> list[Thread]:
    """Threads that can be extracted, the most recently updated one first."""
    moment = now()
    threads = [
        a_thread(**({"id": uuid4(), "cwd": CWD, "updated_at": moment - timedelta(minutes=1, seconds=index)} | values))
        for index in range(count)
    ]
    with runtime.begin() as state:
        state.threads.upsert_many(threads)
    return threads


def user_key(thread: Thread) -> Phase1Key:
    """The job of a thread for the user's scope."""
    return Phase1Key(thread.id, MemoryScope.user())


def cwd_key(thread: Thread) -> Phase1Key:
    """The job of a thread for the scope of its working directory."""
    return Phase1Key(thread.id, MemoryScope.cwd(thread.cwd))


def claim(runtime: StateRuntime, key: Phase1Key, *, lease: float = 3600, owner: UUID = OWNER) -> Phase1Lease:
    """Claim a job that can be claimed."""
    with runtime.autocommit() as state:
        outcome = state.phase1_jobs.try_claim(key, owner=owner, source_updated_at=now(), lease=timedelta(seconds=lease))
    assert isinstance(outcome, Claimed)
    return outcome.lease


def let_leases_end(runtime: StateRuntime, seconds: int) -> None:
    """As if all holders had been silent for so much longer: the dead renew nothing, so nobody need wait for them."""
    with runtime.begin() as state:
        for table, column in (("memory_phase1_jobs", "started_at"), ("memory_consolidation_locks", "updated_at")):
            state.session.connection().execute(text(f"UPDATE {table} SET {column} = {column} - {seconds}"))
