"""A wire between a client and a PostgreSQL server that vanishes: each side has a peer that is silent for ever.

The kernel is told to drop whatever arrives at the wire's own sockets, before TCP sees it. So nothing is acknowledged,
no probe is answered, nothing is refused, and no connection is closed: what is left of a machine without power or behind
a firewall that forgot the connection. The other ends are as they would be with such a peer, and it takes no privileges.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from relay import Relay
from sqlalchemy import URL, make_url

NEEDED = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's socket filters and its tcp_user_timeout")
"""Marks tests in which a peer vanishes."""

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_KEEP_NO_BYTE = struct.pack("HBBI", 6, 0, 0, 0)
"""A program of one instruction for the kernel's packet filter: return 0."""


class VanishingWire(Relay):
    """Forwards bytes both ways between TCP connections, until it vanishes."""

    def vanish(self) -> None:
        """Drop every packet that arrives from now on, those of new connections as well."""
        for end in [self._listener, *self._sockets]:
            _drop_what_arrives(end)

    def come_back(self) -> None:
        """Let new connections be made, as when the machine was started again. Those from before stay silent."""
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def _listen(self, directory: Path) -> tuple[socket.socket, URL]:
        listener = socket.create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        return listener, self._server.set(host=host, port=port)


def _drop_what_arrives(end: socket.socket) -> None:
    program = ctypes.create_string_buffer(_KEEP_NO_BYTE)
    end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


@contextmanager
def vanishing_wire(url: str) -> Iterator[VanishingWire]:
    """A wire in front of the server of ``url``, to which it connects by TCP."""
    opened = VanishingWire(make_url(url), Path(tempfile.gettempdir()))
    try:
        yield opened
    finally:
        opened.close()
