"""Moving a database from one revision to another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from codex_state.errors import SchemaError, SchemaOutdatedError, StateError, classify
from codex_state.migrations.exclusive import exclusive_transaction, one_per_process
from codex_state.migrations.stored import HEAD, connected, current_revision, verified_revision, where


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
    """Make sure that the database has the schema that this version speaks. Cheap when it has.

    Args:
        bind: an engine, or a connection that isn't in a transaction (for a database in memory).
        migrate: whether an older schema is brought up to date; if not, it is refused.

    Raises:
        SchemaTooNewError: a newer version of this package migrated it. Nothing is changed.
        ForeignSchemaError: it belongs to another program. Nothing is changed.
        SchemaOutdatedError: it is older, and ``migrate`` is false.
        DatabaseError: it can't be read or changed. Nothing is changed.
    """
    with connected(bind) as connection:
        before = verified_revision(connection)
        if before == HEAD:
            return Migrated(before, before)
        if not migrate:
            state = "has no schema yet" if before is None else f"is at revision {before!r}"
            raise SchemaOutdatedError(
                f"{where(connection)} {state}, and this version of codex-state needs {HEAD!r}; "
                "run `codex-state db upgrade`"
            )
        return _move(connection, HEAD)


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


def downgrade(bind: Engine | Connection, revision: str) -> Migrated:
    """Downgrade to ``revision``, in one transaction. Rows stay; what the older schema has no place for is lost.

    Args:
        bind: an engine, or a connection that isn't in a transaction.
        revision: a revision's id, a relative one like ``-1``, or ``base`` (refused while there are rows).

    Raises:
        SchemaError: the database is newer or another program's, or there is no such revision to downgrade to.
        DatabaseError: the database can't be read or changed. Nothing is changed.
    """
    with connected(bind) as connection:
        return _move(connection, revision, down=True)


def _move(connection: Connection, revision: str, *, down: bool = False) -> Migrated:
    with _own_errors(), one_per_process(), exclusive_transaction(connection):
        before = verified_revision(connection)  # again: whoever had the lock may have done the work
        if before != revision:
            _run(connection, revision, down=down)
        return Migrated(before, current_revision(connection))


def _run(connection: Connection, revision: str, *, down: bool) -> None:
    # Imported when there is something to do: Alembic costs more than opening a current database.
    from alembic import command

    from codex_state.migrations.location import configuration

    if down:
        command.downgrade(configuration(connection), revision)
    else:
        command.upgrade(configuration(connection), revision)


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
