"""Every error this package raises, and the one place that reads a driver's.

Two rules hold (law L8). What a caller can do about a problem decides its class, so ``except DatabaseBusyError`` is
useful and ``except StateError`` is enough. And refusals that belong to the protocol (a lease that somebody else
holds, a job that is up to date) are return values, never exceptions.
"""

from __future__ import annotations

import sqlite3
from uuid import UUID


class StateError(Exception):
    """Base of everything this package raises on purpose. Its text says what, where and what to do."""


class ConfigurationError(StateError):
    """Settings or the home they point at can't be used."""


class InvalidInputError(StateError, ValueError):
    """A value given by the caller is malformed: an id, a cursor, a date, a text the database can't store."""


class InvalidRowError(StateError):
    """A stored value can't be read back: an unknown status, a malformed id, a time out of range."""


class ThreadNotFoundError(StateError, LookupError):
    """The thread that an operation is about has no row."""

    def __init__(self, thread_id: UUID) -> None:
        super().__init__(f"thread not found: {thread_id}")
        self.thread_id = thread_id


class RolloutError(StateError):
    """A rollout file can't be turned into a thread."""


class BackfillError(StateError):
    """The index could not be brought up to date."""


class BackfillTimeoutError(BackfillError):
    """Another worker's backfill did not finish within the time that the caller would wait."""


class WorkStoppedError(StateError):
    """Work under a lease must stop: the lease is lost, its time is over, or its caller gave up."""


class LeaseLost(WorkStoppedError):  # noqa: N818 - the field's word
    """A holder's write was refused, because another took over or the work is finished. Nothing was written."""


class MemoryFilesError(StateError):
    """A scope's memories can't be written as files. They are safe in the database."""


class CopyMismatchError(StateError):
    """After a copy, the two databases don't hold the same. The text names the table and the first such row."""


class DatabaseError(StateError):
    """The database refused or failed. Subclasses say what can be done about it."""

    retryable = False
    """True when the same unit of work may simply be run again from its beginning."""


class DatabaseBusyError(DatabaseError):
    """Somebody else held the database (or its last free pooled connection) for the whole busy timeout."""

    retryable = True


class TransactionConflictError(DatabaseError):
    """The database chose this transaction as the victim of a deadlock or a serialisation conflict."""

    retryable = True


class ConnectionLostError(DatabaseError):
    """The connection broke before a commit was asked for, so nothing of the unit of work was kept."""

    retryable = True


class UnknownCommitOutcomeError(DatabaseError):
    """The connection broke during a commit: the unit of work may or may not have been kept. Never retried blindly."""


class DatabaseUnavailableError(DatabaseError):
    """The database can't be opened: missing directory, refused connection, wrong credentials."""


class ServerUnavailableError(DatabaseUnavailableError):
    """The server can't be reached for now: it is down, starting, stopping, or out of connections. It may come back."""

    retryable = True


class DatabaseReadOnlyError(DatabaseError):
    """A write was tried in a read-only transaction or on a standby, or the file or its directory can't be written."""


class DatabaseFullError(DatabaseError):
    """The disk (or a quota) is full. Nothing of the failed transaction was kept."""


class DatabaseCorruptError(DatabaseError):
    """The file is damaged. It is never deleted: set it aside and rebuild the index from the rollouts."""


class NotADatabaseError(DatabaseCorruptError):
    """The file at the database's path is not an SQLite database."""


class IntegrityViolationError(DatabaseError):
    """A constraint of the schema refused the row: a foreign key, a check, a unique key."""


class SchemaError(DatabaseError):
    """The database's schema is not the one this version speaks."""


class SchemaTooNewError(SchemaError):
    """The database was migrated by a newer version. It is left untouched."""


class SchemaOutdatedError(SchemaError):
    """The database needs a migration that the caller asked not to run."""


class ForeignSchemaError(SchemaError):
    """The file belongs to another program. It is left untouched."""


_SQLITE_BY_CODE: dict[int, type[DatabaseError]] = {
    sqlite3.SQLITE_BUSY: DatabaseBusyError,
    sqlite3.SQLITE_LOCKED: DatabaseBusyError,
    sqlite3.SQLITE_PROTOCOL: DatabaseBusyError,
    sqlite3.SQLITE_READONLY: DatabaseReadOnlyError,
    sqlite3.SQLITE_PERM: DatabaseUnavailableError,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnavailableError,
    sqlite3.SQLITE_FULL: DatabaseFullError,
    sqlite3.SQLITE_CORRUPT: DatabaseCorruptError,
    sqlite3.SQLITE_NOTADB: NotADatabaseError,
    sqlite3.SQLITE_CONSTRAINT: IntegrityViolationError,
    sqlite3.SQLITE_TOOBIG: InvalidInputError,  # type: ignore[dict-item]  # the caller's value, not the database
}

_POSTGRESQL_BY_STATE: dict[str, type[DatabaseError]] = {
    "40001": TransactionConflictError,
    "40P01": TransactionConflictError,
    "55P03": DatabaseBusyError,
    "57014": DatabaseBusyError,
    "25006": DatabaseReadOnlyError,
    "53100": DatabaseFullError,
    "XX001": DatabaseCorruptError,
    "XX002": DatabaseCorruptError,
    "53300": ServerUnavailableError,
    "57P03": ServerUnavailableError,
    "3D000": DatabaseUnavailableError,
    "57P01": ConnectionLostError,
    "57P02": ConnectionLostError,
    "57P05": ConnectionLostError,
    "25P03": ConnectionLostError,
}

_POSTGRESQL_BY_CLASS: dict[str, type[StateError]] = {
    "08": ConnectionLostError,
    "22": InvalidInputError,
    "23": IntegrityViolationError,
    "28": DatabaseUnavailableError,
    "54": InvalidInputError,  # a value beyond a limit of the server, like a key too long for an index
}

_PSYCOPG_BY_NAME: dict[str, type[StateError]] = {
    # Errors of the driver itself, which have no state.
    "OperationalError": ConnectionLostError,
    "InternalError": ConnectionLostError,  # more answers than questions: a pooler died, for instance
    "DataError": InvalidInputError,  # a NUL in a text
}

_ADVICE: dict[type[StateError], str] = {
    DatabaseBusyError: "another process held the database for the whole busy timeout; try again",
    DatabaseReadOnlyError: (
        "the unit of work is read-only, the server is a standby, or the file or its directory can't be written"
    ),
    DatabaseUnavailableError: "check the path or URL, its permissions, and that the server runs",
    ServerUnavailableError: "check the URL's host and port, and that the server runs",
    DatabaseFullError: "free some space; nothing of this transaction was kept",
    DatabaseCorruptError: "move the file aside and run the backfill again; rollouts are the source of the index",
    NotADatabaseError: "the file is not an SQLite database; choose another path or move it aside",
}


def advice_for(kind: type[StateError]) -> str:
    """What to do about an error of this kind; an empty text when its own text says it all."""
    return _ADVICE.get(kind, "")


_NO_SERVER = ("server login has been failing", "query_wait_timeout")
"""PgBouncer's words to a client that waits for one of its connections to the server: its transaction never began."""

_ANSWERED = "FATAL:"
"""The mark of a server's own words in the driver's text about a connection that could not be made."""

_NOT_NOW = (
    "terminating connection due to",  # the server ends while it lets the client in
    "the database system is",  # starting up, shutting down, in recovery mode, not yet accepting connections
    "too many clients",
    "too many connections for",
    "remaining connection slots are reserved",
    "server closed the connection unexpectedly",
    # PgBouncer's
    *_NO_SERVER,
    "no more connections allowed",
    "server conn crashed",
    "pgbouncer cannot connect to server",
)
_PING_SECONDS = "3"
_POOLER_ADVICE = "behind a pooler in transaction mode, set CODEX_STATE_TRANSACTION_POOLING=true"
_NEVER = ("Name or service not known", "nodename nor servname", "Permission denied", "invalid ")


def classify_connecting(error: BaseException) -> StateError | None:
    """Translate what a driver raised when it could not connect: whether the server may come back, or never so.

    For a connection that could not be made libpq has a text and no SQLSTATE, so the text must do. Where no server
    answered, one may soon. Where one did, only what it says of itself passes; a wrong password or name stays wrong.
    A server that speaks another language than English is asked once more, for what libpq makes of its SQLSTATE.
    """
    if getattr(error, "sqlstate", None) is not None or not type(error).__module__.startswith("psycopg"):
        return classify(error)
    text = str(error).strip()
    passes = any(words in text for words in _NOT_NOW)
    refused = _ANSWERED in text or any(words in text for words in _NEVER)
    passes = passes or not refused or _takes_no_connections_now(error)
    kind = ServerUnavailableError if passes else DatabaseUnavailableError
    advice = _POOLER_ADVICE if "unsupported startup parameter" in text else advice_for(kind)
    return kind(f"{text} ({advice})")


def _takes_no_connections_now(error: BaseException) -> bool:
    """Whether the server that refused a connection starts, stops or recovers just now (SQLSTATE 57P03)."""
    failed = getattr(error, "pgconn", None)
    if failed is None:
        return False
    from psycopg import conninfo, pq  # only where psycopg raised the error

    given = {option.keyword.decode(): option.val.decode() for option in failed.info if option.val}
    given["connect_timeout"] = _PING_SECONDS
    return pq.PGconn.ping(conninfo.make_conninfo("", **given).encode()) == pq.Ping.REJECT


def classify(error: BaseException) -> StateError | None:
    """Translate a driver's exception into ours, or ``None`` when it isn't one we know.

    Args:
        error: what the driver (``sqlite3``, ``psycopg``) or the value conversion in front of it raised.
    """
    if isinstance(error, StateError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return InvalidInputError(f"text can't be stored as UTF-8: {error.reason} at position {error.start}")
    if isinstance(error, OverflowError):
        return InvalidInputError(f"integer out of the database's 64-bit range: {error}")
    kind = _kind_of(error)
    if kind is None:
        return None
    advice = advice_for(kind)
    text = str(error).strip() or type(error).__name__
    return kind(f"{text} ({advice})" if advice else text)


def _kind_without_code(error: sqlite3.Error) -> type[StateError]:
    """What Python's module itself raised: a closed connection, a wrong number of parameters, an oversized value."""
    if str(error).startswith("Could not decode to UTF-8"):
        return InvalidRowError
    return InvalidInputError if isinstance(error, sqlite3.DataError) else DatabaseError


def _kind_of(error: BaseException) -> type[StateError] | None:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return _kind_without_code(error)
        return _SQLITE_BY_CODE.get(code & 0xFF, DatabaseError)
    state = getattr(error, "sqlstate", None)
    if type(error).__module__.startswith("psycopg"):
        if state is None:
            return _PSYCOPG_BY_NAME.get(type(error).__name__, DatabaseError)
        if state == "08P01" and any(words in str(error) for words in _NO_SERVER):
            return ServerUnavailableError
        return _POSTGRESQL_BY_STATE.get(state) or _POSTGRESQL_BY_CLASS.get(state[:2], DatabaseError)
    return None
