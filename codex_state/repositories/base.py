"""What all repositories share: a session, statements that were built once, and many rows of values in one parameter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Select,
    bindparam,
    case,
    cast,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import scoped_session
from sqlalchemy.types import TypeEngine
from sqlmodel import Session

from codex_state.database.execute import execute, execute_many
from codex_state.database.sql import json_item, json_rows
from codex_state.errors import UsageError
from codex_state.models import StateModel
from codex_state.models.base import columns_of
from codex_state.models.columns import text

NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})

EntityT = TypeVar("EntityT", bound=StateModel)


class Repository:
    """A family of guarded statements over one session.

    The session may be the runtime's or a service's own; whoever opened it decides when it commits. Entities that a
    repository returns are snapshots: they belong to no session and later writes don't change them.
    """

    def __init__(self, session: Session) -> None:
        """Work on ``session``. It isn't closed or committed here.

        Raises:
            UsageError: it isn't a session for synchronous code.
        """
        require_session(session)
        self._session = session

    @property
    def _connection(self) -> Connection:
        # What the service added to its session must be there before a statement that may refer to it.
        self._session.flush()
        return self._session.connection()

    def _all(
        self, statement: Executable, parameters: Mapping[str, Any] = NO_PARAMETERS, on: Connection | None = None
    ) -> Sequence[Any]:
        """Run a statement and read every row, which on SQLite is also what ends an autocommitted statement.

        Args:
            statement: a constant.
            parameters: a value for each of its named parameters.
            on: the session's connection, from who has it already.
        """
        return execute(on or self._connection, statement, parameters)

    def _entities(
        self, model: type[EntityT], statement: Executable, parameters: Mapping[str, Any] = NO_PARAMETERS
    ) -> list[EntityT]:
        """Run a query made by ``select_entity`` and return its rows as snapshots."""
        return list(execute(self._connection, statement, parameters, model.snapshot))

    def _entity(
        self, model: type[EntityT], statement: Executable, parameters: Mapping[str, Any] = NO_PARAMETERS
    ) -> EntityT | None:
        """Run a statement that returns all columns of at most one row, as a snapshot."""
        entities = self._entities(model, statement, parameters)
        return entities[0] if entities else None

    def _many(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each row of parameters, in one transaction whatever the session's mode."""
        if rows:
            execute_many(self._connection, statement, rows)

    def _one(
        self, statement: Executable, parameters: Mapping[str, Any] = NO_PARAMETERS, on: Connection | None = None
    ) -> Any | None:
        """Run a statement that concerns at most one row. Whether one came back is the outcome (law L1)."""
        rows = self._all(statement, parameters, on)
        if len(rows) > 1:
            raise AssertionError(f"a guarded statement touched {len(rows)} rows")
        return rows[0] if rows else None


def require_session(session: object) -> None:
    """Make sure that ``session`` is one that repositories can work on.

    Raises:
        UsageError: it is something else, such as an ``AsyncSession``.
    """
    if isinstance(session, OrmSession | scoped_session):
        return
    kind = type(session).__name__
    if any(base.__name__ in {"AsyncSession", "async_scoped_session"} for base in type(session).__mro__):
        advice = "in async code, `await session.run_sync(lambda session: State(session)...)`"
    else:
        advice = "give a Session, such as Session(runtime.engine)"
    raise UsageError(f"a repository can't work on {'an' if kind[0] in 'AEIOU' else 'a'} {kind}: {advice}")


def select_entity(model: type[StateModel]) -> Select[Any]:
    """A query of all columns of an entity, in the order of a snapshot."""
    return select(*columns_of(model))


def seconds_of(column: ColumnElement[Any]) -> ColumnElement[int]:
    """A time column as the whole epoch seconds it is stored as, for arithmetic in SQL."""
    return type_coerce(column, BigInteger())


def later_than(stored: ColumnElement[Any], proposed: ColumnElement[Any]) -> ColumnElement[int]:
    """``proposed``, or one second after ``stored`` if that isn't later: a time that strictly increases (law L4)."""
    return case((seconds_of(proposed) <= seconds_of(stored), seconds_of(stored) + 1), else_=seconds_of(proposed))


_PARAMETER = "given"


def given_rows(**columns: TypeEngine[Any]) -> CTE:
    """The rows of a statement's one parameter as a table, which ``parameters_of`` fills.

    Args:
        columns: the name and type of each value of a row, in order.
    """
    row = json_rows(bindparam(_PARAMETER, type_=text)).table_valued("value", name="given_row").c.value
    return select(
        *(
            cast(json_item(row, literal_column(str(index))), type_).label(name)
            for index, (name, type_) in enumerate(columns.items())
        )
    ).cte("given_rows")


def parameters_of(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The parameter of a statement over ``given_rows``; UUIDs as they are stored."""
    spelled = json.dumps([list(row) for row in rows], ensure_ascii=False, separators=(",", ":"), default=str)
    return {_PARAMETER: spelled}


def storable(words: str) -> str:
    """A text as both databases can store it: without NULs and halves of characters."""
    return words.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
