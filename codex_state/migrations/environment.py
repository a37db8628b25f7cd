"""What ``env.py`` does: run Alembic's command on the connection that it was given, or on the configured database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.runtime.environment import EnvironmentContext
from alembic.util import CommandError
from sqlalchemy import Connection

from codex_state.database import Database, prepare_sqlite_file, url_of
from codex_state.errors import StateError
from codex_state.migrations.drift import context_options
from codex_state.migrations.exclusive import exclusive_transaction, refuse_enforced_foreign_keys
from codex_state.migrations.sqlite_indexes import compared_by_definition
from codex_state.migrations.steps import without_loss
from codex_state.migrations.stored import verified_revision
from codex_state.settings import StateSettings
from codex_state.state_files import make_directory


def run(context: EnvironmentContext) -> None:
    """Run the current command, with the same locks whether it came from ``alembic`` or from this package."""
    if context.is_offline_mode():
        _write_sql(context)
        return
    connection: Connection | None = context.config.attributes.get("connection")
    if connection is None:
        with _errors_for_the_command_line(), _configured_database() as database, database.engine.connect() as opened:
            _prepare(database, opened)
            with compared_by_definition():  # by the commands that compare
                _run_on(context, opened)
    else:
        _run_on(context, connection)


def _run_on(context: EnvironmentContext, connection: Connection) -> None:
    if connection.in_transaction():
        refuse_enforced_foreign_keys(connection)
        _run_in_transaction(context, connection)
    else:
        with exclusive_transaction(connection):
            _run_in_transaction(context, connection)


def _run_in_transaction(context: EnvironmentContext, connection: Connection) -> None:
    verified_revision(connection)
    context.configure(connection=connection, render_as_batch=True, **context_options())
    migration = context.get_context()
    if (steps := migration._migrations_fn) is not None:  # noqa: SLF001 - Alembic gives no other way to see them before
        accepted = context.get_x_argument(as_dictionary=True).get("accept-loss") in {"yes", "true", "1"}
        migration._migrations_fn = without_loss(steps, accept_loss=accepted)  # noqa: SLF001
    context.run_migrations()


def _write_sql(context: EnvironmentContext) -> None:
    context.configure(
        url=url_of(StateSettings()),
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **context_options(),
    )
    with context.begin_transaction():
        context.run_migrations()


@contextmanager
def _configured_database() -> Iterator[Database]:
    settings = StateSettings()
    if settings.database_url is None:
        make_directory(settings.database_path.parent)
    database = Database.of(settings)
    try:
        yield database
    finally:
        database.close()


def _prepare(database: Database, connection: Connection) -> None:
    verified_revision(connection)  # first: a file that isn't ours stays as it is
    if database.path is not None:
        prepare_sqlite_file(database)


@contextmanager
def _errors_for_the_command_line() -> Iterator[None]:
    try:
        yield
    except StateError as error:
        raise CommandError(str(error)) from error
