"""``codex-state homes``: which homes share the database, and how far each is indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from codex_state.cli.opening import begun_backfills, opened
from codex_state.cli.options import CodexHome, Json
from codex_state.cli.output import note, record_of, write_json
from codex_state.cli.tables import Column, ago, write_table

if TYPE_CHECKING:
    from datetime import datetime


def homes(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """List the homes that share the database: how far each is indexed, and by whom."""
    with opened(context, codex_home, needs_home=False) as runtime:
        backfills = begun_backfills(runtime)
        this = runtime.home
    if as_json:
        write_json({"items": [record_of(backfill) for backfill in backfills], "this_home": this})
        return
    write_table(
        [
            Column("HOME", lambda b: b.home, takes_the_rest=True, style="cyan"),
            Column("INDEX", lambda b: b.status.value),
            Column("COMPLETED", lambda b: b.last_success_at, lambda b: _ago(b.last_success_at), style="dim"),
            Column("MOVED", lambda b: b.updated_at, lambda b: ago(b.updated_at), style="dim"),
            Column("BY", lambda b: b.owner_name, lambda b: b.owner_name or "-", from_width=80),
            Column("SINCE", lambda b: b.claimed_at, lambda b: _ago(b.claimed_at), from_width=100, style="dim"),
        ],
        backfills,
    )
    if this not in {backfill.home for backfill in backfills}:
        note(f"this home, {this}, isn't indexed yet; run `codex-state backfill`")


def _ago(moment: datetime | None) -> str:
    return "-" if moment is None else ago(moment)
