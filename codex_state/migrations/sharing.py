"""For the ``env.py`` of a service whose tables, with an Alembic history of their own, are in the same database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codex_state.migrations.stored import our_tables
from codex_state.state_files import VERSION_TABLE


def is_codex_state_table(name: str | None) -> bool:
    """Whether codex-state has, or at some revision had, a table of this name, counting the one of its revision."""
    return name == VERSION_TABLE or name in our_tables()


def except_codex_state(name: str | None, kind: str, parents: Mapping[Any, str | None]) -> bool:
    """Alembic's ``include_name`` of a service: without it, the service's autogeneration would drop our tables.

    In its ``env.py``: ``context.configure(..., include_name=except_codex_state)``, with a ``target_metadata`` that is
    the service's own.

    Args:
        name: the name of something that Alembic found in the database.
        kind: what it is, such as ``"table"``.
        parents: where it is, with its schema as ``"schema_name"``.

    Returns:
        False for a table of ours in the default schema. If ours are in another one and the service compares that too,
        it needs a function of its own, with ``is_codex_state_table``.
    """
    return kind != "table" or parents.get("schema_name") is not None or not is_codex_state_table(name)
