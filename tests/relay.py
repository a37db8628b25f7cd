"""A wire between a client and a PostgreSQL server that can be frozen: the server is there and doesn't answer."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, make_url

_PORT = 5432


class Relay:
    """Forwards bytes both ways, unless it is frozen."""

    def __init__(self, server: URL, directory: Path) -> None:
        """Listen in ``directory`` for connections to ``server``."""
        self._server = server
        self._listener, self.url = self._listen(directory)
        """Where clients of the relay connect to."""
        self._flowing = threading.Event()
        self._flowing.set()
        self._answering = threading.Event()
        self._answering.set()
        self._closing = False
        self.is_holding_back = False
        """Whether something came while it was frozen."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _listen(self, directory: Path) -> tuple[socket.socket, URL]:
        path = directory / f".s.PGSQL.{_PORT}"
        path.unlink(missing_ok=True)  # an earlier relay's
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        return listener, self._server.set(host=None, port=None, query={"host": str(directory)})

    def freeze(self) -> None:
        """Let nothing through from now on; connections stay open."""
        self._flowing.clear()

    def freeze_answers(self) -> None:
        """Let nothing come back from now on; what clients send still arrives, and the server acts on it."""
        self._answering.clear()

    def thaw(self) -> None:
        """Deliver what was held back."""
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        """Break every connection, as a server does that dies. New ones can be made."""
        # Not those that are made meanwhile, because the first ones broke.
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut every connection and refuse new ones."""
        self._closing = True
        self.thaw()
        for end in [self._listener, *self._sockets]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in [self._listener, *self._sockets]:
            end.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            self._sockets += [client, server]
            self._start(self._pump, client, server, self._flowing)
            self._start(self._pump, server, client, self._answering)

    def _connect(self) -> socket.socket:
        directory = self._server.query.get("host")
        if isinstance(directory, str) and directory.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{directory}/.s.PGSQL.{self._server.port or _PORT}")
            return server
        return socket.create_connection((self._server.host or "localhost", self._server.port or _PORT))

    def _pump(self, source: socket.socket, target: socket.socket, passing: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.is_holding_back |= not passing.is_set()
                passing.wait()
                self._flowing.wait()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """A relay in front of the server of ``url``."""
    # Short, because the path of a Unix socket may have about 100 characters only.
    directory = Path(tempfile.mkdtemp(prefix="relay-"))
    opened = Relay(make_url(url), directory)
    try:
        yield opened
    finally:
        opened.close()
        shutil.rmtree(directory)
