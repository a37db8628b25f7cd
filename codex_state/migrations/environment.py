"""What ``env.py`` does: run Alembic's command on the connection that it was given, or on the configured database.

Alembic compares indexes by SQLAlchemy's reflection, which doesn't see the directions of an SQLite index, and so takes
an index over ``updated_at DESC`` for another one than it is. SQLite keeps the text of each definition, which tells all:
a plugin compares those.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.operations.ops import CreateIndexOp, DropIndexOp, ModifyTableOps
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.plugins import Plugin
from alembic.script import ScriptDirectory
from alembic.util import CommandError, DispatchPriority, PriorityDispatchResult
from sqlalchemy import Connection, Table, text
from sqlalchemy.schema import CreateIndex

from codex_state.database import Database, prepare_sqlite_file, url_of
from codex_state.database.state_files import make_directory
from codex_state.errors import SchemaError, StateError
from codex_state.migrations.compare import context_options
from codex_state.migrations.locking import exclusive_transaction, refuse_enforced_foreign_keys
from codex_state.migrations.revision import verified_revision
from codex_state.migrations.steps import without_loss
from codex_state.settings import StateSettings


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


_PACKAGE = Path(__file__).parent


def scripts_directory() -> Path:
    """The directory of ``env.py`` and ``versions``.

    Raises:
        SchemaError: the installation is incomplete.
    """
    candidates = (_PACKAGE / "scripts", _PACKAGE.parent.parent / "alembic")
    for candidate in candidates:
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaError(f"no migration scripts in {candidates[0]} or {candidates[1]}; reinstall codex-state")


def configuration(connection: Connection | None = None) -> Config:
    """What Alembic's commands need to know, to run on ``connection``."""
    config = Config()
    # Alembic interpolates its options, so a path's percent signs are doubled.
    config.set_main_option("script_location", str(scripts_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def known_revisions() -> frozenset[str]:
    """Every revision that this version can migrate from."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions())


INDEXES_PLUGIN = "codex_state.indexes"


def _compare(
    context: AutogenContext,
    changes: ModifyTableOps,
    _schema: str | None,
    table: str,
    _found: Table | None,
    expected: Table | None,
) -> PriorityDispatchResult:
    if expected is not None and context.connection is not None:
        definitions = _definitions(context.connection, table)
        wanted = {str(index.name): index for index in expected.indexes}
        for name in sorted(definitions.keys() | wanted.keys()):
            index = wanted.get(name)
            definition = None if index is None else str(CreateIndex(index).compile(dialect=context.dialect))
            if definitions.get(name) == definition:
                continue
            if name in definitions:
                changes.ops.append(DropIndexOp(name, table))
            if index is not None:
                changes.ops.append(CreateIndexOp.from_index(index))
    return PriorityDispatchResult.STOP  # Alembic's own comparison isn't made


_BY_NAME = frozenset({"idx_threads_cwd"})
"""PostgreSQL tells the expression of these in other words than ours, which nobody can compare."""


def _compare_by_name(
    _context: AutogenContext,
    changes: ModifyTableOps,
    _schema: str | None,
    _table: str,
    _found: Table | None,
    _expected: Table | None,
) -> PriorityDispatchResult:
    """Take back that an index differs which is there and wanted."""
    dropped = {change.index_name for change in changes.ops if isinstance(change, DropIndexOp)}
    added = {change.index_name for change in changes.ops if isinstance(change, CreateIndexOp)}
    alike = dropped & added & _BY_NAME
    changes.ops = [change for change in changes.ops if getattr(change, "index_name", None) not in alike]
    return PriorityDispatchResult.CONTINUE


@contextmanager
def compared_by_definition() -> Iterator[None]:
    """For the block, have SQLAlchemy not warn of indexes that it can't reflect: they are compared without it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index idx_threads_")
        yield


def _definitions(connection: Connection, table: str) -> dict[str, str]:
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL"),
        {"table": table},
    )
    return {row.name: " ".join(row.sql.split()) for row in rows}


_plugin = Plugin(INDEXES_PLUGIN)
_plugin.add_autogenerate_comparator(_compare, "table", "indexes", qualifier="sqlite", priority=DispatchPriority.FIRST)
_plugin.add_autogenerate_comparator(
    _compare_by_name, "table", "indexes", qualifier="postgresql", priority=DispatchPriority.LAST
)
