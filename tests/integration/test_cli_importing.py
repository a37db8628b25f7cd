"""`codex-state import`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from cli_process import Cli, InProcess

from codex_state import StateRuntime, StateSettings
from codex_state.testing.samples import a_thread
from tests.original_databases import changed, held, unpacked

NAMED = UUID("01a21ede-52ec-7673-a729-0e4720356da7")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = unpacked("0.171.0", tmp_path / "home")
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
        state.threads.upsert(a_thread(id=NAMED))
    return home


@pytest.fixture
def cli(home: Path) -> Cli:
    return InProcess(home, CODEX_STATE_BUSY_TIMEOUT="0.1")


def test_programs_are_told_what_became_of_everything(cli: Cli, home: Path) -> None:
    first, again = (cli.ok("import", "--json").json for _ in range(2))
    assert first.keys() == again.keys() == {
        "home", "complete", "changed", "counts", "databases", "unknown_threads"
    }  # fmt: skip
    assert (first["home"], first["complete"], first["changed"], again["changed"]) == (str(home), True, True, False)
    none = {"taken": 0, "already_here": 0, "newer_here": 0, "without_thread": 0, "without_scope": 0}
    assert first["counts"].keys() == {"names", "pins", "memory_modes", "previews", "memories", "uses", "jobs"}
    assert first["counts"]["names"] == none | {"taken": 1, "without_thread": 8}
    assert again["counts"]["names"] == none | {"already_here": 1, "without_thread": 8}
    assert first["counts"]["pins"] == none
    assert [Path(database["path"]).name for database in first["databases"]] == [
        "state_5.sqlite", "memories_v2_1.sqlite", "memories_1.sqlite", "goals_1.sqlite"
    ]  # fmt: skip
    state = first["databases"][0]
    assert (state["counts"]["names"]["taken"], state["problem"], state["passed_over"]) == (1, None, False)
    assert first["unknown_threads"]["01a21ede-7dbd-7d80-b4c9-9af11430fc54"] == ["previews"]


def test_people_see_a_line_for_each_kind_and_what_was_left(cli: Cli) -> None:
    first, again = (cli.ok("import") for _ in range(2))
    assert "state_5.sqlite\tnames\t1\t0\t0\t8\t0\n" in first.stdout
    assert "nothing new" not in first.stdout
    assert again.stdout.endswith("nothing new of threads that have a row here\n")
    assert "thread 01a21ede-7dbd-7d80-b4c9-9af11430fc54 (previews)" in first.stderr


def test_another_home_is_read_and_stays_as_it_is(cli: Cli, tmp_path: Path) -> None:
    other = unpacked("memories-0.171.0", tmp_path / "other")
    done = cli.ok("import", "--from", other, "--json").json
    assert done["home"] == str(other)
    assert done["counts"]["memories"]["without_thread"] == 15
    assert sorted(path.name for path in other.iterdir()) == [
        "goals_1.sqlite", "memories_1.sqlite", "memories_v2_1.sqlite", "queue_1.sqlite", "state_5.sqlite"
    ]  # fmt: skip


def test_nothing_there_is_fine(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cli.ok("import", "--from", tmp_path / "empty")
    assert done.stdout == f"nothing to take over: no databases of Codex in {tmp_path / 'empty'}\n"
    assert cli.ok("import", "--from", tmp_path / "empty", "--json").json["databases"] == []


def test_a_home_that_is_not_there_is_named_and_not_created(cli: Cli, tmp_path: Path) -> None:
    done = cli("import", "--from", tmp_path / "missing")
    assert (done.status, done.stdout) == (1, "")
    assert f"there is no Codex home at {tmp_path / 'missing'}" in done.stderr
    assert not (tmp_path / "missing").exists()
    assert cli.refused("import", "--from", "").status == 2


def test_a_busy_database_is_status_3_and_a_damaged_one_status_1(cli: Cli, home: Path) -> None:
    with held(home / "state_5.sqlite", "BEGIN EXCLUSIVE"):
        busy = cli("import", "--json")
        (home / "goals_1.sqlite").write_text("not a database")
        both = cli("import")
    damaged = cli("import")
    assert (busy.status, both.status, damaged.status) == (3, 1, 1)
    assert busy.json["complete"] is False
    assert "not read: " in damaged.stderr
    assert "goals_1.sqlite: it is not an SQLite database" in damaged.stderr
    assert "\tnames\t1\t" in damaged.stdout, "the others go on"


def test_another_programs_file_is_passed_over(cli: Cli, home: Path) -> None:
    changed(home / "state_9.sqlite", "CREATE TABLE theirs (id)")
    done = cli.ok("import")
    assert "passed over: " in done.stderr
    assert "state_9.sqlite: it is not a database of Codex" in done.stderr


def test_the_real_command_does_it(home: Path) -> None:
    assert Cli(home).ok("import", "--json").json["counts"]["names"]["taken"] == 1
