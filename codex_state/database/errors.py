"""The database's errors, and the one place that reads a driver's.

Each is one of SQLAlchemy's classes as well, so that ``except sqlalchemy.exc.IntegrityError`` in a service goes on
working on our engines, and carries the driver's error as ``orig``. What the two databases take for different classes
has both. Their texts name the file or the server, and never a password.

When a read fails in the middle, SQLite may see half of a page and call the file malformed. Nobody should set a file
aside for that. So such a file is looked at again, by a connection that remembers nothing.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from enum import Enum, auto
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, exc

from codex_state.errors import InvalidInputError, InvalidRowError, StateError, UsageError

_PATIENCE_SECONDS = 3.0
"""A large file isn't read to its end for this: then SQLite's first word holds."""

_LOOKS = 3
_STEPS = 10_000
_PAGE_BYTES = 4096
_STORAGE_WORDS = ("error code=", "unable to get the page", "failed to get page")

_known: set[tuple[int, int]] = set()


class DatabaseError(StateError, exc.DatabaseError):
    """The database refused or failed. Subclasses say what can be done about it."""

    retryable = False
    """True when the same unit of work may simply be run again from its beginning."""

    def __init__(
        self,
        message: str,
        *,
        orig: BaseException | None = None,
        statement: str | None = None,
        params: Any = None,
    ) -> None:
        """Say ``message``.

        Args:
            message: the whole text.
            orig: the driver's error.
            statement: the SQL that failed. It isn't part of the text.
            params: its parameters. Nor are they.
        """
        exc.StatementError.__init__(self, message, statement, params, orig, hide_parameters=True)

    def __str__(self) -> str:
        return str(self.args[0])

    __reduce__ = StateError.__reduce__


class DatabaseBusyError(DatabaseError, exc.OperationalError, exc.TimeoutError):
    """Somebody else held the database (or its last free pooled connection) for the whole busy timeout."""

    retryable = True


class StatementCancelledError(DatabaseError, exc.OperationalError):
    """The server ended a statement: it took longer than ``statement_timeout`` allows, or an operator cancelled it."""

    retryable = True


class TransactionConflictError(DatabaseError, exc.OperationalError):
    """The database chose this transaction as the victim of a deadlock or a serialisation conflict."""

    retryable = True


class SchemaChangedError(DatabaseError, exc.OperationalError, exc.NotSupportedError):
    """Somebody changed a table under a statement that was prepared before. It is prepared anew when run again."""

    retryable = True


class ConnectionLostError(DatabaseError, exc.OperationalError):
    """The connection broke before a commit was asked for, so nothing of the unit of work was kept."""

    retryable = True


class UnknownCommitOutcomeError(DatabaseError, exc.OperationalError):
    """The connection broke during a commit: the unit of work may or may not have been kept. Never retried blindly."""


class DatabaseUnavailableError(DatabaseError, exc.OperationalError):
    """The database can't be opened: missing directory, refused connection, wrong credentials."""


class NoFileLocksError(DatabaseUnavailableError):
    """An SQLite file lies where files can't be locked, so that nobody can use it: some network file systems are so."""


class ServerUnavailableError(DatabaseUnavailableError):
    """The server can't be reached for now: it is down, starting, stopping, or out of connections. It may come back."""

    retryable = True


class DatabaseReadOnlyError(DatabaseError, exc.OperationalError, exc.InternalError):
    """A write was tried in a read-only transaction or on a standby, or the file or its directory can't be written."""


class DatabaseFullError(DatabaseError, exc.OperationalError):
    """The disk (or a quota) is full. Nothing of the failed transaction was kept."""


class OutOfMemoryError(DatabaseError, exc.OperationalError):
    """The database or its driver had no memory left. Nothing of the failed transaction was kept."""


class StorageError(DatabaseError, exc.OperationalError):
    """The storage under the database failed to read or to write. Nothing of the failed transaction was kept."""


class DatabaseCorruptError(DatabaseError, exc.InternalError):
    """The file is damaged. It is never deleted: ``codex-state doctor --repair`` sets it aside and saves what it can."""


class NotADatabaseError(DatabaseCorruptError):
    """The file at the database's path is not an SQLite database."""


class StateFileLostError(DatabaseError, exc.OperationalError):
    """The SQLite file was removed, replaced or emptied while it was open: what is written goes nowhere, or elsewhere.

    Nothing of the failed transaction was kept. Leases that were granted in the file are worth nothing any more.
    """


class IntegrityViolationError(DatabaseError, exc.IntegrityError):
    """A constraint of the schema refused the row: a foreign key, a check, a unique key."""


class RefusedValueError(DatabaseError, InvalidInputError, exc.DataError):
    """A value that the database or its driver refused: a number out of range, a text with a NUL, something too long."""


class StatementRefusedError(DatabaseError, exc.OperationalError, exc.ProgrammingError, exc.NotSupportedError):
    """A statement that the database doesn't accept: a table or a column that isn't there, a right that is missing."""


class PermissionRefusedError(StatementRefusedError):
    """The role of a PostgreSQL server may not do that."""


class TransactionAbortedError(DatabaseError, UsageError, exc.InternalError):
    """PostgreSQL runs nothing more in a transaction in which an error was caught, and keeps nothing of it.

    What may fail and be caught belongs in ``with session.begin_nested():``, which alone is rolled back then.
    """


class SchemaError(DatabaseError):
    """The database's schema is not the one this version speaks."""


class SchemaTooNewError(SchemaError):
    """The database was migrated by a newer version, which this one can't work beside. It is left untouched."""


class DataLossError(SchemaError):
    """A downgrade would lose what can't be rebuilt. Nothing was changed."""

    def __init__(self, message: str, losses: Mapping[str, int] = MappingProxyType({})) -> None:
        """Say ``message``.

        Args:
            message: the whole text.
            losses: of how many rows something is lost, by ``table.column``, or by table where the rows are.
        """
        super().__init__(message)
        self.losses = dict(losses)


class SchemaOutdatedError(SchemaError):
    """The database needs a migration that the caller asked not to run."""


class ForeignSchemaError(SchemaError):
    """The file belongs to another program. It is left untouched."""


_SQLITE_BY_CODE: dict[int, type[DatabaseError]] = {
    sqlite3.SQLITE_ERROR: StatementRefusedError,
    sqlite3.SQLITE_BUSY: DatabaseBusyError,
    sqlite3.SQLITE_LOCKED: DatabaseBusyError,
    sqlite3.SQLITE_PROTOCOL: DatabaseBusyError,
    sqlite3.SQLITE_READONLY: DatabaseReadOnlyError,
    sqlite3.SQLITE_PERM: DatabaseUnavailableError,
    sqlite3.SQLITE_CANTOPEN: DatabaseUnavailableError,
    sqlite3.SQLITE_FULL: DatabaseFullError,
    sqlite3.SQLITE_IOERR: StorageError,
    sqlite3.SQLITE_NOMEM: OutOfMemoryError,
    sqlite3.SQLITE_SCHEMA: SchemaChangedError,
    sqlite3.SQLITE_CORRUPT: DatabaseCorruptError,
    sqlite3.SQLITE_NOTADB: NotADatabaseError,
    sqlite3.SQLITE_CONSTRAINT: IntegrityViolationError,
    sqlite3.SQLITE_TOOBIG: RefusedValueError,
    sqlite3.SQLITE_RANGE: StatementRefusedError,
    sqlite3.SQLITE_MISMATCH: RefusedValueError,
}

_POSTGRESQL_BY_STATE: dict[str, type[DatabaseError]] = {
    "40001": TransactionConflictError,
    "40P01": TransactionConflictError,
    "55P03": DatabaseBusyError,
    "57014": StatementCancelledError,
    "42501": PermissionRefusedError,
    "25006": DatabaseReadOnlyError,
    "25P02": TransactionAbortedError,
    "53100": DatabaseFullError,
    "53200": OutOfMemoryError,
    "XX001": DatabaseCorruptError,
    "XX002": DatabaseCorruptError,
    "53300": ServerUnavailableError,
    "57P03": ServerUnavailableError,
    "3D000": DatabaseUnavailableError,
    "57P01": ConnectionLostError,
    "57P02": ConnectionLostError,
    "57P05": ConnectionLostError,
    "25P03": ConnectionLostError,
    "25P04": ConnectionLostError,
    "26000": SchemaChangedError,  # a prepared statement that the session doesn't know any more
}

_POSTGRESQL_BY_CLASS: dict[str, type[DatabaseError]] = {
    "08": ConnectionLostError,
    "0A": StatementRefusedError,
    "22": RefusedValueError,
    "23": IntegrityViolationError,
    "28": DatabaseUnavailableError,
    "42": StatementRefusedError,
    "54": RefusedValueError,  # a value beyond a limit of the server, like a key too long for an index
    "58": StorageError,
}

_DRIVER_BY_NAME: dict[str, type[DatabaseError]] = {
    # Errors of the driver itself, which have no state.
    "OperationalError": ConnectionLostError,
    "InternalError": ConnectionLostError,  # more answers than questions: a pooler died, for instance
    "DataError": RefusedValueError,  # a NUL in a text
    "ProgrammingError": StatementRefusedError,
}

_POSTGRESQL_DRIVERS = ("psycopg", "asyncpg", "pg8000", "sqlalchemy.dialects.postgresql")
"""Where the drivers' errors are defined, and those by which SQLAlchemy makes an async driver look like the others."""

_ADVICE: dict[type[StateError], str] = {
    DatabaseBusyError: "another process held the database for the whole busy timeout; try again",
    StatementCancelledError: "its statement_timeout is too short, or somebody cancelled it; nothing of it was kept",
    PermissionRefusedError: "grant it to the role: docs/postgres.md says which rights are needed; to read needs SELECT",
    TransactionAbortedError: (
        "an earlier error was caught, and nothing of this transaction is kept; end it, and have what may fail in "
        "`with session.begin_nested():`"
    ),
    SchemaChangedError: "run the unit of work again",
    DatabaseReadOnlyError: (
        "the unit of work is read-only, the server is a standby, or the file or its directory can't be written"
    ),
    DatabaseUnavailableError: "check the path or URL, its permissions, and that the server runs",
    NoFileLocksError: "this file system can't lock files; set CODEX_SQLITE_HOME to a directory on another one",
    ServerUnavailableError: "check the URL's host and port, and that the server runs",
    DatabaseFullError: "free some space; nothing of this transaction was kept",
    StorageError: "the storage failed; nothing of this transaction was kept, and what was committed before is safe",
    DatabaseCorruptError: (
        "run `codex-state doctor --repair`, which saves what can be read, or `codex-state restore` a backup"
    ),
    NotADatabaseError: (
        "the file is not an SQLite database; choose another path, or run `codex-state doctor --repair`, which sets it "
        "aside, or `codex-state restore` a backup"
    ),
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
_ROOM_FOR_AN_INDEX = 64 * 1024

_NEVER = (
    "Name or service not known",
    "nodename nor servname",
    "Permission denied",
    "invalid ",
    "does not support SSL",
    "certificate",
    "no password supplied",
)


def place_of(url: URL) -> str:
    """The database that a URL leads to, as people know it: a file, or a host, its port and a name. No secrets."""
    if url.get_backend_name() == "sqlite":
        return url.database if url.database and url.database != ":memory:" else "the database in memory"
    host, port = url.host or url.query.get("host") or "localhost", url.port or url.query.get("port")
    host = host if isinstance(host, str) else ",".join(host)
    return f"{host}{f':{port}' if isinstance(port, int | str) else ''}/{url.database or ''}"


def without_secrets(text: str, url: URL) -> str:
    """``text`` without the passwords of ``url``."""
    for name, value in (("password", url.password), *url.query.items()):
        if "password" in name:
            for secret in value if isinstance(value, tuple) else (value,):
                text = text.replace(str(secret), "***") if secret else text
    return text


def _told(kind: type[DatabaseError], text: str, advice: str, url: URL | None, orig: BaseException) -> DatabaseError:
    if url is not None:
        text, place = without_secrets(text, url), place_of(url)
        text = text if place in text else f"{place}: {text}"
    return kind(f"{text} ({advice})" if advice else text, orig=orig)


def classify_connecting(error: BaseException, url: URL | None = None) -> StateError | None:
    """Translate what a driver raised when it could not connect: whether the server may come back, or never so.

    For a connection that could not be made libpq has a text and no SQLSTATE, so the text must do. Where no server
    answered, one may soon. Where one did, only what it says of itself passes; a wrong password or name stays wrong.
    A server that speaks another language than English is asked once more, for what libpq makes of its SQLSTATE.
    """
    if sqlstate_of(error) is not None or not type(error).__module__.startswith("psycopg"):
        return classify(error, url)
    text = str(error).strip()
    passes = any(words in text for words in _NOT_NOW)
    refused = _ANSWERED in text or any(words in text for words in _NEVER)
    passes = passes or not refused or _takes_no_connections_now(error)
    kind = ServerUnavailableError if passes else DatabaseUnavailableError
    advice = _POOLER_ADVICE if "unsupported startup parameter" in text else advice_for(kind)
    return _told(kind, text, advice, url, error)


def _takes_no_connections_now(error: BaseException) -> bool:
    """Whether the server that refused a connection starts, stops or recovers just now (SQLSTATE 57P03)."""
    failed = getattr(error, "pgconn", None)
    if failed is None:
        return False
    from psycopg import conninfo, pq  # only where psycopg raised the error

    given = {option.keyword.decode(): option.val.decode() for option in failed.info if option.val}
    given["connect_timeout"] = _PING_SECONDS
    return pq.PGconn.ping(conninfo.make_conninfo("", **given).encode()) == pq.Ping.REJECT


def classify(error: BaseException, url: URL | None = None) -> StateError | None:
    """Translate a driver's exception into ours, or ``None`` when it isn't one we know.

    Args:
        error: what the driver (``sqlite3``, psycopg or another one of PostgreSQL) or the value conversion in front of
            it raised, as it is or as SQLAlchemy wraps it.
        url: where it happened.
    """
    if isinstance(error, exc.StatementError) and not isinstance(error, StateError) and error.orig is not None:
        return classify(error.orig, url)
    told: StateError | None = None
    match error:
        case StateError():
            told = error
        case UnicodeEncodeError():
            text = f"text can't be stored as UTF-8: {error.reason} at position {error.start}"
            told = RefusedValueError(text, orig=error)
        case OverflowError():
            told = RefusedValueError(f"value out of the database's range: {error}", orig=error)
        case RecursionError():
            told = RefusedValueError(f"value is nested too deeply: {error}", orig=error)
        case MemoryError():
            told = _told(OutOfMemoryError, str(error) or "out of memory", "", url, error)
        case sqlite3.Error() if str(error).startswith("Could not decode to UTF-8"):
            told = InvalidRowError(str(error))
        case _ if (kind := _kind_of(error)) is not None:
            kind, text = _looked_into(kind, str(error).strip() or type(error).__name__, url)
            # A damaged file that nobody calls the state's isn't mended by what mends the state.
            is_ours = not issubclass(kind, DatabaseCorruptError) or _sqlite_file(url) is not None
            told = _told(kind, text, advice_for(kind) if is_ours else "", url, error)
    return told


def _looked_into(kind: type[DatabaseError], text: str, url: URL | None) -> tuple[type[DatabaseError], str]:
    """The kind and the words of an error, after a look at the file or the disk where SQLite's word doesn't tell."""
    path = _sqlite_file(url)
    if path is None:
        return kind, text
    if issubclass(kind, DatabaseCorruptError):
        verdict = examine(path)
        if verdict is Verdict.STORAGE_FAILS:
            return StorageError, "a read or a write failed on the way"
        if verdict is not Verdict.DAMAGED:
            return StorageError, "what was read isn't what is in the file, which is whole"
    if kind is StorageError and _is_full(path):
        # Where the index of the log doesn't find room, SQLite speaks of I/O, to readers as well.
        return DatabaseFullError, text
    if kind in {DatabaseBusyError, StorageError} and _has_no_locks(path):
        # SQLite takes the refusal of a lock for another's lock.
        return NoFileLocksError, text
    return kind, text


def _sqlite_file(url: URL | None) -> str | None:
    if url is None or url.get_backend_name() != "sqlite" or url.database == ":memory:":
        return None
    return url.database or None


def _is_full(path: str) -> bool:
    try:
        return shutil.disk_usage(os.path.dirname(path) or ".").free < _ROOM_FOR_AN_INDEX  # noqa: PTH120 - a text
    except OSError:
        return False


def _has_no_locks(path: str) -> bool:
    """Whether files can't be locked beside this one: not even a new one, which nobody else has."""
    try:
        import fcntl

        probe = tempfile.TemporaryFile(dir=os.path.dirname(path) or ".")  # noqa: PTH120, SIM115 - a text; closed below
    except (ImportError, OSError):  # Windows, where SQLite tells it itself; and where nothing can be made
        return False
    with probe:
        try:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def raised_as_ours(url: URL | None = None) -> Iterator[None]:
    """Raise what a driver raises in the block as one of ours, where SQLAlchemy has no part in it (law L8)."""
    try:
        yield
    except Exception as error:
        told = classify(error, url)
        if told is None or told is error:
            raise
        raise told from error


def sqlstate_of(error: BaseException) -> str | None:
    """What PostgreSQL calls the error in five characters, whichever driver tells it and in whichever language."""
    for name in ("sqlstate", "pgcode"):
        if isinstance(state := getattr(error, name, None), str):
            return state
    # pg8000 has the fields of the server's message in a dictionary.
    fields = error.args[0] if error.args else None
    return fields.get("C") if isinstance(fields, dict) else None


def _kind_of(error: BaseException) -> type[DatabaseError] | None:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None:
            return _SQLITE_BY_CODE.get(code & 0xFF, DatabaseError)
        # What Python's module itself raised: a closed connection, a wrong number of parameters, an oversized value.
        return RefusedValueError if isinstance(error, sqlite3.DataError) else StatementRefusedError
    if any(base.__module__.startswith(_POSTGRESQL_DRIVERS) for base in type(error).__mro__):
        return _kind_on_postgresql(error)
    return None


def _kind_on_postgresql(error: BaseException) -> type[DatabaseError]:
    state = sqlstate_of(error)
    if state is None:
        return _DRIVER_BY_NAME.get(type(error).__name__, DatabaseError)
    if state == "08P01" and any(words in str(error) for words in _NO_SERVER):
        return ServerUnavailableError
    if state == "0A000" and _stale_plan(error):
        return SchemaChangedError
    return _POSTGRESQL_BY_STATE.get(state) or _POSTGRESQL_BY_CLASS.get(state[:2], DatabaseError)


def _stale_plan(error: BaseException) -> bool:
    """Whether a prepared statement returns other columns than it did: "cached plan must not change result type"."""
    where = getattr(getattr(error, "diag", None), "source_function", None)
    return where == "RevalidateCachedQuery" or "cached plan" in str(error)


class Verdict(Enum):
    """What a second look at a file finds: it is damaged, or only its storage failed to give back what is in it."""

    DAMAGED = auto()
    WHOLE = auto()
    STORAGE_FAILS = auto()
    """It can't be read at all just now."""


def examine(path: str) -> Verdict:
    """Look at a file that SQLite has just called malformed, or no database."""
    try:
        status = Path(path).stat()
    except OSError:
        return Verdict.STORAGE_FAILS
    if (status.st_dev, status.st_ino) in _known:
        return Verdict.DAMAGED
    # A failing read may make a look see damage, too: it counts when every look sees it.
    verdict = Verdict.DAMAGED
    for _attempt in range(_LOOKS):
        look = _look(path)
        if look is Verdict.WHOLE:
            return look
        verdict = look if look is Verdict.STORAGE_FAILS else verdict
    if verdict is Verdict.STORAGE_FAILS:
        return verdict
    _known.add((status.st_dev, status.st_ino))
    return Verdict.DAMAGED


def _look(path: str) -> Verdict:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    if _reads_fail(path, give_up) or _reads_fail(f"{path}-wal", give_up):
        return Verdict.STORAGE_FAILS
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True, timeout=0)
        ) as fresh:
            fresh.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS)
            (found,) = fresh.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        return Verdict.STORAGE_FAILS if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} else Verdict.DAMAGED
    if found == "ok":
        return Verdict.WHOLE
    return Verdict.STORAGE_FAILS if any(words in found for words in _STORAGE_WORDS) else Verdict.DAMAGED


def _reads_fail(path: str, give_up: float) -> bool:
    """Whether the storage fails while the file is read page by page, as SQLite would.

    SQLite calls a file malformed when one of its reads failed at certain places, so its own look can't tell.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        at = 0
        while os.pread(descriptor, _PAGE_BYTES, at) and time.monotonic() < give_up:
            at += _PAGE_BYTES
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
