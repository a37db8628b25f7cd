"""The command tree of ``codex-state``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Annotated, ClassVar

import typer

from codex_state.cli.context import CodexHome, Commands, GlobalOptions, Json
from codex_state.cli.output import one_line, tell, write, write_json

_COMMANDS = {
    "Conversations": {
        "threads": "threads.app",
        "search": "search.search",
        "stats": "stats.stats",
        "backfill": "backfill.backfill",
        "homes": "backfill.homes",
        "import": "transfer.import_",
    },
    "Memories": {
        "memory": "memory.app",
        "memories": "memories.app",
        "jobs": "jobs.app",
        "workers": "watching.workers",
        "scopes": "memories.scopes",
        "locks": "memories.locks",
    },
    "The database": {
        "db": "database.app",
        "logs": "logs.app",
        "doctor": "doctor.doctor",
        "backup": "transfer.backup",
        "restore": "transfer.restore",
        "version": "app.version",
    },
}
"""Below each heading of the help, the commands and where they are."""

_PLACES = dict(chain.from_iterable(places.items() for places in _COMMANDS.values()))


class _Program(Commands):
    headings: ClassVar = {heading: tuple(places) for heading, places in _COMMANDS.items()}


def command_of(arguments: Sequence[str]) -> str | None:
    """The command that a command line certainly begins with; ``None`` where that would take typer's own reading."""
    words = iter(arguments)
    for word in words:
        if word == "--codex-home":
            next(words, None)
        elif word not in {"-v", "--verbose"} and not word.startswith("--codex-home="):
            return word if word in _PLACES else None
    return None


def program(only: str | None = None) -> typer.Typer:
    """The program, or as much of it as one of its commands needs: to build them all costs a tenth of a second.

    Args:
        only: the name of the command; ``None`` for all.
    """
    app = typer.Typer(
        cls=_Program,
        # Plain help needs a third of the time and fits any width.
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit status: 0 fine, 1 failed, 2 wrong usage, 3 somebody else holds it, 4 a newer version's state.",
    )
    app.callback()(codex_state)
    for name in _PLACES if only is None else (only,):
        module, _, attribute = _PLACES[name].partition(".")
        place = getattr(import_module(f"codex_state.cli.{module}"), attribute)
        if isinstance(place, typer.Typer):
            app.add_typer(place, name=name)
        else:
            app.command(name)(place)
    return app


class _StderrHandler(logging.Handler):
    """Shows the library's warnings. It looks stderr up each time, so that they don't tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"codex-state: {record.levelname.lower()}: {one_line(record.getMessage())}")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        from importlib.metadata import version as version_of

        write(f"codex-state {version_of('codex-state')}\n")
        raise typer.Exit


def codex_state(
    context: typer.Context,
    *,
    codex_home: CodexHome = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_print_version)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the library notes on its way.")] = False,
) -> None:
    """The state of Codex-style agents: an index of their rollouts, their memories, jobs and logs."""
    context.obj = GlobalOptions(codex_home=codex_home)
    log = logging.getLogger("codex_state")
    log.handlers = [_StderrHandler()]
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    log.propagate = False


def version(*, as_json: Json = False) -> None:
    """Print the versions of codex-state, its schema, Python and SQLite."""
    import platform
    import sqlite3
    from importlib.metadata import version as version_of

    from codex_state.migrations import HEAD

    versions = {
        "codex_state": version_of("codex-state"),
        "schema": HEAD,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    if as_json:
        write_json(versions)
        return
    write(f"codex-state {versions['codex_state']}\n")
    write(f"schema {versions['schema']}, Python {versions['python']}, SQLite {versions['sqlite']}\n")
