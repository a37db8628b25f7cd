"""What users have built on our tables in an SQLite file: views, triggers and indexes survive a migration.

SQLite changes a table by making another one in its place. That fails where a view names the table, and silently takes
triggers and some indexes with it. So views and triggers are set aside meanwhile, in the migration's own transaction. On
PostgreSQL nothing needs to be set aside: a change that a view stands in the way of is refused, with the view's name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection

from codex_state.errors import SchemaError

_OURS = "idx_"
"""Each index of ours is called so."""


class _Guest(NamedTuple):
    kind: str
    name: str
    sql: str


@contextmanager
def set_aside(connection: Connection) -> Iterator[None]:
    """Keep users' views, triggers and indexes through what the block does to the schema.

    Raises:
        SchemaError: one of them names something that the new schema hasn't. The block's transaction is to be rolled
            back.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    guests = _guests(connection)
    usable = {guest.name for guest in guests if guest.kind == "view" and _refusal(connection, guest) is None}
    for guest in reversed(guests):
        if guest.kind != "index":
            connection.exec_driver_sql(f"DROP {guest.kind.upper()} IF EXISTS {_quoted(guest.name)}")
    yield
    there = {guest.name for guest in _guests(connection)}
    for guest in guests:
        if guest.name in there:
            continue
        try:
            connection.exec_driver_sql(guest.sql)
        except Exception as error:
            raise _in_the_way(guest, error) from error
    for guest in guests:
        if guest.name in usable and (refusal := _refusal(connection, guest)) is not None:
            raise _in_the_way(guest, refusal)


def _guests(connection: Connection) -> list[_Guest]:
    rows = connection.exec_driver_sql(
        "SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger', 'index') AND sql IS NOT NULL "
        "ORDER BY type = 'trigger', rowid"  # a view may have triggers
    )
    return [_Guest(*row) for row in rows if not (row.type == "index" and row.name.startswith(_OURS))]


def _refusal(connection: Connection, view: _Guest) -> Exception | None:
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        driver.execute(f"SELECT 1 FROM {_quoted(view.name)} LIMIT 0")  # noqa: S608 - a name of the schema
    except sqlite3.Error as error:
        return error
    return None


def _in_the_way(guest: _Guest, error: Exception) -> SchemaError:
    return SchemaError(
        f"the {guest.kind} {guest.name} can't stay as it is in the new schema ({error}); drop it, migrate, and create "
        "it anew. Nothing was changed"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
