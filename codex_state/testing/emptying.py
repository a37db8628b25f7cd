"""A database without rows, for tests that share one."""

from __future__ import annotations

from codex_state.database import Database
from codex_state.models import metadata


def empty(database: Database) -> None:
    """Delete all rows of all of the state's tables."""
    statements = [f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables)]  # noqa: S608
    if database.dialect == "postgresql":
        # In one go: every round trip of every test counts.
        parts = (f"of_{number} AS ({statement})" for number, statement in enumerate(statements))
        statements = [f"WITH {', '.join(parts)} SELECT 1"]
    with database.begin() as session:
        connection = session.connection()
        for statement in statements:
            connection.exec_driver_sql(statement)
