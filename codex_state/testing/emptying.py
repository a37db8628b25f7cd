"""A database without rows, for tests that share one."""

from __future__ import annotations

from codex_state.database import Database
from codex_state.models import metadata


def empty(database: Database) -> None:
    """Delete all rows of all of the state's tables."""
    with database.begin() as session:
        for table in reversed(metadata.sorted_tables):
            session.connection().execute(table.delete())
