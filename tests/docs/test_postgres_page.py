"""The SQL of docs/postgres.md runs as it stands, and the state works on what it makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import postgres
import pytest
from sqlalchemy import text

from codex_state import LogQuery, StateRuntime, StateSettings, migrations
from codex_state.testing.samples import NOON, a_log_line, a_thread

PAGE = Path(__file__).parents[2] / "docs" / "postgres.md"
BLOCKS = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
FEBRUARY = int(NOON.timestamp())
LATER = FEBRUARY + 100 * 86_400


@pytest.fixture
def runtime(tmp_path: Path, postgres_server: postgres.TestServer) -> Iterator[StateRuntime]:
    with (
        postgres_server.database() as url,
        StateRuntime.open(StateSettings(codex_home=tmp_path, database_url=url)) as runtime,
    ):
        yield runtime


def _run(runtime: StateRuntime, block: str) -> None:
    with runtime.autocommit() as state:
        for statement in filter(None, map(str.strip, block.split(";"))):
            state.session.connection().exec_driver_sql(statement)


def _messages(runtime: StateRuntime) -> list[str | None]:
    with runtime.read() as state:
        return [line.message for line in state.logs.query(LogQuery())]


def test_the_sql_of_the_page_runs_in_its_order_and_the_state_still_works(runtime: StateRuntime) -> None:
    partitioned, dropped, autovacuum, roles = BLOCKS
    with runtime.begin() as state:
        state.threads.upsert(a_thread(updated_at=NOON))
        state.logs.insert_many([a_log_line("old", ts=FEBRUARY), a_log_line("late", ts=LATER)])

    _run(runtime, partitioned)
    with runtime.begin() as state:
        state.logs.insert_many([a_log_line("older", ts=FEBRUARY + 1), a_log_line("later", ts=LATER + 1)])
        assert state.logs.max_id() == 4, "the sequence goes on"
        rows = text("SELECT tableoid::regclass::text, message FROM logs ORDER BY id")
        assert [tuple(row) for row in state.session.connection().execute(rows)] == [
            ("logs_2026_02", "old"),
            ("logs_rest", "late"),
            ("logs_2026_02", "older"),
            ("logs_rest", "later"),
        ]
    assert _messages(runtime) == ["old", "late", "older", "later"]
    with runtime.read() as state:
        assert migrations.check(state.session.connection()) == []

    _run(runtime, dropped)
    assert _messages(runtime) == ["late", "later"]
    with runtime.begin() as state:
        assert state.logs.retain(max_rows=1) == 1
    assert _messages(runtime) == ["later"]

    _run(runtime, autovacuum)
    worker = f"worker_{uuid4().hex[:8]}"  # roles are of the whole server
    _run(runtime, roles.replace("codex_state_worker", worker))
    try:
        with runtime.begin() as state:
            state.session.connection().exec_driver_sql(f"SET LOCAL ROLE {worker}")
            state.threads.upsert(a_thread())
            state.logs.insert(a_log_line("by the worker", ts=LATER + 2))
            leases = state.phase1_jobs.claim_candidates(
                owner=uuid4(), lease=timedelta(hours=1), max_age=timedelta(days=36_500)
            )
            assert all(state.phase1_jobs.renew(lease) for lease in leases)
            assert len(leases) == 4
            assert state.threads.delete(leases[0].key.thread_id)
    finally:
        _run(runtime, f"DROP OWNED BY {worker}; DROP ROLE {worker}")
