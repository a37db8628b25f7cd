"""Which rows refer to a thread, in whosever tables: ours, and those of a service that shares the database."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, column, select, table
from sqlalchemy import text as sql

from codex_state.database.execute import execute
from codex_state.models import DynamicTool, Thread
from codex_state.models.base import table_of

_threads = table_of(Thread)

_PARTS_OF_A_THREAD = {table_of(DynamicTool).name}
"""Tables whose rows are written with their thread's, from the same rollout."""

_COLUMNS = [column(name, Text()) for name in ("name", "schema", "referring", "theirs", "ours")]
"""A row for each pair of columns of a foreign key: the key, the table that refers, its column, and ours."""

_FOREIGN_KEYS = {
    "sqlite": sql(
        "SELECT referring.name || '/' || key.id AS name, NULL AS schema, referring.name AS referring, "
        'key."from" AS theirs, coalesce(key."to", \'id\') AS ours '
        "FROM sqlite_master AS referring, pragma_foreign_key_list(referring.name) AS key "
        "WHERE referring.type = 'table' AND lower(key.\"table\") = :threads ORDER BY name"
    ).columns(*_COLUMNS),
    "postgresql": sql(
        "SELECT CAST(key.oid AS text) AS name, schemas.nspname AS schema, referring.relname AS referring, "
        "theirs.attname AS theirs, ours.attname AS ours "
        "FROM pg_constraint AS key "
        "JOIN pg_class AS referring ON referring.oid = key.conrelid "
        "JOIN pg_namespace AS schemas ON schemas.oid = referring.relnamespace "
        "CROSS JOIN LATERAL unnest(key.conkey, key.confkey) AS pair (theirs, ours) "
        "JOIN pg_attribute AS theirs ON theirs.attrelid = key.conrelid AND theirs.attnum = pair.theirs "
        "JOIN pg_attribute AS ours ON ours.attrelid = key.confrelid AND ours.attnum = pair.ours "
        "WHERE key.contype = 'f' AND key.confrelid = CAST(:threads AS regclass) ORDER BY name"
    ).columns(*_COLUMNS),
}


def unreferenced(connection: Connection) -> list[ColumnElement[bool]]:
    """For a statement on ``threads``: conditions that no row of another table refers to the thread."""
    found = execute(connection, _FOREIGN_KEYS[connection.dialect.name], {"threads": _threads.name})
    keys = [list(pairs) for _, pairs in groupby(found, key=lambda row: row.name)]
    return [_no_row_refers_by(pairs) for pairs in keys if pairs[0].referring not in _PARTS_OF_A_THREAD]


def _no_row_refers_by(pairs: list[Any]) -> ColumnElement[bool]:
    referring = table(pairs[0].referring, *(column(pair.theirs) for pair in pairs), schema=pairs[0].schema).alias()
    refers = and_(*(referring.c[pair.theirs] == _threads.c[pair.ours] for pair in pairs))
    return ~select(referring.c[pairs[0].theirs]).where(refers).exists()
