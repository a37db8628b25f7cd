"""``codex-state backup``, ``restore`` and ``import``: a copy for bad days, and what only the original knows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import FAILED, HELD
from codex_state.cli.context import CodexHome, Json, hint_when_incomplete, opened, patiently, settings_for
from codex_state.cli.output import Column, counted, note, one_line, write, write_json, write_table
from codex_state.errors import StateError

if TYPE_CHECKING:
    from codex_state.transfer import ImportedDatabase, ImportReport


def backup(
    context: typer.Context,
    *,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new SQLite file.", show_default=False)],
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Copy the state into a new SQLite file, consistent as of one moment, while others go on working.

    `codex-state restore FILE` goes back to it.
    """
    from codex_state import transfer
    from codex_state.database import file_of
    from codex_state.database.state_files import is_missing

    settings = settings_for(context, codex_home, needs_home=False)
    path = file_of(settings)
    if path is not None:
        if is_missing(path):
            raise StateError(f"there is no database at {path} yet; run `codex-state backfill`")
        size = transfer.back_up_file(path, target)
    else:
        with opened(context, codex_home, needs_home=False) as runtime:
            size = transfer.back_up_server(runtime, target)
    if as_json:
        write_json({"file": str(target), "bytes": size})
    else:
        write(f"{one_line(str(target))}\t{size}\n")


def restore(
    context: typer.Context,
    *,
    backup: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` made.", show_default=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Set a state that holds rows aside. It stays beside, under another name.")
    ] = False,
    any_home: Annotated[bool, typer.Option("--any-home", help="Also a backup of another home.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Go back to a backup: check it, and put a copy of it in the state's place. Stop what uses the state first.

    A backup goes into a new or empty state, in a file or on a server. Afterwards
    `codex-state backfill`, or any listing, takes in what changed in the home.
    """
    from codex_state import transfer
    from codex_state.errors import InvalidInputError
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings

    settings: StateSettings = settings_for(context, codex_home)
    if (settings.database_url is None) or settings.database_url.get_secret_value().startswith("sqlite"):
        restored = transfer.restore_file(backup, settings, replace=replace, any_home=any_home)
    elif replace:
        raise InvalidInputError("--replace is for SQLite files: on a server, restore into a new database")
    else:
        with patiently(settings, lambda: StateRuntime.open(settings)) as runtime:
            restored = transfer.restore_into_server(backup, runtime, any_home=any_home)
    if restored.set_aside is not None:
        note(f"the state that was there is {restored.set_aside} now")
    if as_json:
        write_json(
            {
                "place": restored.place,
                "revision": restored.revision,
                "set_aside": None if restored.set_aside is None else str(restored.set_aside),
                "rows": restored.rows,
            }
        )
        return
    for table, rows in restored.rows.items():
        write(f"{table}\t{counted(rows, 'row')}\n")


_NAMED_THREADS = 20


def import_(
    context: typer.Context,
    *,
    from_home: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Another Codex home, whose databases are read.  [default: the Codex home]",
            show_default=False,
        ),
    ] = None,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Take over what only Codex's own databases know: names, pins, memories.

    They are only read, also while Codex runs. What is newer here stays, so run
    it again whenever you like. Threads whose rollouts aren't indexed are left:
    run `codex-state backfill` first.
    """
    from codex_state.errors import InvalidInputError
    from codex_state.transfer import import_original

    if from_home is not None and not from_home.strip():
        raise InvalidInputError("--from is empty; name a directory, or leave the option out")
    with opened(context, codex_home, writes=True) as runtime:
        report = import_original(runtime, None if from_home is None else Path(from_home))
        if as_json:
            write_json(_as_json(report))
        else:
            _tell(report)
        if report.unknown_threads:
            hint_when_incomplete(runtime)
    if status := _status_of(report):
        raise typer.Exit(status)


def _tell(report: ImportReport) -> None:
    if report.databases:
        write_table(_columns(), _lines(report))
    if not report.databases:
        write(f"nothing to take over: no databases of Codex in {report.home}\n")
    elif not report.changed:
        write("nothing new of threads that have a row here\n")
    for database in report.databases:
        if database.problem is not None:
            word = "passed over" if database.is_foreign else "not read"
            note(f"{word}: {one_line(f'{database.path}: {database.problem}')}")
    for thread, kinds in islice(report.unknown_threads.items(), _NAMED_THREADS):
        note(f"left, because it has no row here: thread {thread} ({', '.join(kinds)})")
    if len(report.unknown_threads) > _NAMED_THREADS:
        note(f"and more; --json names the first {counted(len(report.unknown_threads), 'thread')}")


def _lines(report: ImportReport) -> list[tuple[ImportedDatabase, Any]]:
    return [(database, kind) for database in report.databases for kind in database.counts]


def _columns() -> list[Column[tuple[ImportedDatabase, Any]]]:
    from codex_state.transfer import ImportOutcome

    def count_of(outcome: ImportOutcome) -> Column[tuple[ImportedDatabase, Any]]:
        header = outcome.value.replace("_", " ")
        return Column(header, lambda line: line[0].counts[line[1]][outcome], right=True)

    return [
        Column("database", lambda line: line[0].path.name, takes_the_rest=True),
        Column("kind", lambda line: line[1].value),
        *map(count_of, ImportOutcome),
    ]


def _as_json(report: ImportReport) -> dict[str, Any]:
    from codex_state.transfer import ImportKind, ImportOutcome

    return {
        "home": str(report.home),
        "complete": report.complete,
        "changed": report.changed,
        "counts": {
            kind.value: {outcome.value: report.total(kind, outcome) for outcome in ImportOutcome} for kind in ImportKind
        },
        "databases": [
            {
                "path": str(database.path),
                "counts": {kind.value: dict(counts) for kind, counts in database.counts.items()},
                "passed_over": database.is_foreign,
                "problem": None if database.problem is None else str(database.problem),
            }
            for database in report.databases
        ],
        "unknown_threads": {str(thread): kinds for thread, kinds in report.unknown_threads.items()},
    }


def _status_of(report: ImportReport) -> int:
    """Failed if one of the databases can't be read at all; held if all that can't may be read later."""
    from codex_state.errors import DatabaseBusyError

    problems = [database.problem for database in report.databases if database.problem and not database.is_foreign]
    if not problems:
        return 0
    return HELD if all(isinstance(problem, DatabaseBusyError) for problem in problems) else FAILED
