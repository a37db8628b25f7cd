"""Many who open a database at once: all succeed, one migrates. And one who is killed while it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import stores
from migrations.described import describe
from migrations.rows import in_common, insert_samples, read_all
from sqlalchemy import Connection, event

from codex_state import migrations
from codex_state.database import Database, prepare_sqlite_file
from codex_state.errors import ConnectionLostError, DatabaseBusyError
from codex_state.migrations import locking
from tests.chaos.processes import WorkerHost

HERE = Path(__file__).parent
MANY = 16

FRESH = (None, migrations.HEAD)
FOUND_DONE = (migrations.HEAD, migrations.HEAD)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def status_of_one_that_dies(host: WorkerHost, url: str, fragment: str) -> int:
    return host.start("tests.migrations.upgrade_and_die:work", url=url, fragment=fragment).wait()


def at_once(count: int, work: Callable[[int], migrations.Migrated]) -> Counter[tuple[str | None, str | None]]:
    gate = threading.Barrier(count)

    def go(number: int) -> tuple[str | None, str | None]:
        gate.wait()
        outcome = work(number)
        return outcome.before, outcome.after

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(go, range(count)))


def open_anew(url: str) -> migrations.Migrated:
    with stores.opened(url) as database:
        if database.path is not None:
            prepare_sqlite_file(database)
        return migrations.ensure_current(database.engine)


def differences(url: str) -> list[str]:
    with stores.opened(url) as database, database.engine.connect() as connection:
        return migrations.check(connection)


def test_16_processes_open_a_fresh_database_and_one_migrates(url: str) -> None:
    answer = run("open_at_once.py", url, str(MANY))
    assert answer.returncode == 0, answer.stderr
    outcomes = Counter(answer.stdout.splitlines())
    assert outcomes == {f"None {migrations.HEAD}": 1, f"{migrations.HEAD} {migrations.HEAD}": MANY - 1}
    assert differences(url) == []


def test_16_threads_open_a_fresh_database_and_one_migrates(url: str) -> None:
    assert at_once(MANY, lambda _: open_anew(url)) == {FRESH: 1, FOUND_DONE: MANY - 1}
    assert differences(url) == []


def test_16_threads_share_one_engine_and_one_migrates(database: Database) -> None:
    outcomes = at_once(MANY, lambda _: migrations.ensure_current(database.engine))
    assert outcomes == {FRESH: 1, FOUND_DONE: MANY - 1}


def test_threads_migrate_databases_of_their_own(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / str(number)}.sqlite" for number in range(4)]
    assert at_once(4, lambda number: open_anew(urls[number])) == {FRESH: 4}
    assert [differences(url) for url in urls] == [[]] * 4


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.sqlite'}"
    at_once(4, lambda _: open_anew(url))
    assert not list(tmp_path.glob(f"*{locking.SIDE_FILE_SUFFIX}"))


def test_a_migration_may_take_longer_than_the_busy_timeout_of_those_who_wait(database: Database, url: str) -> None:
    def open_impatiently() -> migrations.Migrated:
        other = Database.open(url, busy_timeout=timedelta(seconds=0.1))
        try:
            return migrations.ensure_current(other.engine)
        finally:
            other.close()

    with ThreadPoolExecutor(1) as pool:
        with database.engine.connect() as connection, locking.exclusive_transaction(connection):
            waiting = pool.submit(open_impatiently)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1.5)
        assert waiting.result(timeout=60).changed


def test_who_waits_too_long_for_anothers_migration_is_told(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "WAIT", timedelta(seconds=0.2))
    with (
        database.engine.connect() as connection,
        locking.exclusive_transaction(connection),
        stores.opened(url) as other,
        pytest.raises(DatabaseBusyError, match=r"been migrating|lock timeout"),
    ):
        migrations.ensure_current(other.engine)
    assert migrations.ensure_current(database.engine).changed


def test_a_thread_that_waits_too_long_for_another_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "WAIT", timedelta(seconds=0.2))
    with locking.one_per_process(), pytest.raises(DatabaseBusyError, match="another thread"):
        migrations.ensure_current(database.engine)
    assert migrations.ensure_current(database.engine).changed


def test_a_directory_without_a_lock_file_is_migrated_under_the_transaction_alone(tmp_path: Path) -> None:
    # Here a directory is in the side file's place; a read-only directory or a file system without locks is the same.
    path = tmp_path / "state.sqlite"
    path.with_name(path.name + locking.SIDE_FILE_SUFFIX).mkdir()
    assert open_anew(f"sqlite:///{path}").changed


FRAGMENTS = ["UPDATE memory_consolidation_locks", "version_num='0010_checks'", f"version_num='{migrations.HEAD}'"]


@pytest.mark.parametrize("fragment", ["CREATE TABLE codex_state_version", *FRAGMENTS])
def test_a_process_killed_while_it_creates_the_schema_leaves_an_empty_database(
    database: Database, url: str, host: WorkerHost, fragment: str
) -> None:
    assert status_of_one_that_dies(host, url, fragment) == -signal.SIGKILL
    with database.engine.connect() as connection:
        assert describe(connection) == {}
        assert migrations.current_revision(connection) is None
    assert migrations.ensure_current(database.engine) == migrations.Migrated(*FRESH)
    assert differences(url) == []


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_process_killed_in_the_middle_of_an_upgrade_leaves_the_old_version(
    database: Database, url: str, host: WorkerHost, fragment: str
) -> None:
    migrations.upgrade(database.engine, "0001_baseline")
    with database.engine.begin() as connection:
        insert_samples(connection)
    with database.engine.connect() as connection:
        before = describe(connection), read_all(connection)
    assert status_of_one_that_dies(host, url, fragment) == -signal.SIGKILL
    with database.engine.connect() as connection:
        assert migrations.current_revision(connection) == "0001_baseline"
        assert (describe(connection), read_all(connection)) == before
    assert migrations.ensure_current(database.engine) == migrations.Migrated("0001_baseline", migrations.HEAD)
    with database.engine.connect() as connection:
        after = read_all(connection)
        assert in_common(after, before[1]) == in_common(before[1], after)


@pytest.mark.parametrize("fragment", FRAGMENTS[2:])
def test_a_connection_lost_in_a_migration_leaves_the_old_schema(postgres_url: str, fragment: str) -> None:
    """L7, L8: and what is told is what came first."""
    with stores.opened(postgres_url) as database, stores.opened(postgres_url) as other:
        migrations.upgrade(database.engine, "0001_baseline")
        with database.engine.begin() as connection:
            insert_samples(connection)
        with database.engine.connect() as connection:
            before = describe(connection), read_all(connection)

        def lose(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
            if fragment in statement:
                pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
                with other.engine.connect() as killing:
                    killing.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")

        event.listen(database.engine, "after_cursor_execute", lose)
        with pytest.raises(ConnectionLostError):
            migrations.upgrade(database.engine)
        event.remove(database.engine, "after_cursor_execute", lose)
        with database.engine.connect() as connection:
            assert migrations.current_revision(connection) == "0001_baseline"
            assert (describe(connection), read_all(connection)) == before
        assert migrations.ensure_current(database.engine).changed
