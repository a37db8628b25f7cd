"""The schema of a new database without every migration again: Alembic makes each revision once in a test process.

To migrate a file from nothing is a third of a second of computing, and most tests of whole states open one that is new.
What Alembic made of the first is written into the others. All that is around it stays: the lock, the transaction, the
checks before and after. Tests of migrations have Alembic itself run each time (``tests/migrations``), and so have all
processes that tests start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event

from codex_state.migrations import runner
from codex_state.migrations.environment import configuration

_REVISIONS = [script.revision for script in reversed([*ScriptDirectory.from_config(configuration()).walk_revisions()])]

_migrate = runner._run
_statements: dict[str, dict[str, list[tuple[str, Any]]]] = {}
"""What makes each revision from nothing, on each kind of database."""


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
    if not down and _is_empty(connection):
        kind = connection.dialect.name
        if kind not in _statements:  # one thread of a process is here at a time
            _statements[kind] = _recorded(connection)
        if revision in _statements[kind]:
            for statement, parameters in _statements[kind][revision]:
                connection.exec_driver_sql(statement, parameters)
            return
    _migrate(connection, revision, down=down, accept_loss=accept_loss)


def _recorded(connection: Connection) -> dict[str, list[tuple[str, Any]]]:
    """Make each revision from the one before, and take all of them back."""
    said: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        said.append((statement, parameters))

    made = {}
    everything = connection.begin_nested()
    event.listen(connection, "before_cursor_execute", note)
    try:
        for revision in _REVISIONS:
            _migrate(connection, revision, down=False, accept_loss=False)
            made[revision] = _dump(connection) if connection.dialect.name == "sqlite" else [*said]
    finally:
        event.remove(connection, "before_cursor_execute", note)
        everything.rollback()
    return made


def _dump(connection: Connection) -> list[tuple[str, Any]]:
    """Less than what was said: on SQLite, most of that is tables that are made anew."""
    driver = connection.connection.driver_connection
    assert driver is not None
    return [(line, ()) for line in driver.iterdump() if line not in {"BEGIN TRANSACTION;", "COMMIT;"}]


def _is_empty(connection: Connection) -> bool:
    if connection.dialect.name == "sqlite":
        return connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() == 0
    own = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    return connection.exec_driver_sql(own).scalar_one() == 0
