"""``codex-state import``: take over what only the original's own databases know."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import exits
from codex_state.cli.context import CodexHome, Json, hint_when_incomplete, opened
from codex_state.cli.output import Column, counted, note, one_line, write, write_json, write_table

if TYPE_CHECKING:
    from codex_state.transfer import ImportedDatabase, ImportReport

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
    with opened(context, codex_home) as runtime:
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
    return exits.HELD if all(isinstance(problem, DatabaseBusyError) for problem in problems) else exits.FAILED
