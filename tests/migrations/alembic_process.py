"""``alembic`` at the checkout's root, in a process of its own that was forked from one that has imported it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import alembic.command  # noqa: F401 - before the fork
from alembic.config import main

from tests.chaos.channel import Channel
from tests.chaos.processes import WorkerHost

ROOT = Path(__file__).parents[2]


class Alembic:
    """The command."""

    def __init__(self, host: WorkerHost) -> None:
        self._host = host

    def __call__(self, *arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run it with the environment variables that are given, and none of ours besides."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CODEX_")}
        worker = self._host.start(
            "tests.migrations.alembic_process:work", arguments=arguments, environment=kept | variables, cwd=cwd
        )
        try:
            return subprocess.CompletedProcess(["alembic", *arguments], *worker.receive())
        finally:
            worker.close()

    def ok(self, *arguments: str, cwd: Path = ROOT, **variables: str) -> str:
        """What it writes to stdout. It must succeed."""
        answer = self(*arguments, cwd=cwd, **variables)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout


def work(channel: Channel, arguments: Sequence[str], environment: Mapping[str, str], cwd: str) -> None:
    """The worker: answers with the exit status, stdout and stderr."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        os.dup2(stdout.fileno(), sys.stdout.fileno())
        os.dup2(stderr.fileno(), sys.stderr.fileno())
        status = _status_of(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        channel.send([status, *(os.pread(file.fileno(), 1 << 20, 0).decode() for file in (stdout, stderr))])


def _status_of(arguments: Sequence[str]) -> int:
    try:
        main(arguments, prog="alembic")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:  # noqa: BLE001 - as Python itself ends with it
        traceback.print_exc()
        return 1
    return 0
