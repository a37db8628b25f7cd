"""Runs ``codex-state`` as people do: as a process of its own, with pipes or on a terminal.

A process spends most of a second on imports, so tests of what commands do run them in this process (``InProcess``), and
those of the contracts with the outside run the real executable (``Cli``).
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import codex_state
from codex_state.cli.entry import run
from tests.chaos.processes import shared_host

PACKAGE = Path(codex_state.__file__).parent
_TERMINAL = "xterm-256color"
EXECUTABLE = Path(sys.executable).with_name("codex-state")


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Stdout, which must be exactly one JSON value."""
        return json.loads(self.stdout)

    @property
    def records(self) -> list[Any]:
        """Stdout, which must be one JSON value per line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class Cli:
    """``codex-state`` for one home, in an environment without any other setting."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self._environment = environment

    def __call__(self, *arguments: str | Path, **environment: str) -> Finished:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(**environment),
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, **environment: str) -> Finished:
        """Run a command that must succeed."""
        done = self(*arguments, **environment)
        assert done.status == 0, done
        return done

    def refused(self, *arguments: str | Path, **environment: str) -> Finished:
        """Run a command that must fail in the one way that is allowed: a line on stderr, and nothing else."""
        done = self(*arguments, **environment)
        assert done.status in {1, 2, 3, 4}, done
        assert done.stdout == "", done
        assert done.stderr.count("\n") == 1, done
        assert done.stderr.startswith("codex-state: error: "), done
        return done

    @contextmanager
    def started(self, *arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A running command, killed at the end if it still runs."""
        with subprocess.Popen(
            self.command(*arguments),
            env=self.environment(**environment),
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def on_terminal(self, *arguments: str | Path, columns: int, **environment: str) -> Finished:
        """Run a command on a terminal of the given width. What it prints on both streams is its ``stdout``."""
        with _terminal(columns) as (ours, theirs):
            process = subprocess.Popen(
                self.command(*arguments),
                env=self.environment(TERM=_TERMINAL, **environment),
                cwd=self.home.parent,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            )
            os.close(theirs)
            with process:
                shown = _read_all(ours)
                status = process.wait(timeout=60)
        return Finished(status, shown, "")

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line."""
        return [str(EXECUTABLE), *map(str, arguments)]

    def environment(self, **more: str) -> Mapping[str, str]:
        """The environment: the path and the home, and what a test adds."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home.parent),
            "LANG": "C.UTF-8",
            "CODEX_HOME": str(self.home),
            "PYTHONPATH": str(PACKAGE.parent),  # of the code that is tested, whichever is installed
            **self._environment,
            **more,
        }


class InProcess(Cli):
    """The same, without a process: with its own standard streams, environment and logging."""

    def __call__(self, *arguments: str | Path, **environment: str) -> Finished:
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        log = logging.getLogger("codex_state")
        before = log.handlers, log.level, log.propagate
        try:
            with (
                patch.dict(os.environ, self.environment(**environment), clear=True),
                redirect_stdout(stdout),
                redirect_stderr(stderr),
            ):
                status = run([str(argument) for argument in arguments])
        finally:
            log.handlers, log.level, log.propagate = before
        return Finished(status, *(_written(stream) for stream in (stdout, stderr)))

    def on_terminal(self, *arguments: str | Path, columns: int, **environment: str) -> Finished:
        """The same in a process that is forked, which has nothing to import."""
        with _terminal(columns) as (ours, theirs):
            process = shared_host().start(
                "tests.cli_terminal:run_on",
                terminal=os.ttyname(theirs),
                arguments=[str(argument) for argument in arguments],
                environment=self.environment(TERM=_TERMINAL, **environment),
                directory=self.home.parent,
            )
            assert process.receive() == "open"
            os.close(theirs)
            shown = _read_all(ours)
            status = process.receive()
            process.close()
        return Finished(status, shown, "")


@contextmanager
def _terminal(columns: int) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of the given width. The second is for whoever runs on it, to be closed by its giver."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _written(stream: io.TextIOWrapper) -> str:
    buffer = stream.detach()
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def _read_all(terminal: int) -> str:
    shown = b""
    with suppress(OSError):  # what Linux says when nobody has the terminal open any more
        while part := os.read(terminal, 65536):
            shown += part
    return shown.decode().replace("\r\n", "\n")
