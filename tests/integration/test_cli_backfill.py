"""`codex-state backfill`: its report, its exit status, and what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from example_home import ARCHIVED, FILES, LISTED, THREADS, UNKNOWN_LINES, copy_of_the_example_home

from codex_state.models import BackfillStatus, Claimed
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings


@pytest.fixture
def executable(tmp_path: Path) -> Cli:
    return Cli(copy_of_the_example_home(tmp_path / "home"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return InProcess(copy_of_the_example_home(tmp_path / "home"))


def test_the_report_is_one_object_on_stdout(executable: Cli) -> None:
    report = executable.ok("backfill", "--json").json
    seconds = report.pop("seconds")
    failures = report.pop("failures")
    watermark = report.pop("watermark")
    assert report == {
        "status": "complete",
        "scanned": FILES,
        "upserted": THREADS,
        "failed": 1,
        "gone": 0,
        "parse_errors": 2,
        "unknown_lines": UNKNOWN_LINES,
        "skipped": [],
        "unseen": [],
    }
    assert 0 < seconds < 60
    assert [set(failure) for failure in failures] == [{"path", "error"}]
    assert failures[0]["path"].endswith("2026-04-07T03-00-00-019d65e1-f380-7d82-b082-532b629f6fbe.jsonl")
    assert (executable.home / watermark).is_file()


def test_people_get_a_sentence_and_the_names_of_what_failed(cli: Cli) -> None:
    done = cli.ok("backfill")
    assert done.stdout.startswith(f"complete: {FILES} files in ")
    counts = f"{THREADS} indexed, 1 failed, 2 broken lines skipped, {UNKNOWN_LINES} lines of kinds that aren't read"
    assert counts in done.stdout
    assert done.stderr.startswith("codex-state: failed: ")
    assert done.stderr.count("\n") == 1


def test_only_what_is_new_or_failed_is_read_again_unless_asked(cli: Cli) -> None:
    cli.ok("backfill")
    done = cli.ok("backfill", "--json").json
    assert (done["status"], done["scanned"], done["upserted"], done["failed"]) == ("complete", 0, 0, 1)
    retried = cli.ok("backfill", "--retry-failed", "--json").json
    assert (retried["scanned"], retried["failed"]) == (1, 1)
    again = cli.ok("backfill", "--again", "--json").json
    assert (again["scanned"], again["upserted"]) == (FILES, THREADS)


def test_a_mended_file_is_found_by_retrying(cli: Cli) -> None:
    (failure,) = cli.ok("backfill", "--json").json["failures"]
    damaged = Path(failure["path"])
    intact = next((cli.home / "sessions/2026/02/03").iterdir())
    thread_id = damaged.stem[-36:]
    damaged.write_text(intact.read_text(encoding="utf-8").replace(intact.stem[-36:], thread_id), encoding="utf-8")
    assert cli.ok("backfill", "--retry-failed", "--json").json["upserted"] == 1
    assert cli.ok("threads", "show", thread_id, "--json").json["rollout_path"] == str(damaged)


def test_a_home_without_sessions_is_fine(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    report = InProcess(tmp_path / "home").ok("backfill", "--json").json
    assert (report["status"], report["scanned"], report["watermark"]) == ("complete", 0, None)


def test_the_home_may_be_named_before_or_after_the_command(tmp_path: Path) -> None:
    home = copy_of_the_example_home(tmp_path / "home")
    elsewhere = InProcess(tmp_path / "unused")
    assert elsewhere.ok("backfill", "--codex-home", home, "--json").json["scanned"] == FILES
    assert len(elsewhere.ok("--codex-home", home, "threads", "list", "--json").json["items"]) == LISTED
    nearest = elsewhere.ok("--codex-home", tmp_path / "other", "threads", "list", "--codex-home", home, "--json")
    assert len(nearest.json["items"]) == LISTED
    assert not (tmp_path / "unused").exists()
    assert not (tmp_path / "other").exists()


def test_the_database_may_lie_elsewhere(tmp_path: Path) -> None:
    home = copy_of_the_example_home(tmp_path / "home")
    InProcess(home, CODEX_SQLITE_HOME=str(tmp_path / "local")).ok("backfill")
    assert (tmp_path / "local" / "codex_state_4.sqlite").is_file()
    assert not (home / "codex_state_4.sqlite").exists()
    named = InProcess(home, CODEX_STATE_DATABASE_URL=f"sqlite:///{tmp_path / 'named.sqlite'}")
    assert named.ok("backfill", "--json").json["scanned"] == FILES
    assert (tmp_path / "named.sqlite").is_file()


def test_somebody_elses_backfill_is_left_alone_with_its_own_exit_status(executable: Cli) -> None:
    with StateRuntime.open(StateSettings(codex_home=executable.home)) as runtime, runtime.autocommit() as state:
        claim = state.backfill.try_claim(owner="otter process 7", lease=timedelta(hours=1))
        assert isinstance(claim, Claimed)
    done = executable("backfill", "--json")
    assert done.status == 3
    assert done.json["status"] == "running"
    assert done.json["scanned"] == 0
    assert "otter process 7" in done.stderr
    listing = executable.ok("threads", "list")
    assert "otter process 7" in listing.stderr


def test_a_terminal_shows_a_bar_and_keeps_the_result(cli: Cli) -> None:
    done = cli.on_terminal("backfill", columns=80)
    assert done.status == 0
    assert "Indexing" in done.stdout
    assert f"{FILES}/{FILES} files" in done.stdout
    assert f"complete: {FILES} files" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_backfill_goes_on_where_it_stopped(tmp_path: Path, number: signal.Signals, status: int) -> None:
    home = many_rollouts(tmp_path / "home", 700)
    cli = Cli(home, CODEX_STATE_BACKFILL_BATCH_SIZE="1")
    with cli.started("backfill", "--json") as process:
        wait_for_a_watermark(home, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == status
    assert stdout == ""
    assert ("interrupted" in stderr) is (number is signal.SIGINT)
    assert "Traceback" not in stderr
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        stopped = state.backfill.get()
    assert stopped is not None
    assert stopped.last_watermark is not None
    assert stopped.status is not BackfillStatus.RUNNING  # the lease was given back: nobody has to wait for its end
    rest = InProcess(home).ok("backfill", "--json").json
    assert rest["status"] == "complete"
    assert 0 < rest["scanned"] < 700
    assert len(InProcess(home).ok("threads", "list", "--limit", "2000", "--json").json["items"]) == 700


def test_a_killed_backfill_is_gone_on_with_at_once(tmp_path: Path) -> None:
    home = many_rollouts(tmp_path / "home", 700)
    cli = Cli(home, CODEX_STATE_BACKFILL_BATCH_SIZE="1")
    with cli.started("backfill", "--json") as process:
        wait_for_a_watermark(home, process)
        process.kill()
    for options in ([], ["--again"], ["--retry-failed"]):
        copied = shutil.copytree(home, tmp_path / f"copied {options}")
        rest = InProcess(copied).ok("backfill", "--json", *options).json
        assert rest["status"] == "complete"
        assert (rest["scanned"] == 700) is (options == ["--again"])


def test_all_files_are_counted_whatever_the_sort_of_home(cli: Cli) -> None:
    cli.ok("backfill")
    listed = len(cli.ok("threads", "list", "--json").json["items"])
    archived = len(cli.ok("threads", "list", "--archived", "--json").json["items"])
    assert (listed, archived) == (LISTED, ARCHIVED)
    # One was closed before anything was asked. Of the files one failed, and two are one thread's.
    assert listed + archived + 1 == THREADS == FILES - 1 - 1


def wait_for_a_watermark(home: Path, process: subprocess.Popen[str]) -> None:
    """Until a backfill has committed something and still runs. Who looks disturbs nothing, and migrates nothing."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with (
            suppress(sqlite3.OperationalError),  # not there yet
            closing(sqlite3.connect(f"file:{home / 'codex_state_4.sqlite'}?mode=ro", uri=True)) as connection,
        ):
            if connection.execute("SELECT 1 FROM backfill_state WHERE last_watermark IS NOT NULL").fetchone():
                assert connection.execute("SELECT status FROM backfill_state").fetchall() == [("running",)]
                return
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"the backfill didn't begin: {process.communicate()}")


def many_rollouts(home: Path, count: int) -> Path:
    """A home of many small threads, made of one."""
    model = next((make := copy_of_the_example_home(home.with_name("model"))).glob("sessions/2026/02/06/*"))
    text = model.read_text(encoding="utf-8")
    old = model.stem[-36:]
    directory = home / "sessions/2026/05/05"
    directory.mkdir(parents=True)
    for number in range(count):
        thread_id = f"019df000-0000-7000-8000-{number:012x}"
        path = directory / f"rollout-2026-05-05T05-05-05-{thread_id}.jsonl"
        path.write_text(text.replace(old, thread_id), encoding="utf-8")
        os.utime(path, (1_770_000_000 + number, 1_770_000_000 + number))
    shutil.rmtree(make)
    return home


def test_two_homes_share_a_postgresql_database_and_each_lists_its_own(tmp_path: Path, postgres_url: str) -> None:
    first = InProcess(copy_of_the_example_home(tmp_path / "first"), CODEX_STATE_DATABASE_URL=postgres_url)
    second = InProcess(many_rollouts(tmp_path / "second", 3), CODEX_STATE_DATABASE_URL=postgres_url)
    assert first.ok("backfill", "--json").json["upserted"] == THREADS
    not_refreshed = second.ok("threads", "list", "--no-refresh")
    assert not_refreshed.stderr.startswith("codex-state: the index isn't complete yet")
    assert second.ok("backfill", "--json").json["upserted"] == 3
    assert len(first.ok("threads", "list", "--json").json["items"]) == LISTED
    assert len(second.ok("threads", "list", "--all-homes", "--json").json["items"]) == LISTED + 3
    listed = second.ok("threads", "list", "--limit", "2", "--json").json
    rest = second.ok("threads", "list", "--cursor", listed["next_cursor"], "--json").json
    assert [len(page["items"]) for page in (listed, rest)] == [2, 1]
    for commands in (["db", "current"], ["db", "check"], ["memories", "list"], ["jobs", "list"], ["logs"]):
        first.ok(*commands)
    assert not (first.home / "codex_state_4.sqlite").exists()


def test_homes_that_share_a_database_are_listed_each_and_together(tmp_path: Path, postgres_url: str) -> None:
    homes = {
        name: InProcess(
            many_rollouts(tmp_path / name, count), CODEX_STATE_DATABASE_URL=postgres_url, CODEX_STATE_HOME=name
        )
        for name, count in {"laptop": 2, "server": 3}.items()
    }
    laptop, server = homes.values()
    # Both have rollouts of the same two threads, and the row of each is that of the home that wrote last.
    for path in laptop.home.rglob("rollout-*"):
        os.utime(path, (1_780_000_000, 1_780_000_000))
    assert laptop.ok("homes", "--json").json == {"items": [], "this_home": "laptop"}
    laptop.ok("backfill")
    assert "this home, server, isn't indexed yet" in server.ok("homes").stderr
    server.ok("backfill")

    listed = laptop.ok("homes", "--json").json
    assert [(item["home"], item["status"]) for item in listed["items"]] == [
        ("laptop", "complete"),
        ("server", "complete"),
    ]
    shown = laptop.ok("homes")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["laptop", "server"]
    assert shown.stderr == ""

    def homes_of(cli: InProcess, *options: str) -> list[str]:
        return sorted(item["home"] for item in cli.ok("threads", "list", *options, "--json").json["items"])

    assert homes_of(laptop) == ["laptop", "laptop"]
    assert homes_of(server, "--home", "laptop") == ["laptop", "laptop"]
    assert homes_of(laptop, "--home", "server") == ["server"]
    assert homes_of(laptop, "--all-homes") == ["laptop", "laptop", "server"]

    # A column for it only where it says something.
    assert [line.split("\t")[2] for line in laptop.ok("threads", "list", "--all-homes").stdout.splitlines()] == [
        "laptop",
        "laptop",
        "server",
    ]
    assert "server" not in laptop.ok("threads", "list", "--home", "server").stdout
    assert "no home called 'nobody'" in laptop.ok("threads", "list", "--home", "nobody").stderr
    assert "give one of the two" in laptop.refused("threads", "list", "--home", "server", "--all-homes").stderr
