"""Tables as they are stored: the same plain values on both databases.

A row is a tuple of what SQLite's file holds: ids as text, times as whole seconds, JSON as it was written. Nothing is
parsed on the way, so what no version of this package could read is copied like everything else, and rows of the two
databases are equal when they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    TypeDecorator,
    Update,
    and_,
    bindparam,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from codex_state.models import metadata
from codex_state.models.base import StateModel, entities
from codex_state.models.columns import UuidText

Row = tuple[Any, ...]
Key = tuple[Any, ...]

PAGE_ROWS = 1000
PAGE_CHARACTERS = 4_000_000
"""A page ends with the row that reaches either, so that long texts don't pile up (law L10)."""

_uuid = Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")

_AFTER_THE_REST = ("memory_phase1_jobs", "memory_scope_dirty", "memory_consolidation_locks", "backfill_state", "logs")
"""Tables whose rows say something of other rows: a memory that was extracted, a scope without news, a complete index.
They come after those rows, so that an interrupted copy never says more than is true."""


class StoredTable:
    """One table, its key, and the statements that copy it."""

    def __init__(self, model: type[StateModel]) -> None:
        """Take the fields of an entity. What else its table has is not part of the state."""
        declared: Table = model.__table__  # type: ignore[attr-defined]
        columns = [declared.c[name] for name in model.column_names()]
        self.name = declared.name
        self.names = tuple(column.name for column in columns)
        self.table = Table(
            declared.name,
            MetaData(),
            *(Column(column.name, _stored_type(column.type), primary_key=column.primary_key) for column in columns),
        )
        self._key_columns = list(self.table.primary_key)
        at = [self.names.index(column.name) for column in self._key_columns]
        self.key_of: Callable[[Row], Key] = itemgetter(*at) if len(at) > 1 else lambda row: (row[at[0]],)
        """The primary key of a row."""
        self._types = [int if isinstance(column.type, Integer) else str for column in self.table.columns]
        self._texts = [index for index, kind in enumerate(self._types) if kind is str]
        self._uuids = [index for index, column in enumerate(columns) if isinstance(column.type, UuidText)]
        self.home_at = self.names.index("home") if "home" in self.names else None
        self.has_home_in_key = self.home_at in at
        bound = [bindparam(f"after_{column.name}", type_=column.type) for column in self._key_columns]
        self._first_page = select(self.table).order_by(*self._key_columns).limit(PAGE_ROWS)
        self._next_page = self._first_page.where(self._key > (tuple_(*bound) if len(bound) > 1 else bound[0]))
        self.replace: Update = (
            update(self.table)
            .where(and_(*(column == bindparam(f"of_{column.name}") for column in self._key_columns)))
            .values({name: bindparam(f"new_{name}") for name in self.names})
        )

    @property
    def _key(self) -> ColumnElement[Any]:
        return tuple_(*self._key_columns) if len(self._key_columns) > 1 else self._key_columns[0]

    def values_of(self, row: Row) -> dict[str, Any]:
        """The row by the names of its columns."""
        return dict(zip(self.names, row, strict=True))

    def replacement(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of ``replace``."""
        new = {f"new_{name}": value for name, value in values.items()}
        return new | {f"of_{column.name}": values[column.name] for column in self._key_columns}

    def count(self, connection: Connection) -> int:
        """How many rows there are."""
        return connection.execute(select(func.count()).select_from(self.table)).scalar_one()

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
        wanted = self._key.in_(keys if len(self._key_columns) > 1 else [key[0] for key in keys])
        statement = select(self.table).where(wanted)
        if locked:
            statement = statement.order_by(*self._key_columns).with_for_update()
        return {self.key_of(row): row for row in map(tuple, connection.execute(statement))}

    def why_not_on_postgresql(self, row: Row) -> str | None:
        """What PostgreSQL would refuse or silently change in a row that SQLite holds."""
        for name, kind, value in zip(self.names, self._types, row, strict=True):
            if value is not None and type(value) is not kind:
                return f"{name} holds {type(value).__name__} instead of {kind.__name__}"
        for index in self._uuids:
            value = row[index]
            if value is not None and not _is_canonical_uuid(value):
                return f"{self.names[index]} isn't a UUID in lower case with hyphens: {value!r:.60}"
        return None

    def _page(self, connection: Connection, after: Key | None) -> list[Row]:
        statement: Select[Any] = self._first_page if after is None else self._next_page
        parameters: Mapping[str, Any] = (
            {} if after is None else {f"after_{c.name}": v for c, v in zip(self._key_columns, after, strict=True)}
        )
        page: list[Row] = []
        characters = 0
        result = connection.execution_options(stream_results=True, max_row_buffer=100).execute(statement, parameters)
        for row in map(tuple, result):
            page.append(row)
            characters += sum(len(row[index] or "") for index in self._texts)
            if characters >= PAGE_CHARACTERS:
                break
        # Not when interrupted, which has closed its connection.
        result.close()
        return page


def _stored_type(declared: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(declared, UuidText):
        return _uuid
    if isinstance(declared, TypeDecorator):
        return declared.impl_instance
    return declared


def _is_canonical_uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value
    except ValueError:
        return False


def stored_tables() -> list[StoredTable]:
    """Every table of the models, in the order in which they are copied: what others refer to comes first."""
    models: dict[Any, type[StateModel]] = {mapper.local_table: mapper.class_ for mapper in entities.mappers}
    late = {name: place for place, name in enumerate(_AFTER_THE_REST, start=1)}
    ordered = sorted(metadata.sorted_tables, key=lambda table: late.get(table.name, 0))
    return [StoredTable(models[table]) for table in ordered]
