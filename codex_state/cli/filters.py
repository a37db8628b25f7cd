"""The options by which ``threads list`` and ``search`` choose among threads, and why they leave none."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import typer

from codex_state.cli import completing
from codex_state.cli.output import one_line
from codex_state.cli.parsing import epoch_seconds_of, source_of
from codex_state.errors import InvalidInputError, did_you_mean

if TYPE_CHECKING:
    from codex_state.models import Thread, ThreadQuery, ThreadsPage
    from codex_state.runtime import StateRuntime

_MOST_PAGES = 10
"""So many pages are looked through for the threads that are asked for, before people are asked whether to go on."""


def _option(metavar: str, text: str, *names: str, completion: Callable[..., Any] | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=False, autocompletion=completion)


Sort = Annotated[Literal["created_at", "updated_at"], typer.Option(help="Newest first, by this time.")]
Archived = Annotated[bool, typer.Option("--archived", help="Only archived threads, instead of the others.")]
Sources = Annotated[
    list[str] | None,
    _option(
        "S",
        "Only this source: cli, vscode, exec, mcp, subagent, or JSON. Repeatable.",
        "--source",
        completion=completing.sources,
    ),
]
Providers = Annotated[
    list[str] | None,
    _option("P", "Only this model provider. Repeatable.", "--provider", completion=completing.providers),
]
Cwd = Annotated[str | None, _option("DIR", "Only in this directory or below; . is the current one.", "--cwd")]
Since = Annotated[
    str | None, _option("TIME", "Not before: 7d or 2h ago, yesterday, 2026-11-01, 2026-11, or RFC 3339.", "--since")
]
Until = Annotated[str | None, _option("TIME", "Not after: likewise; of a day or a month, its end.", "--until")]
Branch = Annotated[str | None, _option("B", "Only on this branch of git.", "--branch", completion=completing.branches)]
Repo = Annotated[str | None, _option("PART", "Only where this is part of the URL of git's remote.", "--repo")]
Model = Annotated[
    str | None,
    _option("PART", "Only where this is part of the model's name.", "--model", completion=completing.models),
]
Name = Annotated[str | None, _option("PART", "Only where this is part of a name that a user gave.", "--name")]
Text = Annotated[str | None, _option("PART", "Only where the name, title or first message holds this.", "--text")]
Children = Annotated[
    bool, typer.Option("--children/--no-children", help="With or without threads that another one spawned: sub-agents.")
]
All = Annotated[bool, typer.Option("--all", help="Also those with nothing to show, or whose rollout is gone.")]
Cursor = Annotated[str | None, _option("C", "Go on where the last page ended.", "--cursor")]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What was chosen, as it was typed: an option for each field."""

    sort: Sort = "updated_at"
    archived: Archived = False
    source: Sources = None
    provider: Providers = None
    cwd: Cwd = None
    since: Since = None
    until: Until = None
    branch: Branch = None
    repo: Repo = None
    model: Model = None
    name: Name = None
    text: Text = None
    children: Children = True
    show_all: All = False
    cursor: Cursor = None

    def query(self, home: str | None, limit: int) -> ThreadQuery:
        """The query that it means, of one home or all.

        Raises:
            InvalidInputError: one of them means nothing.
        """
        from codex_state.models import Anchor, SortKey, ThreadQuery

        since, until = moment("--since", self.since), moment("--until", self.until, end_of_day=True)
        if since is not None and until is not None and since > until:
            raise InvalidInputError(f"--since {self.since} is after --until {self.until}")
        return ThreadQuery(
            sort_key=SortKey(self.sort),
            archived=self.archived,
            sources=[source_of(text) for text in self.source or ()],
            providers=self.provider or (),
            since=since,
            until=until,
            home=home,
            cwd=None if self.cwd is None else directory(self.cwd),
            branch=self.branch,
            repository=self.repo,
            model=self.model,
            name=self.name,
            text=self.text,
            children=self.children,
            all=self.show_all,
            limit=limit,
            anchor=None if self.cursor is None else Anchor.parse(self.cursor),
        )


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``Filters``, in place of its parameter ``filters``."""
    signature = inspect.signature(command)
    annotations = get_type_hints(command, include_extras=True)
    options = get_type_hints(Filters, include_extras=True)
    parameters = [parameter.replace(annotation=annotations[name]) for name, parameter in signature.parameters.items()]
    place = list(signature.parameters).index("filters")
    parameters[place : place + 1] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Filters, name), annotation=annotation)
        for name, annotation in options.items()
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        command(filters=Filters(**{name: given.pop(name) for name in options}), **given)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def moment(option: str, text: str | None, *, end_of_day: bool = False) -> datetime | None:
    """The time that was given for an option.

    Raises:
        InvalidInputError: it is none.
    """
    if text is None:
        return None
    seconds = epoch_seconds_of(text, end_of_day=end_of_day)
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidInputError(f"{option}: no calendar has the time {text!r}") from error


def directory(text: str) -> str:
    """The directory that was given by ``--cwd``.

    Raises:
        InvalidInputError: it is empty, as a script's unset variable is.
    """
    if not text.strip():
        raise InvalidInputError("--cwd is empty; name a directory, or leave the option out")
    given = os.path.expanduser(text)  # noqa: PTH111 - a Path would respell what isn't a path of this system
    is_whole = given.startswith(("/", "\\")) or given[1:2] == ":"
    return given if is_whole else os.path.realpath(given)


def whole_page(runtime: StateRuntime, query: ThreadQuery) -> ThreadsPage:
    """A page of as many threads as are asked for, though filters let few of those through that are looked at.

    It still may be short, and tell where to go on: see ``ThreadRepository.list``.
    """
    from codex_state.rollout import list_threads

    page = list_threads(runtime, query)
    for _ in range(_MOST_PAGES):
        missing = query.limit - len(page.items)
        if page.next_anchor is None or missing <= 0 or query.by_index() == query:
            break
        more = list_threads(runtime, replace(query, anchor=page.next_anchor, limit=missing))
        page = replace(
            more,
            items=[*page.items, *more.items],
            num_scanned_rows=page.num_scanned_rows + more.num_scanned_rows,
            unreadable=(*page.unreadable, *more.unreadable),
        )
    return page


# Why nothing was found: which filter leaves nothing, and what else there would be.

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
    alone = {name: _lists_any(runtime, replace(every, **{name: value})) for name, value in given.items()}
    misses = [name for name, lists_any in alone.items() if lists_any is False]
    told = []
    if misses and _lists_any(runtime, every) is not False:
        told += [_told(runtime, every, name, given[name]) for name in misses]
    elif misses and query.archived:
        told.append("no thread is archived")
    elif len(given) > 1 and all(alone.values()):
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
    return bool(_lists_any(runtime, replace(query, anchor=None, archived=not query.archived)))


def _lists_any(runtime: StateRuntime, query: ThreadQuery) -> bool | None:
    """Whether it lists a thread; ``None`` when a page, which looks at a bounded number of rows, can't tell."""
    with runtime.read() as state:
        page = state.threads.list(replace(query, limit=1))
    return True if page.items else None if page.next_anchor else False


def _told(runtime: StateRuntime, query: ThreadQuery, name: str, value: Any) -> str:
    values = value if name in ("sources", "providers") else [value]
    told = _FILTERS[name].alone.format(" or ".join(repr(one_line(str(each))) for each in values))
    if (value_of := _FILTERS[name].value) is None or len(values) > 1:
        return told
    with runtime.read() as state:
        threads = state.threads.list(replace(query, limit=_NEWEST)).items
    return told + did_you_mean(values[0], {known for thread in threads if (known := value_of(thread))})
