"""``codex-state db copy``: move the state to another database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import exits
from codex_state.cli.opening import patiently, settings_for
from codex_state.cli.options import CodexHome, Json
from codex_state.cli.output import note, one_line, write_json
from codex_state.cli.progress import shown_copy_progress
from codex_state.cli.tables import Column, write_table

if TYPE_CHECKING:
    from codex_state.settings import StateSettings
    from codex_state.transfer import CopyReport, TableCopy

_NAMED_ROWS = 20


def copy(
    context: typer.Context,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", help="The target: sqlite:///path or postgresql://…, created and migrated as needed."
        ),
    ],
    without_logs: Annotated[bool, typer.Option("--without-logs", help="Leave the log lines where they are.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Copy the state into another database, and compare both.

    Stop the workers first. Run it again after an interruption: what is there is
    skipped.
    """
    from codex_state.runtime import StateRuntime
    from codex_state.transfer import copy_state

    from_settings = settings_for(context, codex_home)
    to_settings = _settings_of_target(from_settings, to)
    _require_source(from_settings)
    try:
        with (
            patiently(from_settings, lambda: StateRuntime.open(from_settings, for_reading=True)) as source,
            patiently(to_settings, lambda: StateRuntime.open(to_settings)) as target,
            shown_copy_progress() as on_progress,
        ):
            report = copy_state(source, target, logs=not without_logs, on_progress=on_progress)
    except KeyboardInterrupt:
        note("interrupted; what was copied is kept, and the next run goes on from there")
        raise
    if as_json:
        write_json(_as_json(report))
    else:
        write_table(_columns(), report.tables)
    if not report.complete:
        _name_rows(report)
        raise typer.Exit(exits.FAILED)


def _settings_of_target(settings: StateSettings, url: str) -> StateSettings:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from codex_state.errors import ConfigurationError, InvalidInputError
    from codex_state.settings import StateSettings

    try:
        make_url(url)
        return StateSettings(**(settings.model_dump() | {"database_url": url, "migrate": True}))
    except (ArgumentError, ValueError, ConfigurationError) as error:
        # Without the URL: there may be a password in it.
        raise InvalidInputError("--to: expected a database's URL, sqlite:///path or postgresql://…") from error


def _require_source(settings: StateSettings) -> None:
    """Opening would create it."""
    from codex_state.database import file_of
    from codex_state.errors import StateError
    from codex_state.state_files import is_missing

    path = file_of(settings)
    if path is not None and is_missing(path):
        raise StateError(f"there is no database at {path}, so there is nothing to copy")


def _as_json(report: CopyReport) -> dict[str, Any]:
    return {
        "complete": report.complete,
        "rows": report.rows,
        "seconds": round(report.seconds, 3),
        "tables": [
            {
                "name": table.name,
                "rows": table.rows,
                **{outcome.value: count for outcome, count in table.outcomes.items()},
                "checked": table.checked,
                "checksum": table.checksum,
            }
            for table in report.tables
        ],
        "left": [{"table": row.table, "key": list(row.key), "reason": row.reason} for row in report.left],
    }


def _columns() -> list[Column[TableCopy]]:
    from codex_state.transfer.reports import RowOutcome

    def count_of(outcome: RowOutcome) -> Column[TableCopy]:
        return Column(outcome.value, lambda table: table.outcomes[outcome], right=True)

    return [
        Column("table", lambda table: table.name),
        Column("rows", lambda table: table.rows, right=True),
        *map(count_of, RowOutcome),
        Column("checked", lambda table: table.checked, right=True),
        Column("checksum", lambda table: table.checksum, from_width=130),
    ]


def _name_rows(report: CopyReport) -> None:
    for row in report.left[:_NAMED_ROWS]:
        note(f"not copied: {one_line(str(row))}")
    if len(report.left) > _NAMED_ROWS:
        note(f"and more; --json names the first {len(report.left):,}")
