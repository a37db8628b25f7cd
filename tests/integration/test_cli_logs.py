"""`codex-state logs`: the newest lines, filtered, and following."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cli_process import Cli, InProcess

from codex_state.models import LogEntry
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

THREAD = UUID("019d2931-6038-7f85-98dd-1f67f15e8ef8")
START = 1_775_000_000


def entry(number: int, **fields: Any) -> LogEntry:
    values: dict[str, Any] = {
        "ts": START + number,
        "ts_nanos": 123_456_789,
        "level": "INFO",
        "target": "codex_core",
        "message": f"line {number}",
        "module_path": "codex_core::agent",
        "file": "core/src/agent.rs",
        "line": number,
        "thread_id": str(THREAD),
    }
    return LogEntry(**values | fields)


ENTRIES = [
    entry(0),
    entry(1, level="WARN", message="Slow query", module_path="state::db"),
    entry(2, level="ERROR", message="disk full\nsecond line", thread_id=None, file="state/src/db.rs"),
    entry(3, level="DEBUG", message="\x1b[31mred\x1b[0m", thread_id="0" * 8 + "-0000-7000-8000-" + "0" * 12),
    entry(4, level="TRACE", message="ToolCall: apply_patch\n+added\n-removed\n same"),
    entry(5, message="100% sure_thing"),
]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=tmp_path / "home")) as runtime:
        yield runtime


@pytest.fixture
def cli(runtime: StateRuntime) -> Cli:
    with runtime.begin() as state:
        state.logs.insert_many(ENTRIES)
    return InProcess(runtime.codex_home)


def numbers(cli: Cli, *options: str) -> list[int]:
    """Which lines a filter leaves."""
    return [record["ts"] - START for record in cli.ok("logs", *options, "--json").records]


def test_lines_are_objects_with_every_column_oldest_first(cli: Cli) -> None:
    records = cli.ok("logs", "--json").records
    assert [record["ts"] - START for record in records] == [0, 1, 2, 3, 4, 5]
    assert set(records[0]) == {"timestamp", *LogEntry.__table__.columns.keys()}  # type: ignore[attr-defined]
    assert records[0]["timestamp"] == "2026-03-31T23:33:20.123Z"


def test_only_the_newest_are_shown(cli: Cli) -> None:
    assert numbers(cli, "--backfill", "2") == [4, 5]
    assert numbers(cli, "--backfill", "0") == []


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--level", "warn"], [1]),
        (["--from", str(START + 4)], [4, 5]),
        (["--to", "2026-03-31T23:33:21Z"], [0, 1]),
        (["--from", "2026-04-01T01:33:22+02:00", "--to", str(START + 3)], [2, 3]),
        (["--module", "STATE"], [1]),
        (["--module", "state", "--module", "agent"], [0, 1, 2, 3, 4, 5]),
        (["--file", "state"], [2]),
        (["--file", "", "--module", ""], [0, 1, 2, 3, 4, 5]),
        (["--thread-id", THREAD.hex], [0, 1, 4, 5]),
        (["--threadless"], [2]),
        (["--thread-id", str(THREAD), "--threadless"], [0, 1, 2, 4, 5]),
        (["--search", "line"], [0, 2]),
        (["--search", "LINE"], []),
        (["--search", "%"], [5]),
        (["--search", "line", "--level", "error"], [2]),
    ],
)
def test_filters(cli: Cli, options: list[str], left: list[int]) -> None:
    assert numbers(cli, *options) == left


def test_a_filter_is_applied_before_the_newest_are_taken(cli: Cli) -> None:
    assert numbers(cli, "--level", "info", "--backfill", "1") == [5]
    assert numbers(cli, "--level", "warn", "--backfill", "1") == [1]


def test_people_get_the_line_of_the_original(cli: Cli) -> None:
    lines = cli.ok("logs").stdout.splitlines()
    assert lines[0] == f"2026-03-31T23:33:20.123Z INFO  [{THREAD}] codex_core - line 0"
    assert lines[2] == "2026-03-31T23:33:22.123Z ERROR [-] codex_core - disk full"
    assert lines[3] == "second line"
    assert "\x1b" not in "".join(lines)
    assert "�[31mred�[0m" in lines[4]


def test_a_terminal_gets_colours_and_whole_lines(cli: Cli) -> None:
    shown = cli.on_terminal("logs", columns=60).stdout
    for level, colour in [("INFO ", 32), ("WARN ", 33), ("ERROR", 31), ("DEBUG", 34), ("TRACE", 35)]:
        assert re.search(f"\x1b\\[1;{colour}m {level} ", shown)
    assert "\x1b[32m+added" in shown
    assert "\x1b[31m-removed" in shown
    assert len(shown.splitlines()) == 10  # nothing is wrapped: six lines, with four more in their messages
    assert "\x1b[" not in cli.on_terminal("logs", "--json", columns=60).stdout


def test_following_shows_what_is_written_and_ends_by_ctrl_c(cli: Cli, runtime: StateRuntime) -> None:
    with cli.started("logs", "--follow", "--poll-ms", "20", "--level", "info", "--backfill", "1") as process:
        give_up = threading.Timer(20, process.kill)
        give_up.start()
        assert process.stdout is not None
        assert process.stdout.readline().endswith("100% sure_thing\n")
        with runtime.begin() as state:
            state.logs.insert_many([entry(6, level="DEBUG"), entry(7)])
        assert process.stdout.readline().endswith(" - line 7\n")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        give_up.cancel()
    assert process.returncode == 130
    assert stderr.strip() == ""


def test_following_from_now_on_skips_what_was_there(cli: Cli, runtime: StateRuntime) -> None:
    with cli.started("logs", "-f", "--poll-ms", "20", "--backfill", "0", "--json") as process:
        give_up = threading.Timer(20, process.kill)
        give_up.start()
        stop = threading.Event()
        # It can't be known when it begins, so lines are written until one is shown.
        writer = threading.Thread(target=write_until, args=(runtime, stop))
        writer.start()
        assert process.stdout is not None
        first = process.stdout.readline()
        stop.set()
        writer.join()
        give_up.cancel()
    assert '"message":"later' in first


def write_until(runtime: StateRuntime, stop: threading.Event) -> None:
    number = 100
    while not stop.wait(0.05):
        with runtime.begin() as state:
            state.logs.insert(entry(number, message=f"later {number}"))
        number += 1


def test_the_logs_can_be_cut_to_what_is_asked_for(cli: Cli) -> None:
    assert cli.ok("logs", "prune", "--max-lines", "4", "--json").json["deleted"] == 2
    assert cli.ok("logs", "prune", "--before", str(START + 4)).stdout == "2 lines deleted, 2 lines left\n"
    assert numbers(cli) == [4, 5]
    assert cli.ok("logs", "prune", "--max-size", "0").stdout == "2 lines deleted, 0 lines left\n"


def test_without_options_what_is_beyond_the_bounds_is_cut(cli: Cli) -> None:
    assert cli.ok("logs", "prune").stdout == "0 lines deleted, 6 lines left\n"
    assert cli.ok("logs", "prune", CODEX_STATE_LOG_MAX_ROWS="1").stdout == "5 lines deleted, 1 line left\n"


def test_it_is_told_what_the_logs_hold_and_what_they_may(cli: Cli) -> None:
    told = cli.ok("logs", "stats", "--json").json
    assert (told["lines"], told["oldest"], told["newest"]) == (6, START, START + 5)
    assert told["max_bytes"] == 64 * 1024 * 1024
    assert "oldest\t2026-03-31T23:33:20Z\n" in cli.ok("logs", "stats").stdout


def test_times_may_be_told_by_how_long_ago_they_are(cli: Cli, runtime: StateRuntime) -> None:
    with runtime.begin() as state:
        state.logs.insert(entry(7, ts=int(time.time()) - 60, message="a minute ago"))
    assert [record["message"] for record in cli.ok("logs", "--since", "2m", "--json").records] == ["a minute ago"]
    assert cli.ok("logs", "--since", "30s", "--json").records == []


@pytest.mark.parametrize("size", ["much", "1XB", "-1", "iB"])
def test_a_malformed_size_is_refused(cli: Cli, size: str) -> None:
    done = cli.refused("logs", "prune", "--max-size", size)
    assert (done.status, "malformed size" in done.stderr) == (2, True)
