"""``codex-state memories``, ``scopes`` and ``locks``: what was remembered, what waits, and who consolidates."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli.context import (
    CodexHome,
    Commands,
    Json,
    Limit,
    ScopeKey,
    ScopeKind,
    ThreadId,
    opened,
    seconds,
    short_ids,
    the_thread,
)
from codex_state.cli.filters import Since, Until, moment
from codex_state.cli.output import (
    Column,
    ago,
    columns_of,
    left,
    note,
    one_line,
    record_of,
    rfc3339,
    some_more,
    write,
    write_details,
    write_json,
    write_table,
)
from codex_state.cli.parsing import thread_id_or_beginning
from codex_state.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from uuid import UUID

    from codex_state.models import MemoryScopeDirty, ThreadMemory
    from codex_state.runtime import State


app = typer.Typer(cls=Commands, no_args_is_help=True, help="What was remembered of threads.")


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
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List memories, the newest first."""
    told = None if thread is None else thread_id_or_beginning(thread)
    between = moment("--since", since), moment("--until", until, end_of_day=True)
    with opened(context, codex_home, needs_home=False) as runtime:
        thread_id = None if told is None else the_thread(runtime, told)
        with runtime.read() as state:
            found = memories_of(
                state,
                thread_id=thread_id,
                kind=scope_kind,
                key=scope_key,
                invalidated=invalidated,
                limit=limit + 1,
                between=between,
            )
            memories, more = some_more(found, limit)
            short = short_ids(state, (memory.thread_id for memory in memories))
    if as_json:
        write_json({"items": [record_of(memory) for memory in memories]})
        return
    write_table(_columns(short), memories)
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
    told = thread_id_or_beginning(thread)
    with opened(context, codex_home, needs_home=False) as runtime:
        thread_id = the_thread(runtime, told)
        with runtime.read() as state:
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
    state: State,
    *,
    thread_id: UUID | None,
    kind: str | None,
    key: str | None,
    invalidated: bool,
    limit: int,
    between: tuple[datetime | None, datetime | None] = (None, None),
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
    since, until = between
    if since is not None:
        statement = statement.where(ThreadMemory.updated_at >= since)
    if until is not None:
        statement = statement.where(ThreadMemory.updated_at <= until)
    if not invalidated:
        statement = statement.where(col(ThreadMemory.invalidated_at).is_(None))
    return state.session.exec(statement.limit(limit)).all()


def _columns(short_id: Callable[[UUID], str]) -> list[Column[ThreadMemory]]:
    return [
        Column("THREAD", lambda m: m.thread_id, lambda m: short_id(m.thread_id)),
        Column("UPDATED", lambda m: m.updated_at, lambda m: ago(m.updated_at), style="dim"),
        Column("SCOPE", lambda m: m.scope_kind),
        Column(
            "KEY", lambda m: m.scope_key, lambda m: m.scope_key.rpartition("/")[2][:18], from_width=80, style="cyan"
        ),
        Column("USED", lambda m: m.used_count, from_width=120, right=True),
        Column("SUMMARY", lambda m: m.memory_summary, takes_the_rest=True),
    ]


def scopes(
    context: typer.Context,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also the scopes that are clean.")] = False,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List the memory scopes that wait for their consolidation, the longest waiting first."""
    from codex_state.memory import memory_root
    from codex_state.models import MemoryScope

    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        found = _marks(state, limit + 1) if everything else state.memory_scopes.list_dirty(limit=limit + 1)
        home = runtime.codex_home
    marks, more = some_more(found, limit)

    def root_of(mark: MemoryScopeDirty) -> Path:
        return memory_root(home, MemoryScope(mark.scope_kind, mark.scope_key))

    if as_json:
        write_json({"items": [record_of(mark) | {"memory_root": str(root_of(mark))} for mark in marks]})
        return
    write_table(
        [
            Column("SCOPE", lambda m: m.scope_kind),
            Column("DIRTY", lambda m: m.dirty),
            Column("MARKED", lambda m: m.updated_at, lambda m: ago(m.updated_at), style="dim"),
            Column("KEY", lambda m: m.scope_key, takes_the_rest=True, style="cyan"),
            Column("ROOT", root_of, from_width=140),
        ],
        marks,
    )
    if more:
        note(f"there are more than {limit:,}: raise --limit")
    elif not marks:
        note("no scopes yet" if everything else "no scope waits for its consolidation")


def _marks(state: State, limit: int) -> Sequence[MemoryScopeDirty]:
    from sqlmodel import col, select

    from codex_state.models import MemoryScopeDirty

    order = (col(MemoryScopeDirty.updated_at), col(MemoryScopeDirty.scope_kind), col(MemoryScopeDirty.scope_key))
    statement = select(MemoryScopeDirty).order_by(col(MemoryScopeDirty.dirty).desc(), *order).limit(limit)
    return state.session.exec(statement).all()


def locks(
    context: typer.Context,
    *,
    lease: Annotated[
        int,
        seconds("The lease that the workers use, for what is left of it."),
    ] = 600,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List the consolidation locks: who holds which memory root, since when, and what is left of the lease."""
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        held = state.consolidation_locks.list()
        now = database_time(state)
    duration = timedelta(seconds=lease)
    if as_json:
        write_json({"items": [record_of(k) | {"lease_ends_at": rfc3339(k.updated_at + duration)} for k in held]})
        return
    write_table(
        [
            Column("HOLDER", lambda k: k.owner_name, lambda k: k.owner_name or str(k.working_thread_id)),
            Column("SESSION", lambda k: k.working_thread_id, from_width=120, style="dim"),
            Column("RENEWED", lambda k: k.updated_at, lambda k: ago(k.updated_at, now), style="dim"),
            Column("LEASE", lambda k: left(k.updated_at + duration, now)),
            Column("ROOT", lambda k: k.cwd, takes_the_rest=True, style="cyan"),
        ],
        held,
    )
    if not held:
        note("nobody consolidates")


def database_time(state: State) -> datetime:
    """What time it is by the database's clock, which leases are measured with."""
    from sqlalchemy import select

    from codex_state.database.sql import server_now
    from codex_state.models.columns import from_epoch_seconds

    return from_epoch_seconds(state.session.connection().execute(select(server_now())).scalar_one())
