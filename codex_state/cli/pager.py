"""Long output on a terminal goes through the user's pager, as it is made."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_OPTIONS = {"LESS": "FRX", "LV": "-c"}
"""How pagers show colours and leave what fits on a screen there, unless the user said otherwise."""


@contextmanager
def paged(*, wanted: bool = True) -> Iterator[IO[str] | None]:
    """Where to write what may be long: the pager's input, or ``None`` for stdout itself.

    There is no pager when stdout is no terminal, when none is wanted, and when ``$CODEX_STATE_PAGER``, else ``$PAGER``,
    is empty or ``cat``. The block ends quietly when the user leaves the pager.
    """
    command = _command() if wanted and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
    if command is None:
        yield None
        return
    sys.stdout.flush()
    pager = subprocess.Popen(  # noqa: S603 - the user's own choice
        command,
        stdin=subprocess.PIPE,
        env=_OPTIONS | os.environ,
        encoding=sys.stdout.encoding,
        errors="replace",
    )
    assert pager.stdin is not None
    # Ctrl-C is the pager's, which shares the terminal.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with suppress(BrokenPipeError):
            yield pager.stdin
    finally:
        with suppress(BrokenPipeError):
            pager.stdin.close()
        pager.wait()
        signal.signal(signal.SIGINT, before)


def _command() -> list[str] | None:
    chosen = os.environ.get("CODEX_STATE_PAGER", os.environ.get("PAGER", "less"))
    try:
        command = shlex.split(chosen)
    except ValueError:
        return None
    found = shutil.which(command[0]) if command and command != ["cat"] else None
    return None if found is None else [found, *command[1:]]
