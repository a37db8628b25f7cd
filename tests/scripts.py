"""Runs the text of a program in a process of its own, which is forked and so has nothing to import.

``python -c`` would spend most of a second on that. What depends on a fresh interpreter needs one nevertheless.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.channel import Channel
from tests.chaos.processes import Worker, shared_host

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_NO_MOUNTS_HERE = 77
"""The exit status of a program that can't be given mounts of its own."""


@dataclass(frozen=True)
class Finished:
    """What a program left behind."""

    status: int
    stdout: str
    stderr: str


class Program:
    """A running program."""

    def __init__(self, worker: Worker, streams: tempfile.TemporaryDirectory[str]) -> None:
        self._worker = worker
        self._streams = streams

    def has_ended(self) -> bool:
        """Whether it has ended by now."""
        return self._worker.has_ended()

    def wait(self) -> Finished:
        """Wait for its end."""
        with self._streams as directory:
            status = self._worker.wait()
            self._worker.close()
            if status == _NO_MOUNTS_HERE:
                import pytest

                pytest.skip("needs Linux's mount namespaces")
            return Finished(status, *(Path(directory, name).read_text() for name in ("stdout", "stderr")))


def start(
    text: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    read_only: Path | None = None,
) -> Program:
    """Start a program, in which warnings are errors.

    Args:
        text: its Python.
        arguments: its ``sys.argv[1:]``.
        environment: what is set beside the environment of the tests.
        read_only: a directory that it can't write to, also as root: it sees mounts of its own. Where that can't be
            made, the test is skipped.
    """
    streams = tempfile.TemporaryDirectory()
    worker = shared_host().start(
        "tests.scripts:run_here",
        text=text,
        arguments=[str(argument) for argument in arguments],
        environment=dict(os.environ) | dict(environment or {}),
        streams=streams.name,
        read_only=read_only,
    )
    return Program(worker, streams)


def run(text: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a program to its end, as ``start`` starts it."""
    return start(text, *arguments, environment=environment).wait()


def run_here(
    _channel: Channel,
    text: str,
    arguments: list[str],
    environment: dict[str, str],
    streams: str,
    read_only: str | None,
) -> None:
    """The program's process."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    if read_only is not None:
        try:
            mount_read_only(Path(read_only))
        except (OSError, AttributeError, subprocess.CalledProcessError):
            os._exit(_NO_MOUNTS_HERE)
    warnings.simplefilter("error")
    status: int | str | None = 0
    try:
        exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as exit_:
        status = exit_.code  # type: ignore[assignment]
    except BaseException:  # noqa: BLE001 - as an interpreter would
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def mount_read_only(directory: Path) -> None:
    """Mount a directory onto itself so that nobody can write to it, for this process and its children only.

    Raises:
        OSError: there are no mount namespaces for this user.
        AttributeError: this system has none.
        CalledProcessError: nothing can be mounted.
    """
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if user:
        for name, content in (("uid_map", f"0 {user} 1"), ("setgroups", "deny"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(content)
    for options in (["--make-rprivate", "/"], ["--bind", directory, directory], ["-o", "remount,ro,bind", directory]):
        subprocess.run(["mount", *options], check=True, capture_output=True)
