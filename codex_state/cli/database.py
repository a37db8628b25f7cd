"""``codex-state db``: the schema of the database, and moving the state to another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import FAILED
from codex_state.cli.context import CodexHome, Commands, Json, patiently, settings_for
from codex_state.cli.output import Column, note, one_line, shown_copy_progress, write, write_json, write_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from codex_state.database import Database
    from codex_state.migrations import Migrated
    from codex_state.settings import StateSettings
    from codex_state.transfer import CopyReport, TableCopy


_FINDINGS = 20
"""So many are named at most."""

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Bring the database's schema up to date, or check it.")


@app.command()
def upgrade(
    context: typer.Context,
    *,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="A revision, or a step like +1.")] = "head",
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Bring the schema up to date. Creates the database when there is none."""
    from codex_state import migrations

    target = migrations.HEAD if revision == "head" else revision
    with _database(settings_for(context, codex_home, needs_home=False)) as database:
        migrated = migrations.upgrade(database.engine, target)
    _tell(migrated, as_json=as_json)


# So that a step like -1 isn't taken for an option.
@app.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    context: typer.Context,
    *,
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="A revision, a step like -1, or base.", show_default=False)
    ],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Also when that loses what nothing can rebuild.")
    ] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Take the schema back to an older revision.

    Rows stay; what the older schema has no place for is lost. If that is something which
    nothing can rebuild, like names, it is told and nothing happens without --accept-loss.
    """
    from codex_state import migrations
    from codex_state.errors import InvalidInputError, SchemaError

    if revision.startswith("-") and not revision[1:].isdigit():
        raise InvalidInputError(f"no such option: {revision}; a step back is spelled -1")
    settings = settings_for(context, codex_home, needs_home=False)
    if (absent := _absent(settings)) is not None:
        raise SchemaError(absent)
    with _database(settings) as database:
        migrated = migrations.downgrade(database.engine, revision, accept_loss=accept_loss)
    _tell(migrated, as_json=as_json)
    if migrated.changed and settings.migrate:
        note("this version brings it up to date when it opens it next; CODEX_STATE_MIGRATE=false keeps it so")


@app.command()
def current(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Print the revision that the database is at. Changes nothing.

    A database of another program's is named as such, with exit status 1.
    """
    from codex_state import migrations

    settings = settings_for(context, codex_home, needs_home=False)
    revision, absent = None, _absent(settings)
    if absent is None:
        with _looked_at(settings) as connection:
            revision = migrations.current_revision(connection)
            if revision is None:
                migrations.verified_revision(connection)  # refuses one whose tables aren't ours
                absent = _without_schema(connection)
    if as_json:
        write_json({"revision": revision, "head": migrations.HEAD, "is_head": revision == migrations.HEAD})
    elif revision is not None:
        write(f"{revision}{' (head)' if revision == migrations.HEAD else ''}\n")
    elif absent is not None:
        note(absent)


@app.command()
def check(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Check that the database is whole and its schema is the one this version speaks. Changes nothing.

    Prints what is wrong, with exit status 1. An SQLite file is read to its end.
    """
    from codex_state import migrations

    settings = settings_for(context, codex_home, needs_home=False)
    if (absent := _absent(settings)) is not None:
        differences = [absent]
    else:
        with _looked_at(settings) as connection:
            differences = _damage(connection) or _differences(connection)
    if as_json:
        write_json({"ok": not differences, "head": migrations.HEAD, "differences": differences})
    elif differences:
        write("".join(f"{difference}\n" for difference in differences))
    else:
        write(f"the schema is that of {migrations.HEAD}\n")
    if differences:
        raise typer.Exit(FAILED)


def _damage(connection: Connection) -> list[str]:
    """What SQLite finds wrong with its file, and rows without those that they refer to."""
    if connection.dialect.name != "sqlite":
        return []
    found = connection.exec_driver_sql(f"PRAGMA integrity_check({_FINDINGS})").scalars().all()
    if found != ["ok"]:
        return [f"the file is damaged: {' '.join(str(finding).split())}" for finding in found]
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return [
        f"a row of {table} refers to a row of {parent} that isn't there (rowid {rowid})"
        for table, rowid, parent, _key in orphans[:_FINDINGS]
    ]


def _differences(connection: Connection) -> list[str]:
    from codex_state import migrations
    from codex_state.errors import ForeignSchemaError

    if migrations.current_revision(connection) is not None:
        return migrations.check(connection)
    try:
        migrations.verified_revision(connection)
    except ForeignSchemaError as error:
        # Not table by table: none of them is ours.
        return [str(error)]
    return [_without_schema(connection)]


@app.command()
def history(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """List the revisions, and mark the database's."""
    from alembic.script import ScriptDirectory

    from codex_state import migrations
    from codex_state.migrations.environment import configuration

    settings = settings_for(context, codex_home, needs_home=False)
    at = None
    if _absent(settings) is None:
        with _looked_at(settings) as connection:
            at = migrations.current_revision(connection)
    scripts = list(ScriptDirectory.from_config(configuration()).walk_revisions())[::-1]
    if as_json:
        write_json(
            {
                "items": [
                    {"revision": script.revision, "summary": script.doc, "current": script.revision == at}
                    for script in scripts
                ]
            }
        )
        return
    for script in scripts:
        write(f"{'*' if script.revision == at else ' '} {script.revision}\t{script.doc}\n")


@contextmanager
def _database(settings: StateSettings) -> Iterator[Database]:
    """The database, opened to change it."""
    from codex_state.database import Database, prepare_sqlite_file
    from codex_state.database.state_files import make_directory
    from codex_state.migrations import verified_revision

    if settings.database_url is None:
        make_directory(settings.database_path.parent)
    database = Database.of(settings)
    try:
        _reach(database, settings)
        if database.path is not None:
            with database.autocommit() as session:
                verified_revision(session.connection())  # first: a file that isn't ours stays as it is
            prepare_sqlite_file(database)
        yield database
    finally:
        database.close()


@contextmanager
def _looked_at(settings: StateSettings) -> Iterator[Connection]:
    """A connection to the database that changes nothing, not even what is beside an SQLite file."""
    from codex_state.database import Access, Database

    database = Database.of(settings, Access.READ_ONLY)
    try:
        _reach(database, settings)
        with database.read() as session:
            yield session.connection()
    finally:
        database.close()


def _reach(database: Database, settings: StateSettings) -> None:
    """Wait for the server if it is away. The connection is the one that is used next."""
    if database.dialect != "sqlite":
        patiently(settings, lambda: database.read_engine.connect().close())


def _absent(settings: StateSettings) -> str | None:
    """That there is no file yet, and what to do; ``None`` when there is one, or a server."""
    from codex_state.database import file_of
    from codex_state.database.state_files import is_missing

    path = file_of(settings)
    if path is None or not is_missing(path):
        return None
    return f"there is no database at {path} yet; run `codex-state db upgrade`"


def _without_schema(connection: Connection) -> str:
    from sqlalchemy import inspect

    others = sorted(inspect(connection).get_table_names())
    beside = (
        f", only tables of another program ({', '.join(others[:5])}{', …' if others[5:] else ''})" if others else ""
    )
    return f"there is no schema of codex-state in the database yet{beside}; run `codex-state db upgrade`"


def _tell(migrated: Migrated, *, as_json: bool) -> None:
    if as_json:
        write_json({"before": migrated.before, "after": migrated.after, "changed": migrated.changed})
    elif migrated.changed:
        write(f"{migrated.before or 'empty'} -> {migrated.after or 'empty'}\n")
    else:
        write(f"{migrated.after or 'empty'} already\n")


_NAMED_ROWS = 20


@app.command()
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
        raise typer.Exit(FAILED)


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
    from codex_state.database.state_files import is_missing
    from codex_state.errors import StateError

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
    from codex_state.transfer.copying import RowOutcome

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
