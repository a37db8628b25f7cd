"""Tables as they are stored: the same plain values on both databases.

A row is a tuple of what SQLite's file holds: ids as text, times as whole seconds, JSON as it was written. Nothing is
parsed on the way, so what no version of this package could read is copied like everything else, and rows of the two
databases are equal when they are the same.

SQLAlchemy's constructs would make a dictionary of each row and a named parameter of each of its values, which takes
longer than what the databases do with them. So statements are plain SQL, as each of the two is quickest with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import contains, itemgetter
from typing import Any

from sqlalchemy import Column, Connection, CursorResult, Integer, Table, TypeDecorator

from codex_state.database.execute import planned_anew, raise_as_sqlalchemy
from codex_state.models import metadata
from codex_state.models.base import StateModel, entities
from codex_state.models.columns import UuidText

PAGE_ROWS = 1000
PAGE_CHARACTERS = 4_000_000
"""A page ends with the row that reaches either, so that long texts don't pile up (law L10)."""

_CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_AFTER_THE_REST = (
    "memory_phase1_jobs",
    "memory_scope_dirty",
    "memory_consolidation_locks",
    "codex_state_locks",
    "backfill_state",
    "logs",
)
"""Tables whose rows say something of other rows: a memory that was extracted, a scope without news, a complete index.
They come after those rows, so that an interrupted copy never says more than is true."""


OF_ONE_DATABASE = frozenset({"log_segments"})
"""Tables that say something of their own database only: when lines were inserted there."""


class StoredTable:
    """One table, its key, and what is done to its rows."""

    def __init__(self, model: type[StateModel]) -> None:
        """Take the fields of an entity. What else its table has is not part of the state."""
        declared: Table = model.__table__  # type: ignore[attr-defined]
        types = {name: _type_on_postgresql(declared.c[name]) for name in model.column_names()}
        key_names = [column.name for column in declared.primary_key]
        self.name = declared.name
        self.names = tuple(types)
        key_at = [self.names.index(name) for name in key_names]
        self.key_of: Callable[[Row], Key] = _picker(key_at)
        """The primary key of a row."""
        self.home_at = self.names.index("home") if "home" in self.names else None
        self.has_home_in_key = self.home_at in key_at
        kinds = [int if kind == "bigint" else str for kind in types.values()]
        self._allowed = [(kind, type(None)) for kind in kinds]
        self._texts_of = _picker([index for index, kind in enumerate(kinds) if kind is str])
        self._uuids = [index for index, kind in enumerate(types.values()) if kind == "uuid"]
        self._on: dict[str, Statements] = {
            "sqlite": SqliteStatements(self.name, types, key_names),
            "postgresql": PostgresqlStatements(self.name, types, key_names),
        }

    def values_of(self, row: Row) -> dict[str, Any]:
        """The row by the names of its columns."""
        return dict(zip(self.names, row, strict=True))

    def row_of(self, values: Mapping[str, Any]) -> Row:
        """The row of these values."""
        return tuple(values[name] for name in self.names)

    def count(self, connection: Connection) -> int:
        """How many rows there are."""
        return self._statements(connection).count(connection)

    def largest(self, connection: Connection, column: str) -> Any:
        """The largest value of a column; ``None`` without rows."""
        return self._statements(connection).largest(connection, column)

    def pages(self, connection: Connection) -> Iterator[list[Row]]:
        """All rows in the order of their keys."""
        after: Key | None = None
        while page := self._page(connection, after):
            yield page
            after = self.key_of(page[-1])

    def at(self, connection: Connection, keys: Sequence[Key], *, locked: bool = False) -> dict[Key, Row]:
        """The rows of these keys; ``locked`` keeps others from changing them until the end of the transaction."""
        if not keys:
            return {}
        return {self.key_of(row): row for row in self._statements(connection).at(connection, keys, locked=locked)}

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add rows, all of them or none."""
        if rows:
            self._statements(connection).insert(connection, rows)

    def replace(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Overwrite the rows that have the keys of these."""
        if rows:
            self._statements(connection).replace(connection, [(row, self.key_of(row)) for row in rows])

    def why_not_on_postgresql(self, row: Row) -> str | None:
        """What PostgreSQL would refuse or silently change in a row that SQLite holds."""
        if not all(map(contains, self._allowed, map(type, row))):
            for name, (kind, none), value in zip(self.names, self._allowed, row, strict=True):
                if type(value) not in {kind, none}:
                    return f"{name} holds {type(value).__name__} instead of {kind.__name__}"
        for index in self._uuids:
            value = row[index]
            if value is not None and not _CANONICAL_UUID.fullmatch(value):
                return f"{self.names[index]} isn't a UUID in lower case with hyphens: {value!r:.60}"
        return None

    def _page(self, connection: Connection, after: Key | None) -> list[Row]:
        page: list[Row] = []
        characters = 0
        result = self._statements(connection).following(connection, after, PAGE_ROWS)
        for row in map(tuple, chain.from_iterable(result.partitions(AT_ONCE))):
            page.append(row)
            characters += sum(map(len, filter(None, self._texts_of(row))))
            if characters >= PAGE_CHARACTERS:
                break
        # Not when interrupted, which has closed its connection.
        result.close()
        return page

    def _statements(self, connection: Connection) -> Statements:
        return self._on[connection.dialect.name]


def _picker(places: Sequence[int]) -> Callable[[Row], tuple[Any, ...]]:
    """The values at these places. ``itemgetter`` gives a bare value for one."""
    if len(places) > 1:
        return itemgetter(*places)
    (place,) = places
    return lambda row: (row[place],)


def _type_on_postgresql(column: Column[Any]) -> str:
    declared = column.type
    if isinstance(declared, UuidText):
        return "uuid"
    stored = declared.impl_instance if isinstance(declared, TypeDecorator) else declared
    return "bigint" if isinstance(stored, Integer) else "text"


def stored_tables() -> list[StoredTable]:
    """The tables that are copied, in their order: what others refer to comes first."""
    models: dict[Any, type[StateModel]] = {mapper.local_table: mapper.class_ for mapper in entities.mappers}
    late = {name: place for place, name in enumerate(_AFTER_THE_REST, start=1)}
    ordered = sorted(metadata.sorted_tables, key=lambda table: late.get(table.name, 0))
    return [StoredTable(models[table]) for table in ordered if table.name not in OF_ONE_DATABASE]


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
            raise_as_sqlalchemy(connection, error, self._copy, None, cursor)

    def _spelled(self, column: str) -> str:
        spelled = super()._spelled(column)
        return f"CAST({spelled} AS text)" if self._types[column] == "uuid" else spelled
