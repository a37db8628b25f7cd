"""The command tree of ``codex-state``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from codex_state.cli import (
    backfill,
    backups,
    database,
    doctor,
    importing,
    jobs,
    logs,
    memories,
    memory,
    search,
    stats,
    threads,
    watching,
)
from codex_state.cli.context import CodexHome, GlobalOptions, Json
from codex_state.cli.groups import Commands
from codex_state.cli.output import one_line, write, write_json

app = typer.Typer(
    cls=Commands,
    # Plain help needs a third of the time and fits any width.
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 fine, 1 failed, 2 wrong usage, 3 somebody else holds it, 4 a newer version's state.",
)
app.command("backfill")(backfill.backfill)
app.add_typer(threads.app, name="threads")
app.command("search", no_args_is_help=True)(search.search)
app.command("stats")(stats.stats)
app.command("homes")(backfill.homes)
app.command("import")(importing.import_)
app.add_typer(memory.app, name="memory")
app.add_typer(memories.app, name="memories")
app.add_typer(jobs.app, name="jobs")
app.command("workers")(watching.workers)
app.command("scopes")(memories.scopes)
app.command("locks")(memories.locks)
app.add_typer(database.app, name="db")
app.add_typer(logs.app, name="logs")
app.command("doctor")(doctor.doctor)
app.command("backup")(backups.backup)
app.command("restore")(backups.restore)


class _StderrHandler(logging.Handler):
    """Shows the library's warnings. It looks stderr up each time, so that they don't tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"codex-state: {record.levelname.lower()}: {one_line(record.getMessage())}\n")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        from importlib.metadata import version as version_of

        write(f"codex-state {version_of('codex-state')}\n")
        raise typer.Exit


@app.callback()
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


@app.command()
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
