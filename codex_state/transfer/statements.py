"""The statements of a copy: plain SQL for plain rows, as each of the two databases is quickest with it.

A row stays the tuple that it is stored as. SQLAlchemy's constructs would make a dictionary of each row and a named
parameter of each of its values, which takes longer than what the databases do with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection, CursorResult

from codex_state.database.execute import planned_anew

Row = tuple[Any, ...]
Key = tuple[Any, ...]

AT_ONCE = 100
"""How many rows are fetched at once, since each may be long."""

_STREAMED = {"stream_results": True, "max_row_buffer": AT_ONCE}


class Statements:
    """The statements for one table, in what the databases have in common."""

    _PLACE: str
    """How a parameter is written."""

    def __init__(self, name: str, types: Mapping[str, str], key: Sequence[str]) -> None:
        """Take the table's name, PostgreSQL's type of each of its columns, and the columns of its key."""
        self._name = name
        self._types = types
        self._key = key
        self._columns = ", ".join(types)
        self._key_columns = ", ".join(f"{name}.{column}" for column in key)
        self._read = ", ".join(map(self._spelled, types))
        self._rows = f"SELECT {self._read} FROM {name}"  # noqa: S608
        self._after = f"WHERE ({self._key_columns}) > ({self._places(key)})"
        self._in_order = f"ORDER BY {self._key_columns} LIMIT {self._PLACE}"
        new = ", ".join(f"{column} = {self._PLACE}" for column in types)
        self._replace = f"UPDATE {name} SET {new} WHERE ({self._key_columns}) = ({self._places(key)})"  # noqa: S608

    def count(self, connection: Connection) -> int:
        """How many rows there are."""
        count: int = connection.exec_driver_sql(f"SELECT count(*) FROM {self._name}").scalar_one()  # noqa: S608
        return count

    def largest(self, connection: Connection, column: str) -> Any:
        """The largest value of a column; ``None`` without rows."""
        return connection.exec_driver_sql(f"SELECT max({column}) FROM {self._name}").scalar_one()  # noqa: S608

    def following(self, connection: Connection, key: Key | None, limit: int) -> CursorResult[Any]:
        """The rows after a key, or from the first, in the order of their keys."""
        clauses = [self._rows, *([] if key is None else [self._after]), self._in_order]
        return connection.exec_driver_sql(" ".join(clauses), (*(key or ()), limit), execution_options=_STREAMED)

    def at(self, connection: Connection, keys: Sequence[Key], *, locked: bool) -> Iterator[Row]:
        """The rows of these keys, in any order; ``locked`` until the end of the transaction."""
        raise NotImplementedError

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add rows."""
        raise NotImplementedError

    def replace(self, connection: Connection, rows: Sequence[tuple[Row, Key]]) -> None:
        """Overwrite the rows of these keys."""
        connection.exec_driver_sql(self._replace, [(*row, *key) for row, key in rows])

    def _places(self, of: Sequence[Any]) -> str:
        return ", ".join([self._PLACE] * len(of))

    def _spelled(self, column: str) -> str:
        return f"{self._name}.{column}"


class SqliteStatements(Statements):
    """One parameter for each value: SQLite takes 32,766 of them, and keeps what it is given."""

    _PLACE = "?"

    def at(self, connection: Connection, keys: Sequence[Key], *, locked: bool) -> Iterator[Row]:  # noqa: ARG002
        """The rows of these keys. A writer of SQLite is alone, so there is nothing to lock."""
        one = f"({self._places(self._key)})"
        wanted = f"WHERE ({self._key_columns}) IN (VALUES {', '.join([one] * len(keys))})"
        result = connection.exec_driver_sql(f"{self._rows} {wanted}", tuple(chain.from_iterable(keys)))
        return map(tuple, result.all())

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add rows, one after the other."""
        into = f"INSERT INTO {self._name} ({self._columns}) VALUES ({self._places(list(self._types))})"  # noqa: S608
        connection.exec_driver_sql(into, list(rows))


class PostgresqlStatements(Statements):
    """Arrays and COPY: one parameter for each column of the key, and none for what is inserted."""

    _PLACE = "%s"

    def __init__(self, name: str, types: Mapping[str, str], key: Sequence[str]) -> None:
        """Take what the other database takes."""
        super().__init__(name, types, key)
        columns = ", ".join(key)
        arrays = ", ".join(f"CAST({self._PLACE} AS {types[column]}[])" for column in key)
        wanted = ", ".join(f"wanted.{column}" for column in key)
        # Each key is looked up by itself, in the order given, so that no two copies lock each other out. If it may, the
        # planner reads the whole of a table that has no statistics yet.
        one = f"SELECT * FROM {name} WHERE ({self._key_columns}) = ({wanted}) LIMIT 1"  # noqa: S608
        keys = f"unnest({arrays}) AS wanted ({columns})"
        self._at = f"SELECT {self._read} FROM {keys}, LATERAL ({one}) AS {name}"  # noqa: S608
        self._at_locked = f"SELECT {self._read} FROM {keys}, LATERAL ({one} FOR UPDATE) AS {name}"  # noqa: S608
        self._copy = f"COPY {name} ({self._columns}) FROM STDIN"

    def at(self, connection: Connection, keys: Sequence[Key], *, locked: bool) -> Iterator[Row]:
        """The rows of these keys."""
        statement = self._at_locked if locked else self._at
        with planned_anew(connection):
            result = connection.exec_driver_sql(statement, tuple(map(list, zip(*keys, strict=True))))
        return map(tuple, result.all())

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add rows by COPY, which is quicker than any INSERT."""
        driver: Any = connection.connection.driver_connection
        cursor = driver.cursor()
        try:
            with cursor.copy(self._copy) as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.close()
        except BaseException as error:  # noqa: BLE001 - it raises what becomes of the error
            # Whether the connection is lost, and what the error means: as in SQLAlchemy's own execution.
            connection._handle_dbapi_exception(error, self._copy, None, cursor, None)  # noqa: SLF001

    def _spelled(self, column: str) -> str:
        spelled = super()._spelled(column)
        return f"CAST({spelled} AS text)" if self._types[column] == "uuid" else spelled
