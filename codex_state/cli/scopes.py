"""``codex-state scopes`` and ``codex-state locks``: what waits for consolidation, and who consolidates."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli.opening import opened
from codex_state.cli.options import CodexHome, Json, Limit
from codex_state.cli.output import note, record_of, rfc3339, write_json
from codex_state.cli.tables import Column, ago, left, some_more, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from codex_state.models import MemoryScopeDirty
    from codex_state.runtime import State


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
        int, typer.Option(metavar="SECONDS", min=0, help="The lease that the workers use, for what is left of it.")
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
