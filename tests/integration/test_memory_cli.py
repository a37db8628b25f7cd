"""`codex-state memory run`, `scopes`, `locks`, `memories show`, and what `jobs list` tells of leases."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from memory_support import CWD, OTHER, add_threads, claim, cwd_key, let_leases_end, now, user_key
from sqlmodel import col, update

from codex_state import MemoryScope, Phase1Job, Phase1Options, Phase1Status, StateRuntime, StateSettings, memory_root
from codex_state.cli.memory import why_nothing
from codex_state.cli.output import left

EXTRACTORS = """
import asyncio, pathlib, time
from codex_state import ExtractedMemory

def extract(thread):
    if thread.title == "broken":
        raise ValueError("the model\\nsaid no")
    if thread.title == "dull":
        return None
    return ExtractedMemory(f"# {thread.title}\\n\\n- raw", f"about {thread.title}")

async def extract_later(thread):
    await asyncio.sleep(0.01)
    return extract(thread)

class Tools:
    @staticmethod
    def extract(thread):
        return extract(thread)

def hang(thread):
    pathlib.Path("started").touch()
    time.sleep(60)

async def hang_later(thread):
    pathlib.Path("started").touch()
    await asyncio.sleep(60)

def consolidate(scope, memories):
    if scope.kind == "cwd":
        raise RuntimeError("no model")

async def consolidate_later(scope, memories):
    await asyncio.sleep(0.01)

NOT_A_FUNCTION = 7
"""


@pytest.fixture
def home(migrated_home: Path, sqlite_settings: StateSettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home; the working directory, where the extractors are, is the one above."""
    directory = sqlite_settings.codex_home.parent
    (directory / "extractors_of_a_test.py").write_text(EXTRACTORS)
    (directory / "broken_on_import.py").write_text("1 / 0")
    (directory / "needs_another.py").write_text("import no_such_package_at_all")
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("extractors_of_a_test", "broken_on_import", "needs_another"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return sqlite_settings.codex_home


@pytest.fixture
def runtime(home: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=home)) as opened:
        yield opened


@pytest.fixture
def cli(home: Path) -> Cli:
    return InProcess(home)


def run(cli: Cli, function: str, *options: str) -> tuple[str, ...]:
    return ("memory", "run", "--extractor", f"extractors_of_a_test:{function}", "--import-from", ".", *options)


@pytest.mark.parametrize("function", ["extract", "extract_later", "Tools.extract"])
def test_a_pass_tells_what_became_of_every_job(cli: Cli, runtime: StateRuntime, function: str) -> None:
    (good,) = add_threads(runtime, title="good")
    (dull,) = add_threads(runtime, title="dull")
    (broken,) = add_threads(runtime, title="broken")
    done = cli.ok(*run(cli, function, "--json"))
    told = done.json
    assert {key: told[key] for key in ("claimed", "succeeded", "nothing", "failed", "lost")} == {
        "claimed": 6,
        "succeeded": 2,
        "nothing": 2,
        "failed": 2,
        "lost": 0,
    }
    outcomes = {(item["thread_id"], item["scope_kind"]): item["outcome"] for item in told["items"]}
    assert outcomes == {
        (str(thread.id), kind): outcome
        for thread, outcome in ((good, "succeeded"), (dull, "nothing"), (broken, "failed"))
        for kind in ("cwd", "user")
    }
    item = next(item for item in told["items"] if (item["thread_id"], item["scope_kind"]) == (str(good.id), "user"))
    path = memory_root(runtime.codex_home, MemoryScope.user()) / "raw_memories" / f"{good.id}.md"
    assert item["raw_memory_path"] == str(path)
    assert len(item["summary_hash"]) == 64
    assert path.read_text().endswith("# good\n\n- raw\n")
    assert f"failed: {broken.id} cwd: ValueError: the model said no" in done.stderr
    with runtime.read() as state:
        job = state.phase1_jobs.get(user_key(good))
    assert job is not None
    assert str(job.owner_session_id) == told["owner_session_id"]


def test_people_get_one_line(cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, 2, title="good")
    assert cli.ok(*run(cli, "extract")).stdout == (
        "4 jobs: 4 remembered, 0 with nothing to remember, 0 failed, 0 lost\n"
    )
    assert cli.ok(*run(cli, "extract")).stdout.startswith("0 jobs")


def test_a_terminal_gets_a_bar_and_the_line(home: Path, runtime: StateRuntime) -> None:
    add_threads(runtime, 2, title="good")
    shown = InProcess(home).on_terminal(*run(Cli(home), "extract"), columns=100).stdout
    assert "Extracting" in shown
    assert "4 jobs: 4 remembered" in shown


def test_the_bar_leaves_room_for_the_ctrl_c_that_a_terminal_shows(home: Path, runtime: StateRuntime) -> None:
    """A line that wraps is one more to erase, of which nobody knows."""
    add_threads(runtime, 2, title="good")
    shown = InProcess(home).on_terminal(*run(Cli(home), "extract"), columns=80).stdout
    bars = [line for line in re.split(r"[\r\n]", re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", shown)) if "Extracting" in line]
    assert bars
    assert max(map(len, bars)) <= 80 - len("^C^C")


def test_a_pass_in_which_everything_fails_is_a_failure(cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, title="broken")
    done = cli(*run(cli, "extract", "--json"))
    assert done.status == 1
    assert done.json["failed"] == 2
    assert {item["retry_after_seconds"] for item in done.json["items"]} == {None}


def test_attempts_let_a_failing_thread_be_tried_again_later(cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, title="broken")
    done = cli(*run(cli, "extract", "--attempts", "2", "--json"))
    assert {item["retry_after_seconds"] for item in done.json["items"]} == {3600}


def test_the_limit_is_kept(cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, 5, title="good")
    done = cli.ok(*run(cli, "extract", "--limit", "2", "--concurrency", "1", "--json"))
    assert done.json["claimed"] == 4


def test_a_pass_that_claims_nothing_says_why(cli: Cli, runtime: StateRuntime) -> None:
    def told() -> str:
        done = cli.ok(*run(cli, "extract"))
        assert done.stdout.startswith("0 jobs")
        return done.stderr

    assert "this home has no interactive thread" in told()
    add_threads(runtime, updated_at=now() - timedelta(days=45), title="old")
    add_threads(runtime, source="exec")
    assert told() == "codex-state: nothing to extract: 1 thread older than 30 days (--max-age)\n"
    held, failed, waiting = add_threads(runtime, 3)
    for thread in (held, failed, waiting):
        leases = [claim(runtime, key) for key in (user_key(thread), cwd_key(thread))]
        with runtime.begin() as state:
            for lease in leases:
                if thread is failed:
                    state.phase1_jobs.fail(lease, "broken")
                elif thread is waiting:
                    state.phase1_jobs.fail(lease, "broken", retry_after=timedelta(hours=1))
    assert told() == (
        "codex-state: nothing to extract: 2 jobs failed for good (codex-state jobs requeue), 2 jobs held by others, "
        "2 jobs waiting for a retry, 1 thread older than 30 days (--max-age)\n"
    )
    add_threads(runtime, title="good")
    assert "nothing to extract" not in cli.ok(*run(cli, "extract")).stderr
    assert "2 jobs extracted already" in told()
    assert cli.ok(*run(cli, "extract", "--limit", "0")).stderr == ""


def test_it_says_why_on_postgresql_as_well(postgres_settings: StateSettings) -> None:
    with StateRuntime.open(postgres_settings) as runtime:
        add_threads(runtime, updated_at=now() - timedelta(days=45))
        (held,) = add_threads(runtime)
        claim(runtime, user_key(held))
        assert why_nothing(runtime, Phase1Options()) == (
            "1 job held by others, 1 thread older than 30 days (--max-age)"
        )


@pytest.mark.parametrize(("days", "claimed"), [("30", 2), ("50", 4), ("0", 6)])
def test_the_age_of_threads_is_bounded_as_asked(cli: Cli, runtime: StateRuntime, days: str, claimed: int) -> None:
    add_threads(runtime, title="new")
    add_threads(runtime, title="old", updated_at=now() - timedelta(days=45))
    add_threads(runtime, title="ancient", updated_at=datetime(1970, 1, 2, tzinfo=UTC))
    assert cli.ok(*run(cli, "extract", "--max-age", days, "--json")).json["claimed"] == claimed


def test_a_consolidator_gets_the_dirty_scopes_afterwards(cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, 2, title="good")
    consolidator = ("--consolidator", "extractors_of_a_test:consolidate")
    done = cli.ok(*run(cli, "extract", *consolidator, "--json"))
    assert {item["scope_kind"]: item["outcome"] for item in done.json["consolidation"]["items"]} == {
        "cwd": "failed",
        "user": "clean",
    }
    assert f"failed: cwd {CWD}: RuntimeError: no model" in done.stderr
    later = ("--consolidator", "extractors_of_a_test:consolidate_later")
    assert cli.ok(*run(cli, "extract", *later)).stdout.endswith(
        "1 dirty scope: 1 clean, 0 dirty again, 0 failed, 0 lost, 0 skipped\n"
    )


@pytest.mark.parametrize(
    ("function", "status", "told"),
    [
        ("extract", 2, "malformed function 'extract'; expected module:function"),
        (":extract", 2, "malformed function"),
        ("no_such_module_here:extract", 2, "there is no module 'no_such_module_here'"),
        ("extractors_of_a_test.sub:extract", 2, "there is no module 'extractors_of_a_test.sub'"),
        ("extractors_of_a_test:nothing", 2, "extractors_of_a_test has no function 'nothing'"),
        ("extractors_of_a_test:NOT_A_FUNCTION", 2, "has no function 'NOT_A_FUNCTION'"),
        ("broken_on_import:extract", 1, "can't import broken_on_import: ZeroDivisionError"),
        ("needs_another:extract", 1, "can't import needs_another: ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_found_is_named(cli: Cli, function: str, status: int, told: str) -> None:
    done = cli.refused("memory", "run", "--extractor", function, "--import-from", ".")
    assert done.status == status
    assert told in done.stderr


@pytest.mark.parametrize("options", [("--lease", "1"), ("--concurrency", "0"), ("--attempts", "0"), ("--limit", "-1")])
def test_options_that_make_no_sense_are_refused(cli: Cli, options: tuple[str, str]) -> None:
    assert cli.refused(*run(cli, "extract", *options)).status == 2


@pytest.mark.parametrize("function", ["hang", "hang_later"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_pass_gives_its_jobs_back(
    home: Path, runtime: StateRuntime, function: str, number: signal.Signals, status: int
) -> None:
    """With the lease of an hour: whoever comes next need not wait for its end."""
    add_threads(runtime, 3)
    with Cli(home).started(*run(Cli(home), function)) as process:
        while not (home.parent / "started").exists():
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "interrupted; what was stored is kept" in stderr
    assert "Traceback" not in stderr
    with runtime.read() as state:
        assert state.phase1_jobs.count_by_status()[Phase1Status.RUNNING] == 0
    assert InProcess(home).ok(*run(Cli(home), "extract", "--json")).json["succeeded"] == 6


def test_scopes_tell_what_waits_since_when_and_where(cli: Cli, runtime: StateRuntime) -> None:
    assert "no scope waits" in cli.ok("scopes").stderr
    scopes = [MemoryScope.cwd(CWD), MemoryScope.user()]
    with runtime.begin() as state:
        marks = [state.memory_scopes.mark_dirty(scope) for scope in scopes]
        state.memory_scopes.mark_clean(scopes[1], seen=marks[1])
    items = cli.ok("scopes", "--json").json["items"]
    assert items == [
        {
            "scope_kind": "cwd",
            "scope_key": str(CWD),
            "dirty": True,
            "updated_at": marks[0].isoformat().replace("+00:00", "Z"),
            "memory_root": str(memory_root(runtime.codex_home, scopes[0])),
        }
    ]
    everything = cli.ok("scopes", "--all", "--json").json["items"]
    assert [(item["scope_kind"], item["dirty"]) for item in everything] == [("cwd", True), ("user", False)]
    assert cli.ok("scopes", "--limit", "0", "--json").json == {"items": []}
    assert cli.ok("scopes").stdout.split("\t")[:2] == ["cwd", "yes"]


def test_locks_tell_who_holds_what_and_until_when(cli: Cli, runtime: StateRuntime) -> None:
    assert "nobody consolidates" in cli.ok("locks").stderr
    root = memory_root(runtime.codex_home, MemoryScope.user())
    with runtime.begin() as state:
        state.consolidation_locks.try_claim(root, owner=OTHER, lease=timedelta(minutes=10))
    (item,) = cli.ok("locks", "--json").json["items"]
    assert (item["cwd"], item["working_thread_id"]) == (str(root), str(OTHER))
    moments = [datetime.fromisoformat(item[name]) for name in ("updated_at", "lease_ends_at")]
    assert moments[1] - moments[0] == timedelta(minutes=10)
    assert str(OTHER) in cli.ok("locks").stdout


def plain(cli: Cli, *arguments: str, columns: int) -> str:
    """What a terminal shows, without its styles."""
    return re.sub("\x1b\\[[0-9;]*m", "", cli.on_terminal(*arguments, columns=columns).stdout)


def failed_in_every_way(runtime: StateRuntime) -> None:
    """One job for good, two that wait for an hour, and three that were given back."""
    threads = add_threads(runtime, 6)
    for index, thread in enumerate(threads):
        lease = claim(runtime, user_key(thread))
        with runtime.begin() as state:
            if index < 1:
                state.phase1_jobs.fail(lease, "broken")
            elif index < 3:
                state.phase1_jobs.fail(lease, "busy", retry_after=timedelta(hours=1))
            else:
                state.phase1_jobs.release(lease, "the pass was interrupted")


def test_jobs_that_wait_and_jobs_that_were_given_back_are_no_failures(
    home: Path, cli: Cli, runtime: StateRuntime
) -> None:
    failed_in_every_way(runtime)
    assert "3 claimable, 2 retry_later, 1 failed" in cli.ok("jobs", "list").stderr
    shown = plain(InProcess(home), "jobs", "list", columns=120)
    assert len(re.findall(" failed +now|failed .* - +broken", shown)) == 1
    assert len(re.findall("retry_later .*(59m|1h) +busy", shown)) == 2
    assert len(re.findall("claimable .* - +the pass was interrupted", shown)) == 3
    assert "the first 2 are shown" in cli.ok("jobs", "list", "--limit", "2", "--status", "claimable").stderr
    assert "shown" not in cli.ok("jobs", "list", "--limit", "2", "--status", "retry_later").stderr
    for state, count in (("failed", 1), ("retry_later", 2), ("claimable", 3), ("over", 0), ("done", 0)):
        items = cli.ok("jobs", "list", "--status", state, "--json").json["items"]
        assert [item["state"] for item in items] == [state] * count


def test_jobs_that_can_be_claimed_already_are_not_counted_as_requeued(cli: Cli, runtime: StateRuntime) -> None:
    failed_in_every_way(runtime)
    told = cli.ok("jobs", "requeue", "--all-failed", "--json").json
    assert (told["requeued"], len(told["items"]), told["already_claimable"]) == (3, 3, 3)
    again = cli.ok("jobs", "requeue", "--all-failed")
    assert again.stderr == "codex-state: 0 requeued, 6 could be claimed already\n"
    assert cli.ok("jobs", "requeue", told["items"][0]["thread_id"]).stderr.endswith("1 could be claimed already\n")


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160, 200])
def test_jobs_are_usable_on_every_terminal(home: Path, runtime: StateRuntime, columns: int) -> None:
    held, failed = add_threads(runtime, 2)
    claim(runtime, user_key(held), owner=OTHER)
    lease = claim(runtime, cwd_key(failed))
    with runtime.begin() as state:
        state.phase1_jobs.fail(lease, "ValueError: the model said no")
    shown = plain(InProcess(home), "jobs", "list", columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    words = shown.split()
    for thread in (held, failed):
        assert str(thread.id)[:8] in words
    assert {"claimed", "failed"} <= set(words)
    assert {"59m", "1h"} & set(words)
    assert str(OTHER)[:8] in shown
    assert "ValueError:" in words
    assert ("TRY" in words) == (columns >= 80)
    assert columns < 120 or str(OTHER) in words, "what is copied is whole where there is room"


@pytest.mark.parametrize("command", [("scopes",), ("scopes", "--all"), ("memories", "list")])
def test_a_listing_says_when_there_is_more_than_it_shows(
    cli: Cli, runtime: StateRuntime, command: tuple[str, ...]
) -> None:
    add_threads(runtime, 3, title="good")
    cli.ok(*run(cli, "extract"))
    there = len(cli.ok(*command, "--json").json["items"])
    assert there >= 2
    less = cli.ok(*command, "--limit", str(there - 1))
    assert less.stdout.count("\n") == there - 1
    assert f"there are more than {there - 1}: raise --limit" in less.stderr
    assert cli.ok(*command, "--limit", str(there)).stderr == ""


def test_jobs_tell_what_is_left_of_the_lease(home: Path, cli: Cli, runtime: StateRuntime) -> None:
    """By the time that each was granted, whatever lease the next claimer would ask for."""
    running, failed, older = add_threads(runtime, 3)
    claim(runtime, user_key(running), owner=OTHER)
    claim(runtime, user_key(older), owner=OTHER)
    lease = claim(runtime, cwd_key(failed))
    with runtime.begin() as state:
        state.phase1_jobs.fail(lease, "broken")
        unnamed = update(Phase1Job).where(col(Phase1Job.thread_id) == older.id).values(lease_seconds=None)
        state.session.connection().execute(unnamed)
    items = {item["thread_id"]: item for item in cli.ok("jobs", "list", "--lease", "60", "--json").json["items"]}
    for thread, seconds in ((running, 3600), (older, 60)):
        started = datetime.fromisoformat(items[str(thread.id)]["started_at"])
        assert datetime.fromisoformat(items[str(thread.id)]["lease_ends_at"]) == started + timedelta(seconds=seconds)
    assert items[str(failed.id)]["lease_ends_at"] is None
    assert re.search(f" (59m|1h) +{OTHER}", plain(InProcess(home), "jobs", "list", columns=200))


def test_an_extractor_that_fails_all_alike_fails_no_job(home: Path, cli: Cli, runtime: StateRuntime) -> None:
    """A mistyped extractor costs nothing but the pass."""
    add_threads(runtime, 9, title="broken")
    done = cli(*run(cli, "extract", "--json", "--concurrency", "2"))
    assert done.status == 1
    assert "ValueError: the model\nsaid no" in done.json["stopped"]
    assert (done.json["failed"], done.json["lost"]) == (0, done.json["claimed"])
    assert "the pass was stopped, and no job was failed" in done.stderr
    with runtime.read() as state:
        jobs = state.phase1_jobs.list()
        assert all(job.status is Phase1Status.FAILED and job.retry_at is not None for job in jobs)
        assert {job.failures for job in jobs} == {0}


def test_passes_run_forever_until_the_service_is_stopped(home: Path, cli: Cli, runtime: StateRuntime) -> None:
    add_threads(runtime, 1)
    with Cli(home).started(*run(cli, "extract", "--json", "--forever", "--every", "1")) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["succeeded"] == 2
        add_threads(runtime, 1)
        assert json.loads(process.stdout.readline())["succeeded"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_job_that_its_worker_left_behind_is_over_and_can_be_requeued(cli: Cli, runtime: StateRuntime) -> None:
    """Also when no claim looks at its thread any more."""
    (thread,) = add_threads(runtime)
    claim(runtime, user_key(thread), owner=OTHER)
    held = cli("jobs", "requeue", str(thread.id))
    assert (held.status, held.stdout) == (3, "")
    with runtime.begin() as state:
        state.threads.mark_archived(thread.id, Path("/r"), now())
    let_leases_end(runtime, 3600)
    assert "1 over" in cli.ok("jobs", "list").stderr
    assert cli.ok("jobs", "requeue", str(thread.id), "--json").json["requeued"] == 1
    assert cli.ok("jobs", "list", "--json").json["items"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "over"),
        (0, "over"),
        (1, "1s left"),
        (59, "59s left"),
        (60, "1m left"),
        (7199, "1h left"),
        (90000, "1d left"),
    ],
)
def test_what_is_left_is_told_in_few_characters(seconds: int, text: str) -> None:
    moment = datetime(2026, 2, 10, tzinfo=UTC)
    assert left(moment + timedelta(seconds=seconds), moment) == text


def test_a_memory_is_shown_in_full(cli: Cli, runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime, title="good")
    with runtime.begin() as state:
        state.thread_memories.upsert_for_scope(thread.id, MemoryScope.cwd(CWD), "# Raw\n\n  - \x1b[31mred", "short")
        state.thread_memories.upsert_for_scope(thread.id, MemoryScope.user(), "of the user", "user")
        state.thread_memories.invalidate(thread.id, MemoryScope.user(), "wrong")
    shown = cli.ok("memories", "show", thread.id.hex, "--scope-kind", "cwd").stdout
    assert "memory_summary\tshort\n" in shown
    assert shown.endswith("\n# Raw\n\n  - \ufffd[31mred\n")
    record = cli.ok("memories", "show", str(thread.id), "--scope-key", "user", "--json").json
    assert (record["raw_memory"], record["invalid_reason"]) == ("of the user", "wrong")


def test_a_thread_without_memory_and_a_missing_one_are_told_apart(cli: Cli, runtime: StateRuntime) -> None:
    (thread,) = add_threads(runtime)
    assert "nothing is remembered of thread" in cli.refused("memories", "show", str(thread.id)).stderr
    assert "in that scope" in cli.refused("memories", "show", str(thread.id), "--scope-kind", "cwd").stderr
    assert "thread not found" in cli.refused("memories", "show", str(OTHER)).stderr
