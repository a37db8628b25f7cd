"""`codex-state memories` and `codex-state jobs`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from cli_process import Cli, InProcess

from codex_state.models import Claimed, MemoryScope, Phase1Job, Phase1Key, Phase1Lease, Thread, ThreadMemory
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

OWNER = UUID("00000000-0000-4000-8000-00000000000a")
FAILED, RUNNING, DONE = (UUID(f"019d000{digit}-0000-7000-8000-000000000000") for digit in "123")
SCOPE = MemoryScope.cwd(Path("/code/orchard"))
SEEN = datetime(2026, 4, 1, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def runtime(home: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        with runtime.begin() as state:
            for thread_id in (FAILED, RUNNING, DONE):
                state.threads.upsert(thread(thread_id))
        yield runtime


@pytest.fixture
def cli(home: Path, runtime: StateRuntime) -> Cli:
    """A home with a failed job, a running one, and one that succeeded with two memories."""
    with runtime.autocommit() as state:
        state.phase1_jobs.fail(claim(runtime, FAILED), "the model said no\nand then some")
        claim(runtime, RUNNING)
        lease = claim(runtime, DONE)
        state.thread_memories.upsert_if_owner(lease, "raw text", "Prefers small commits.")
        state.thread_memories.upsert_for_scope(DONE, MemoryScope.user(), "raw", "Writes in short sentences.")
        state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m/raw.md"), summary_hash="ab" * 32)
    return InProcess(home)


def thread(thread_id: UUID) -> Thread:
    return Thread(
        id=thread_id,
        rollout_path=Path("/nowhere.jsonl"),
        created_at=SEEN,
        updated_at=SEEN,
        source="cli",
        model_provider="openai",
        cwd=Path("/code/orchard"),
        sandbox_policy='{"type":"read-only"}',
        approval_mode="never",
        title="a title",
        first_user_message="a title",
    )


def claim(runtime: StateRuntime, thread_id: UUID) -> Phase1Lease:
    with runtime.autocommit() as state:
        claimed = state.phase1_jobs.try_claim(
            Phase1Key(thread_id, SCOPE), owner=OWNER, source_updated_at=SEEN, lease=timedelta(hours=1)
        )
    assert isinstance(claimed, Claimed)
    return claimed.lease


def test_jobs_are_listed_with_every_column(cli: Cli) -> None:
    items = cli.ok("jobs", "list", "--json").json["items"]
    assert {item["thread_id"]: item["status"] for item in items} == {
        str(FAILED): "failed",
        str(RUNNING): "running",
        str(DONE): "succeeded",
    }
    for item in items:
        assert set(item) == {*Phase1Job.__table__.columns.keys(), "lease_ends_at", "state"}  # type: ignore[attr-defined]
        assert (item["lease_ends_at"] is not None) == (item["status"] == "running")
    (done,) = [item for item in items if item["status"] == "succeeded"]
    assert (done["raw_memory_path"], done["source_updated_at"], done["attempt"]) == (
        "/m/raw.md",
        "2026-04-01T12:00:00Z",
        1,
    )


def test_jobs_of_one_state_are_listed_alone(cli: Cli) -> None:
    for state, status in (("failed", "failed"), ("claimed", "running"), ("done", "succeeded")):
        items = cli.ok("jobs", "list", "--status", state, "--json").json["items"]
        assert [(item["state"], item["status"]) for item in items] == [(state, status)]


def test_people_see_how_many_jobs_there_are(cli: Cli) -> None:
    done = cli.ok("jobs", "list")
    assert done.stdout.count("\n") == 3
    assert "the model said no and then some" in done.stdout
    assert "1 claimed, 1 failed, 1 done" in done.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_jobs_fit_a_terminal(cli: Cli, columns: int) -> None:
    done = cli.on_terminal("jobs", "list", columns=columns)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in done.stdout.splitlines()]
    assert len([line for line in lines if re.search("claimed|failed|done", line)]) == 4
    assert max(map(len, lines)) <= columns
    assert "REASON" in lines[0]


def test_all_that_is_known_of_a_threads_jobs_is_shown(cli: Cli) -> None:
    (item,) = cli.ok("jobs", "show", str(FAILED), "--json").json["items"]
    assert (item["thread_id"], item["state"]) == (str(FAILED), "failed")
    shown = cli.ok("jobs", "show", str(RUNNING)).stdout
    assert "state\tclaimed\n" in shown
    assert "lease ends\t2" in shown
    unknown = cli("jobs", "show", str(RUNNING), "--scope-kind", "user")
    assert (unknown.status, unknown.stdout) == (1, "")
    assert "nobody has claimed one" in unknown.stderr


def test_jobs_are_requeued_by_their_reason_and_by_their_holder(cli: Cli, runtime: StateRuntime) -> None:
    nothing = cli("jobs", "requeue", "--reason", "no such reason")
    assert (nothing.status, nothing.stderr) == (1, "codex-state: 0 requeued\ncodex-state: no failed job matches\n")
    assert cli.ok("jobs", "requeue", "--reason", "the model said", "--json").json["requeued"] == 1
    assert cli("jobs", "requeue", "--reason", "a", "--all-failed").status == 2
    by_holder = cli.ok("jobs", "requeue", "--holder", str(OWNER), "--limit", "0", "--json").json
    assert (by_holder["requeued"], by_holder["already_claimable"], by_holder["items"]) == (0, 1, [])
    process = runtime.run(lambda state: state.phase1_jobs.list()[0].owner_name)
    assert process is not None
    assert cli("jobs", "requeue", "--holder", f"{process} of another").status == 1


def test_a_look_at_the_jobs_is_one_line_or_one_object(cli: Cli) -> None:
    told = cli.ok("jobs", "watch", "--once", "--json").json
    assert {state: count for state, count in told["jobs"].items() if count} == {"claimed": 1, "failed": 1, "done": 1}
    assert (told["reasons"], told["holders"]) == ([{"reason": "the model said no\nand then some", "jobs": 1}], 1)
    assert {"pending", "oldest_pending", "jobs_per_minute", "seconds_left", "crashes"} < set(told)
    line = cli.ok("jobs", "watch", "--once").stdout
    assert line.count("\n") == 1
    assert "1 claimed, 0 working, 0 over, 0 claimable, 0 retry_later, 1 failed, 1 done; 0." in line


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_view_of_the_jobs_fits_a_terminal(cli: Cli, columns: int) -> None:
    shown = re.sub("\x1b\\[[0-9;?]*[a-z]", "", cli.on_terminal("jobs", "watch", "--once", columns=columns).stdout)
    assert max(map(len, shown.splitlines())) <= columns
    for part in ("WHY THEY FAIL", "the model said no and", "PROCESS", "claimed"):
        assert part in shown


def test_workers_are_listed_with_what_they_hold(cli: Cli, runtime: StateRuntime) -> None:
    with runtime.begin() as state:
        state.named_locks.try_claim("reports", owner="nightly", lease=timedelta(minutes=10))
    items = {item["kind"]: item for item in cli.ok("workers", "--json").json["items"]}
    assert set(items) == {"job", "lock"}
    assert (items["lock"]["key"], items["lock"]["owner"], items["lock"]["state"]) == ("reports", "nightly", "held")
    assert 590 <= items["lock"]["seconds_left"] <= 600
    assert (items["job"]["owner"], items["job"]["state"]) == (str(OWNER), "claimed")
    assert "nightly" in cli.ok("workers").stdout
    assert "there are more than 1" in cli.ok("workers", "--limit", "1").stderr


def test_a_requeued_job_can_be_claimed_again(cli: Cli, runtime: StateRuntime) -> None:
    done = cli.ok("jobs", "requeue", str(FAILED).upper(), "--json").json
    assert done["requeued"] == 1
    assert [(item["thread_id"], item["status"]) for item in done["items"]] == [(str(FAILED), "failed")]
    assert done["items"][0]["retry_at"] is not None
    assert claim(runtime, FAILED).attempt == 2


def test_every_failed_job_can_be_requeued_at_once(cli: Cli, runtime: StateRuntime) -> None:
    with runtime.autocommit() as state:
        key = Phase1Key(DONE, MemoryScope.user())
        claimed = state.phase1_jobs.try_claim(key, owner=OWNER, source_updated_at=SEEN, lease=timedelta(hours=1))
        assert isinstance(claimed, Claimed)
        state.phase1_jobs.fail(claimed.lease, "too long")
    done = cli.ok("jobs", "requeue", "--all-failed", "--scope-kind", "user", "--json").json
    assert [(item["thread_id"], item["scope_kind"]) for item in done["items"]] == [(str(DONE), "user")]
    rest = cli.ok("jobs", "requeue", "--all-failed", "--json").json
    assert (rest["requeued"], rest["already_claimable"]) == (1, 1)


def test_requeuing_nothing_at_all_is_fine(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert InProcess(tmp_path / "home").ok("jobs", "requeue", "--all-failed", "--json").json == {
        "requeued": 0,
        "already_claimable": 0,
        "items": [],
    }


def test_a_running_job_belongs_to_its_holder(cli: Cli) -> None:
    done = cli("jobs", "requeue", str(RUNNING), "--json")
    assert done.status == 3
    assert done.json["requeued"] == 0
    assert f"process {os.getpid()} holds it, last seen " in done.stderr


def test_a_job_that_did_not_fail_is_not_requeued(cli: Cli) -> None:
    done = cli("jobs", "requeue", str(DONE))
    assert done.status == 1
    assert f"{DONE} has no failed job, only succeeded ones" in done.stderr
    assert cli("jobs", "requeue", str(FAILED), "--scope-key", "/elsewhere").status == 1


def test_requeue_wants_one_thread_or_all(cli: Cli) -> None:
    assert cli.refused("jobs", "requeue").status == 2
    assert cli.refused("jobs", "requeue", str(FAILED), "--all-failed").status == 2


def test_memories_are_listed_with_every_column_newest_first(cli: Cli) -> None:
    items = cli.ok("memories", "list", "--json").json["items"]
    assert {item["memory_summary"] for item in items} == {"Prefers small commits.", "Writes in short sentences."}
    for item in items:
        assert set(item) == set(ThreadMemory.__table__.columns.keys())  # type: ignore[attr-defined]
    assert [item["updated_at"] for item in items] == sorted((item["updated_at"] for item in items), reverse=True)


def test_memories_are_filtered_by_scope_and_thread(cli: Cli) -> None:
    def summaries(*options: str) -> list[str]:
        return [item["memory_summary"] for item in cli.ok("memories", "list", *options, "--json").json["items"]]

    assert summaries("--scope-kind", "user") == ["Writes in short sentences."]
    assert summaries("--scope-key", "/code/orchard") == ["Prefers small commits."]
    assert summaries("--thread-id", str(FAILED)) == []
    assert len(summaries("--thread-id", DONE.hex)) == 2
    assert len(summaries("--limit", "1")) == 1


@pytest.mark.parametrize(("what", "count"), [("jobs", 3), ("memories", 2)])
def test_jobs_and_memories_are_chosen_by_time_as_threads_are(cli: Cli, what: str, count: int) -> None:
    def found(*options: str) -> int:
        return len(cli.ok(what, "list", *options, "--json").json["items"])

    assert found("--since", "2h", "--until", "today") == found("--since", "yesterday") == found() == count
    assert found("--since", "2030-01-01") == found("--until", "2h") == found("--until", "2026-01-01") == 0
    assert "malformed date" in cli.refused(what, "list", "--since", "some day").stderr


def test_invalidated_memories_are_listed_only_when_asked(cli: Cli, runtime: StateRuntime) -> None:
    with runtime.autocommit() as state:
        assert state.thread_memories.invalidate(DONE, SCOPE, "wrong")
    assert len(cli.ok("memories", "list", "--json").json["items"]) == 1
    everything = cli.ok("memories", "list", "--invalidated", "--json").json["items"]
    assert {item["invalid_reason"] for item in everything} == {None, "wrong"}


def test_show_tells_the_newest_memory(cli: Cli) -> None:
    shown = cli.ok("threads", "show", str(DONE), "--json").json
    assert shown["memory"]["memory_summary"] in {"Prefers small commits.", "Writes in short sentences."}
    assert "memory memory_summary\t" in cli.ok("threads", "show", str(DONE)).stdout
