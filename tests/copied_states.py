"""States with rows in every table, among them odd ones, and what a database holds of them in plain values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Connection

from codex_state.database import Database
from codex_state.models import metadata
from codex_state.models.base import StateModel, entities
from codex_state.runtime import StateRuntime
from codex_state.transfer.tables import OF_ONE_DATABASE

MODELS: dict[str, type[StateModel]] = {mapper.local_table.name: mapper.class_ for mapper in entities.mappers}  # type: ignore[attr-defined]

LARGEST = 2**63 - 1

ODD_TEXTS = (
    "",
    " ",
    "'; DROP TABLE threads; --",
    'a "quoted"\ttab\nline\r\n',
    "ß 漢字 🦀 é é",
    "\\x00 \\N",
    "x" * 9000,
)
"""What texts may hold on both databases."""

NOT_NULL_TEXT = "odd: \u0001 🦀 ' \" \\ \n"


def put(runtime: StateRuntime, table: str, *rows: Mapping[str, Any]) -> None:
    """Insert rows of stored values."""
    with runtime.begin() as state:
        for _, alike in groupby(rows, key=tuple):
            insert_rows(state.session.connection(), table, list(alike))


def insert_rows(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of the same columns."""
    names = ", ".join(rows[0])
    values = ", ".join(f":{name}" for name in rows[0])
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), rows)


def change(runtime: StateRuntime, statement: str, **values: Any) -> None:
    """Run a statement, whatever the package would say of it."""
    with runtime.begin() as state:
        state.session.connection().execute(text(statement), values)


def held(database: Database, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every field of every row, read without the package's own statements, in an order that both databases share."""
    with database.read() as session:
        return {
            name: sorted(
                (
                    tuple(str(value) if isinstance(value, uuid.UUID) else value for value in row)
                    for row in session.connection().execute(
                        text(f"SELECT {', '.join(MODELS[name].column_names())} FROM {name}")
                    )
                ),
                key=repr,
            )
            for name in tables or sorted(metadata.tables.keys() - OF_ONE_DATABASE)
        }


def with_home(rows: dict[str, list[tuple[Any, ...]]], names: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows as they look under other names of homes."""
    mapped = {}
    for table, held_rows in rows.items():
        columns = MODELS[table].column_names()
        at = columns.index("home") if "home" in columns else None
        mapped[table] = sorted(
            (row if at is None else (*row[:at], names.get(row[at], row[at]), *row[at + 1 :]) for row in held_rows),
            key=repr,
        )
    return mapped


def thread_row(number: int, **values: Any) -> dict[str, Any]:
    """A thread with every field set."""
    return {
        "id": str(uuid.UUID(int=number * 0x1000_0000_0000_0000_0000 + number)),
        "rollout_path": f"/home/sessions/{number}.jsonl",
        "created_at": 1_770_000_000 + number,
        "updated_at": 1_770_000_100 + number,
        "source": '{"subagent":"review"}',
        "model_provider": "openai",
        "cwd": "/code",
        "title": f"hello {number}",
        "sandbox_policy": '{"type":"read-only"}',
        "approval_mode": "on-request",
        "tokens_used": number,
        "archived": 1,
        "archived_at": 1_770_000_200,
        "git_sha": "abc",
        "git_branch": "main",
        "git_origin_url": "git@example.com:a/b",
        "cli_version": "0.129.0",
        "first_user_message": f"hello {number}",
        "agent_nickname": "nick",
        "agent_role": "role",
        "agent_path": "/agent",
        "memory_mode": "enabled",
        "model": "gpt",
        "reasoning_effort": "high",
        "home": "local",
        "name": f"name {number}",
        "name_at": 1_770_000_050,
        "preview": "a goal",
        "thread_source": "subagent",
        "originator": "codex_cli",
        "parent_thread_id": str(uuid.UUID(int=7)),
        "forked_from_id": str(uuid.UUID(int=8)),
        "memory_mode_chosen_at": 1_770_000_060,
        "gone_at": 1_770_000_070,
        "pinned": 0,
        "original_name": "hello",
        "updated_ns": 123_456_789,
        "turns": 2,
        "tokens_inherited": number,
        "tokens_input": 9,
        "tokens_cached": 8,
        "tokens_output": 7,
        "tokens_reasoning": 6,
    } | values


def tool_row(thread: Mapping[str, Any], position: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "thread_id": thread["id"],
        "position": position,
        "name": "tool",
        "description": "does something",
        "input_schema": '{"b":1,"a":[1.0,1e2]}',
        "defer_loading": 1,
        "namespace": "space",
    } | values


def memory_row(thread: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "thread_id": thread["id"],
        "scope_kind": "user",
        "scope_key": "user",
        "raw_memory": "raw",
        "memory_summary": "summary",
        "updated_at": 1_770_000_300,
        "last_used_at": 1_770_000_400,
        "used_count": 3,
        "invalidated_at": 1_770_000_500,
        "invalid_reason": "wrong",
    } | values


def job_row(thread: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "thread_id": thread["id"],
        "scope_kind": "user",
        "scope_key": "user",
        "status": "succeeded",
        "owner_session_id": str(uuid.UUID(int=7)),
        "started_at": 1_770_000_250,
        "finished_at": 1_770_000_300,
        "failure_reason": "reason",
        "source_updated_at": thread["updated_at"],
        "raw_memory_path": "/memories/raw.md",
        "summary_hash": "hash",
        "ownership_token": "token",
        "owner_name": "host process 1",
        "owner_process": "boot:4026531836:1:100",
        "lease_seconds": 3600,
        "attempt": 2,
        "retry_at": 1_770_000_600,
        "failures": 1,
        "begun_at": 1_770_000_260,
        "crashes": 1,
        "source_ns": 123_456_789,
    } | values


def scope_row(**values: Any) -> dict[str, Any]:
    return {"scope_kind": "user", "scope_key": "user", "dirty": 1, "updated_at": 1_770_000_300} | values


def lock_row(**values: Any) -> dict[str, Any]:
    return {
        "cwd": "/code",
        "working_thread_id": str(uuid.UUID(int=9)),
        "updated_at": 1_770_000_300,
        "ownership_token": "lock token",
        "owner_name": "host process 1",
        "owner_process": "boot:4026531836:1:100",
        "lease_seconds": 600,
    } | values


def named_lock_row(**values: Any) -> dict[str, Any]:
    return {
        "name": "report",
        "owner": "a service",
        "renewed_at": 1_770_000_300,
        "ownership_token": "named lock token",
        "owner_name": "host process 1 (a service)",
        "owner_process": "boot:4026531836:1:100",
        "lease_seconds": 600,
    } | values


def backfill_row(**values: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "home": "local",
        "status": "complete",
        "last_watermark": "sessions/9.jsonl",
        "last_success_at": 1_770_000_700,
        "updated_at": 1_770_000_700,
        "ownership_token": "backfill token",
        "owner_name": "host process 1",
        "owner_process": "boot:4026531836:1:100",
        "lease_seconds": 900,
        "claimed_at": 1_770_000_650,
    } | values


def file_row(number: int, **values: Any) -> dict[str, Any]:
    return {
        "home": "local",
        "path": f"sessions/{number}.jsonl",
        "thread_id": thread_row(number)["id"],
        "size": LARGEST,
        "mtime_ns": 1_770_000_100_123_456_789,
        "state": "failed",
        "error": "it can't be read",
        "parse_errors": 1,
        "unknown_lines": 2,
    } | values


def log_row(number: int, **values: Any) -> dict[str, Any]:
    return {
        "id": number,
        "ts": 1_770_000_000,
        "ts_nanos": 999_999_999,
        "level": "INFO",
        "target": "tests",
        "message": f"line {number}",
        "module_path": "a::b",
        "file": "a.rs",
        "line": 12,
        "thread_id": "no uuid at all",
    } | values


def replace_backfill(runtime: StateRuntime, **values: Any) -> None:
    """The backfill's row instead of the one that the migrations put there."""
    change(runtime, "DELETE FROM backfill_state")
    put(runtime, "backfill_state", backfill_row(**values))


def fill(runtime: StateRuntime, *, home: str = "local", threads: int = 7, logs: int = 9) -> None:
    """Rows in every table: ordinary ones, odd ones, and some with every column empty that may be."""
    known = [thread_row(number, home=home) for number in range(1, threads + 1)]
    odd = [
        thread_row(
            100 + number,
            home=home,
            title=value,
            cwd=value,
            source=value,
            git_branch=value,
            first_user_message=value,
            memory_mode=value or "none of ours",
            created_at=-1 - number,
            updated_at=LARGEST - number,
            tokens_used=LARGEST,
        )
        for number, value in enumerate(ODD_TEXTS)
    ]
    bare = nulled("threads", thread_row(300, home=home))
    put(runtime, "threads", *known, *odd, bare)
    tools = [tool_row(thread, position) for thread in known[:3] for position in (0, 1, LARGEST)]
    tools += [tool_row(bare, 5, input_schema="not JSON {", name="", description=NOT_NULL_TEXT, namespace=None)]
    put(runtime, "thread_dynamic_tools", *tools)
    put(
        runtime,
        "thread_memory",
        *(memory_row(thread) for thread in known[:4]),
        *(memory_row(known[0], scope_kind="cwd", scope_key=value, raw_memory=value) for value in ODD_TEXTS),
        nulled("thread_memory", memory_row(bare)),
    )
    put(
        runtime,
        "memory_phase1_jobs",
        *(job_row(thread) for thread in known[:4]),
        nulled("memory_phase1_jobs", job_row(bare, status="running")),
    )
    put(
        runtime,
        "memory_scope_dirty",
        scope_row(dirty=0),
        *(scope_row(scope_kind="cwd", scope_key=value, updated_at=-5) for value in ODD_TEXTS),
    )
    put(runtime, "memory_consolidation_locks", lock_row(), lock_row(cwd="/ß 漢字/🦀"), lock_row(cwd=""))
    put(runtime, "codex_state_locks", named_lock_row(), *(named_lock_row(name=value) for value in ODD_TEXTS))
    replace_backfill(runtime, home=home)
    put(
        runtime,
        "rollout_files",
        *(file_row(number, home=home) for number in range(1, 4)),
        *(file_row(100 + number, home=home, path=value, error=value) for number, value in enumerate(ODD_TEXTS)),
        nulled("rollout_files", file_row(300, home=home)),
    )
    put(
        runtime,
        "logs",
        *(log_row(number) for number in range(1, logs + 1)),
        *(log_row(1000 + number, message=value, thread_id=value) for number, value in enumerate(ODD_TEXTS)),
        nulled("logs", log_row(5_000_000_000)),
    )


def nulled(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with nothing in every column that may have nothing."""
    nullable = {column.name for column in metadata.tables[table].columns if column.nullable}
    return {name: None if name in nullable else value for name, value in row.items()}


def keys_of(rows: Sequence[tuple[Any, ...]], table: str) -> set[tuple[Any, ...]]:
    """The primary keys of rows that ``held`` gave."""
    names = MODELS[table].column_names()
    at = [names.index(column.name) for column in metadata.tables[table].primary_key]
    return {tuple(row[index] for index in at) for row in rows}
