"""What a shell may complete: ids of threads, and what the newest threads have in their columns.

Nothing is created, migrated or indexed for it, nobody is waited for, and whatever is wrong completes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import typer

from codex_state.cli.output import one_line
from codex_state.errors import StateError

if TYPE_CHECKING:
    from codex_state.models import Thread
    from codex_state.runtime import State, StateRuntime

AnswerT = TypeVar("AnswerT")

_NEWEST = 1000
"""So many threads are looked at."""

_OFFERED = 50

_LONGEST_TITLE = 60


def thread_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest threads whose ids begin so, with their names."""
    begun = incomplete.lower()

    def ask(runtime: StateRuntime, state: State) -> list[tuple[str, str]]:
        chosen = [thread for thread in _newest(runtime, state) if str(thread.id).startswith(begun)][:_OFFERED]
        short = state.threads.shortest_beginnings([thread.id for thread in chosen])
        ids = [short[thread.id] if short[thread.id].startswith(begun) else str(thread.id) for thread in chosen]
        names = [one_line(thread.display_name or "")[:_LONGEST_TITLE] for thread in chosen]
        return list(zip(ids, names, strict=True))

    return _answers(context, ask)


def sources(context: typer.Context, incomplete: str) -> list[str]:
    """The sources of the newest threads; those with details by their common word."""
    from codex_state.models import SUBAGENT

    return _values(context, incomplete, lambda thread: SUBAGENT if thread.source.startswith("{") else thread.source)


def providers(context: typer.Context, incomplete: str) -> list[str]:
    """The providers of the newest threads."""
    return _values(context, incomplete, lambda thread: thread.model_provider)


def branches(context: typer.Context, incomplete: str) -> list[str]:
    """The branches of the newest threads."""
    return _values(context, incomplete, lambda thread: thread.git_branch)


def models(context: typer.Context, incomplete: str) -> list[str]:
    """The models of the newest threads."""
    return _values(context, incomplete, lambda thread: thread.model)


def homes(context: typer.Context, incomplete: str) -> list[str]:
    """The homes that share the database."""
    names = _answers(context, lambda _, state: [backfill.home for backfill in state.backfill.list()])
    return [name for name in names if name.startswith(incomplete)]


def _values(context: typer.Context, incomplete: str, value: Callable[[Thread], str | None]) -> list[str]:
    found = _answers(context, lambda runtime, state: [value(thread) for thread in _newest(runtime, state)])
    return [each for each in dict.fromkeys(found) if each and each.startswith(incomplete)][:_OFFERED]


def _newest(runtime: StateRuntime, state: State) -> Sequence[Thread]:
    from codex_state.models import ThreadQuery

    return state.threads.list(ThreadQuery(limit=_NEWEST, home=runtime.home)).items


def _answers(context: typer.Context, ask: Callable[[StateRuntime, State], list[AnswerT]]) -> list[AnswerT]:
    """What the state of the home says that the command line names so far; nothing where it can't be asked at once."""
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings

    given = [each.params.get("codex_home") for each in (context, context.find_root())]
    home = next((each for each in given if each is not None), None)
    values = {} if home is None else {"codex_home": home}
    try:
        settings = StateSettings(migrate=False, retry_for=timedelta(0), **values)
        if settings.database_url is None and not settings.database_path.is_file():
            return []
        with StateRuntime.open(settings, for_reading=True) as runtime, runtime.read() as state:
            return ask(runtime, state)
    except StateError:
        return []
