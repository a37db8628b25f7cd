"""`codex-state stats`: turns and tokens, for people and for programs."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from sqlmodel import col, update

from codex_state.models import Thread
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from tests.archives import unpack_archive

HOME = Path(__file__).parents[1] / "fixtures" / "real-0.147.0" / "home.tar.gz"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A home with forks that copied their parents' lines. No test changes it for good."""
    home = tmp_path_factory.mktemp("stats") / "home"
    with tarfile.open(HOME) as archive:
        unpack_archive(archive, home)
    cli = InProcess(home, TZ="UTC")
    cli.ok("backfill")
    return cli


def test_numbers_are_the_same_by_whatever_they_are_added_up(indexed: Cli) -> None:
    by_day = indexed.ok("stats", "--utc", "--json").json
    assert [item["day"] for item in by_day["items"]] == ["2026-11-27"]
    assert by_day["total"]["uncounted"] == 0
    for by in ("month", "cwd", "model", "provider", "branch"):
        told = indexed.ok("stats", "--by", by, "--json").json
        assert told["total"] == by_day["total"]
        assert sum(item["tokens_total"] for item in told["items"]) == told["total"]["tokens_total"]


def test_filters_are_those_of_people(indexed: Cli) -> None:
    def threads(*options: str) -> int:
        total: dict[str, int] = indexed.ok("stats", *options, "--json").json["total"]
        return total["threads"]

    everything = threads()
    assert 0 < threads("--cwd", "/srv/projects/plain") < everything
    assert threads("--cwd", "/srv") == everything
    assert threads("--since", "2026-11-27T00:00:00Z", "--until", "2026-11-28T00:00:00Z") == everything
    assert threads("--until", "2026-11-26T23:59:59Z") == 0
    assert 0 < threads("--source", "subagent") + threads("--no-children") == everything
    assert threads("--model", "gpt-5.2", "--model", "gpt-5.1") < everything
    assert 0 < threads("--no-children") < everything
    assert "no threads match; no thread is on the branch 'none'\n" in indexed.ok("stats", "--branch", "none").stderr
    assert "no threads match; no thread is in '/nowhere' or below\n" in indexed.ok("stats", "--cwd", "/nowhere").stderr


def test_csv_has_a_header_and_plain_numbers(indexed: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(indexed.ok("stats", "--by", "model", "--csv").stdout)))
    told = indexed.ok("stats", "--by", "model", "--json").json["items"]
    assert [{name: value for name, value in row.items() if name != "model"} for row in rows] == [
        {name: str(value) for name, value in item.items() if name != "model"} for item in told
    ]
    assert indexed("stats", "--csv", "--json").status == 2


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_people_see_a_bar_for_each_group_and_the_total(indexed: Cli, columns: int) -> None:
    shown = re.sub(
        "\x1b\\[[0-9;]*m", "", indexed.on_terminal("stats", "--by", "cwd", "--no-refresh", columns=columns).stdout
    )
    lines = [line.rstrip() for line in shown.splitlines() if not line.startswith("codex-state: ")]
    assert max(map(len, lines)) <= columns
    lines = lines[next(at for at, line in enumerate(lines) if line.startswith("CWD")) :]
    assert lines[0].split()[:3] == ["CWD", "THREADS", "TURNS"]
    assert "█" in lines[1]
    assert any(line.startswith("total ") and "█" not in line for line in lines)
    assert ("REASONING" in lines[0]) == (columns >= 110)


def test_rollouts_that_were_indexed_before_are_counted_when_somebody_asks(indexed: Cli) -> None:
    expected = indexed.ok("stats", "--json").json["total"]
    with StateRuntime.open(StateSettings(codex_home=indexed.home)) as runtime, runtime.begin() as state:
        tokens = dict.fromkeys(
            ("tokens_inherited", "tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning"), 0
        )
        as_before = update(Thread).where(col(Thread.id).is_not(None)).values(turns=None, **tokens)
        state.session.connection().execute(as_before)
    as_it_is = indexed.ok("stats", "--no-refresh", "--json")
    assert as_it_is.json["total"]["uncounted"] == expected["threads"]
    assert "only the total is known" in as_it_is.stderr
    assert indexed.ok("stats", "--json").json["total"] == expected
