"""JSON messages between two processes, one per line."""

from __future__ import annotations

import json
import socket
from typing import Any


class ChannelClosedError(Exception):
    """The other side is gone."""


class Channel:
    """One end of a conversation."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = connection.makefile("rb")

    def send(self, message: object) -> None:
        """Send one message."""
        self._socket.sendall(json.dumps(message, default=str).encode() + b"\n")

    def receive(self, timeout: float | None = None) -> Any:
        """The next message.

        Raises:
            ChannelClosedError: there is none and never will be.
            TimeoutError: there was none for ``timeout`` seconds.
        """
        self._socket.settimeout(timeout)
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ChannelClosedError
        return json.loads(line)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()
