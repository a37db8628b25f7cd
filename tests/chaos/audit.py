"""A record of every change of every lease, kept by the database itself.

Triggers write it in the transaction of the change, so nothing is missing of what a killed process did, and nothing is
in it that was rolled back. On SQLite, with its one writer, the order of the records is the order of the commits; on
PostgreSQL it is that order for the changes of one row, which hold its lock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from codex_state.database import Database
from codex_state.models import metadata

TABLE = "chaos_audit"

JOBS, MEMORIES, SCOPES = "memory_phase1_jobs", "thread_memory", "memory_scope_dirty"
LOCKS, BACKFILLS, THREADS = "memory_consolidation_locks", "backfill_state", "threads"

_FENCES = {
    # Who held the work at the moment of a write that is made under a lease but goes to another table.
    MEMORIES: (
        "(SELECT ownership_token FROM memory_phase1_jobs AS held WHERE held.thread_id = NEW.thread_id "
        "AND held.scope_kind = NEW.scope_kind AND held.scope_key = NEW.scope_key AND held.status = 'running')"
    ),
    SCOPES: "(SELECT ownership_token FROM memory_consolidation_locks AS held WHERE held.cwd = NEW.scope_key)",
    THREADS: (
        "(SELECT ownership_token FROM backfill_state AS held WHERE held.home = NEW.home AND held.status = 'running')"
    ),
}

_CREATE_TABLE = f"""
CREATE TABLE {TABLE} (
    number {{number}}, name TEXT NOT NULL, old TEXT, new TEXT, now BIGINT NOT NULL, fence TEXT
)
"""
_CREATE_FUNCTION = f"""
CREATE FUNCTION audit_{{table}}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {TABLE} (name, old, new, now, fence) VALUES (
        '{{table}}',
        CASE WHEN TG_OP <> 'INSERT' THEN to_json(OLD)::text END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_json(NEW)::text END,
        {{now}},
        {{fence}}
    );
    RETURN NULL;
END
$$
"""
_CREATE_TRIGGER = (
    "CREATE TRIGGER audit_{table} AFTER INSERT OR UPDATE OR DELETE ON {table} "
    "FOR EACH ROW EXECUTE FUNCTION audit_{table}()"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One change of one row."""

    number: int
    table: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    now: int
    """The database's time of the change."""
    fence: str | None
    """The token under which the row might be changed, as it was then."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Which row."""
        row = self.new or self.old
        assert row is not None
        return tuple(row[column.name] for column in metadata.tables[self.table].primary_key)


def install(database: Database, now: str) -> None:
    """Record from now on. ``now`` is the SQL of the database's time."""
    statements = _for_sqlite(now) if database.dialect == "sqlite" else _for_postgresql(now)
    with database.begin() as session:
        for statement in statements:
            session.connection().exec_driver_sql(statement)


def _columns(table: str, row: str) -> str:
    return ", ".join(f"'{column.name}', {row}.{column.name}" for column in metadata.tables[table].columns)


def _for_sqlite(now: str) -> list[str]:
    statements = [_CREATE_TABLE.format(number="INTEGER PRIMARY KEY AUTOINCREMENT")]
    for table in (JOBS, MEMORIES, SCOPES, LOCKS, BACKFILLS, THREADS):
        fence = _FENCES.get(table, "NULL")
        for event, old, new in (
            ("INSERT", "NULL", f"json_object({_columns(table, 'NEW')})"),
            ("UPDATE", f"json_object({_columns(table, 'OLD')})", f"json_object({_columns(table, 'NEW')})"),
            ("DELETE", f"json_object({_columns(table, 'OLD')})", "NULL"),
        ):
            held = "NULL" if event == "DELETE" else fence
            statements.append(
                f"CREATE TRIGGER audit_{table}_{event} AFTER {event} ON {table} BEGIN "
                f"INSERT INTO {TABLE} (name, old, new, now, fence) "
                f"VALUES ('{table}', {old}, {new}, {now}, {held}); END"
            )
    return statements


def _for_postgresql(now: str) -> list[str]:
    statements = [_CREATE_TABLE.format(number="BIGSERIAL PRIMARY KEY")]
    for table in (JOBS, MEMORIES, SCOPES, LOCKS, BACKFILLS, THREADS):
        fence = f"CASE WHEN TG_OP <> 'DELETE' THEN {_FENCES[table]} END" if table in _FENCES else "NULL"
        statements += [
            _CREATE_FUNCTION.format(table=table, now=now, fence=fence),
            _CREATE_TRIGGER.format(table=table),
        ]
    return statements


def records(database: Database) -> list[Record]:
    """Everything that was recorded, in order."""
    with database.read() as session:
        rows = session.connection().execute(
            text(f"SELECT number, name, old, new, now, fence FROM {TABLE} ORDER BY number")
        )
        return [Record(row.number, row.name, _loaded(row.old), _loaded(row.new), row.now, row.fence) for row in rows]


def last_number(database: Database) -> int:
    """The number of the last record that is committed."""
    with database.read() as session:
        found: int | None = session.connection().execute(text(f"SELECT max(number) FROM {TABLE}")).scalar_one()
    return found or 0


def _loaded(row: str | None) -> dict[str, Any] | None:
    return None if row is None else json.loads(row)
