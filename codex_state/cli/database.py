"""``codex-state db``: the schema of the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli import exits
from codex_state.cli.opening import patiently, settings_for
from codex_state.cli.options import CodexHome, Json
from codex_state.cli.output import note, write, write_json

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from codex_state.database import Database
    from codex_state.migrations import Migrated
    from codex_state.settings import StateSettings

_FINDINGS = 20
"""So many are named at most."""

app = typer.Typer(no_args_is_help=True, help="Bring the database's schema up to date, or check it.")


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
        raise typer.Exit(exits.FAILED)


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
    from codex_state.migrations.location import configuration

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
    from codex_state.migrations import verified_revision
    from codex_state.state_files import make_directory

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
    from codex_state.database import Database
    from codex_state.sqlite_engine import Access

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
    from codex_state.state_files import is_missing

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
