"""A PgBouncer in transaction mode, in front of the tests' PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

_START_SECONDS = 60.0
_PORT = 6432

_CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
pool_mode = transaction
default_pool_size = 20
max_client_conn = 500
listen_addr =
listen_port = {port}
unix_socket_dir = {directory}
auth_type = any
{more}
"""


def installed() -> str | None:
    """Where it is; ``None`` when it isn't installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


NEEDED = pytest.mark.skipif(installed() is None, reason="needs pgbouncer: apt-get install pgbouncer")
"""Marks tests that go through one."""


class Pooler:
    """A PgBouncer that is a child of this process, so that it is killed by its id and by nothing else."""

    kind = "pooler"
    ways_to_end = (signal.SIGKILL,)
    """What else breaks every connection at once depends on its version."""

    def __init__(self, url: str, directory: Path, more: str = "") -> None:
        """Put one in front of the server of ``url``, with its files in ``directory``."""
        program = installed()
        assert program is not None
        server = make_url(url)
        values = {
            "host": server.host or server.query.get("host"),
            "port": server.port or server.query.get("port"),
            "user": server.username,
            "password": server.password,
        }
        told = " ".join(f"{name}={value}" for name, value in values.items() if value)
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(_CONFIGURATION.format(server=told, port=_PORT, directory=directory, more=more))
        self._command = [program, str(configuration)]
        if os.geteuid() == 0:  # it refuses to run as root
            user = _who_reaches(values["host"])
            shutil.chown(directory, user)
            self._command[1:1] = ["-u", user]
        self._socket, self._log = directory / f".s.PGSQL.{_PORT}", directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = server.set(host=None, port=None, password=None, query={"host": str(directory), "port": str(_PORT)})
        """The same database through it."""

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the keyboard must not end it before its clients
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer doesn't start: {self._log.read_text()}")
            time.sleep(0.02)

    def kill(self, number: signal.Signals) -> None:
        """End it at once, in one of the ``ways_to_end``."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(_START_SECONDS)
        self._process = None

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self._socket))
            except OSError:
                return False
        return True


@contextmanager
def pooler(url: str, more: str = "") -> Iterator[Pooler]:
    """A started PgBouncer of one's own in front of the server of ``url``. ``more`` is added to its configuration."""
    # Short, because the path of a Unix socket may have about 100 characters only.
    directory = Path(tempfile.mkdtemp(prefix="bouncer-"))
    directory.chmod(0o755)
    try:
        made = Pooler(url, directory, more)
        try:
            made.start()
            yield made
        finally:
            made.kill(signal.SIGKILL)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def pooled(url: str, more: str = "") -> Iterator[URL]:
    """The URL of the same database through a PgBouncer of one's own."""
    with pooler(url, more) as started:
        yield started.url


def _who_reaches(host: object) -> str:
    """A server of the tests' own has its socket among its data, which are its user's alone."""
    owner = Path(host).owner() if isinstance(host, str) and host.startswith("/") else "root"
    return "nobody" if owner == "root" else owner
