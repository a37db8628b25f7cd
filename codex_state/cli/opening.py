"""Opening the state for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from codex_state.cli.options import home_of
from codex_state.cli.output import note, rfc3339

if TYPE_CHECKING:
    from codex_state.models import BackfillState
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings


def settings_for(context: typer.Context, codex_home: Path | None) -> StateSettings:
    """The settings: the environment's, with the home that was given on the command line."""
    from codex_state.settings import StateSettings

    home = home_of(context, codex_home)
    return StateSettings() if home is None else StateSettings(codex_home=home)


@contextmanager
def opened(context: typer.Context, codex_home: Path | None) -> Iterator[StateRuntime]:
    """The open state, migrated if need be and never backfilled; closed at the end."""
    from codex_state.runtime import StateRuntime

    with StateRuntime.open(settings_for(context, codex_home)) as runtime:
        yield runtime


def hint_when_incomplete(runtime: StateRuntime) -> None:
    """Say so when the index doesn't cover every rollout yet: a listing may miss some."""
    from codex_state.models import BackfillStatus

    with runtime.read() as state:
        backfill = state.backfill.get(runtime.home)
    if backfill is not None and backfill.status is BackfillStatus.COMPLETE:
        return
    if backfill is None or backfill.status is BackfillStatus.PENDING:
        note("the index hasn't been built yet; run `codex-state backfill`")
        return
    note(f"the index isn't complete: {_name_of(backfill)} builds it; `codex-state backfill` goes on if it stopped")


def holder_of(runtime: StateRuntime) -> str:
    """Who works on the index, for people: host, process and since when."""
    with runtime.read() as state:
        backfill = state.backfill.get(runtime.home)
    return "somebody" if backfill is None else _name_of(backfill)


def _name_of(backfill: BackfillState) -> str:
    since = f" since {rfc3339(backfill.claimed_at)}" if backfill.claimed_at else ""
    return f"{backfill.owner or 'somebody'}{since}"
