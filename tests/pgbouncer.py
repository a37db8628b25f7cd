"""A PgBouncer in transaction mode, in front of the tests' PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def pooled(url: str, more: str = "") -> Iterator[URL]:
    """The URL of the same database through a PgBouncer of one's own. ``more`` is added to its configuration."""
    program = installed()
    assert program is not None
    server = make_url(url)
    # Short, because the path of a Unix socket may have about 100 characters only.
    directory = Path(tempfile.mkdtemp(prefix="bouncer-"))
    directory.chmod(0o755)
    values = {
        "host": server.host or server.query.get("host"),
        "port": server.port or server.query.get("port"),
        "user": server.username,
        "password": server.password,
    }
    told = " ".join(f"{name}={value}" for name, value in values.items() if value)
    (directory / "pgbouncer.ini").write_text(
        _CONFIGURATION.format(server=told, port=_PORT, directory=directory, more=more)
    )
    command = [program, str(directory / "pgbouncer.ini")]
    if os.geteuid() == 0:  # it refuses to run as root
        user = _who_reaches(values["host"])
        shutil.chown(directory, user)
        command[1:1] = ["-u", user]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for(directory / f".s.PGSQL.{_PORT}", process, directory / "log")
        yield server.set(host=None, port=None, password=None, query={"host": str(directory), "port": str(_PORT)})
    finally:
        process.kill()
        process.wait(_START_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def _who_reaches(host: object) -> str:
    """A server of the tests' own has its socket among its data, which are its user's alone."""
    owner = Path(host).owner() if isinstance(host, str) and host.startswith("/") else "root"
    return "nobody" if owner == "root" else owner


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                pass
            else:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PgBouncer doesn't start: {log.read_text()}")
        time.sleep(0.02)
