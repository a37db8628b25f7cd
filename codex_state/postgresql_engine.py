"""PostgreSQL's engine: bounds on every wait, and what a pooler in between leaves of a session."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.pool import QueuePool

from codex_state import pooling
from codex_state.engine_views import Views, refuse_savepoint, translate_errors
from codex_state.errors import ConfigurationError

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


def open_postgresql(url: URL, *, pool_size: int, busy_timeout: timedelta, transaction_pooling: bool) -> Views:
    """The engine of a PostgreSQL database."""
    options: dict[str, Any] = dict(_patience_of(url))
    if transaction_pooling:
        # The connection to the server is another one in each transaction: a statement prepared on one isn't known to
        # the next, and PgBouncer refuses the parameter ``options``.
        options["prepare_threshold"] = None
    else:
        options["options"] = _server_options(url, busy_timeout)
    try:
        base = create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=busy_timeout.total_seconds(),
            connect_args=options,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigurationError("PostgreSQL needs the extra: pip install 'codex-state[postgres]'") from error
    translate_errors(base)
    event.listen(base, "begin", _name_no_mode)
    autocommit = base.execution_options(isolation_level="AUTOCOMMIT")
    event.listen(autocommit, "savepoint", refuse_savepoint)
    if transaction_pooling:
        pooling.limit_lock_waits(base, autocommit, _lock_timeout_of(busy_timeout))
    return Views(
        base,
        autocommit,
        # One snapshot for the whole unit, as SQLite gives it.
        reader=base.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
    )


def _name_no_mode(connection: Connection) -> None:
    # Once a reader had the connection, SQLAlchemy has the driver begin with READ WRITE. A standby refuses that as a
    # feature that isn't supported, instead of refusing the write as one.
    driver: Any = connection.connection.driver_connection
    if driver.read_only is False:
        driver.read_only = None


def _lock_timeout_of(busy_timeout: timedelta) -> int:
    """In milliseconds. Zero would mean to wait for ever."""
    return max(1, int(busy_timeout.total_seconds() * 1000))


def _patience_of(url: URL) -> dict[str, int]:
    """What the client does about a server that vanished without a word; the URL's own parameters win."""
    return {name: value for name, value in _CLIENT_PATIENCE.items() if name not in url.query}


def _server_options(url: URL, busy_timeout: timedelta) -> str:
    """The server options of a connection: those of the URL, which win, after ours."""
    given = url.query.get("options", "")
    ours = {"lock_timeout": _lock_timeout_of(busy_timeout)} | _SERVER_PATIENCE
    words = [f"-c {name}={value}" for name, value in ours.items()]
    return " ".join([*words, *([given] if isinstance(given, str) else given)]).strip()
