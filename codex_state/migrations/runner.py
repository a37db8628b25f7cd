"""Moving a database from one revision to another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from codex_state.errors import SchemaError, SchemaOutdatedError, StateError, classify
from codex_state.migrations.coexistence import set_aside
from codex_state.migrations.locking import exclusive_transaction, one_per_process
from codex_state.migrations.revision import (
    HEAD,
    connected,
    current_revision,
    is_usable,
    usable_revision,
    verified_revision,
    where,
)

_log = logging.getLogger("codex_state")


@dataclass(frozen=True, slots=True)
class Migrated:
    """What became of a database's revision. ``None`` stands for a database without our schema."""

    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        """Whether this call did it, and not an earlier or a concurrent one."""
        return self.before != self.after


def ensure_current(bind: Engine | Connection, *, migrate: bool = True) -> Migrated:
    """Make sure that the database has a schema that this version can use. Cheap when it has.

    That is its own, or a newer one that says that this version may go on. An older one is brought up to date, which is
    logged as a warning.

    Args:
        bind: an engine, or a connection that isn't in a transaction (for a database in memory).
        migrate: whether an older schema is brought up to date; if not, it is refused.

    Raises:
        SchemaTooNewError: a newer version of this package migrated it, and this one can't use it. Nothing is changed.
        ForeignSchemaError: it belongs to another program. Nothing is changed.
        SchemaOutdatedError: it is older, and ``migrate`` is false.
        DatabaseError: it can't be read or changed. Nothing is changed.
    """
    with connected(bind) as connection:
        before = usable_revision(connection)
        if is_usable(before):
            return Migrated(before, before)
        if not migrate:
            state = "has no schema yet" if before is None else f"is at revision {before!r}"
            raise SchemaOutdatedError(
                f"{where(connection)} {state}, and this version of codex-state needs {HEAD!r}; "
                "run `codex-state db upgrade`"
            )
        migrated = _move(connection, HEAD)
        if migrated.changed and migrated.before is not None:
            # Said aloud: somebody may have gone back on purpose, for an older version that can't use it any more.
            _log.warning(
                "%s was at revision %s and is at %s now; CODEX_STATE_MIGRATE=false keeps a schema as it is",
                where(connection),
                migrated.before,
                migrated.after,
            )
        return migrated


def upgrade(bind: Engine | Connection, revision: str = HEAD) -> Migrated:
    """Upgrade to ``revision``, in one transaction.

    Args:
        bind: an engine, or a connection that isn't in a transaction.
        revision: a revision's id, or a relative one like ``+1``.

    Raises:
        SchemaError: the database is newer or another program's, or there is no such revision to upgrade to.
        DatabaseError: the database can't be read or changed. Nothing is changed.
    """
    with connected(bind) as connection:
        return _move(connection, revision)


def downgrade(bind: Engine | Connection, revision: str, *, accept_loss: bool = False) -> Migrated:
    """Downgrade to ``revision``, in one transaction. Rows stay; what the older schema has no place for is lost.

    Args:
        bind: an engine, or a connection that isn't in a transaction.
        revision: a revision's id, a relative one like ``-1``, or ``base`` (refused while there are rows).
        accept_loss: whether that may be something which nothing can rebuild, like a name or a chosen memory mode.

    Raises:
        DataLossError: it would be, and ``accept_loss`` is false. Nothing is changed.
        SchemaError: the database is newer or another program's, or there is no such revision to downgrade to.
        DatabaseError: the database can't be read or changed. Nothing is changed.
    """
    with connected(bind) as connection:
        return _move(connection, revision, down=True, accept_loss=accept_loss)


def _move(connection: Connection, revision: str, *, down: bool = False, accept_loss: bool = False) -> Migrated:
    if not revision:  # which Alembic takes for a mistake of its own
        raise SchemaError(f"no such revision: {revision!r}")
    with _own_errors(), one_per_process(), exclusive_transaction(connection):
        before = verified_revision(connection)  # again: whoever had the lock may have done the work
        if before != revision:
            _run(connection, revision, down=down, accept_loss=accept_loss)
        return Migrated(before, current_revision(connection))


def _run(connection: Connection, revision: str, *, down: bool, accept_loss: bool) -> None:
    """Run the scripts without ``env.py`` and without Alembic's proxies, which a service's own migrations may be using.

    ``alembic.context`` and ``alembic.op`` are one for the whole process. A service's ``env.py`` may open a state, in
    the middle of its own upgrade, and a thread of it may upgrade meanwhile.
    """
    with without_noise():
        # Imported when there is something to do: Alembic costs more than opening a current database.
        from alembic.operations import Operations
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        from codex_state.migrations.compare import context_options
        from codex_state.migrations.environment import scripts_directory
        from codex_state.migrations.steps import without_loss

        scripts = ScriptDirectory(str(scripts_directory()))

        def steps(current: Any, _context: MigrationContext) -> Any:
            between = scripts._downgrade_revs if down else scripts._upgrade_revs  # noqa: SLF001 - as Alembic's commands
            return between(revision, current)

        options = context_options() | {
            "fn": without_loss(steps, accept_loss=accept_loss),
            "script": scripts,
            "render_as_batch": True,
        }
        context = MigrationContext.configure(connection, opts=options)
        operations = Operations(context)
        for script in scripts.walk_revisions():
            # Its ``from alembic import op`` gave it the proxy; the module was loaded for this run alone.
            vars(script.module)["op"] = operations
        with set_aside(connection):
            context.run_migrations()


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep what Alembic tells of each step from a service's log, as long as this thread is at it."""
    thread = get_ident()

    def is_worth_telling(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or record.thread != thread

    loggers = [logging.getLogger(name) for name in ("alembic.runtime.migration", "alembic.runtime.plugins")]
    for logger in loggers:
        logger.addFilter(is_worth_telling)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_worth_telling)


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _first_of(error) from error
    except Exception as error:
        # Without importing Alembic for a comparison: what it raises on purpose is of this class.
        if type(error).__name__ == "CommandError":
            raise SchemaError(str(error)) from error
        raise


def _first_of(error: Exception) -> Exception:
    """What failed first. After it, cleaning up may fail as well: a full disk ends the transaction by itself."""
    first = error
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StateError | DBAPIError):
            first = seen
        seen = seen.__context__
    return classify(first) or first
