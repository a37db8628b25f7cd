"""State files that are damaged, that go away while they are open, and storage that fails: laws L7 and L8."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_process import Cli, InProcess
from sqlalchemy import event

from codex_state import Claimed, LogQuery, State, StateRuntime, StateSettings, migrations
from codex_state.database import Database, sqlite
from codex_state.database.errors import Verdict, examine
from codex_state.errors import DatabaseCorruptError, DatabaseFullError, StateFileLostError
from codex_state.testing.samples import a_log_line, a_thread

HOUR = timedelta(hours=1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def filled(home: Path) -> Path:
    """The state file of a home with a few hundred lines, all in the file itself."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        runtime.run(lambda state: state.logs.insert_many([a_log_line("x" * 500) for _ in range(500)]))
        assert runtime.database.path is not None
        return runtime.database.path


# Files that go away


def removed(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("lose", [removed, replaced, emptied])
class TestAFileThatWasLostWhileItWasOpen:
    def test_is_noticed_by_the_next_unit(self, home: Path, lose: Callable[[Path], None]) -> None:
        path = filled(home)
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
            runtime.run(lambda state: state.logs.insert(a_log_line()))
            lose(path)
            for _ in range(2):
                with pytest.raises(StateFileLostError, match=r"codex_state_4\.sqlite was .* while it was open"):
                    runtime.run(lambda state: state.logs.insert(a_log_line()))
            with pytest.raises(StateFileLostError):
                runtime.run_read(lambda state: state.logs.max_id())

    def test_is_noticed_before_the_commit(self, home: Path, lose: Callable[[Path], None]) -> None:
        path = filled(home)

        def work(state: State) -> None:
            state.logs.insert(a_log_line())
            lose(path)

        with StateRuntime.open(StateSettings(codex_home=home)) as runtime, pytest.raises(StateFileLostError):
            runtime.run(work)

    def test_grants_and_renews_no_lease(
        self, home: Path, lose: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("codex_state.database.sqlite._LOOK_SECONDS", 0.0)
        path = filled(home)
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.autocommit() as state:
            claimed = state.consolidation_locks.try_claim(home, owner=uuid.uuid4(), lease=HOUR)
            assert isinstance(claimed, Claimed)
            assert state.consolidation_locks.renew(claimed.lease)
            lose(path)
            with pytest.raises(StateFileLostError):
                state.consolidation_locks.renew(claimed.lease)


# Damage


def overwritten(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))


def test_damage_is_named_with_its_file(home: Path) -> None:
    path = filled(home)
    overwritten(path, "logs")
    settings = StateSettings(codex_home=home)
    with StateRuntime.open(settings) as runtime, pytest.raises(DatabaseCorruptError, match=str(path)):
        runtime.run(lambda state: state.logs.insert(a_log_line()))


def test_a_check_of_the_database_sees_damage(home: Path) -> None:
    cli = InProcess(home)
    path = filled(home)
    assert cli.ok("db", "check").stdout.startswith("the schema is that of")
    overwritten(path, "logs")
    done = cli("db", "check")
    assert done.status == 1
    assert done.stdout.startswith("the file is damaged: ")
    assert cli("db", "check", "--json").json["ok"] is False


def test_a_check_of_the_database_sees_rows_without_those_that_they_refer_to(home: Path) -> None:
    path = filled(home)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO thread_dynamic_tools (thread_id, position, name, description, input_schema) "
            "VALUES (?, 0, '', '', '{}')",
            (str(uuid.uuid4()),),
        )
        connection.commit()
    assert (
        "a row of thread_dynamic_tools refers to a row of threads that isn't there"
        in InProcess(home)("db", "check").stdout
    )


def test_a_second_look_tells_damage_from_a_whole_file(home: Path) -> None:
    path = filled(home)
    assert examine(str(path)) is Verdict.WHOLE
    overwritten(path, "logs")
    assert examine(str(path)) is Verdict.DAMAGED
    assert examine(str(path.with_name("nothing"))) is Verdict.STORAGE_FAILS


# Storage that fails


def compiled(name: str, directory: Path) -> Path:
    """A library for LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux, to make system calls fail")
    shim = directory / "shim.so"
    source = Path(__file__).parents[1] / name
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    return shim


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_called_that_and_nobody_is_said_to_hold_the_file(
    home: Path, tmp_path: Path, number: int
) -> None:
    """L8."""
    path = filled(home)
    cli = Cli(home, LD_PRELOAD=str(compiled("no_locks.c", tmp_path)), NO_LOCKS=str(number))
    beside = sorted(home.iterdir())
    done = cli.refused("threads", "list", CODEX_STATE_BUSY_TIMEOUT="0.2")
    assert done.status == 1
    assert str(path) in done.stderr
    assert "can't lock files; set CODEX_SQLITE_HOME to a directory on another one" in done.stderr
    assert "another process" not in done.stderr
    assert [each for each in sorted(home.iterdir()) if each not in beside and "codex_state_4" not in each.name] == []


_UNITS = """
import sys
from collections import Counter
from codex_state import StateRuntime, StateSettings
from codex_state.errors import StateError
from codex_state.testing.samples import a_log_line, a_thread
kinds, kept = Counter(), 0
runtime = StateRuntime.open(StateSettings(codex_home=sys.argv[1]))
import os; os.environ["FAILING_STORAGE"] = "50"
for number in range(400):
    try:
        runtime.run(lambda state: state.logs.insert_many([a_log_line(f"{number} {half}" + "x" * 300) for half in "ab"]))
        print("kept", number, flush=True)
    except StateError as error:
        print("error", type(error).__name__, error, flush=True)
runtime.close()
"""


def test_storage_that_fails_now_and_then_loses_nothing_and_is_not_called_damage(home: Path, tmp_path: Path) -> None:
    """L5, L7, L8."""
    shim = compiled("failing_storage.c", tmp_path)
    path = filled(home)
    done = subprocess.run(
        [sys.executable, "-c", _UNITS, home],
        env=os.environ | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line.split(" ") for line in done.stdout.splitlines()]
    kept = [int(words[1]) for words in told if words[0] == "kept"]
    errors = {words[1] for words in told if words[0] == "error"}
    assert kept
    assert "StorageError" in errors
    assert not {"DatabaseCorruptError", "NotADatabaseError"} & errors
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stored = [
            text.partition("x")[0].split() for (text,) in connection.execute("SELECT message FROM logs WHERE id > 500")
        ]
    whole = {int(number) for number, _ in stored}
    assert set(kept) <= whole
    assert len(stored) == 2 * len(whole)


def test_upkeep_that_the_storage_refuses_costs_no_unit_and_no_close(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """L8: what was written is kept; taking the write-ahead log into the file is for later."""
    filled(home)
    runtime = StateRuntime.open(StateSettings(codex_home=home))
    execute = sqlite.StateCursor.execute

    def failing(cursor: sqlite.StateCursor, sql: str, parameters: Any = ()) -> Any:
        if "wal_checkpoint" in sql or "freelist_count" in sql:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return execute(cursor, sql, parameters)

    monkeypatch.setattr(sqlite.StateCursor, "execute", failing)
    caplog.set_level("INFO", "codex_state")
    runtime.run(lambda state: state.logs.insert_many([a_log_line("kept")]))
    runtime.close()
    assert "later" in caplog.text
    monkeypatch.undo()
    with StateRuntime.open(StateSettings(codex_home=home)) as again, again.read() as state:
        assert len(state.logs.query(LogQuery())) == 501


# Full disks


def test_a_migration_on_a_full_disk_says_so_and_leaves_the_old_schema(home: Path) -> None:
    """L7, L8: what failed first is told, not what failed in cleaning up."""
    path = filled(home)
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        threads = [a_thread(title="y" * 800) for _ in range(300)]
        runtime.run(lambda state: state.threads.upsert_many(threads))
    database = Database.open(f"sqlite:///{path}")
    migrations.downgrade(database.engine, "0001_baseline")
    with closing(sqlite3.connect(path)) as connection:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        for _ in range(free):
            connection.execute("PRAGMA incremental_vacuum(1)")
        connection.commit()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    more = pages + 5  # enough to begin with

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {more}")

    event.listen(database.engine.pool, "connect", limit)
    database.engine.dispose()
    with pytest.raises(DatabaseFullError):
        migrations.upgrade(database.engine)
    with database.engine.connect() as connection_:
        assert migrations.current_revision(connection_) == "0001_baseline"
    database.close()
