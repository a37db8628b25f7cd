"""A command on a terminal, in a process forked from one that has imported the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import rich.progress
import rich.table
import typer.main

import codex_state.cli.app
from codex_state.cli.entry import run
from tests.chaos.channel import Channel

__all__ = ["codex_state", "rich", "run_on", "typer"]

codex_state.cli.app.program()  # loads every command, which processes that are forked from here needn't


def run_on(
    channel: Channel, terminal: str, arguments: list[str], environment: Mapping[str, str], directory: str
) -> None:
    """Run a command with ``terminal`` as all three of its streams. Tells its exit status."""
    opened = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for number in range(3):
        os.dup2(opened, number)
    os.close(opened)
    channel.send("open")
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", buffering=1)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    channel.send(status)
