"""An Alembic plugin that compares the indexes of SQLite tables by their definitions.

Alembic goes by SQLAlchemy's reflection, which doesn't see the directions of an SQLite index, and so takes an index over
``updated_at DESC`` for another one than it is. SQLite keeps the text of each definition, which tells all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import CreateIndexOp, DropIndexOp, ModifyTableOps
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, Table, text
from sqlalchemy.schema import CreateIndex

NAME = "codex_state.sqlite_indexes"


def _compare(
    context: AutogenContext,
    changes: ModifyTableOps,
    _schema: str | None,
    table: str,
    _found: Table | None,
    expected: Table | None,
) -> PriorityDispatchResult:
    if expected is not None and context.connection is not None:
        definitions = _definitions(context.connection, table)
        wanted = {str(index.name): index for index in expected.indexes}
        for name in sorted(definitions.keys() | wanted.keys()):
            index = wanted.get(name)
            definition = None if index is None else str(CreateIndex(index).compile(dialect=context.dialect))
            if definitions.get(name) == definition:
                continue
            if name in definitions:
                changes.ops.append(DropIndexOp(name, table))
            if index is not None:
                changes.ops.append(CreateIndexOp.from_index(index))
    return PriorityDispatchResult.STOP  # Alembic's own comparison isn't made


@contextmanager
def compared_by_definition() -> Iterator[None]:
    """For the block, have SQLAlchemy not warn of indexes that it can't reflect: they are compared without it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index idx_threads_")
        yield


def _definitions(connection: Connection, table: str) -> dict[str, str]:
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL"),
        {"table": table},
    )
    return {row.name: " ".join(row.sql.split()) for row in rows}


Plugin(NAME).add_autogenerate_comparator(
    _compare, "table", "indexes", qualifier="sqlite", priority=DispatchPriority.FIRST
)
