"""A database's schema as a value: everything that its catalogue tells, also what Alembic doesn't compare."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, inspect

from codex_state.migrations.revision import our_tables

Schema = dict[str, dict[str, Any]]


def describe(connection: Connection) -> Schema:
    """The tables of ours that are there: columns, constraints, indexes, by their names."""
    tables = sorted(our_tables() & set(inspect(connection).get_table_names()))
    of_table = _sqlite_table if connection.dialect.name == "sqlite" else _postgresql_table
    return {table: of_table(connection, table) for table in tables}


def _sqlite_table(connection: Connection, table: str) -> dict[str, Any]:
    inspector = inspect(connection)
    rows = connection.exec_driver_sql
    definition = rows("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).scalar_one()
    indexes = {
        row.name: (
            row.unique,
            row.partial,
            [(key.name, key.desc, key.coll) for key in rows(f"PRAGMA index_xinfo({row.name})") if key.key],
        )
        for row in rows(f"PRAGMA index_list({table})").all()
        if row.origin == "c"
    }
    return {
        "columns": {
            row.name: (row.type, row.notnull, row.dflt_value, row.hidden)
            for row in rows(f"PRAGMA table_xinfo({table})")
        },
        "primary key": inspector.get_pk_constraint(table),
        "foreign keys": inspector.get_foreign_keys(table),
        "on delete": [(row.table, row.on_delete, row.on_update) for row in rows(f"PRAGMA foreign_key_list({table})")],
        "checks": {check["name"]: check["sqltext"] for check in inspector.get_check_constraints(table)},
        "indexes": indexes,
        "autoincrement": "AUTOINCREMENT" in definition,
    }


def _postgresql_table(connection: Connection, table: str) -> dict[str, Any]:
    def named(statement: str) -> dict[str, Any]:
        rows = connection.exec_driver_sql(statement, (table,)).all()
        return {name: tuple(rest) for name, *rest in rows}

    return {
        "columns": named(
            "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, "
            "pg_get_expr(adbin, adrelid), collname "
            "FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
            "LEFT JOIN pg_collation ON pg_collation.oid = attcollation "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        ),
        "constraints": named(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = %s::regclass AND contype <> 'n'"
        ),
        "indexes": named(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass"
        ),
    }
