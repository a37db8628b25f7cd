"""The chaos in small: it runs, and it notices when a law is broken. In full: ``make chaos``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from codex_state.models import metadata
from tests import pgbouncer, postgres
from tests.chaos import worlds
from tests.chaos.audit import BACKFILLS, JOBS, LOCKS, MEMORIES, SCOPES, THREADS, Record
from tests.chaos.bugs import HASTE, IMPATIENCE, SESSIONS
from tests.chaos.clocks import WRONG_CLOCKS
from tests.chaos.conductor import Conductor
from tests.chaos.outages import Outages
from tests.chaos.processes import ROOT, WorkerHost
from tests.chaos.replay import Replay, finished_twice
from tests.chaos.verdict import judge
from tests.own_server import own_server

host = worlds.host

OWNER, OTHER = str(UUID(int=1)), str(UUID(int=2))
OVER = "NOW - CASE WHEN (? > 0) THEN coalesce(lease_seconds, ?) ELSE 0 END"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state.sqlite'}"
        return
    server: postgres.TestServer = request.getfixturevalue("postgres_server")
    with server.database() as url:
        yield url


@pytest.mark.proof
@pytest.mark.parametrize(
    ("database", "minutes", "scenarios"),
    [
        ("sqlite", 0.05, 2),
        ("postgresql", 0.05, 2),
        ("failing", 0.15, 1),
        pytest.param("pooled", 0.15, 1, marks=pgbouncer.NEEDED),
    ],
)
def test_a_few_seconds_of_chaos_break_no_law(database: str, minutes: float, scenarios: int) -> None:
    """L1 to L5."""
    small = ["--minutes", str(minutes), "--workers", "4", "--jobs", "60", "--steps", "100", "--seed", "7"]
    command = [sys.executable, "-m", "tests.chaos.run", "--database", database, *small]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 problems" in ended.stdout
    assert ended.stdout.count("legal order of calls                yes") == scenarios
    assert ("  server killed" in ended.stdout) is (database == "failing")
    assert ("server or pooler killed" in ended.stdout) is (database == "pooled")


@pytest.mark.proof
@pytest.mark.parametrize(
    ("bug", "told"),
    [
        (f"jobs.claim without [started_at <= {OVER}]", "double grant"),
        ("thread_memories.upsert_if_owner with [<] in [excluded.updated_at <= updated_at]", "time didn't increase"),
        (f"locks.claim_consolidation without [updated_at <= {OVER}]", "the lock was held"),
    ],
)
def test_a_planted_bug_is_noticed(host: WorkerHost, tmp_path: Path, bug: str, told: str) -> None:
    assert _is_noticed(host, tmp_path, bug, told, manual=True)


def _is_noticed(host: WorkerHost, directory: Path, bug: str, told: str, **options: Any) -> bool:
    """Within a few rounds of so many changes each, however long a busy machine takes for them."""
    for number in range(10):
        place = directory / str(number)
        place.mkdir()
        url = f"sqlite:///{place / 'state.sqlite'}"
        conductor = Conductor(host, url, place, seed=number, workers=4, bug=bug, **options)
        run = conductor.run("with a bug", 60, changes=400)
        if any(told in problem for problem in Replay(run.ended).of(run.records).problems):
            return True
    return False


@pytest.mark.proof
@pytest.mark.parametrize(
    ("bug", "configuration", "told"),
    [
        (IMPATIENCE, "", "a caller saw an error"),
        (HASTE, "wal_writer_delay = 10s", "the database doesn't know"),
    ],
)
def test_a_bug_that_outages_show_is_noticed(
    host: WorkerHost, tmp_path: Path, bug: str, configuration: str, told: str
) -> None:
    for number in range(5):
        directory = tmp_path / str(number)
        directory.mkdir()
        with own_server(configuration) as server:
            outages = Outages([server], number, 9)
            conductor = Conductor(
                host, server.url, directory, manual=False, seed=number, workers=4, bug=bug, outages=outages
            )
            run = conductor.run("a server that fails", 9)
        if any(told in problem for problem in judge(run).problems):
            return
    pytest.fail("nobody noticed")


@pytest.mark.proof
@pgbouncer.NEEDED
def test_a_bug_that_a_pooler_shows_is_noticed(host: WorkerHost, tmp_path: Path, postgres_url: str) -> None:
    with pgbouncer.pooled(postgres_url) as url:
        pooler = url.render_as_string(hide_password=False)
        conductor = Conductor(
            host, postgres_url, tmp_path, manual=False, seed=7, workers=4, bug=SESSIONS, pooler=pooler
        )
        verdict = judge(conductor.run("behind a pooler", 3))
    assert any("a caller saw an error" in problem for problem in verdict.problems)


def test_clients_whose_clocks_are_wrong_or_run_at_another_rate_break_no_law(
    host: WorkerHost, any_url: str, tmp_path: Path
) -> None:
    """L3: an hour ahead and behind, at half and double rate, all at once on one database."""
    conductor = Conductor(host, any_url, tmp_path, manual=False, seed=7, workers=6, clocks=WRONG_CLOCKS)
    verdict = judge(conductor.run("wrong clocks", 3))
    assert verdict.problems == []


@pytest.mark.proof
def test_a_statement_that_asks_a_wrong_clock_is_noticed(host: WorkerHost, tmp_path: Path) -> None:
    bug = "jobs.claim asks the client's clock"
    assert _is_noticed(host, tmp_path, bug, "double grant", manual=False, clocks=WRONG_CLOCKS)


def test_a_wrong_clock_is_what_all_of_python_shows(host: WorkerHost) -> None:
    """Else the other tests would show nothing."""
    before = datetime.now(UTC)
    told = host.start("tests.chaos.clocks:tell", ahead=-3600, rate=2.0).receive()
    for wall in (told["time"], told["datetime"]):
        assert -3610 < wall - before.timestamp() < -3500
    for elapsed in (told["monotonic"], told["trusted"], told["elapsed"]):
        assert elapsed == pytest.approx(2 * told["true"], rel=0.2)


# The replay


class _Story:
    """A record that is made up change by change."""

    def __init__(self, table: str, **row: Any) -> None:
        self.table = table
        self.records: list[Record] = []
        self._row: dict[str, Any] | None = None
        self._first = {column.name: None for column in metadata.tables[table].columns} | row

    def then(self, now: int, *, fence: str | None = None, **changes: Any) -> _Story:
        new = (self._row or self._first) | changes
        self.records.append(Record(len(self.records) + 1, self.table, self._row, new, now, fence))
        self._row = new
        return self

    def gone(self, now: int) -> _Story:
        self.records.append(Record(len(self.records) + 1, self.table, self._row, None, now, None))
        self._row = None
        return self

    @property
    def problems(self) -> list[str]:
        return [problem.partition(":")[0] for problem in Replay().of(self.records).problems] + [
            problem.partition(" for the")[0] for problem in finished_twice(self.records)
        ]


_HELD = {"owner_name": "host process 7", "owner_process": "boot:1:7:100", "lease_seconds": 3}


def _a_job(**values: Any) -> _Story:
    first = {
        "thread_id": "t",
        "scope_kind": "user",
        "scope_key": "user",
        "status": "running",
        "owner_session_id": OWNER,
        "started_at": 100,
        "source_updated_at": 1,
        "ownership_token": "first",
        "attempt": 1,
        "failures": 0,
        **_HELD,
    }
    return _Story(JOBS, **first | values).then(100)


_TAKEN = {"ownership_token": "second", "attempt": 2, "status": "running"}
_CLEARED = {"finished_at": None, "raw_memory_path": None, "summary_hash": None, "retry_at": None}


def test_a_legal_job_has_no_problems() -> None:
    story = _a_job().then(101, started_at=101).then(102, status="succeeded", finished_at=102, summary_hash="h")
    story.then(103, source_updated_at=2, started_at=103, **_TAKEN, **_CLEARED)
    story.then(106, started_at=106, **_TAKEN | {"ownership_token": "third", "attempt": 3})
    story.then(107, status="failed", failure_reason="broken", finished_at=107, retry_at=107, failures=1)
    assert story.problems == []


@pytest.mark.parametrize(
    ("story", "problem"),
    [
        (_a_job(attempt=2), "a job began otherwise than by a claim"),
        (_a_job().gone(101), "a job was deleted"),
        (_a_job().then(102, started_at=102, **_TAKEN), "double grant"),
        (_a_job().then(103, started_at=103, **_TAKEN | {"attempt": 1}), "a claim didn't count"),
        (
            _a_job().then(103, started_at=103, **_TAKEN, summary_hash="old"),
            "a claim left results of an earlier attempt",
        ),
        (_a_job().then(103, started_at=103, **_TAKEN | {"ownership_token": "first"}), "it changed ['attempt'] as well"),
        (_a_job().then(101, started_at=101, source_updated_at=2), "it changed ['source_updated_at'] as well"),
        (_a_job().then(101, status="failed").then(102, status="succeeded"), "a finished job was changed by its holder"),
        (_a_job().then(101, status="failed", owner_session_id="x"), "it changed ['owner_session_id'] as well"),
    ],
)
def test_a_change_of_a_job_that_breaks_a_law_is_told(story: _Story, problem: str) -> None:
    assert story.problems == [problem]


def test_a_job_that_is_finished_twice_for_one_version_is_told() -> None:
    story = _a_job().then(101, status="succeeded")
    story.then(103, **_TAKEN).then(104, status="succeeded")
    assert "finished twice" in story.problems


def test_a_version_counts_anew_after_an_older_one_was_claimed() -> None:
    story = _a_job().then(101, status="succeeded").then(102, source_updated_at=2, started_at=102, **_TAKEN)
    story.then(103, status="failed", retry_at=103)
    story.then(103, source_updated_at=1, **_TAKEN | {"ownership_token": "third", "attempt": 3} | _CLEARED)
    story.then(104, status="succeeded")
    assert story.problems == []


def test_a_row_that_changed_behind_the_record_is_told() -> None:
    story = _a_job()
    story._row = story._first | {"started_at": 50}
    assert story.then(101, started_at=101).problems == ["it starts from a row that no recorded change has left"]


def test_a_token_that_is_given_twice_is_told() -> None:
    first, second = _a_job(), _a_job(thread_id="other")
    assert [problem.partition(":")[0] for problem in Replay().of(first.records + second.records).problems] == [
        "a token was given twice"
    ]


def _a_lock() -> _Story:
    first = {"cwd": "/r", "working_thread_id": OWNER, "ownership_token": "first", "updated_at": 100}
    return _Story(LOCKS, **first | _HELD).then(100)


def test_a_legal_lock_has_no_problems() -> None:
    story = _a_lock().then(101, updated_at=101).then(101, ownership_token="again")
    story.then(104, ownership_token="second", working_thread_id=OTHER, updated_at=104).gone(105)
    assert story.problems == []


@pytest.mark.parametrize(
    ("story", "problem"),
    [
        (_a_lock().then(102, ownership_token="second", working_thread_id=OTHER), "double grant"),
        (_a_lock().then(102, working_thread_id=OTHER), "it changed ['working_thread_id'] as well"),
    ],
)
def test_a_change_of_a_lock_that_breaks_a_law_is_told(story: _Story, problem: str) -> None:
    assert story.problems == [problem]


def _a_memory(fence: str | None = "first") -> _Story:
    memory = _Story(MEMORIES, thread_id="t", scope_kind="user", scope_key="user", raw_memory="first", updated_at=100)
    return memory.then(100, fence=fence)


@pytest.mark.parametrize(
    ("story", "problems"),
    [
        (_a_memory().then(100, updated_at=101, fence="first"), []),
        (_a_memory().then(101, invalidated_at=101, invalid_reason="old"), []),
        (_a_memory("second"), ["a memory was written under first while second held the job"]),
        (_a_memory(None), ["a memory was written under first while None held the job"]),
        (_a_memory().then(101, fence="first"), ["a memory's time didn't increase"]),
        (_a_memory().then(101, invalidated_at=101, raw_memory="x"), ["it changed ['raw_memory'] as well"]),
    ],
)
def test_memories_are_judged(story: _Story, problems: list[str]) -> None:
    assert story.problems == problems


def _a_scope() -> _Story:
    return _Story(SCOPES, scope_kind="cwd", scope_key="/r", dirty=1, updated_at=100).then(100)


@pytest.mark.parametrize(
    ("story", "problems"),
    [
        (_a_scope().then(101, dirty=0, fence="lock").then(101, dirty=1, updated_at=101), []),
        (_a_scope().then(100), ["a mark's time didn't increase"]),
        (_a_scope().then(101, dirty=0), ["a scope was marked clean while nobody held its lock"]),
        (_a_scope().then(101, dirty=0, updated_at=101), ["a scope became clean otherwise than by mark_clean"]),
    ],
)
def test_scopes_are_judged(story: _Story, problems: list[str]) -> None:
    assert story.problems == problems


def _a_backfill() -> _Story:
    first = {"id": 1, "home": "home 0", "status": "running", "ownership_token": "first"}
    return _Story(BACKFILLS, **first | _HELD, updated_at=100, claimed_at=100).then(100)


_SECOND = {"ownership_token": "second", "status": "running"}


@pytest.mark.parametrize(
    ("story", "problems"),
    [
        (_a_backfill().then(101, last_watermark="1", updated_at=101).then(104, **_SECOND, updated_at=104), []),
        (_a_backfill().then(101, status="complete").then(102, **_SECOND, last_watermark=None), []),
        (_a_backfill().then(102, **_SECOND), ["double grant"]),
        (_a_backfill().then(101, last_watermark="2").then(102, last_watermark="1"), ["a watermark went back"]),
        (
            _a_backfill().then(101, status="complete").then(102, status="pending"),
            ["a finished backfill was changed by its holder"],
        ),
        (_a_backfill().then(101, claimed_at=101), ["it changed ['claimed_at'] as well"]),
    ],
)
def test_backfills_are_judged(story: _Story, problems: list[str]) -> None:
    assert story.problems == problems


@pytest.mark.parametrize(("fence", "problems"), [("first", 0), ("second", 1), (None, 1)])
def test_batches_are_judged(fence: str | None, problems: int) -> None:
    assert len(_Story(THREADS, id="t", home="home 0", title="first").then(100, fence=fence).problems) == problems


@pytest.mark.parametrize(
    ("ended", "is_legal"),
    [({}, False), ({8: 1}, False), ({7: 1}, True), ({7: 2}, False), ({7: None}, True)],
    ids=["nobody", "another was killed", "the holder was killed", "later", "the holder ended"],
)
def test_only_what_the_dead_held_may_be_taken_over_before_the_end_of_its_lease(
    ended: dict[int, int | None], is_legal: bool
) -> None:
    rival = {"owner_process": "boot:1:9:100"}
    stories = [
        _a_job().then(101, started_at=101, **_TAKEN | rival),
        _a_lock().then(101, ownership_token="second", working_thread_id=OTHER, **rival),
        _a_backfill().then(101, **_SECOND | rival),
    ]
    for story in stories:
        assert len(Replay(ended).of(story.records).problems) == (0 if is_legal else 1)
