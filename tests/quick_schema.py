"""The schema of a new SQLite file without every migration again: Alembic makes it once in each test process.

To migrate a file from nothing is a third of a second of computing, and most tests of whole states open one that is new.
What Alembic made of the first is written into the others. All that is around it stays: the lock, the transaction, the
checks before and after. Tests of migrations have Alembic itself run each time (``tests/migrations``), and so have all
processes that tests start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from sqlalchemy import Connection

from codex_state.migrations import runner

_migrate = runner._run
_statements: dict[str, list[str]] = {}
"""What makes each revision from nothing."""


@contextmanager
def written_at_once() -> Iterator[None]:
    """Within the block, new SQLite files get the schema as it was made for the first of them."""
    with patch.object(runner, "_run", _write):
        yield


@contextmanager
def made_by_alembic() -> Iterator[None]:
    """Within the block, Alembic makes the schema, whatever is around it."""
    with patch.object(runner, "_run", _migrate):
        yield


def _write(connection: Connection, revision: str, *, down: bool, accept_loss: bool) -> None:
    if connection.dialect.name != "sqlite" or not _is_empty(connection):
        _migrate(connection, revision, down=down, accept_loss=accept_loss)
        return
    if revision not in _statements:  # one thread of a process is here at a time
        _migrate(connection, revision, down=down, accept_loss=accept_loss)
        driver = connection.connection.driver_connection
        assert driver is not None
        _statements[revision] = [line for line in driver.iterdump() if line not in {"BEGIN TRANSACTION;", "COMMIT;"}]
        return
    for statement in _statements[revision]:
        connection.exec_driver_sql(statement)


def _is_empty(connection: Connection) -> bool:
    return connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0
