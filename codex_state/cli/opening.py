"""Opening the state for a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import typer

from codex_state.cli.options import home_of
from codex_state.cli.output import note, rfc3339
from codex_state.errors import StateError, ThreadNotFoundError

if TYPE_CHECKING:
    from codex_state.errors import ServerUnavailableError
    from codex_state.models import BackfillState
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings

ResultT = TypeVar("ResultT")


def settings_for(context: typer.Context, codex_home: str | None, *, needs_home: bool = True) -> StateSettings:
    """The settings: the environment's, with the home that was given on the command line.

    Args:
        context: the command's.
        codex_home: the command's own option.
        needs_home: the command concerns files of the home. Others need none where a URL names the database.

    Raises:
        ConfigurationError: the home isn't there. The command line makes none: it may be mistyped.
    """
    from codex_state.database.state_files import require_home
    from codex_state.settings import StateSettings

    home = home_of(context, codex_home)
    settings = StateSettings() if home is None else StateSettings(codex_home=home)
    if settings.database_url is None or needs_home:
        require_home(settings.codex_home)
    return settings


@contextmanager
def opened(
    context: typer.Context, codex_home: str | None, *, writes: bool = False, needs_home: bool = True
) -> Iterator[StateRuntime]:
    """The open state, migrated if need be and never backfilled; closed at the end.

    Args:
        context: the command's.
        codex_home: the command's own option.
        writes: the command can't do anything useful on a state that can't be written. Older files of ours are removed.
        needs_home: see ``settings_for``.
    """
    from codex_state.runtime import StateRuntime

    settings = settings_for(context, codex_home, needs_home=needs_home)
    with patiently(settings, lambda: StateRuntime.open(settings, for_reading=not writes)) as runtime:
        yield runtime


def patiently(settings: StateSettings, opening: Callable[[], ResultT]) -> ResultT:
    """What ``opening`` gives. Where it waits for a server that is away, say so."""
    from codex_state.database.patience import Patience, waiting

    def tell(error: ServerUnavailableError) -> None:
        note(f"waiting for the server for at most {settings.retry_for.total_seconds():.0f} s: {error}")

    with waiting(Patience(settings.retry_for, tell)):
        return opening()


def hint_when_incomplete(runtime: StateRuntime) -> None:
    """Say so when the index doesn't cover every rollout yet: a listing may miss some."""
    if hint := _incompleteness_of(runtime):
        note(hint)


def begun_backfills(runtime: StateRuntime) -> list[BackfillState]:
    """The state of every home whose index was ever begun; the schema itself notes one that is pending."""
    with runtime.read() as state:
        return [backfill for backfill in state.backfill.list() if backfill.claimed_at is not None]


def not_found(runtime: StateRuntime, thread_id: UUID) -> StateError:
    """The error that a thread has no row, with a likely reason."""
    error = ThreadNotFoundError(thread_id)
    hint = _incompleteness_of(runtime)
    return StateError(f"{error} ({hint})") if hint else error


def _incompleteness_of(runtime: StateRuntime) -> str | None:
    from codex_state.models import BackfillStatus

    with runtime.read() as state:
        backfill = state.backfill.get(runtime.home)
    if backfill is None or backfill.status is BackfillStatus.PENDING:
        return "the index hasn't been built yet; run `codex-state backfill`"
    if backfill.status is BackfillStatus.COMPLETE:
        return None
    return f"the index isn't complete: {_name_of(backfill)} builds it; `codex-state backfill` goes on if it stopped"


def holder_of(runtime: StateRuntime) -> str:
    """Who works on the index, for people: host, process, since when, and when others may take over at the earliest."""
    with runtime.read() as state:
        backfill = state.backfill.get(runtime.home)
    if backfill is None:
        return "somebody"
    lease_end = backfill.updated_at + runtime.settings.backfill_lease
    return f"{_name_of(backfill)}, with a lease until {rfc3339(lease_end)}"


def _name_of(backfill: BackfillState) -> str:
    since = f" since {rfc3339(backfill.claimed_at)}" if backfill.claimed_at else ""
    return f"{backfill.owner_name or 'somebody'}{since}"
