"""Values too long for PostgreSQL's indexes stop nobody but their own row."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from codex_state import BackfillOutcome, InvalidInputError, StateRuntime, StateSettings, backfill
from codex_state.testing.samples import a_thread

ANY_AGE = timedelta(days=36500)


def incompressible(length: int) -> str:
    return random.Random(7).randbytes(length).hex()[:length]


@pytest.fixture(params=["sqlite", "postgresql"])
def runtime(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StateRuntime]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with StateRuntime.open(StateSettings(codex_home=tmp_path, database_url=url)) as runtime:
        yield runtime


def write_rollout(home: Path, provider: str) -> str:
    thread_id = str(uuid4())
    path = home / "sessions" / f"rollout-2026-01-02T03-04-05-{thread_id}.jsonl"
    path.parent.mkdir(exist_ok=True)
    meta = {
        "id": thread_id,
        "timestamp": "2026-01-02T03:04:05Z",
        "cwd": "/code",
        "originator": "test",
        "cli_version": "1",
        "model_provider": provider,
    }
    path.write_text(json.dumps({"timestamp": "2026-01-02T03:04:05Z", "type": "session_meta", "payload": meta}) + "\n")
    return thread_id


def test_a_rollout_whose_provider_cannot_be_indexed_fails_alone(runtime: StateRuntime) -> None:
    fine, long = write_rollout(runtime.codex_home, "openai"), write_rollout(runtime.codex_home, incompressible(9000))
    report = backfill(runtime)
    assert report.status is BackfillOutcome.COMPLETE
    assert report.scanned == 2
    stored = {failure.path for failure in report.failures}
    if runtime.database.dialect == "postgresql":
        assert [path for path in stored if long in path]
        assert not [path for path in stored if fine in path]
    else:
        assert stored == set()


def test_a_key_that_is_too_long_is_invalid_input(runtime: StateRuntime) -> None:
    if runtime.database.dialect == "sqlite":
        with runtime.begin() as state:
            state.threads.upsert(a_thread(source=incompressible(9000)))
        return
    with pytest.raises(InvalidInputError), runtime.begin() as state:
        state.threads.upsert(a_thread(source=incompressible(9000)))


def test_a_directory_too_long_for_a_key_has_no_scope_and_stops_no_worker(runtime: StateRuntime) -> None:
    ordinary, deep = a_thread(cwd=Path("/code")), a_thread(cwd=Path("/" + incompressible(3800)))
    with runtime.begin() as state:
        state.threads.upsert_many([ordinary, deep])
        leases = state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(hours=1), max_age=ANY_AGE)
    claimed = {(lease.key.thread_id, lease.key.scope.kind) for lease in leases}
    assert claimed == {(ordinary.id, "cwd"), (ordinary.id, "user"), (deep.id, "user")}
