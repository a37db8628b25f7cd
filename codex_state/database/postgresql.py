"""PostgreSQL's engine: bounds on every wait, and what a pooler in between leaves of a session.

Behind a pooler in transaction mode, such as PgBouncer, a session's settings last one transaction. The bound on waiting
for locks is a setting of the session elsewhere; there each transaction sets its own, and a statement that commits by
itself becomes a transaction of its own, at the price of two round trips.
"""

from __future__ import annotations

import os
import select
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from codex_state.database.engine import RETURNED, StatePool, Views, refuse_savepoint, translate_errors
from codex_state.database.errors import (
    TransactionAbortedError,
    advice_for,
    place_of,
    sqlstate_of,
    without_secrets,
)
from codex_state.database.write_queue import Writer, own_wait
from codex_state.errors import ConfigurationError, UsageError
from codex_state.models.comparisons import checked

_CLIENT_PATIENCE = {
    # A machine that vanished, or a firewall that forgot the connection, refuses nothing and says nothing.
    "connect_timeout": 10,
    # What was sent and isn't acknowledged for so many milliseconds ends the connection; Linux would try for 15 minutes.
    "tcp_user_timeout": 20_000,
    # While an answer is waited for nothing is sent that could go unacknowledged: only probes find out. Linux would send
    # the first one after two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
"""libpq's parameters for half-open connections: about 20 s until a hung call fails. Unix sockets have none, and ignore
them."""

_SERVER_PATIENCE = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""The same seen from the server: a client that vanished in a transaction keeps its row locks until the server notices.
``idle_in_transaction_session_timeout`` isn't set: it can't tell a dead client from a service that takes its time, so it
is the operator's to choose."""

_SET_BY_PYTHON = frozenset({"autocommit", "context", "cursor_factory", "row_factory"})
"""Psycopg's options that mean something else, or nothing, as a text: ``autocommit=false`` would switch it on."""

_IDLE = 0
"""The driver's word for "no transaction is open" (libpq's PQTRANS_IDLE)."""

_IN_ERROR = 3
"""The driver's word for a transaction that can only be rolled back (libpq's PQTRANS_INERROR)."""

_IN_TRANSACTION = 2
"""The driver's word for a transaction that waits for its next statement (libpq's PQTRANS_INTRANS)."""

_OWN = "codex_state_own_transaction"
_WRITER = "codex_state_writer"

_TRUSTED_SECONDS = 30.0
"""For so long an idle connection is taken for alive when the server hasn't said anything."""


def open_postgresql(url: URL, *, pool_size: int, busy_timeout: timedelta, transaction_pooling: bool) -> Views:
    """The engine of a PostgreSQL database.

    Raises:
        ConfigurationError: the URL is malformed, or psycopg isn't installed.
    """
    options: dict[str, Any] = {**_patience_of(url), **_psycopg_options_of(url)}
    options["client_encoding"] = "utf8"  # whatever the environment or the role says
    if transaction_pooling:
        # The connection to the server is another one in each transaction: a statement prepared on one isn't known to
        # the next, and PgBouncer refuses the parameter ``options``.
        options["prepare_threshold"] = None
    else:
        options["options"] = _server_options(url, busy_timeout)
    try:
        base = create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=PostgresqlPool,
            pool_size=pool_size,
            pool_timeout=busy_timeout.total_seconds(),
            connect_args=options,
        )
    except ArgumentError as error:
        # Such as more hosts than ports. It may quote the URL.
        raise ConfigurationError(f"the database URL is malformed: {without_secrets(str(error), url)}") from None
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError("PostgreSQL needs the extra: pip install 'codex-state[postgres]'") from error
    translate_errors(base)
    base.dialect.statement_compiler = checked(base.dialect.statement_compiler)
    event.listen(base, "connect", _refuse_other_encodings)
    event.listen(base, "begin", _name_no_mode)
    event.listen(base, "begin", _mark)
    event.listen(base, "commit", _refuse_aborted)
    event.listen(base, "commit", _unmark)
    event.listen(base, "rollback", _unmark)
    event.listen(base, "handle_error", _tell_of_own_wait)
    event.listen(base, "checkout", _refuse_stale(base.dialect))
    autocommit = base.execution_options(isolation_level="AUTOCOMMIT")
    event.listen(autocommit, "savepoint", refuse_savepoint)
    if transaction_pooling:
        limit_lock_waits(base, autocommit, _lock_timeout_of(busy_timeout))
    return Views(
        base,
        # What it may write it may write from the start; a name of its own, since its units are told from a service's.
        writer=base.execution_options(),
        autocommit=autocommit,
        # One snapshot for the whole unit, as SQLite gives it.
        reader=base.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
    )


class PostgresqlPool(StatePool):
    """The pool of PostgreSQL's connections."""

    def is_clean(self, driver: Any) -> bool:
        """Whether no transaction was left open; what is broken is found when it is taken the next time."""
        return bool(driver.closed or driver.pgconn.transaction_status == _IDLE)


def _refuse_stale(dialect: Dialect) -> Callable[[Any, ConnectionPoolEntry, object], None]:
    """Notice a connection that the server has ended while it was idle, before it is used.

    What the server said at its end waits on the socket, and looking whether anything does costs no round trip. Only
    what was idle for long is asked: something in between may have forgotten it without a word.
    """

    def refuse(driver: Any, entry: ConnectionPoolEntry, _proxy: object) -> None:
        returned = (entry.record_info or {}).get(RETURNED)
        if returned is None or (time.monotonic() - returned < _TRUSTED_SECONDS and not _has_news(driver)):
            return
        try:
            dialect.do_ping(driver)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    return refuse


def _has_news(driver: Any) -> bool:
    if driver.closed:
        return True
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([driver.pgconn.socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(driver.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def _refuse_other_encodings(driver: Any, _record: object) -> None:
    # The server tells both with its first answer, so this costs no round trip.
    info = driver.info
    encoding = info.parameter_status("server_encoding")
    if encoding not in {None, "UTF8"}:
        raise ConfigurationError(
            f"the database {info.dbname} on {info.host or 'localhost'} has the encoding {encoding}, which hasn't all "
            "characters; create one by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and use that"
        )


def _name_no_mode(connection: Connection) -> None:
    # Once a reader had the connection, SQLAlchemy has the driver begin with READ WRITE. A standby refuses that as a
    # feature that isn't supported, instead of refusing the write as one.
    driver: Any = connection.connection.driver_connection
    if driver.read_only is False:
        driver.read_only = None


def _refuse_aborted(connection: Connection) -> None:
    """The server answers such a commit by a rollback, which the driver takes for a success."""
    if _driver_of(connection).info.transaction_status == _IN_ERROR:
        place = place_of(connection.engine.url)
        advice = advice_for(TransactionAbortedError)
        raise TransactionAbortedError(f"{place}: the transaction can't be committed ({advice})")


def _mark(connection: Connection) -> None:
    """Leave a mark of a transaction that may write: see ``write_queue``."""
    _unmark(connection)
    options = connection.get_execution_options()
    if options.get("isolation_level") == "AUTOCOMMIT" or options.get("postgresql_readonly"):
        return
    info, driver = connection.info, weakref.ref(_driver_of(connection))
    info[_WRITER] = Writer(
        _locks_of(connection.engine), lambda writer: info.get(_WRITER) is writer, lambda: _holds_locks(driver())
    )


def _unmark(connection: Connection) -> None:
    if not connection.invalidated:
        connection.info.pop(_WRITER, None)


def _locks_of(engine: Engine) -> tuple[URL, str]:
    """What the marks have in common of those who may meet at a row. The marks of units' blocks have another key."""
    return engine.url, "locks"


def _holds_locks(driver: Any) -> bool:
    """Whether a connection's transaction, which waits for its next statement, has written or locked anything."""
    if driver is None or driver.closed or driver.info.transaction_status != _IN_TRANSACTION:
        return False
    try:
        return bool(driver.execute("SELECT txid_current_if_assigned() IS NOT NULL").fetchone()[0])
    except driver.Error:
        return False


def _tell_of_own_wait(context: ExceptionContext) -> UsageError | None:
    """For a lock that was waited for until the time was over, though nobody else could have let go of it.

    That an own write wasn't the one that held it can't be told. Whoever asks for a lock without waiting isn't meant.
    """
    error, connection = context.original_exception, context.connection
    where = getattr(getattr(error, "diag", None), "source_function", None)
    if connection is None or sqlstate_of(error) != "55P03" or where != "ProcessInterrupts":
        return None
    return own_wait(_locks_of(connection.engine), place_of(connection.engine.url))


def _lock_timeout_of(busy_timeout: timedelta) -> int:
    """In milliseconds. Zero would mean to wait for ever."""
    return max(1, int(busy_timeout.total_seconds() * 1000))


def _patience_of(url: URL) -> dict[str, int]:
    """What the client does about a server that vanished without a word; the URL's own parameters win."""
    return {name: value for name, value in _CLIENT_PATIENCE.items() if name not in url.query}


def _psycopg_options_of(url: URL) -> dict[str, int]:
    """The options in the URL that are psycopg's own: it takes values of Python, where libpq takes texts."""
    for name in _SET_BY_PYTHON & url.query.keys():
        raise ConfigurationError(f"the database URL can't set {name}: take it out")
    given = url.query.get("prepare_threshold")
    if given is None:
        return {}
    if not (isinstance(given, str) and given.isascii() and given.isdigit()):
        raise ConfigurationError(f"the database URL's prepare_threshold isn't a whole number: {given!r}")
    return {"prepare_threshold": int(given)}


def _server_options(url: URL, busy_timeout: timedelta) -> str:
    """The server options of a connection: those of the URL, which win, after ours."""
    given = url.query.get("options", "")
    ours = {"lock_timeout": _lock_timeout_of(busy_timeout)} | _SERVER_PATIENCE
    words = [f"-c {name}={value}" for name, value in ours.items()]
    return " ".join([*words, *([given] if isinstance(given, str) else given)]).strip()


def leave_to_parent(engine: Engine) -> None:
    """After a fork: from now on nothing that this process says, not even a good-bye, reaches a server's session.

    The sessions are the parent's. Whoever tries finds the connection lost.
    """
    pool = engine.pool
    assert isinstance(pool, StatePool)
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for connection in pool.made():
            with suppress(engine.dialect.loaded_dbapi.Error, OSError):  # one that is lost already
                os.dup2(nowhere, connection.fileno(), inheritable=False)
    finally:
        os.close(nowhere)


def limit_lock_waits(writer: Engine, autocommit: Engine, milliseconds: int) -> None:
    """Let no statement of these views of one engine wait longer for a lock."""
    setting = f"SET LOCAL lock_timeout = {milliseconds}"

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(setting)

    def before(
        connection: Connection, _cursor: object, statement: str, parameters: Any, context: Any, _many: object
    ) -> tuple[str, Any]:
        driver = _driver_of(connection)
        if driver.info.transaction_status != _IDLE:
            return statement, parameters
        if statement == "BEGIN":  # of several statements that belong together
            return f"BEGIN; {setting}", parameters
        driver.execute(f"BEGIN; {setting}")
        setattr(context, _OWN, True)
        return statement, parameters

    def after(
        connection: Connection, _cursor: object, _statement: str, _parameters: Any, context: Any, _many: object
    ) -> None:
        if getattr(context, _OWN, False):
            # The rows are the client's already.
            _driver_of(connection).execute("COMMIT")

    event.listen(writer, "begin", begin)
    event.listen(autocommit, "before_cursor_execute", before, retval=True)
    event.listen(autocommit, "after_cursor_execute", after)
    event.listen(writer, "handle_error", _roll_back)


def _roll_back(error: ExceptionContext) -> None:
    """End the transaction of a failed statement that would have committed by itself."""
    if error.connection is None or not getattr(error.execution_context, _OWN, False):
        return
    driver = _driver_of(error.connection)
    if not driver.closed and driver.info.transaction_status == _IN_ERROR:
        driver.execute("ROLLBACK")


def _driver_of(connection: Connection) -> Any:
    return connection.connection.driver_connection
