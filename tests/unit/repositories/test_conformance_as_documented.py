"""The shipped suite with nothing but a ``database`` fixture, as its documentation says, and the manual clock itself."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from codex_state.database import Database
from codex_state.models import MemoryScope
from codex_state.repositories import MemoryScopeRepository
from codex_state.testing.clock import ManualClock
from codex_state.testing.conformance import TestMemoryScopes, clock, front, state
from codex_state.testing.conformance.fronts import Front, state_through
from tests import scripts, stores

__all__ = ["TestMemoryScopes", "clock", "front", "state"]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with stores.opened(f"sqlite:///{stores.sqlite_template(tmp_path)}") as database:
        yield database


def _marked(database: Database) -> datetime:
    with database.autocommit() as session:
        return MemoryScopeRepository(session).mark_dirty(MemoryScope.user())


_MARK = """
import sys
from datetime import timedelta
from pathlib import Path
from codex_state.database import Database
from codex_state.models import MemoryScope
from codex_state.repositories import MemoryScopeRepository
from codex_state.testing.clock import ManualClock
database, shared = Database.open(sys.argv[1]), ManualClock(Path(sys.argv[2]))
shared.install(database)
with database.autocommit() as session:
    print(MemoryScopeRepository(session).mark_dirty(MemoryScope.user()).isoformat())
shared.advance(timedelta(hours=1))
database.close()
shared.close()
"""


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_processes_that_open_the_same_clock_share_its_time(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{stores.sqlite_template(tmp_path)}"
    if dialect == "postgresql":
        url = request.getfixturevalue("postgres_url")
        with stores.opened(url) as fresh:
            stores.create_schema(fresh)
    with stores.opened(url) as database, ManualClock(tmp_path / "clock") as mine:
        mine.install(database)
        mine.set(datetime(2030, 1, 1, tzinfo=UTC))
        said = scripts.run(_MARK, url, tmp_path / "clock")
        assert said == scripts.Finished(0, "2030-01-01T00:00:00+00:00\n", "")
        assert mine.now == datetime(2030, 1, 1, 1, tzinfo=UTC)
        assert _marked(database) == mine.now


def test_without_a_manual_clock_the_database_tells_the_real_time(database: Database) -> None:
    before = int(time.time())
    assert before <= _marked(database).timestamp() <= time.time()


def test_a_clock_may_be_installed_after_the_database_was_used(database: Database, tmp_path: Path) -> None:
    _marked(database)
    with ManualClock(tmp_path / "clock", datetime(2100, 1, 1, tzinfo=UTC)) as late:
        late.install(database)
        assert _marked(database) == late.now


@pytest.mark.parametrize("front", ["asyncio", "trio"])
def test_through_an_asynchronous_front_every_verb_is_a_unit_on_a_worker_thread(
    front: Front, database: Database, tmp_path: Path
) -> None:
    names: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *_: names.append(threading.current_thread().name))
    with state_through(front, database, tmp_path) as state:
        state.memory_scopes.mark_dirty(MemoryScope.user())
        assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert [mark.scope_kind for mark in state.memory_scopes.list_dirty()] == ["user"]
    assert len(names) == 2
    assert all(re.fullmatch(r"codex-state_\d", name) for name in names), names
    # The database is its owner's to close.
    with database.read() as session:
        assert MemoryScopeRepository(session).get(MemoryScope.user()) is not None
