"""A full disk, and processes that fork: nothing is lost, nothing is shared that mustn't be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from rollout_files import thread_id, write_rollout
from sqlalchemy import event

from codex_state.database import Database
from codex_state.errors import DatabaseFullError
from codex_state.models import ThreadQuery
from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import a_log_line, a_thread
from tests import scripts, stores

MODIFIED = 1_767_400_000

# Disk full


@pytest.fixture(params=["page limit", "tmpfs"])
def small_home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A home that soon is full: by SQLite's own limit, and by a real file system where the tests may mount one."""
    if request.param == "page limit":
        yield tmp_path
        return
    with _small_disk(tmp_path) as disk:
        yield disk


@contextmanager
def _small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a small file system needs to be root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def _limit_pages(database: Database, pages: int) -> None:
    def limit(connection: object, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]

    event.listen(database.engine.pool, "connect", limit)
    database.engine.dispose()


@pytest.mark.parametrize("mode", ["begin", "autocommit"])
def test_a_full_disk_is_reported_and_nothing_of_the_unit_is_kept(
    small_home: Path, migrated_sqlite: Path, mode: str
) -> None:
    """L5, L7, L8."""
    settings = StateSettings(codex_home=small_home)
    shutil.copy(migrated_sqlite, settings.database_path)
    with StateRuntime.open(settings) as runtime:
        if small_home.name != "disk":
            _limit_pages(runtime.database, 150)
        kept = a_thread()
        with runtime.begin() as state:
            state.threads.upsert(kept)
        batch = [a_log_line("x" * 1000) for _ in range(2000)]
        with pytest.raises(DatabaseFullError, match="free some space"), getattr(runtime, mode)() as state:
            state.logs.insert_many(batch)
        with runtime.read() as state:
            assert state.threads.get(kept.id) == kept
            assert state.logs.max_id() == 0
        with getattr(runtime, mode)() as state:
            state.logs.insert(a_log_line("fits"))
        with runtime.read() as state:
            assert state.logs.max_id() > 0


def test_a_write_that_meets_a_full_disk_in_a_session_leaves_the_session_usable(
    small_home: Path, migrated_sqlite: Path
) -> None:
    settings = StateSettings(codex_home=small_home)
    shutil.copy(migrated_sqlite, settings.database_path)
    with StateRuntime.open(settings) as runtime:
        if small_home.name != "disk":
            _limit_pages(runtime.database, 150)
        with runtime.autocommit() as state:
            for _ in range(2):
                with pytest.raises(DatabaseFullError):
                    state.threads.upsert(a_thread(title="x" * 2_000_000))
                assert state.threads.list_ids(ThreadQuery(limit=1)) == []
            state.threads.upsert(a_thread())
            assert len(state.threads.list_ids(ThreadQuery(limit=9))) == 1


@pytest.fixture
def indexed(tmp_path: Path) -> Iterator[Cli]:
    """A home with one thread in its index, on a small disk."""
    with _small_disk(tmp_path) as disk:
        cli = InProcess(disk / "home")
        write_rollout(cli.home, 1, modified=MODIFIED)
        cli.ok("backfill")
        yield cli


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk_keeps_nobody_from_reading(indexed: Cli, tmp_path: Path) -> None:
    """There isn't even room for the index of SQLite's log, which whoever may write begins."""
    fill(indexed.home.parent)
    one = str(thread_id(1))
    for _ in range(2):  # also beside what the first has left of its log
        listed = indexed.ok("threads", "list", "--json")
        assert [item["id"] for item in listed.json["items"]] == [one]
        assert "the index was brought up to date" in listed.stderr
        assert "free some space" in listed.stderr
    for command in (["threads", "show", one], ["threads", "cat", one], ["threads", "path", one], ["search", "hello"]):
        assert indexed.ok(*command).stdout
    indexed.ok("doctor")
    copy = tmp_path / "backup.sqlite"
    indexed.ok("backup", copy)
    assert copy.stat().st_size
    assert "free some space" in indexed.refused("backfill").stderr


def test_what_is_new_on_a_full_disk_keeps_nobody_from_reading_what_is_known(indexed: Cli) -> None:
    with StateRuntime.open(StateSettings(codex_home=indexed.home)):  # so that the log has its index
        write_rollout(indexed.home, 2, modified=MODIFIED)
        fill(indexed.home.parent)
        listed = indexed.ok("threads", "list", "--json")
    assert [item["id"] for item in listed.json["items"]] == [str(thread_id(1))]
    assert "the index was brought up to date" in listed.stderr
    assert "free some space" in listed.stderr


def test_an_index_is_made_in_memory_where_a_full_disk_has_none(indexed: Cli) -> None:
    for each in indexed.home.glob("codex_state_4*"):
        each.unlink()
    fill(indexed.home.parent)
    listed = indexed.ok("threads", "list", "--json")
    assert [item["id"] for item in listed.json["items"]] == [str(thread_id(1))]


# Forks

PREAMBLE = """
import os, sys
from sqlalchemy.exc import PendingRollbackError
from codex_state.errors import DatabaseError, DatabaseUnavailableError
from codex_state.models import ThreadQuery
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import a_thread

def titles(runtime):
    return runtime.run_read(titles_of)

def titles_of(state):
    return sorted(thread.title for thread in state.threads.list(ThreadQuery(limit=10_000)).items)

def child_of_a_fork(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def join(*children):
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * len(children), codes

runtime = StateRuntime.open(StateSettings())
"""

BESIDE_EACH_OTHER = """
def work(name):
    for number in range(20):
        with runtime.begin() as state:
            state.threads.upsert(a_thread(title=f"{name} {number}"))
        titles(runtime)
        with runtime.autocommit() as state:
            state.threads.upsert(a_thread(title=f"{name} more"))

work("parent before")
children = [child_of_a_fork(lambda: work(f"child {number}")) for number in range(3)]
work("parent beside")
join(*children)
work("parent after")
assert len(titles(runtime)) == 6 * 40
"""

OUTLIVING_ITS_PARENTS_CONNECTIONS = """
with runtime.begin() as state:
    state.threads.upsert(a_thread(title="parent"))
ready, go = os.pipe(), os.pipe()

def work():
    with runtime.autocommit() as state:
        state.threads.upsert(a_thread(title="child before"))
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        state.threads.upsert(a_thread(title="child after"))
    runtime.close()

child = child_of_a_fork(work)
os.read(ready[0], 1)
runtime.close()
os.write(go[1], b"x")
join(child)
with StateRuntime.open(StateSettings()) as again:
    assert titles(again) == ["child after", "child before", "parent"]
"""

WHILE_A_SESSION_IS_OPEN = """
def work():
    for other in (runtime, None):
        try:
            other = other or StateRuntime.open(StateSettings())
            with other.begin() as state:
                state.threads.upsert(a_thread(title="child"))
        except DatabaseUnavailableError as error:
            assert "spawn" in str(error), error
        else:
            assert runtime.database.dialect == "postgresql"

with runtime.begin() as state:
    state.threads.upsert(a_thread(title="parent"))
    join(child_of_a_fork(work))
expected = ["parent"] if runtime.database.dialect == "sqlite" else ["child", "child", "parent"]
assert titles(runtime) == expected, titles(runtime)
"""

IN_A_SESSION_OF_ITS_PARENTS = """
with runtime.begin() as state:
    state.threads.upsert(a_thread(title="parent"))

    def work():
        for do in (
            lambda: state.threads.upsert(a_thread(title="child")),
            lambda: state.threads.upsert_many([a_thread(title="child")] * 2),
            lambda: titles_of(state),
            state.session.commit,
        ):
            try:
                do()
            except (DatabaseError, PendingRollbackError) as error:
                assert runtime.database.dialect == "postgresql" or "fork" in str(error), error
            else:
                raise AssertionError("the child spoke on its parent's connection")
        state.session.rollback()
        state.session.close()

    join(child_of_a_fork(work))
    assert titles_of(state) == ["parent"]
assert titles(runtime) == ["parent"]
"""

IN_MEMORY = """
with runtime.begin() as state:
    state.threads.upsert(a_thread(title="parent"))

def work():
    with runtime.begin() as state:
        state.threads.upsert(a_thread(title="child"))
    assert titles(runtime) == ["child", "parent"]

join(child_of_a_fork(work))
assert titles(runtime) == ["parent"]
"""


def _run(script: str, settings: StateSettings) -> None:
    environment = {"CODEX_HOME": str(settings.codex_home), "CODEX_STATE_BUSY_TIMEOUT": "30"}
    if settings.database_url is not None:
        environment["CODEX_STATE_DATABASE_URL"] = settings.database_url.get_secret_value()
    done = scripts.run(f"{PREAMBLE}{script}\nruntime.close()", environment=environment)
    assert (done.status, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "script",
    [BESIDE_EACH_OTHER, OUTLIVING_ITS_PARENTS_CONNECTIONS, WHILE_A_SESSION_IS_OPEN, IN_A_SESSION_OF_ITS_PARENTS],
)
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_what_a_child_commits_after_a_fork_is_kept(
    dialect: str, script: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """L7: a child opens connections of its own, disturbs none of its parent's, and is refused where it couldn't."""
    with stores.fresh_settings(dialect, tmp_path, request) as settings:
        _run(script, settings)
        with StateRuntime.open(settings) as runtime, runtime.read() as state:
            _check_integrity(state)


def test_a_child_has_a_copy_of_a_database_in_memory(tmp_path: Path) -> None:
    _run(IN_MEMORY, StateSettings(codex_home=tmp_path, database_url="sqlite://"))


def _check_integrity(state: State) -> None:
    connection = state.session.connection()
    if connection.dialect.name == "sqlite":
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
