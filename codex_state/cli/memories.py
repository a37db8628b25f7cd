"""``codex-state memories``: what was remembered of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli.opening import opened
from codex_state.cli.options import CodexHome, Json, Limit, ScopeKey, ScopeKind, ThreadId
from codex_state.cli.output import columns_of, note, one_line, record_of, write, write_json
from codex_state.cli.parsing import thread_id_of
from codex_state.cli.tables import Column, ago, some_more, write_details, write_table
from codex_state.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from codex_state.models import ThreadMemory
    from codex_state.runtime import State

app = typer.Typer(no_args_is_help=True, help="What was remembered of threads.")


@app.command("list")
def list_memories(
    context: typer.Context,
    *,
    thread: Annotated[
        str | None, typer.Option("--thread-id", metavar="ID", help="Only this thread's.", show_default=False)
    ] = None,
    scope_kind: ScopeKind = None,
    scope_key: ScopeKey = None,
    invalidated: Annotated[bool, typer.Option("--invalidated", help="Also those that were invalidated.")] = False,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List memories, the newest first."""
    thread_id = None if thread is None else thread_id_of(thread)
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        found = memories_of(
            state, thread_id=thread_id, kind=scope_kind, key=scope_key, invalidated=invalidated, limit=limit + 1
        )
    memories, more = some_more(found, limit)
    if as_json:
        write_json({"items": [record_of(memory) for memory in memories]})
        return
    write_table(_columns(), memories)
    if more:
        note(f"there are more than {limit:,}: raise --limit")
    elif not memories:
        note("no memories match")


@app.command()
def show(
    context: typer.Context,
    *,
    thread: ThreadId,
    scope_kind: ScopeKind = None,
    scope_key: ScopeKey = None,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Show a thread's memory in full: the newest one, unless a scope is named."""
    thread_id = thread_id_of(thread)
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        found = memories_of(state, thread_id=thread_id, kind=scope_kind, key=scope_key, invalidated=True, limit=1)
        known = state.threads.get(thread_id) is not None
    if not found:
        scope = " in that scope" if scope_kind or scope_key else ""
        raise StateError(
            f"nothing is remembered of thread {thread_id}{scope}" if known else f"thread not found: {thread_id}"
        )
    (memory,) = found
    if as_json:
        write_json(record_of(memory))
        return
    details = columns_of(memory)
    write_details((name, value) for name, value in details if name != "raw_memory")
    write("\n" + "".join(f"{one_line(line, keep_spaces=True)}\n" for line in memory.raw_memory.splitlines()))


def memories_of(
    state: State, *, thread_id: UUID | None, kind: str | None, key: str | None, invalidated: bool, limit: int
) -> Sequence[ThreadMemory]:
    """The memories that all conditions hold for, the newest first."""
    from sqlmodel import col, select

    from codex_state.models import ThreadMemory

    statement = select(ThreadMemory).order_by(
        col(ThreadMemory.updated_at).desc(),
        col(ThreadMemory.thread_id).desc(),
        col(ThreadMemory.scope_kind),
        col(ThreadMemory.scope_key),
    )
    if thread_id is not None:
        statement = statement.where(ThreadMemory.thread_id == thread_id)
    if kind is not None:
        statement = statement.where(ThreadMemory.scope_kind == kind)
    if key is not None:
        statement = statement.where(ThreadMemory.scope_key == key)
    if not invalidated:
        statement = statement.where(col(ThreadMemory.invalidated_at).is_(None))
    return state.session.exec(statement.limit(limit)).all()


def _columns() -> list[Column[ThreadMemory]]:
    return [
        Column("THREAD", lambda m: m.thread_id),
        Column("UPDATED", lambda m: m.updated_at, lambda m: ago(m.updated_at), style="dim"),
        Column("SCOPE", lambda m: m.scope_kind),
        Column(
            "KEY", lambda m: m.scope_key, lambda m: m.scope_key.rpartition("/")[2][:18], from_width=100, style="cyan"
        ),
        Column("USED", lambda m: m.used_count, from_width=120, right=True),
        Column("SUMMARY", lambda m: m.memory_summary, takes_the_rest=True),
    ]
