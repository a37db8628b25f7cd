"""Runs commands without the privileges by which root reads what it isn't allowed to.

One process without them loads everything once, and each call runs its commands in a child of it, in turn. It answers
with their exit statuses and outputs; what is raised is in the output.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

PRIVILEGES = "-dac_override,-dac_read_search"
_LOADED = ("cli.app", "migrations.steps", "rollout.backfilling", "doctor.checks", "transfer.backups", "original")


def can_be_given_up() -> bool:
    """Whether there are none, or a program that runs others without them."""
    return os.geteuid() != 0 or shutil.which("setpriv") is not None


class Unprivileged:
    """The process that has given them up."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, home: Path, *commands: str, **environment: str) -> list[tuple[int, str]]:
        """Run commands on a home: the exit status and both outputs of each."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "CODEX_HOME": str(home)} | environment
        request = {"commands": [command.split() for command in commands], "environment": environment}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process without privileges is gone"
        return [(status, text) for status, text in json.loads(answer)]


@contextmanager
def without_privileges() -> Iterator[Unprivileged]:
    """The process, for as long as the block lasts."""
    prefix = ["setpriv", "--bounding-set", PRIVILEGES, "--inh-caps", PRIVILEGES] if os.geteuid() == 0 else []
    with subprocess.Popen(
        [*prefix, sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Unprivileged(process)


def _serve() -> None:
    for module in _LOADED:
        importlib.import_module(f"codex_state.{module}")
    importlib.import_module("codex_state.cli.app").program()
    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(**json.loads(request))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


def _answer(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> None:
    from codex_state.cli.entry import run

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(os.fsencode(environment["HOME"]))
    answers: list[Any] = []
    for command in commands:
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with redirect_stdout(output), redirect_stderr(output):
            try:
                status = run(command)
            except BaseException:  # noqa: BLE001 - it is what is looked for
                status = -1
                traceback.print_exc(file=output)
        answers.append([status, output.buffer.getvalue().decode()])  # type: ignore[attr-defined]
    print(json.dumps(answers))


if __name__ == "__main__":
    _serve()
