"""Statements compiled once and run on the driver's own cursor.

SQLAlchemy's execution of a statement that it has compiled before still costs two to three times the statement itself on
SQLite, and nearly as much as driver and server together on PostgreSQL. Here a statement is compiled once per engine;
after that its text goes to the driver with its parameters in order, through the same type conversions. What
SQLAlchemy's execution would add is given back by hand: errors are classified, and rows have names.

The ordinary path stays for everything else: other drivers; statements whose text depends on their parameters (IN
lists) or on the connection (a map of schemas); connections whose transaction SQLAlchemy has to begin or to refuse; and
engines to whose statements somebody listens (before, after or instead of their execution), so that tracing on
``runtime.engine`` sees the statements of every mode. A listener for errors alone (``handle_error``) hears SQLite's only
on the ordinary path, and PostgreSQL's on both: there SQLAlchemy also decides whether a connection is lost.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NoReturn

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Executable,
    String,
    bindparam,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import StatementError
from sqlalchemy.sql.compiler import SQLCompiler

from codex_state.errors import classify

_CACHE_ATTRIBUTE = "codex_state_prepared"
_CACHE_SIZE = 1024

_IDLE = 0
"""The driver's word for "no transaction is open" (libpq's PQTRANS_IDLE)."""

_RAW = (sqlite3.Error, StatementError, UnicodeEncodeError, OverflowError, MemoryError)
"""What isn't a ``StateError`` yet: a refused value, a driver's error, or one from an engine that doesn't translate."""

_SEQSCAN: ColumnElement[str] = literal_column("'enable_seqscan'")
_SEQSCAN_AND_SIZE = select(
    func.current_setting(_SEQSCAN).label("seqscan"),
    func.coalesce(
        func.pg_relation_size(func.to_regclass(literal_column("'threads'")))
        + func.pg_relation_size(func.to_regclass(literal_column("'memory_phase1_jobs'"))),
        literal_column("0"),
    ).label("size"),
)
_SET_SEQSCAN = select(
    func.set_config(_SEQSCAN, bindparam("value", type_=String()), literal_column("true")).label("set")
)
_FORGET_PLANS = text("DISCARD PLANS")
_PLANNED_AT_SIZE = "codex_state_planned_at_size"
_SMALL_BYTES = 128 * 1024
"""Tables up to here are read in no time, by whatever plan."""

_Convert = Callable[[Any], Any] | None
_Make = Callable[[Sequence[Any]], Any]


class _Prepared(ABC):
    """One statement, compiled for one dialect."""

    def __init__(self, compiled: SQLCompiler, dialect: Dialect, names: Iterable[str]) -> None:
        self._text = str(compiled)
        self._names = tuple(names)
        self._processors: Mapping[str, _Convert] = {
            name: compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in self._names
        }
        self._constants = {
            name: bind.effective_value
            for name in self._names
            if (bind := compiled.binds[name]).unique or not bind.required
        }
        columns = _columns_of(compiled)
        self._result_converts = _converts(
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns
        )
        row: Any = namedtuple("Row", [column.key for column in columns])  # type: ignore[misc]
        self._make_row = row._make

    @abstractmethod
    def run(self, connection: Connection, parameters: Mapping[str, Any], make: _Make | None) -> list[Any]:
        """Execute it once and return its rows."""

    @abstractmethod
    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each of ``rows``."""

    def _made(self, rows: Iterable[Sequence[Any]], make: _Make | None) -> list[Any]:
        make = make or self._make_row
        if not self._result_converts:
            return [make(row) for row in rows]
        return [make(_converted(row, self._result_converts)) for row in rows]

    def _with_constants(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._constants | dict(parameters) if self._constants else parameters


class _PreparedOnSqlite(_Prepared):
    def __init__(self, compiled: SQLCompiler, dialect: Dialect) -> None:
        super().__init__(compiled, dialect, compiled.positiontup or ())
        self._bind_converts = _converts(self._processors.get(name) for name in self._names)
        self._writes = compiled.isinsert or compiled.isupdate or compiled.isdelete
        self._pick = _picker(self._names)

    def run(self, connection: Connection, parameters: Mapping[str, Any], make: _Make | None) -> list[Any]:
        cursor = self._cursor(connection)
        try:
            rows = cursor.execute(self._text, self._values_of(parameters)).fetchall()
        finally:
            cursor.close()
        return self._made(rows, make)

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        cursor = self._cursor(connection)
        try:
            cursor.executemany(self._text, [self._values_of(row) for row in rows])
        finally:
            cursor.close()

    def _cursor(self, connection: Connection) -> sqlite3.Cursor:
        driver: Any = connection.connection.driver_connection
        if self._writes:
            if (join := _join_of(driver)) is not None:
                join()  # cheaper than to be refused first
            else:
                _begin_if_its_driver_would_not(connection)
        cursor: sqlite3.Cursor = driver.cursor()
        return cursor

    def _values_of(self, parameters: Mapping[str, Any]) -> Sequence[Any]:
        return _converted(self._pick(self._with_constants(parameters)), self._bind_converts)


class _PreparedOnPsycopg(_Prepared):
    def __init__(self, compiled: SQLCompiler, dialect: Dialect) -> None:
        super().__init__(compiled, dialect, compiled.bind_names.values())
        self._converts = tuple((name, self._processors.get(name)) for name in self._names)

    def run(self, connection: Connection, parameters: Mapping[str, Any], make: _Make | None) -> list[Any]:
        driver: Any = connection.connection.driver_connection
        values, cursor = None, None
        try:
            values = self._values_of(parameters)
            cursor = driver.cursor()
            cursor.execute(self._text, values)
            rows = cursor.fetchall() if cursor.description else ()
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - it raises what becomes of the error
            raise_as_sqlalchemy(connection, error, self._text, values, cursor)
        return self._made(rows, make)

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        driver: Any = connection.connection.driver_connection
        values, cursor = None, None
        try:
            values = [self._values_of(row) for row in rows]
            cursor = driver.cursor()
            cursor.executemany(self._text, values)
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - as above
            raise_as_sqlalchemy(connection, error, self._text, values, cursor)

    def _values_of(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        parameters = self._with_constants(parameters)
        return {
            name: parameters[name] if convert is None else convert(parameters[name]) for name, convert in self._converts
        }


def raise_as_sqlalchemy(
    connection: Connection, error: BaseException, statement: str, parameters: Any, cursor: Any
) -> NoReturn:
    """Raise what SQLAlchemy's own execution would for a driver's error.

    It decides whether the connection is lost, tells who listens to errors, and wraps the error.
    """
    connection._handle_dbapi_exception(error, statement, parameters, cursor, None)  # noqa: SLF001 - nothing else does


def _columns_of(compiled: SQLCompiler) -> Sequence[ColumnElement[Any]]:
    """What a statement returns: a query's columns, or those of RETURNING, also where SQLAlchemy adds it by itself."""
    if compiled.isinsert or compiled.isupdate or compiled.isdelete:
        return tuple(compiled.effective_returning or ())
    return tuple(getattr(compiled.statement, "exported_columns", ()))


_BY_DRIVER: dict[str, type[_PreparedOnSqlite] | type[_PreparedOnPsycopg]] = {
    "pysqlite": _PreparedOnSqlite,
    "psycopg": _PreparedOnPsycopg,
}


def _converts(all_converts: Iterable[_Convert]) -> tuple[tuple[int, Callable[[Any], Any]], ...]:
    """Which positions need a conversion: most columns are text and numbers, which need none."""
    return tuple((index, convert) for index, convert in enumerate(all_converts) if convert is not None)


def _converted(values: Sequence[Any], converts: tuple[tuple[int, Callable[[Any], Any]], ...]) -> Sequence[Any]:
    if not converts:
        return values
    converted = list(values)
    for index, convert in converts:
        converted[index] = convert(converted[index])
    return converted


def _picker(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """The values of ``names`` in their order. ``itemgetter`` gives a bare value for one name and refuses none."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda parameters: [parameters[name] for name in names]


def execute(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any], make: _Make | None = None
) -> Sequence[Any]:
    """Run ``statement`` and return all its rows.

    Args:
        connection: where to run it.
        statement: a constant, or one of a bounded number of shapes.
        parameters: a value for each of its named parameters.
        make: makes what is returned from a row's values; otherwise rows have their columns as attributes.

    Raises:
        StateError: what the driver's error or a refused value means.
    """
    prepared = _prepared_for(connection, statement)
    try:
        if prepared is not None:
            return prepared.run(connection, parameters, make)
        if statement.is_dml:
            _begin_if_its_driver_would_not(connection)
        result = connection.execute(statement, parameters)
        rows = result.all() if result.returns_rows else ()
    except _RAW as error:
        raise _classified(error, connection) from error
    return rows if make is None else [make(row) for row in rows]


def execute_many(connection: Connection, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run ``statement``, which returns nothing, once for each of ``rows``: all of them or none (law L5).

    Raises:
        StateError: what the driver's error or a refused value means.
    """
    with atomically(connection):
        prepared = _prepared_for(connection, statement)
        try:
            if prepared is not None:
                prepared.run_many(connection, rows)
            else:
                connection.execute(statement, rows)
        except _RAW as error:
            raise _classified(error, connection) from error


@contextmanager
def atomically(connection: Connection) -> Iterator[None]:
    """One transaction for the block, also on a connection that commits every statement by itself.

    On any other connection the block joins the transaction that is open or that its first write will open: committing
    that is up to whoever opened the session.
    """
    if connection.get_transaction() is None:
        # Whoever opened the connection has ended its transaction under the session: this begins the next one.
        connection.begin()
    in_transaction = _transaction_probe(connection)
    if in_transaction(connection):
        yield
        return
    begin = "BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN"
    connection.exec_driver_sql(begin)
    try:
        yield
    except BaseException:
        # A full disk or a broken connection has ended the transaction already.
        if not connection.invalidated and in_transaction(connection):
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def commits_by_itself(connection: Connection) -> bool:
    """Whether the next write commits by itself: no transaction is open, and none begins with it."""
    return not _transaction_probe(connection)(connection)


def enforces_foreign_keys(connection: Connection) -> bool:
    """Whether the database holds to foreign keys here. SQLite leaves that to each connection; ours have it do so."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "sqlite" or _join_of(driver) is not None:
        return True
    return bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one())


def _transaction_probe(connection: Connection) -> Callable[[Connection], bool]:
    return _in_sqlite_transaction if connection.dialect.name == "sqlite" else _in_postgresql_transaction


def _join_of(driver: Any) -> Callable[[], bool] | None:
    """What a connection of our own SQLite engines does before a write: see ``StateConnection.joins_transaction``.

    ``None`` for a connection of anybody else's engine.
    """
    join: Callable[[], bool] | None = getattr(driver, "joins_transaction", None)
    return join


def _in_sqlite_transaction(connection: Connection) -> bool:
    """Whether what is written now is part of a transaction, which may begin with it."""
    driver: Any = connection.connection.driver_connection
    if (join := _join_of(driver)) is not None:
        return join()
    # With an isolation level, Python's driver itself begins a transaction before the first write. What is called
    # autocommit since Python 3.12 is below aiosqlite's connection.
    by_itself = driver.isolation_level is None or getattr(getattr(driver, "_conn", driver), "autocommit", None) is True
    return bool(driver.in_transaction) or not by_itself


def _begin_if_its_driver_would_not(connection: Connection) -> None:
    """Begin a service's own transaction before a write.

    Python's driver knows a write by its first word, which may be WITH: that would commit by itself.
    """
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "sqlite" or _join_of(driver) is not None:
        return
    if not driver.in_transaction and _in_sqlite_transaction(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_postgresql_transaction(connection: Connection) -> bool:
    """The same on PostgreSQL, by whichever driver."""
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    if not connection.dialect.detect_autocommit_setting(adapted):
        return True
    match connection.dialect.driver:
        case "asyncpg":
            return bool(driver.is_in_transaction())
        case "pg8000":
            return bool(driver._in_transaction)  # noqa: SLF001 - it says so nowhere else
        case _:  # psycopg and its predecessor
            return not driver.closed and driver.info.transaction_status != _IDLE


@contextmanager
def by_index(connection: Connection) -> Iterator[None]:
    """Have PostgreSQL read tables by an index in the block, also where it takes them for small. Needs a transaction.

    That includes what it reads by itself to check foreign keys, a row of another table for each row that is written.
    The plan for that is kept as long as a session lasts, or until the table is analysed: one that was made when the
    table was known to have a page or two goes on reading all of it, however large it has become. The same holds for
    statements that the driver prepares. So a connection's plans are forgotten whenever the tables have doubled since it
    last forgot them: they are made again once, and sessions of a service's own are left as they were otherwise.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    before = execute(connection, _SEQSCAN_AND_SIZE, {})[0]
    execute(connection, _SET_SEQSCAN, {"value": "off"})
    if not _keeps_plans(connection) or before.size > connection.info.get(_PLANNED_AT_SIZE, -1):
        execute(connection, _FORGET_PLANS, {})
        connection.info[_PLANNED_AT_SIZE] = max(2 * before.size, _SMALL_BYTES)
    yield
    # After an error the transaction's end does this.
    execute(connection, _SET_SEQSCAN, {"value": before.seqscan})


def _keeps_plans(connection: Connection) -> bool:
    """Whether what was planned on this connection is known: behind a pooler each transaction may be another session."""
    driver: Any = connection.connection.driver_connection
    return connection.dialect.driver == "psycopg" and driver.prepare_threshold is not None


@contextmanager
def planned_anew(connection: Connection) -> Iterator[None]:
    """Have PostgreSQL plan the block's statements for the tables as they are now.

    It keeps the plan of a statement that the driver prepares, also one that was right while a table was nearly empty.
    For a statement that joins large tables that may become hundreds of times too slow, and planning costs little.
    """
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver != "psycopg":
        yield
        return
    threshold, driver.prepare_threshold = driver.prepare_threshold, None
    try:
        yield
    finally:
        driver.prepare_threshold = threshold


def _classified(error: Exception, connection: Connection) -> Exception:
    return classify(error, connection.engine.url) or error


def _prepared_for(connection: Connection, statement: Executable) -> _Prepared | None:
    dialect = connection.dialect
    if dialect.driver not in _BY_DRIVER or dialect.is_async or _is_observed(connection) or not _is_plain(connection):
        return None
    cache: dict[Executable, _Prepared | None] = dialect.__dict__.setdefault(_CACHE_ATTRIBUTE, {})
    try:
        return cache[statement]
    except KeyError:
        if len(cache) >= _CACHE_SIZE:
            cache.clear()
        prepared = cache[statement] = _prepare(statement, dialect)
        return prepared


def forget_prepared(dialect: Dialect) -> None:
    """Compile every statement anew for this dialect."""
    dialect.__dict__.pop(_CACHE_ATTRIBUTE, None)


def _is_observed(connection: Connection) -> bool:
    dispatch = connection.engine.dispatch
    return bool(
        # Its own listeners. Its public ``dispatch`` tells as well, at a tenth of what a renewal costs.
        connection._has_events  # noqa: SLF001
        or connection.engine.echo
        or dispatch.before_cursor_execute
        or dispatch.after_cursor_execute
        or dispatch.before_execute
        or dispatch.after_execute
        or (dialect := connection.dialect.dispatch).do_execute
        or dialect.do_executemany
    )


def _is_plain(connection: Connection) -> bool:
    """Whether a transaction is open, with nothing about it or its statements that SQLAlchemy's execution looks at.

    A service that ends the transaction of its connection itself, under a session, has the next statement begin another
    one, and is told when it left a block's transaction before the block's end.
    """
    nested = connection.get_nested_transaction()
    block = connection._trans_context_manager  # noqa: SLF001 - it can't be seen otherwise
    return (
        connection.in_transaction()
        and (nested is None or nested.is_active)
        and (block is None or block._transaction_is_active())  # noqa: SLF001
        and "schema_translate_map" not in connection.get_execution_options()
    )


def _prepare(statement: Executable, dialect: Dialect) -> _Prepared | None:
    compiled: SQLCompiler = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    if compiled.post_compile_params or compiled.literal_execute_params:
        return None
    return _BY_DRIVER[dialect.driver](compiled, dialect)
