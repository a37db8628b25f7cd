"""PostgreSQL behind a pooler in transaction mode, such as PgBouncer, where a session's settings last one transaction.

The bound on waiting for locks is a setting of the session elsewhere. Here each transaction sets its own, and a
statement that commits by itself becomes a transaction of its own, at the price of two round trips.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event

_IDLE = 0
"""The driver's word for "no transaction is open" (libpq's PQTRANS_IDLE)."""

_IN_ERROR = 3
"""The driver's word for a transaction that can only be rolled back (libpq's PQTRANS_INERROR)."""

_OWN = "codex_state_own_transaction"


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
