"""Whether a database has exactly the schema of the entities."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, DefaultClause

from codex_state.database.state_files import VERSION_TABLE
from codex_state.migrations.revision import HEAD, current_revision, is_usable, our_tables, usable_revision
from codex_state.models import metadata


def context_options() -> dict[str, Any]:
    """What Alembic is to know of us: our history's table, and how to compare.

    It compares all it can, but only tables of ours, as a service may share the database.
    """
    from codex_state.migrations.environment import INDEXES_PLUGIN
    from codex_state.migrations.steps import note_readers

    return {
        "on_version_apply": (note_readers,),
        "version_table": VERSION_TABLE,
        "target_metadata": metadata,
        "compare_type": True,
        "compare_server_default": _default_differs,
        "include_name": _is_ours,
        "autogenerate_plugins": [
            "alembic.autogenerate.*",
            "alembic.ext.checkconstraint_byname",
            INDEXES_PLUGIN,
        ],
    }


def check(connection: Connection) -> list[str]:
    """How the database's schema differs from the entities', in a sentence each. Empty when it doesn't.

    What a newer schema that this version can use has more isn't told.

    Raises:
        DatabaseError: the database can't be read.
    """
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from codex_state.migrations.environment import compared_by_definition

    differences = []
    revision = current_revision(connection)
    is_newer = revision is not None and revision > HEAD and is_usable(usable_revision(connection))
    if revision != HEAD and not is_newer:
        differences.append(f"the revision is {revision!r} instead of {HEAD!r}")
    context = MigrationContext.configure(connection, opts=context_options())
    with compared_by_definition():
        found = compare_metadata(context, metadata)
    for difference in found:
        # Differences of one column come as a list.
        each = difference if isinstance(difference, list) else [difference]
        differences += [_sentence(one) for one in each if not (is_newer and one[0].startswith("remove_"))]
    return differences


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in our_tables()


def _default_differs(
    _context: object, _found_column: object, _column: object, found: str | None, _default: object, expected: str | None
) -> bool | None:
    # On SQLite, Alembic reads an empty default as ('') and doesn't know it again. It judges the others itself.
    return False if found in {"''", "('')"} and expected == "" else None


def _sentence(difference: tuple[Any, ...]) -> str:
    match difference:
        case ("add_column", _, table, column):
            return f"column {table}.{column.name} is missing"
        case ("remove_column", _, table, column):
            return f"column {table}.{column.name} is not ours"
        case (str(modified), _, table, column, _, found, expected) if modified.startswith("modify_"):
            what = modified.removeprefix("modify_")
            return f"{what} of column {table}.{column} is {_spelled(found)} instead of {_spelled(expected)}"
        case (str(change), item):
            verb, _, kind = change.partition("_")
            of_table = "" if kind == "table" else f" of table {item.table.name}"
            return f"{kind} {item.name}{of_table} is {'missing' if verb == 'add' else 'not ours'}"
        case _:
            return str(difference)


def _spelled(value: Any) -> str:
    return str(value.arg if isinstance(value, DefaultClause) else value)
