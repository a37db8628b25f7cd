"""Runs commands without the privileges by which root reads what it isn't allowed to: ``python unprivileged.py JSON``.

One process runs several, in turn, and answers with their exit statuses and outputs. What is raised is in the output.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

PRIVILEGES = "-dac_override,-dac_read_search"


def can_be_given_up() -> bool:
    """Whether there are none, or a program that runs others without them."""
    return os.geteuid() != 0 or shutil.which("setpriv") is not None


def run(home: Path, *commands: str, **environment: str) -> list[tuple[int, str]]:
    """Run commands on a home without the privileges: the exit status and both outputs of each."""
    prefix = ["setpriv", "--bounding-set", PRIVILEGES, "--inh-caps", PRIVILEGES] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, sys.executable, __file__, json.dumps([command.split() for command in commands])],
        env={"PATH": os.environ["PATH"], "HOME": str(home.parent), "CODEX_HOME": str(home), **environment}
        | {"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [(status, text) for status, text in json.loads(done.stdout)]


def _main(commands: Sequence[Sequence[str]]) -> None:
    from codex_state.cli.entry import run as run_command

    answers = []
    for command in commands:
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with redirect_stdout(output), redirect_stderr(output):
            try:
                status = run_command(command)
            except BaseException:  # noqa: BLE001 - it is what is looked for
                status = -1
                traceback.print_exc(file=output)
        answers.append([status, output.buffer.getvalue().decode()])  # type: ignore[attr-defined]
    print(json.dumps(answers))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
