"""Rows of every table, at any revision, and reading them back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, inspect, text

from codex_state.migrations.revision import our_tables

Rows = dict[str, list[dict[str, Any]]]

FIRST = "0195fd6c-6a00-7000-8000-000000000001"
SECOND = "0195fd6c-6a00-7000-8000-000000000002"
SESSION = "0195fd6c-6a00-7000-8000-0000000000aa"

_THREAD = {
    "created_at": 1770000000,
    "updated_at": 1770000060,
    "source": "cli",
    "model_provider": "openai",
    "cwd": "/code/größer",
    "sandbox_policy": '{"type":"read-only"}',
    "approval_mode": "on-request",
    # Of later revisions:
    "agent_nickname": "scout",
    "agent_role": "explorer",
    "agent_path": "/root/scout",
    "memory_mode": "polluted",
    "model": "gpt-5",
    "reasoning_effort": "high",
    "home": "local",
    "name": "hello",
    "name_at": 1770000050,
    "original_name": "hello there",
    "preview": "make all tests pass",
    "thread_source": "user",
    "originator": "codex_cli",
    "parent_thread_id": SESSION,
    "forked_from_id": SESSION,
    "memory_mode_chosen_at": 1770000040,
    "gone_at": 1770000030,
    "pinned": 1,
    "turns": 3,
    "tokens_inherited": 7,
    "tokens_input": 2**40,
    "tokens_cached": 5,
    "tokens_output": 6,
    "tokens_reasoning": 4,
}

_JOB = {
    "scope_kind": "cwd",
    "scope_key": "/code/größer",
    "owner_session_id": SESSION,
    "started_at": 1770000100,
    "source_updated_at": 1770000060,
    "ownership_token": "f00d",
    "owner_name": "otter process 7",
    "owner_process": "boot:4026531836:7:100",
    "lease_seconds": 3600,
    # Of later revisions:
    "attempt": 3,
    "retry_at": 1770009999,
    "failures": 2,
}

SAMPLES: Rows = {
    "threads": [
        {
            **_THREAD,
            "id": FIRST,
            "rollout_path": "/home/a/sessions/first.jsonl",
            "title": "hello",
            "tokens_used": 2**40,
            "git_sha": "abc",
            "git_branch": "main",
            "git_origin_url": "git@example.org:a.git",
            "cli_version": "0.99.0",
            "first_user_message": "hello",
        },
        {
            **_THREAD,
            "id": SECOND,
            "rollout_path": "/home/a/archived_sessions/second.jsonl",
            "title": "hello",
            "first_user_message": "hello",
            "archived": 1,
            "archived_at": 1770000070,
        },
    ],
    "thread_dynamic_tools": [
        {
            "thread_id": FIRST,
            "position": position,
            "name": f"tool{position}",
            "description": "does things",
            "input_schema": '{"type":"object"}',
            "defer_loading": position,
            "namespace": "web",
        }
        for position in (0, 1)
    ],
    "logs": [{"ts": 1770000000, "ts_nanos": 7, "level": "INFO", "target": "t", "message": "m", "thread_id": FIRST}],
    "log_segments": [{"last_id": 2**40, "lines": 1000, "size": 2**20, "closed_at": 1770000000}],
    "thread_memory": [
        {
            "thread_id": thread,
            "scope_kind": kind,
            "scope_key": kind,
            "raw_memory": "raw",
            "memory_summary": "summary",
            "updated_at": 1770000200,
            "last_used_at": 1770000300,
            "used_count": 2,
        }
        for thread in (FIRST, SECOND)
        for kind in ("cwd", "user")
    ],
    "memory_phase1_jobs": [
        {**_JOB, "thread_id": FIRST, "status": "running"},
        {**_JOB, "thread_id": SECOND, "status": "failed", "finished_at": 1770000150, "failure_reason": "no model"},
        {**_JOB, "thread_id": SECOND, "status": "succeeded", "scope_kind": "user", "finished_at": 1770000150},
    ],
    "rollout_files": [
        {
            "home": "local",
            "path": "sessions/first.jsonl",
            "thread_id": FIRST,
            "size": 2**40,
            "mtime_ns": 1770000060123456789,
            "state": "failed",
            "error": "it's “one”",
            "parse_errors": 1,
            "unknown_lines": 2,
        }
    ],
    "memory_scope_dirty": [{"scope_kind": "cwd", "scope_key": "/code/größer", "dirty": 1, "updated_at": 1770000200}],
    "memory_consolidation_locks": [
        {
            "cwd": "/code/a",
            "working_thread_id": SESSION,
            "updated_at": 1770000400,
            "ownership_token": "cafe",
            "owner_name": "otter process 7",
            "owner_process": "boot:4026531836:7:100",
            "lease_seconds": 600,
        },
        {"cwd": "/code/b", "working_thread_id": SESSION, "updated_at": 1770000500, "ownership_token": "beef"},
    ],
}
"""One value for every column that ever was, but for the backfill's row, which the schema brings along."""


def insert_samples(connection: Connection) -> None:
    """Insert a row or more into every table that the revision has, with the columns that it has there."""
    tables = set(inspect(connection).get_table_names())
    for table, rows in SAMPLES.items():
        if table not in tables:
            continue
        present = {column["name"] for column in inspect(connection).get_columns(table)}
        for row in rows:
            insert(connection, table, {name: value for name, value in row.items() if name in present})
    connection.execute(
        text(
            "UPDATE backfill_state SET status = 'running', last_watermark = 'sessions/x.jsonl', updated_at = 1770000600"
        )
    )


def insert(connection: Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row by plain SQL."""
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def update(connection: Connection, statement: str) -> None:
    """Run plain SQL that changes rows."""
    connection.execute(text(statement))


def read_all(connection: Connection) -> Rows:
    """Every row of every table of ours."""
    tables = sorted(our_tables() & set(inspect(connection).get_table_names()))
    return {table: read(connection, table) for table in tables}


def read(connection: Connection, table: str) -> list[dict[str, Any]]:
    """Every row of a table, in the order of their texts; ids are texts on both databases."""
    found = connection.execute(text(f"SELECT * FROM {table}")).mappings()
    rows = [{name: str(value) if isinstance(value, UUID) else value for name, value in row.items()} for row in found]
    return sorted(rows, key=lambda row: str(sorted(row.items())))


def in_common(rows: Rows, other: Rows) -> Rows:
    """``rows`` with only the tables and columns that ``other`` has as well."""
    common: Rows = {}
    for table in rows.keys() & other.keys():
        columns = set(rows[table][0]) & set(other[table][0]) if rows[table] and other[table] else set()
        picked = [{name: row[name] for name in columns} for row in rows[table]]
        common[table] = sorted(picked, key=lambda row: str(sorted(row.items())))
    return common
