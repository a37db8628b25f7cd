"""The tools that threads were started with."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import bindparam
from sqlalchemy.dialects.postgresql import insert

from codex_state.database.execute import atomically, by_index
from codex_state.models import DynamicTool
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText
from codex_state.repositories.base import Repository, select_entity

_tools = table_of(DynamicTool)

_GET = (
    select_entity(DynamicTool)
    .where(_tools.c.thread_id == bindparam("of_thread", type_=UuidText()))
    .order_by(_tools.c.position)
)
_PERSIST = (
    insert(_tools)
    .values({column.key: bindparam(column.key, type_=column.type) for column in _tools.columns})
    .on_conflict_do_nothing(index_elements=["thread_id", "position"])
)


class DynamicToolRepository(Repository):
    """Reads and writes of the ``thread_dynamic_tools`` table."""

    def get(self, thread_id: UUID) -> list[DynamicTool] | None:
        """The thread's tools in their order, or ``None`` when it has none."""
        return self._entities(DynamicTool, _GET, {"of_thread": thread_id}) or None

    def persist(self, tools: Iterable[DynamicTool]) -> None:
        """Store tools, of one thread or of many. A position that is stored already stays as it is.

        Tools are defined when a thread starts, so what was stored first is right. Call it in a transaction when there
        is more than one tool: it isn't one statement.

        Raises:
            IntegrityViolationError: a tool's thread has no row.
        """
        rows = [tool.column_values() for tool in tools]
        if rows:
            connection = self._connection
            with atomically(connection), by_index(connection):
                self._many(_PERSIST, rows)
