"""What a shell may complete: ids of threads, and what the newest threads have in their columns.

Nothing is created, migrated or indexed for it, nobody is waited for, and whatever is wrong completes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from codex_state.cli.output import one_line
from codex_state.errors import StateError

if TYPE_CHECKING:
    from codex_state.models import Thread
    from codex_state.runtime import State, StateRuntime

_NEWEST = 1000
"""So many threads are looked at."""

_OFFERED = 50

_LONGEST_TITLE = 60


def thread_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest threads whose ids begin so, with their names."""
    from codex_state.models import ThreadQuery

    with _state(context) as found:
        if found is None:
            return []
        runtime, state = found
        begun = incomplete.lower()
        threads = state.threads.list(ThreadQuery(limit=_NEWEST, home=runtime.home)).items
        chosen = [thread for thread in threads if str(thread.id).startswith(begun)][:_OFFERED]
        short = state.threads.shortest_beginnings([thread.id for thread in chosen])
        ids = [short[thread.id] if short[thread.id].startswith(begun) else str(thread.id) for thread in chosen]
        names = [one_line(thread.display_name or "")[:_LONGEST_TITLE] for thread in chosen]
        return list(zip(ids, names, strict=True))


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
    with _state(context) as found:
        return (
            []
            if found is None
            else [each.home for each in found[1].backfill.list() if each.home.startswith(incomplete)]
        )


def _values(context: typer.Context, incomplete: str, value: Callable[[Thread], str | None]) -> list[str]:
    from codex_state.models import ThreadQuery

    with _state(context) as found:
        if found is None:
            return []
        runtime, state = found
        threads = state.threads.list(ThreadQuery(limit=_NEWEST, home=runtime.home)).items
        values = dict.fromkeys(value(thread) for thread in threads)
        return [each for each in values if each and each.startswith(incomplete)][:_OFFERED]


@contextmanager
def _state(context: typer.Context) -> Iterator[tuple[StateRuntime, State] | None]:
    """The state of the home that the command line names so far, where there is one and it can be read at once."""
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings

    given = [each.params.get("codex_home") for each in (context, context.find_root())]
    home = next((each for each in given if each is not None), None)
    values = {} if home is None else {"codex_home": home}
    try:
        settings = StateSettings(migrate=False, retry_for=timedelta(0), **values)
        if settings.database_url is None and not settings.database_path.is_file():
            yield None
            return
        with StateRuntime.open(settings, for_reading=True) as runtime, runtime.read() as state:
            yield runtime, state
    except StateError:
        yield None
