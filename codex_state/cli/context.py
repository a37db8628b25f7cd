"""What commands share: options, the state that they open, how fresh its index is, named functions, and groups."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar
from uuid import UUID

import typer
from typer.core import TyperGroup

from codex_state.cli import completing
from codex_state.cli.output import counted, note, one_line, rfc3339, shown_progress
from codex_state.errors import ConfigurationError, InvalidInputError, StateError, ThreadNotFoundError

if TYPE_CHECKING:
    from codex_state.errors import ServerUnavailableError
    from codex_state.models import BackfillState
    from codex_state.runtime import State, StateRuntime
    from codex_state.settings import StateSettings


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What was given before the command's name."""

    codex_home: str | None = None


CodexHome = Annotated[
    str | None,
    typer.Option(
        "--codex-home",
        metavar="DIR",
        help="The Codex home.  [default: $CODEX_HOME, else ~/.codex]",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_MOST_SECONDS = 1_000_000_000
"""Some thirty years: nothing that is waited for takes longer."""


def seconds(text: str, *, least: int = 0) -> Any:
    """An option that is a duration."""
    return typer.Option(metavar="SECONDS", min=least, max=_MOST_SECONDS, help=text)


Limit = Annotated[int, typer.Option(metavar="N", min=0, max=1_000_000_000, help="How many at most.")]

ThreadId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The thread's UUID, or how it alone begins.",
        show_default=False,
        autocompletion=completing.thread_ids,
    ),
]

_NAMED_IDS = 5
_NAMED_PLACES = 3
_NAME_LENGTH = 40

ScopeKind = Annotated[
    str | None,
    typer.Option("--scope-kind", metavar="KIND", help="Only scopes of this kind: cwd or user.", show_default=False),
]

ScopeKey = Annotated[
    str | None,
    typer.Option(
        "--scope-key",
        metavar="KEY",
        help="Only this scope: a working directory as the threads store it, or user.",
        show_default=False,
    ),
]


def home_of(context: typer.Context, codex_home: str | None) -> Path | None:
    """The Codex home that was asked for, by the command's own option or by the one in front of it.

    Raises:
        InvalidInputError: it is empty, as a script's unset variable is. It would mean the working directory.
    """
    given = context.find_object(GlobalOptions)
    wanted = codex_home if codex_home is not None or given is None else given.codex_home
    if wanted is None:
        return None
    if not wanted.strip():
        raise InvalidInputError("--codex-home is empty; name a directory, or leave the option out")
    return Path(wanted)


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

    Raises:
        ConfigurationError: it ``writes``, and the database is in memory.
    """
    from codex_state.runtime import StateRuntime

    settings = settings_for(context, codex_home, needs_home=needs_home)
    with patiently(settings, lambda: StateRuntime.open(settings, for_reading=not writes)) as runtime:
        if writes and runtime.in_memory:
            raise ConfigurationError(
                "the database is in memory, where nothing would be kept; have CODEX_STATE_DATABASE_URL name a file or "
                "a server"
            )
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


def short_ids(state: State, thread_ids: Iterable[UUID]) -> Callable[[UUID], str]:
    """How a terminal shows the ids of threads: as much of each as names it alone. Nobody else needs them."""
    short = state.threads.shortest_beginnings(set(thread_ids)) if sys.stdout.isatty() else {}
    return lambda thread_id: short.get(thread_id) or str(thread_id)


def the_thread(runtime: StateRuntime, told: UUID | str) -> UUID:
    """The id of the thread that was named, whole or by how its id begins.

    Raises:
        StateError: no id begins so, or several do.
    """
    if isinstance(told, UUID):
        return told
    first, last = UUID(told.ljust(32, "0")), UUID(told.ljust(32, "f"))
    with runtime.read() as state:
        found = state.threads.ids_between(first, last, limit=_NAMED_IDS + 1)
    if not found:
        hint = _incompleteness_of(runtime)
        raise StateError(f"no thread's id begins with {told}" + (f" ({hint})" if hint else ""))
    if len(found) > 1:
        _name(runtime, found[:_NAMED_IDS])
        many = f"more than {_NAMED_IDS}" if len(found) > _NAMED_IDS else len(found)
        raise StateError(f"{many} threads' ids begin with {told}; give more of it")
    return found[0]


def _name(runtime: StateRuntime, thread_ids: Sequence[UUID]) -> None:
    """Tell of each thread its id and what it is called."""
    with runtime.read() as state:
        short = short_ids(state, thread_ids)
        threads = [state.threads.get(thread_id) for thread_id in thread_ids]
    for thread_id, thread in zip(thread_ids, threads, strict=True):
        name = one_line((thread and thread.display_name) or "-")
        note(f"{short(thread_id)}  {name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + '…'}")


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


NoRefresh = Annotated[
    bool, typer.Option("--no-refresh", help="Use the index as it is, without looking at the home's files first.")
]


def freshen(runtime: StateRuntime, *, no_refresh: bool = False) -> None:
    """Take in what is new, changed or gone; if that can't be, or isn't wanted, say how old the index is."""
    from codex_state import rollout
    from codex_state.errors import (
        DatabaseBusyError,
        DatabaseFullError,
        DatabaseReadOnlyError,
        PermissionRefusedError,
        StorageError,
    )
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
    except (DatabaseReadOnlyError, PermissionRefusedError):
        _note_age(runtime, "it can't be written")
        return
    except (DatabaseBusyError, DatabaseFullError, StorageError) as error:
        _note_age(runtime, str(error))
        return
    if report is None:
        return
    if report.status is not BackfillOutcome.COMPLETE:
        _note_age(runtime, f"it is being brought up to date by {holder_of(runtime)}")
        return
    for place in report.unseen[:_NAMED_PLACES]:
        note(one_line(str(place)))
    if failed := report.failed - sum(not place.is_link for place in report.unseen):
        note(f"{counted(failed, 'file')} can't be indexed; `codex-state backfill` says why")


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


def function_of(text: str, directory: Path | None = None) -> Callable[..., Any]:
    """The function that ``module:function`` names, of an installed module or of one in ``directory``.

    The working directory is no place to look unless it is named: it may be a repository of somebody else's.

    Raises:
        InvalidInputError: there is no such module or function.
        ConfigurationError: the module is there and can't be imported.
    """
    module, _, name = text.strip().partition(":")
    if not module or not name:
        raise InvalidInputError(f"malformed function {text!r}; expected module:function, like my_agent.memory:extract")
    place = None if directory is None else str(directory.absolute())
    if place is not None and place not in sys.path:
        sys.path.append(place)  # after all others: nothing there is taken for a module of Python's
    try:
        found: Any = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            where = "" if place is None else f" in {place} or"
            advice = "; name its directory by --import-from" if place is None else ""
            raise InvalidInputError(
                f"there is no module {error.name!r}{where} among the installed packages{advice}"
            ) from error
        raise ConfigurationError(f"can't import {module}: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInputError(f"{module} has no function {name!r}")
    function: Callable[..., Any] = found
    return function


_CHANGING = frozenset(
    [
        "archive",
        "copy",
        "downgrade",
        "import",
        "name",
        "prune",
        "requeue",
        "restore",
        "run",
        "title",
        "unarchive",
        "upgrade",
    ]
)
"""Whoever mistypes a command isn't given one of these to try."""

_WHOLE = 1000
"""Characters: no first sentence has more."""


class Commands(TyperGroup):
    """Lists its commands with their whole first sentences, and suggests none that changes anything."""

    headings: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Below which of them each command is listed, and in which order; where there are none, below "Commands"."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as click calls it
        """Write the commands below their headings."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        for heading, names in (self.headings or {"Commands": tuple(shown)}).items():
            with formatter.section(heading):
                formatter.write_dl([(name, shown[name].get_short_help_str(limit=_WHOLE)) for name in names])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was typed. Where there is none, typer suggests those that are spelled alike."""
        known = self.commands
        if args and args[0] not in known:
            self.commands = {name: command for name, command in known.items() if name not in _CHANGING}
        try:
            return super().resolve_command(ctx, args)
        finally:
            self.commands = known
