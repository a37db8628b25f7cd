"""Why nothing was found: which filter leaves nothing, and what else there would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from codex_state.cli.output import one_line
from codex_state.errors import did_you_mean

if TYPE_CHECKING:
    from codex_state.models import Thread, ThreadQuery
    from codex_state.runtime import StateRuntime

_NEWEST = 1000
"""Of so many threads the values are known that may have been meant."""


class _Filter(NamedTuple):
    option: str
    alone: str
    """What is so when no thread passes it."""
    value: Callable[[Thread], str | None] | None = None


_FILTERS: Mapping[str, _Filter] = {
    "cwd": _Filter("--cwd", "no thread is in {} or below", lambda thread: str(thread.cwd)),
    "branch": _Filter("--branch", "no thread is on the branch {}", lambda thread: thread.git_branch),
    "repository": _Filter("--repo", "no thread's remote has {} in its URL"),
    "model": _Filter("--model", "no thread's model has {} in its name", lambda thread: thread.model),
    "name": _Filter("--name", "no thread has {} in its name"),
    "text": _Filter("--text", "no thread has {} in its name, title or first message"),
    "sources": _Filter("--source", "no thread is from the source {}", lambda thread: thread.source),
    "providers": _Filter("--provider", "no thread is of the provider {}", lambda thread: thread.model_provider),
    "children": _Filter("--no-children", "each was spawned by another one"),
    "since": _Filter("--since", "none is as new as --since asks for"),
    "until": _Filter("--until", "none is as old as --until asks for"),
}


def reasons(runtime: StateRuntime, query: ThreadQuery) -> list[str]:
    """Why a query lists nothing, as far as that can be told at once."""
    from codex_state.models import ThreadQuery

    every = ThreadQuery(sort_key=query.sort_key, home=query.home, archived=query.archived, all=query.all)
    given = {name: value for name in _FILTERS if (value := getattr(query, name)) not in (getattr(every, name), [])}
    misses = [name for name, value in given.items() if not _lists_any(runtime, replace(every, **{name: value}))]
    told = []
    if misses and _lists_any(runtime, every):
        told += [_told(runtime, every, name, given[name]) for name in misses]
    elif misses and query.archived:
        told.append("no thread is archived")
    elif len(given) > 1 and not misses:
        *others, last = (_FILTERS[name].option for name in given)
        told.append(f"each of {', '.join(others)} and {last} has threads, but none has all of them")
    if are_others(runtime, query):
        told.append(
            "threads that aren't archived do: leave --archived out"
            if query.archived
            else "archived ones do: add --archived"
        )
    return told


def are_others(runtime: StateRuntime, query: ThreadQuery) -> bool:
    """Whether the query would list any of the archived threads, or of the others if it is about those."""
    return _lists_any(runtime, replace(query, anchor=None, archived=not query.archived))


def _lists_any(runtime: StateRuntime, query: ThreadQuery) -> bool:
    """Whether it lists a thread, or may: a page looks at a bounded number of rows."""
    with runtime.read() as state:
        page = state.threads.list(replace(query, limit=1))
    return bool(page.items) or page.next_anchor is not None


def _told(runtime: StateRuntime, query: ThreadQuery, name: str, value: Any) -> str:
    values = value if name in ("sources", "providers") else [value]
    told = _FILTERS[name].alone.format(" or ".join(repr(one_line(str(each))) for each in values))
    if (value_of := _FILTERS[name].value) is None or len(values) > 1:
        return told
    with runtime.read() as state:
        threads = state.threads.list(replace(query, limit=_NEWEST)).items
    return told + did_you_mean(values[0], {known for thread in threads if (known := value_of(thread))})
