"""Which schema a database holds, read without changing anything and without Alembic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Connection, Engine

from codex_state.database.errors import ForeignSchemaError, SchemaTooNewError, place_of, raised_as_ours
from codex_state.database.state_files import READERS_TABLE, VERSION_TABLE
from codex_state.models import metadata

HEAD = "0026_renewals_in_place"
"""The revision that this version speaks."""

_REVISIONS = "SELECT version_num FROM codex_state_version"

_READERS = "SELECT revision, oldest FROM codex_state_readers"
"""A revision, and the oldest one whose version can use that one's schema."""

ORIGINALS_VERSION_TABLE = "_sqlx_migrations"
"""Where the original Codex runtime notes its own migrations."""

RETIRED_TABLES = frozenset({"memory_phase2_jobs"})
"""Tables that only older revisions have."""

_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
    "postgresql": "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = current_schema()",
}


def our_tables() -> frozenset[str]:
    """The names of the tables that belong to this package, at any revision."""
    return RETIRED_TABLES | frozenset(metadata.tables)


def current_revision(connection: Connection) -> str | None:
    """The revision that the database says it is at; ``None`` for one without our schema.

    Raises:
        DatabaseError: the database can't be read.
    """
    return _recorded_revision(connection, _tables(connection))


def is_usable(revision: str | None) -> bool:
    """Whether this version works on what ``usable_revision`` found, as it is."""
    return revision == HEAD or (revision is not None and not _is_known(revision))


def usable_revision(connection: Connection) -> str | None:
    """The same as ``verified_revision``, and also a newer one of which its version says that this one can use it.

    Raises:
        SchemaTooNewError: a newer version of this package migrated it, and this one can't use it.
        ForeignSchemaError: another program's tables are where ours would be.
        DatabaseError: the database can't be read.
    """
    try:
        return verified_revision(connection)
    except SchemaTooNewError:
        revision = current_revision(connection)
        if revision is not None and _admits_this_version(connection, revision):
            return revision
        raise


def _admits_this_version(connection: Connection, revision: str) -> bool:
    if READERS_TABLE not in _tables(connection):
        return False
    # Revisions sort by their numbers. What is noted of another revision says nothing of this one.
    return any(noted == revision and oldest <= HEAD < revision for noted, oldest in _rows(connection, _READERS))


def verified_revision(connection: Connection) -> str | None:
    """The revision of a database that this version can migrate; ``None`` for one that has no tables of ours yet.

    Raises:
        SchemaTooNewError: a newer version of this package migrated it.
        ForeignSchemaError: another program's tables are where ours would be.
        DatabaseError: the database can't be read.
    """
    tables = _tables(connection)
    revision = _recorded_revision(connection, tables)
    if revision == HEAD:
        return revision
    if revision is None:
        ours = tables & our_tables()
        if ours:
            raise ForeignSchemaError(_foreign(connection, tables, ours))
        return None
    if _is_known(revision):
        return revision
    raise SchemaTooNewError(
        f"{where(connection)} is at revision {revision!r}, and this version of codex-state knows those up to {HEAD!r}; "
        "upgrade codex-state, or set CODEX_SQLITE_HOME or CODEX_STATE_DATABASE_URL to another place. "
        "Nothing was changed"
    )


def where(connection: Connection) -> str:
    """The database as people know it, without its password."""
    return f"the database {place_of(connection.engine.url)}"


@contextmanager
def connected(bind: Engine | Connection) -> Iterator[Connection]:
    """A connection of ``bind``, or the given one, which stays open."""
    if isinstance(bind, Connection):
        yield bind
        return
    with raised_as_ours(bind.url):
        connection = bind.connect()
    with connection:
        yield connection


def _foreign(connection: Connection, tables: frozenset[str], ours: frozenset[str]) -> str:
    if ORIGINALS_VERSION_TABLE in tables:
        owner = "belongs to the original Codex runtime"
    else:
        owner = f"has tables that codex-state did not create ({', '.join(sorted(ours))})"
    return (
        f"{where(connection)} {owner}; set CODEX_SQLITE_HOME to a directory of its own, or CODEX_STATE_DATABASE_URL "
        "to another database. Nothing was changed"
    )


def _is_known(revision: str) -> bool:
    from codex_state.migrations.environment import known_revisions

    return revision in known_revisions()


def _tables(connection: Connection) -> frozenset[str]:
    return frozenset(name for (name,) in _rows(connection, _TABLES[connection.dialect.name]))


def _recorded_revision(connection: Connection, tables: frozenset[str]) -> str | None:
    if VERSION_TABLE not in tables:
        return None
    # Our history has no branches. Several rows are none of our making, and won't be known.
    revisions = sorted(revision for (revision,) in _rows(connection, _REVISIONS))
    return " ".join(revisions) or None


def _rows(connection: Connection, statement: str) -> list[Any]:
    """Read by the driver itself: SQLAlchemy would begin a transaction, for a writing engine with the write lock."""
    driver = connection.connection
    try:
        with raised_as_ours(connection.engine.url), closing(driver.cursor()) as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        if not connection.in_transaction():
            driver.rollback()
