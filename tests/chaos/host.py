"""A process that makes workers by forking, so that a worker costs milliseconds instead of a second of imports.

It has one thread and opens no database, so its children inherit nothing but code. It serves one parent over a socket
and, when that goes away, ends the children that it started and itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import traceback
from typing import Any

from sqlalchemy.orm import configure_mappers

from tests.chaos.channel import Channel


class Host:
    """Serves requests to start workers and to tell what became of them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: set[int] = set()

    def serve(self) -> None:
        try:
            while request := self._next():
                message, descriptors = request
                self._control.sendall(json.dumps(self._answer(message, descriptors)).encode() + b"\n")
        finally:
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        data, descriptors, _flags, _address = socket.recv_fds(self._control, 1 << 16, 1)
        while data and not data.endswith(b"\n"):
            data += self._control.recv(1 << 16)
        return (json.loads(data), descriptors) if data else None

    def _answer(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if "function" in message:
            return {"pid": self._start(message, descriptors[0])}
        pid: int = message["pid"]
        if pid not in self._running:
            return {"event": None}
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if found == 0:
            return {"event": None}
        if os.WIFSTOPPED(status):
            return {"event": "stopped"}
        if os.WIFCONTINUED(status):
            return {"event": "continued"}
        self._running.remove(pid)
        return {"event": "ended", "status": os.waitstatus_to_exitcode(status)}

    def _start(self, message: dict[str, Any], descriptor: int) -> int:
        module, _, name = message["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._running.add(pid)
            return pid
        self._control.close()
        self._running.clear()
        random.seed()
        channel = Channel(socket.socket(fileno=descriptor))
        status = 1
        try:
            function(channel, **message["arguments"])
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent must hear of it
            with contextlib.suppress(OSError):
                channel.send({"error": traceback.format_exc()})
        os._exit(status)


def _import_early() -> None:
    """Import and prepare what every worker needs, once instead of in each of them."""
    import codex_state.runtime  # noqa: F401

    with contextlib.suppress(ImportError):
        importlib.import_module("psycopg")
    configure_mappers()


if __name__ == "__main__":
    _import_early()
    Host(socket.socket(fileno=int(sys.argv[1]))).serve()
