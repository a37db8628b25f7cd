"""What filters and joins of a service's own mean, alike on both databases.

Flags are numbers in the database, times are whole epoch seconds, and ids are texts on SQLite. A filter that is written
for truth values, for the database's own times or for a UUID column would be refused by one database and mean nothing
to the other. Here each is put into the form in which the row has it, or refused with what to do.

The comparators do that for what stands to the right of one of our columns, on any engine. On engines of ours the
compilers do it for the other side as well.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Integer,
    String,
    Text,
    TypeDecorator,
    Uuid,
    literal,
    literal_column,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import False_, True_
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from codex_state.errors import InvalidInputError

ResultT = TypeVar("ResultT")


class Spelled(FunctionElement[ResultT]):
    """SQL that each database spells in its own way, with ``{0}``, ``{1}`` … for the arguments."""

    on_sqlite: ClassVar[str]
    on_postgresql: ClassVar[str]


@compiles(Spelled)
def _spelled(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    spelling: str | None = getattr(element, f"on_{compiler.dialect.name}", None)
    if spelling is None:  # where no database is meant, as in a printed statement
        return str(compiler.visit_function(element, **kw))
    return spelling.format(*(compiler.process(clause, **kw) for clause in element.clauses))


class epoch_of(Spelled[int]):  # noqa: N801 - reads as the SQL function it is
    """A time of the database's own kind in whole epoch seconds. One without a zone is taken for UTC."""

    inherit_cache = True
    type = BigInteger()
    name = "epoch_of"
    on_sqlite = "CAST(strftime('%s', {0}) AS INTEGER)"
    on_postgresql = "CAST(floor(extract(epoch FROM {0})) AS BIGINT)"


class id_as_text(Spelled[str]):  # noqa: N801 - reads as the SQL function it is
    """One of our ids as a text."""

    inherit_cache = True
    type = Text()
    name = "id_as_text"
    on_sqlite = "{0}"
    on_postgresql = "CAST({0} AS TEXT)"


class plain_uuid(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """A UUID that isn't one of our ids: SQLite has it without hyphens, so that it would equal none of them."""

    inherit_cache = True
    type = Uuid()
    name = "plain_uuid"


@compiles(plain_uuid, "sqlite")
def _plain_uuid_sqlite(element: plain_uuid, compiler: SQLCompiler, **kw: Any) -> str:
    raise _unequal_uuid(compiler.process(element.clauses, **kw))


@compiles(plain_uuid, "postgresql")
def _plain_uuid_postgresql(element: plain_uuid, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


def _unequal_uuid(spelled: str) -> InvalidInputError:
    return InvalidInputError(
        f"{spelled} is a plain UUID, which SQLite stores without hyphens: it equals no id of ours there; declare the "
        "column with `thread_id: UUID = codex_state.thread_key()`"
    )


class FlagColumn(Column[bool]):
    """A column of a flag, which may stand where a truth value is asked for: ``where(Thread.archived)``."""

    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """Where SQLAlchemy asks for the form that an element has among others."""
        if against in {operators.and_, operators.or_, operators._asbool}:  # noqa: SLF001 - not to be had otherwise
            return self.operate(operators.eq, True)  # noqa: FBT003
        return super().self_group(against)


_TRUTHS: dict[Any, Any] = {
    operators.eq: operators.eq,
    operators.ne: operators.ne,
    operators.is_: operators.eq,
    operators.is_not: operators.ne,
    operators.is_distinct_from: operators.is_distinct_from,
    operators.is_not_distinct_from: operators.is_not_distinct_from,
}


class FlagComparator(TypeDecorator.Comparator[bool], Integer.Comparator[bool]):
    """A flag is compared as the number it is stored as."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        """See ``sqlalchemy.types.TypeEngine.Comparator``."""
        if op is operators.inv:
            return super().operate(operators.eq, literal_column("0"))
        if op in _TRUTHS and len(other) == 1:
            (value,) = other
            value = _resolved(value)
            if isinstance(value, True_ | False_) or (isinstance(value, int) and value in (0, 1)):
                number = "1" if isinstance(value, True_) or value == 1 else "0"
                return super().operate(_TRUTHS[op], literal_column(number), **kwargs)
            if isinstance(value, ColumnElement) and isinstance(value.type, Boolean):
                truth: Any = super().operate(operators.eq, literal_column("1"))
                return truth.operate(op, value)
        return super().operate(op, *other, **kwargs)


class Moments(TypeEngine[Any]):
    """Marks the type of times that are stored as whole epoch seconds."""


class TimeComparator(TypeDecorator.Comparator[datetime], BigInteger.Comparator[datetime]):
    """A time is compared as the seconds it is stored as, and shifted by durations."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        """See ``sqlalchemy.types.TypeEngine.Comparator``."""
        given = [_resolved(value) for value in other]
        if op in {operators.add, operators.sub} and len(given) == 1:
            (amount,) = given
            if isinstance(amount, timedelta):
                return type_coerce(super().operate(op, _seconds(amount)), self.type)
            if op is operators.sub:
                between: Any = super().operate(op, self._as_stored(amount))
                return type_coerce(between, WholeSeconds())
        return super().operate(op, *(self._as_stored(value) for value in given), **kwargs)

    def _as_stored(self, value: Any) -> Any:
        return as_seconds(value, self.type) if isinstance(value, ColumnElement) else value


class WholeSeconds(TypeDecorator[timedelta]):
    """The duration between two of our times."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """A duration as it is compared."""
        return None if value is None else value // timedelta(seconds=1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> timedelta | None:  # noqa: ARG002
        """A duration from its seconds."""
        return None if value is None else timedelta(seconds=value)


class Ids(TypeEngine[Any]):
    """Marks the type of our ids."""


class IdComparator(TypeDecorator.Comparator[Any], String.Comparator[Any]):
    """An id equals no plain UUID on SQLite, and a text only as a text on PostgreSQL."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        """See ``sqlalchemy.types.TypeEngine.Comparator``."""
        if len(other) == 1:
            value = _resolved(other[0])
            if isinstance(value, BindParameter) and isinstance(value.type, Uuid):
                value = literal(value.effective_value, self.type)
            elif isinstance(value, ColumnElement) and isinstance(value.type, Uuid):
                value = plain_uuid(value)
            elif _is_text(value):
                return id_as_text(self.expr).operate(op, value)
            return super().operate(op, value, **kwargs)
        return super().operate(op, *other, **kwargs)


def as_seconds(expression: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A time of the database's own kind, or one shifted by a duration, as ours are stored; anything else as it is."""
    if not _is_time(expression.type):
        return expression
    if isinstance(expression, BindParameter) and isinstance(expression.effective_value, datetime):
        return literal(expression.effective_value, type_)
    if isinstance(expression, BinaryExpression) and expression.operator in {operators.add, operators.sub}:
        amount = expression.right
        if isinstance(amount, BindParameter) and isinstance(amount.effective_value, timedelta):
            shifted: ColumnElement[Any] = expression.operator(
                as_seconds(expression.left, type_), _seconds(amount.effective_value)
            )
            return shifted
    return epoch_of(expression)


def comparable(binary: BinaryExpression[Any], dialect: Dialect) -> BinaryExpression[Any]:
    """``binary`` with both sides in the form in which the database has them.

    Raises:
        InvalidInputError: on this database they have none in common.
    """
    if not operators.is_comparison(binary.operator):
        return binary
    left, right = binary.left, binary.right
    for ours, theirs in ((left, right), (right, left)):
        kind = getattr(ours, "type", None)
        if isinstance(kind, Moments) and isinstance(theirs, ColumnElement) and _is_time(theirs.type):
            return _with_sides(binary, theirs, as_seconds(theirs, kind))
        if isinstance(kind, Ids):
            other = _column_of(theirs)
            if dialect.name == "sqlite" and other is not None and isinstance(other.type.dialect_impl(dialect), Uuid):
                if not isinstance(other, BindParameter):
                    raise _unequal_uuid(str(other))
                return _with_sides(binary, theirs, type_coerce(other, kind))
            if dialect.name == "postgresql" and _is_text(theirs):
                return _with_sides(binary, ours, id_as_text(ours))
    return binary


def checked(compiler: type[SQLCompiler]) -> type[SQLCompiler]:
    """A dialect's compiler that puts what is compared with our columns into their form."""

    class Checked(compiler):  # type: ignore[misc, valid-type]
        def visit_binary(self, binary: BinaryExpression[Any], *args: Any, **kw: Any) -> Any:
            return super().visit_binary(comparable(binary, self.dialect), *args, **kw)

    Checked.__name__ = compiler.__name__
    return Checked


def _with_sides(binary: BinaryExpression[Any], side: Any, instead: Any) -> BinaryExpression[Any]:
    left, right = (instead, binary.right) if binary.left is side else (binary.left, instead)
    return BinaryExpression(
        left, right, binary.operator, type_=binary.type, negate=binary.negate, modifiers=binary.modifiers
    )


def _resolved(value: Any) -> Any:
    while not isinstance(value, ColumnElement) and hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    return value


def _seconds(duration: timedelta) -> ColumnElement[int]:
    return literal(duration // timedelta(seconds=1), BigInteger())


def _column_of(element: Any) -> ColumnElement[Any] | None:
    """What is compared with an id: an expression, or the one column of a query."""
    if isinstance(element, plain_uuid):
        inner: ColumnElement[Any] = next(iter(element.clauses))
        return inner
    if (columns := getattr(getattr(element, "element", element), "selected_columns", None)) is not None:
        first: ColumnElement[Any] = next(iter(columns))
        return first
    return element if isinstance(element, ColumnElement) else None


def _is_time(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind.impl_instance if isinstance(kind, TypeDecorator) else kind, DateTime)


def _is_text(element: Any) -> bool:
    """Whether it is a column, or an expression over one, whose values are texts and no ids of ours."""
    kind = getattr(element, "type", None)
    if not isinstance(element, ColumnElement) or isinstance(element, BindParameter) or isinstance(kind, Ids):
        return False
    return isinstance(kind.impl_instance if isinstance(kind, TypeDecorator) else kind, String)
