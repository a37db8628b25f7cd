"""``codex-state db``: the schema of the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli import exits
from codex_state.cli.opening import settings_for
from codex_state.cli.options import CodexHome, Json
from codex_state.cli.output import note, write, write_json

if TYPE_CHECKING:
    from codex_state.database import Database
    from codex_state.migrations import Migrated
    from codex_state.settings import StateSettings

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
    with _database(settings_for(context, codex_home), create=True) as database:
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
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Take the schema back to an older revision.

    Rows stay; what the older schema has no place for is lost.
    """
    from codex_state import migrations
    from codex_state.errors import InvalidInputError, SchemaError

    if revision.startswith("-") and not revision[1:].isdigit():
        raise InvalidInputError(f"no such option: {revision}; a step back is spelled -1")
    with _database(settings_for(context, codex_home)) as database:
        if not _exists(database):
            raise SchemaError(_absence_of(database))
        migrated = migrations.downgrade(database.engine, revision)
    _tell(migrated, as_json=as_json)


@app.command()
def current(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Print the revision that the database is at. Changes nothing."""
    from codex_state import migrations

    with _database(settings_for(context, codex_home)) as database:
        revision = _revision_of(database)
        absence = _absence_of(database)
    if as_json:
        write_json({"revision": revision, "head": migrations.HEAD, "is_head": revision == migrations.HEAD})
    elif revision is not None:
        write(f"{revision}{' (head)' if revision == migrations.HEAD else ''}\n")
    else:
        note(absence)


@app.command()
def check(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Check that the schema is the one this version speaks.

    Prints the differences, with exit status 1.
    """
    from codex_state import migrations

    with _database(settings_for(context, codex_home)) as database:
        if _exists(database):
            with database.read() as session:
                differences = migrations.check(session.connection())
        else:
            differences = [_absence_of(database)]
    if as_json:
        write_json({"ok": not differences, "head": migrations.HEAD, "differences": differences})
    elif differences:
        write("".join(f"{difference}\n" for difference in differences))
    else:
        write(f"the schema is that of {migrations.HEAD}\n")
    if differences:
        raise typer.Exit(exits.FAILED)


@app.command()
def history(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """List the revisions, and mark the database's."""
    from alembic.script import ScriptDirectory

    from codex_state.migrations.location import configuration

    with _database(settings_for(context, codex_home)) as database:
        at = _revision_of(database)
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
def _database(settings: StateSettings, *, create: bool = False) -> Iterator[Database]:
    """The database, opened without migrating it. Without ``create``, a missing file stays missing until it is used."""
    from codex_state.database import Database, prepare_sqlite_file
    from codex_state.state_files import make_directory

    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
    else:
        url = f"sqlite:///{settings.database_path}"
    database = Database.open(url, pool_size=settings.pool_size, busy_timeout=settings.busy_timeout)
    try:
        if create and database.path is not None:
            make_directory(database.path.parent)
            prepare_sqlite_file(database)
        yield database
    finally:
        database.close()


def _exists(database: Database) -> bool:
    return database.path is None or database.path.exists()


def _absence_of(database: Database) -> str:
    what = "no schema in the database" if _exists(database) else f"no database at {database.path}"
    return f"there is {what} yet; run `codex-state db upgrade`"


def _revision_of(database: Database) -> str | None:
    from codex_state import migrations

    if not _exists(database):
        return None
    with database.engine.connect() as connection:
        return migrations.current_revision(connection)


def _tell(migrated: Migrated, *, as_json: bool) -> None:
    if as_json:
        write_json({"before": migrated.before, "after": migrated.after, "changed": migrated.changed})
    elif migrated.changed:
        write(f"{migrated.before or 'empty'} -> {migrated.after or 'empty'}\n")
    else:
        write(f"{migrated.after or 'empty'} already\n")
