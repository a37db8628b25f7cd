"""Taking in what happened in the home before a command reads the index, or saying how old the index is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli.opening import holder_of
from codex_state.cli.output import counted, note
from codex_state.cli.progress import shown_progress

if TYPE_CHECKING:
    from codex_state.runtime import StateRuntime

NoRefresh = Annotated[
    bool, typer.Option("--no-refresh", help="Use the index as it is, without looking at the home's files first.")
]


def freshen(runtime: StateRuntime, *, no_refresh: bool = False) -> None:
    """Take in what is new, changed or gone; if that can't be, or isn't wanted, say how old the index is."""
    from codex_state import rollout
    from codex_state.errors import DatabaseBusyError, DatabaseReadOnlyError
    from codex_state.rollout import BackfillOutcome

    if runtime.is_read_only:
        _note_age(runtime, "it can't be written")
        return
    if no_refresh:
        _note_age(runtime, "--no-refresh")
        return
    try:
        with shown_progress() as on_progress, quiet_log():
            report = rollout.freshen(runtime, on_progress=on_progress)
    except DatabaseReadOnlyError:
        _note_age(runtime, "it can't be written")
        return
    except DatabaseBusyError as error:
        _note_age(runtime, str(error))
        return
    if report is None:
        return
    if report.status is not BackfillOutcome.COMPLETE:
        _note_age(runtime, f"it is being brought up to date by {holder_of(runtime)}")
    elif report.failed:
        note(f"{counted(report.failed, 'file')} can't be indexed; `codex-state backfill` says why")


@contextmanager
def quiet_log() -> Iterator[None]:
    """Without the warning for each failure: they are counted, or named, at the end."""
    log = logging.getLogger("codex_state")
    level = log.level
    if level > logging.INFO:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _note_age(runtime: StateRuntime, why: str) -> None:
    with runtime.read() as state:
        backfill = state.backfill.get(runtime.home)
    if backfill is None or backfill.last_success_at is None:
        note(f"the index isn't complete yet ({why})")
        return
    seconds = max((datetime.now(UTC) - backfill.last_success_at).total_seconds(), 0)
    note(f"the index was brought up to date {_ago(seconds)} ago ({why})")


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:
            return counted(int(seconds // length), unit)
    return counted(int(seconds), "second")
