"""``codex-state doctor``: each fault is planted, found and, where that can be, mended (laws L7 and L8)."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cli_process import Cli, InProcess

from codex_state import StateRuntime, StateSettings, backfill
from codex_state.doctor import Severity, checks, salvage, salvaging
from codex_state.errors import DatabaseBusyError, StateFileLostError
from codex_state.models import Claimed, MemoryScope, Phase1Key, ThreadQuery
from codex_state.testing.samples import a_log_line, a_thread
from tests.example_home import copy_of_the_example_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = copy_of_the_example_home(tmp_path / "home")
    for broken in home.rglob("*019d65e1-f380-7d82-b082-532b629f6fbe*"):
        broken.unlink()
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
        runtime.run(lambda state: state.logs.insert_many([a_log_line(f"{n} log" + "x" * 500) for n in range(1000)]))
    return home


@pytest.fixture
def cli(home: Path) -> Cli:
    return InProcess(home)


def path_of(home: Path) -> Path:
    return StateSettings(codex_home=home).database_path


def execute(home: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path_of(home))) as connection:
        found: list[Any] = []
        for statement in statements:
            found = connection.execute(statement).fetchall()
        connection.commit()
        return found


def told(cli: Cli, *options: str, **environment: str) -> dict[str, list[str]]:
    """The severities and texts by check, of what isn't fine."""
    found: dict[str, list[str]] = {}
    for finding in cli("doctor", "--json", *options, **environment).json["findings"]:
        if finding["severity"] not in {"ok", "note"}:
            found.setdefault(finding["check"], []).append(f"{finding['severity']}: {finding['text']}")
    return found


def test_nothing_is_wrong_with_a_state_that_is_well(cli: Cli) -> None:
    assert told(cli) == told(cli, "--full") == {}
    done = cli.ok("doctor")
    assert "ok        integrity: " in done.stdout
    assert cli.ok("doctor", "--json").json["ok"] is True


def test_a_look_changes_nothing(cli: Cli, home: Path) -> None:
    def stamps() -> dict[str, tuple[int, int]]:
        return {each.name: (each.stat().st_size, each.stat().st_mtime_ns) for each in home.iterdir()}

    before = stamps()
    cli.ok("doctor", "--full")
    assert stamps() == before


def test_files_that_others_may_read_are_found_and_closed(cli: Cli, home: Path) -> None:
    path_of(home).chmod(0o644)
    assert told(cli)["permissions"] == [f"warning: others may read or write {path_of(home)}"]
    assert told(cli, "--repair") == {}
    assert path_of(home).stat().st_mode & 0o777 == 0o600


def test_files_of_another_user_are_told_and_left(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(home)
    path.chmod(0o644)
    other = path.stat().st_uid + 1
    with monkeypatch.context() as patch:
        patch.setattr(checks.os, "geteuid", lambda: other)
        (finding,) = told(cli, "--repair")["permissions"]
        assert finding.endswith(f"may read or write {path}, and that isn't you")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("number", [errno.EPERM, errno.EROFS])
def test_permissions_that_cannot_be_changed_are_told(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path_of(home).chmod(0o644)

    def refused(_path: Path, _mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "chmod", refused)
    done = cli.ok("doctor", "--repair")
    assert f"the permissions of {path_of(home)} can't be changed: {os.strerror(number)}\n" in done.stderr
    assert "repaired" not in done.stdout


def test_a_file_beside_the_state_may_vanish_while_it_is_mended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = path_of(home).with_name(f"{path_of(home).name}-wal")
    log.touch(0o644)
    change = Path.chmod

    def vanishing(path: Path, mode: int) -> None:
        log.unlink(missing_ok=True)
        change(path, mode)

    monkeypatch.setattr(Path, "chmod", vanishing)
    assert checks.mend_permissions(path_of(home)) == []


def test_what_changed_in_the_home_is_counted_and_taken_in(cli: Cli, home: Path) -> None:
    rollouts = sorted((home / "sessions").rglob("rollout-*.jsonl"))
    rollouts[0].unlink()
    with rollouts[1].open("a") as file:
        file.write("\n")
    name = f"rollout-2026-01-01T00-00-00-{uuid.uuid4()}.jsonl"
    shutil.copy(rollouts[2], rollouts[2].with_name(name))
    (finding,) = told(cli)["files"]
    assert finding == "warning: the index isn't as the home's files are: 1 changed, 1 gone, 1 new"
    assert told(cli, "--repair") == {}


def test_a_column_that_is_missing_is_found(cli: Cli, home: Path) -> None:
    execute(home, "DROP INDEX idx_logs_thread_id")
    assert told(cli)["schema"] == ["problem: index idx_logs_thread_id of table logs is missing"]


def test_rows_without_those_that_they_refer_to_are_found(cli: Cli, home: Path) -> None:
    execute(
        home,
        "INSERT INTO thread_dynamic_tools (thread_id, position, name, description, input_schema) "
        f"VALUES ('{uuid.uuid4()}', 0, '', '', '{{}}')",
    )
    assert told(cli)["references"] == [
        "problem: 1 rows of thread_dynamic_tools refer to rows of threads that aren't there"
    ]


def test_failed_jobs_are_counted(cli: Cli, home: Path) -> None:
    (thread,) = execute(home, "SELECT id FROM threads LIMIT 1")[0]
    execute(
        home,
        "INSERT INTO memory_phase1_jobs (thread_id, scope_kind, scope_key, status, source_updated_at) "
        f"VALUES ('{thread}', 'cwd', '/', 'failed', 1)",
    )
    assert told(cli)["jobs"] == ["warning: 1 extraction jobs failed"]


def test_jobs_that_were_given_back_have_not_failed(cli: Cli, home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
        (thread, *_) = state.threads.list_ids(ThreadQuery(limit=1))
        key = Phase1Key(thread, MemoryScope.user())
        claimed = state.phase1_jobs.try_claim(
            key, owner=UUID(int=1), source_updated_at=datetime.now(UTC), lease=timedelta(hours=1)
        )
        assert isinstance(claimed, Claimed)
        state.phase1_jobs.release(claimed.lease, "the pass was interrupted")
    assert "jobs" not in told(cli)


def test_threads_of_this_directory_under_another_homes_name_are_told(cli: Cli, home: Path) -> None:
    for rollout in home.rglob("rollout-*"):
        os.utime(rollout, (1_700_000_000, 1_700_000_000))
    cli.ok("backfill", "--again")
    cli.ok("threads", "list", CODEX_STATE_HOME="x")
    done = cli.ok("threads", "list")
    assert done.stdout == ""
    assert "of this directory are known under the home 'x'" in done.stderr
    assert any("under the home 'x'" in text for text in told(cli)["files"])
    cli.ok("backfill", "--again")
    assert cli.ok("threads", "list").stdout.count("\n") > 10
    assert told(cli) == {}


def test_a_directory_that_cannot_be_looked_into_is_named(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = str(min((home / "sessions").rglob("rollout-*")).parent)
    scan = os.scandir

    def failing(path: str) -> Any:
        if path == directory:
            raise OSError(5, "Input/output error")
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    (warning,) = told(cli)["files"]
    assert warning == f"warning: {directory} can't be looked at: Input/output error (known rollouts out of reach: 2)"


def test_a_tree_that_is_not_mounted_is_named(cli: Cli, home: Path) -> None:
    (home / "sessions").rename(home / "unmounted")
    (home / "sessions").symlink_to("/nowhere/at/all")
    (warning,) = told(cli)["files"]
    assert warning.startswith(f"warning: {home}/sessions can't be looked at: a symbolic link to /nowhere/at/all, which")
    assert "known rollouts out of reach: " in warning


def test_a_rollout_that_failed_is_named_and_the_files_are_not_called_well(cli: Cli, home: Path) -> None:
    (home / "sessions/rollout-2026-01-01T00-00-00-019d2931-6038-7f85-98dd-1f67f15e8ef9.jsonl").write_bytes(b"\0" * 10)
    cli.ok("backfill")
    (warning,) = told(cli)["files"]
    assert "can't be indexed" in warning
    assert "as the home's files are" not in cli("doctor").stdout


def test_a_rollout_that_lies_in_two_places_is_named(cli: Cli, home: Path) -> None:
    rollout = min((home / "sessions").rglob("rollout-*.jsonl"))
    shutil.copy2(rollout, home / "archived_sessions" / rollout.name)
    cli.ok("backfill")
    (finding,) = told(cli)["copies"]
    assert finding.startswith(f"warning: a rollout of thread {rollout.stem[-36:]} lies in several places: archived_ses")
    assert finding.endswith(f", {rollout.relative_to(home)}")
    cli.ok("threads", "unarchive", rollout.stem[-36:])
    assert told(cli) == {}


def test_a_thread_from_the_future_is_found(cli: Cli, home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run(lambda state: state.threads.upsert(a_thread()))
    execute(home, "UPDATE threads SET updated_at = 4102444800 WHERE rowid = (SELECT max(rowid) FROM threads)")
    assert "1 threads were changed in the future" in told(cli)["clock"][0]


def test_a_thread_whose_time_cannot_be_read_is_named(cli: Cli, home: Path) -> None:
    thread = a_thread()
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
    execute(home, f"UPDATE threads SET updated_at = CURRENT_TIMESTAMP WHERE id = '{thread.id}'")
    findings = told(cli)
    assert "1 threads have a time that can't be read" in findings["rows"][0]
    assert str(thread.id) in findings["rows"][0]
    assert "clock" not in findings


def test_logs_beyond_their_bounds_are_found_and_cut(cli: Cli) -> None:
    few = {"CODEX_STATE_LOG_MAX_ROWS": "10"}
    assert "1000 log lines take" in told(cli, **few)["logs"][0]
    assert told(cli, "--repair", **few) == {}
    assert cli.ok("logs", "stats", "--json").json["lines"] == 10


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ((3, 40, 1), Severity.NOTE),
        ((3, 44, 5), Severity.NOTE),
        ((3, 44, 6), Severity.OK),
        ((3, 50, 7), Severity.OK),
        ((3, 51, 2), Severity.NOTE),
        ((3, 51, 3), Severity.OK),
        ((3, 53, 0), Severity.OK),
    ],
)
def test_versions_of_sqlite_that_can_damage_a_file_are_named(version: tuple[int, ...], severity: Severity) -> None:
    (finding,) = checks._sqlite_version(version)
    assert finding.severity is severity


def test_a_network_file_system_is_recognised_by_its_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {os.path.realpath(tmp_path)} nfs4 rw 0 0\n")
    assert checks._file_system_of(tmp_path / "state", mounts) == "nfs4"
    assert checks._file_system_of(Path("/elsewhere/state"), mounts) == "ext4"
    assert checks._file_system_of(Path("/x/state"), tmp_path / "nothing") == ""


def test_a_server_is_looked_at(tmp_path: Path, postgres_url: str) -> None:
    cli = InProcess(tmp_path / "home")
    cli.home.mkdir()
    findings = cli("doctor", "--json", CODEX_STATE_DATABASE_URL=postgres_url).json["findings"]
    assert any(finding["check"] == "server" and finding["severity"] == "ok" for finding in findings)


# Damage


def pages_of(home: Path, table: str) -> list[int]:
    """The numbers of the pages that hold rows of a table, by what is in them."""
    content = path_of(home).read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    is_leaf, text = 0x0D, f"{table[:-1]}xxx".encode()
    return [number for number, page in enumerate(pages) if page[0] == is_leaf and text in page]


def overwrite(home: Path, *pages: int) -> None:
    with path_of(home).open("r+b") as file:
        for page in pages:
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def test_of_a_damaged_file_every_row_that_can_be_read_is_saved(cli: Cli, home: Path) -> None:
    """L7: the file is set aside, memories and names are saved, threads are there again."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        threads = runtime.run_read(lambda state: state.threads.list().items)
        runtime.run(lambda state: state.threads.set_name(threads[0].id, "a name that was given"))
    execute(home, "PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = pages_of(home, "logs")[5:8]
    overwrite(home, *damaged)
    assert told(cli)["integrity"][0].startswith("problem: ")
    assert cli("doctor").status == 1
    done = cli.ok("doctor", "--repair", "--json").json
    assert done["ok"] is True
    (aside,) = home.glob("codex_state_4.sqlite.damaged-*")
    assert any(str(aside) in line for line in done["repaired"])
    assert any(line.startswith("logs: ") and "can't be read" in line for line in done["repaired"])
    kept = cli.ok("logs", "stats", "--json").json["lines"]
    assert 1000 - 3 * 8 <= kept < 1000
    listed = cli.ok("threads", "list", "--json").json["items"]
    assert {item["id"] for item in listed} == {str(thread.id) for thread in threads}
    assert "a name that was given" in {item["name"] for item in listed}
    assert told(cli, "--full") == {}


def test_what_is_no_database_any_more_is_set_aside_and_the_index_is_built_anew(cli: Cli, home: Path) -> None:
    before = {item["id"] for item in cli.ok("threads", "list", "--json").json["items"]}
    overwrite(home, 0)
    assert cli("threads", "list").status == 1
    assert cli.ok("doctor", "--repair", "--json").json["ok"] is True
    assert {item["id"] for item in cli.ok("threads", "list", "--json").json["items"]} == before


def test_a_services_own_tables_are_saved_with_their_indexes(home: Path) -> None:
    execute(
        home,
        "CREATE TABLE invoices (id INTEGER PRIMARY KEY, text TEXT)",
        "CREATE INDEX invoices_text ON invoices (text)",
        "INSERT INTO invoices VALUES (7, 'seven')",
    )
    overwrite(home, *pages_of(home, "logs")[:1])
    salvaged = salvage(path_of(home))
    assert salvaged.rows["invoices"] == 1
    assert execute(home, "SELECT text FROM invoices INDEXED BY invoices_text WHERE text > ''") == [("seven",)]


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_file_is_saved_whatever_its_path_would_mean_in_a_url(tmp_path: Path, name: str) -> None:
    """And nothing is made beside the home."""
    home = tmp_path / name
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run(lambda state: state.threads.upsert(a_thread(title="kept")))
    salvage(path_of(home))
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        assert [thread.title for thread in runtime.run_read(lambda state: state.threads.list().items)] == ["kept"]
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_whoever_has_the_damaged_file_open_notices(home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run_read(lambda state: state.logs.max_id())
        salvage(path_of(home))
        with pytest.raises(StateFileLostError):
            runtime.run(lambda state: state.logs.insert(a_log_line()))


def test_a_file_that_somebody_writes_to_meanwhile_stays_in_its_place(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill: Callable[..., None] = salvaging._fill

    def fill_while_another_writes(*arguments: Any) -> None:
        fill(*arguments)
        execute(home, "DELETE FROM logs WHERE id = 1")

    monkeypatch.setattr("codex_state.doctor.salvaging._fill", fill_while_another_writes)
    before = path_of(home).stat().st_ino
    with pytest.raises(DatabaseBusyError, match="somebody writes to"):
        salvage(path_of(home))
    assert path_of(home).stat().st_ino == before
    assert sorted(each.name for each in home.glob("codex_state_4.sqlite.*")) == []
