"""What filters and joins of a service's own mean, alike on both databases.

Flags are numbers in the database, times are whole epoch seconds, and ids are texts on SQLite. A filter that is written
for truth values, for the database's own times or for a UUID column would be refused by one database and mean nothing
to the other. Here each is put into the form in which the row has it, or refused with what to do.

The comparators do that for what stands to the right of one of our columns, on any engine. On engines of ours the
compilers do it for the other side as well.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar, cast

from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    BindParameter,
    Boolean,
    Case,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    FunctionFilter,
    Integer,
    Interval,
    Null,
    String,
    Text,
    TypeDecorator,
    Uuid,
    bindparam,
    case,
    literal,
    literal_column,
    not_,
    null,
    or_,
    true,
    tuple_,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import False_, Grouping, True_, Tuple
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
                return type_coerce(super().operate(op, literal(amount, WholeSeconds())), self.type)
            if _is_duration(amount):
                return type_coerce(super().operate(op, type_coerce(amount, WholeSeconds())), self.type)
            if op is operators.sub:
                between: Any = super().operate(op, self._as_stored(amount))
                return type_coerce(between, WholeSeconds())
        return super().operate(op, *(self._as_stored(value) for value in given), **kwargs)

    def _as_stored(self, value: Any) -> Any:
        if isinstance(value, BindParameter) and value.expanding and _is_time(value.type):
            return _expanding(value, self.type)
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
                value = _expanding(value, self.type) if value.expanding else type_coerce(value, self.type)
            elif isinstance(value, ColumnElement) and isinstance(value.type, Uuid):
                value = plain_uuid(value)
            elif _is_text(value):
                return id_as_text(self.expr).operate(op, value)
            return super().operate(op, value, **kwargs)
        return super().operate(op, *other, **kwargs)


class EmptyComparator(TypeDecorator.Comparator[Any], String.Comparator[Any]):
    """``None`` is the empty text that it is stored as, and NULL."""

    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        """See ``sqlalchemy.types.TypeEngine.Comparator``."""
        if op in _TRUTHS and len(other) == 1:
            value = _resolved(other[0])
            if value is None or isinstance(value, Null):
                # NULL as well: an outer join has rows without one, and a query may find nothing.
                empty = super().operate(operators.eq, literal_column("''", String()))
                none: Any = or_(empty, super().operate(operators.is_, null()))
                return none if _TRUTHS[op] in {operators.eq, operators.is_not_distinct_from} else not_(none)
        return super().operate(op, *other, **kwargs)


# Below, statements may be compiled already and used again with other values: a parameter stays itself there, with
# another type, and no value is looked at.


def as_seconds(expression: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """A time of the database's own kind, or one shifted by a duration, as ours are stored; anything else as it is."""
    if not _is_time(expression.type):
        return expression
    if isinstance(expression, BindParameter):
        return type_coerce(expression, type_)
    if isinstance(expression, Grouping):
        return as_seconds(cast("ColumnElement[Any]", expression.element), type_)
    if isinstance(expression, BinaryExpression) and expression.operator in {operators.add, operators.sub}:
        moment, amount = expression.left, expression.right
        if expression.operator is operators.add and _is_duration(moment):
            moment, amount = amount, moment
        if _is_duration(amount):
            seconds = type_coerce(amount, WholeSeconds())
            return BinaryExpression(as_seconds(moment, type_), seconds, expression.operator, type_=type_)
    return epoch_of(expression)


def comparable(binary: BinaryExpression[Any], dialect: Dialect) -> BinaryExpression[Any]:
    """``binary`` with both sides in the form in which the database has them.

    Raises:
        InvalidInputError: on this database they have none in common.
    """
    if not operators.is_comparison(binary.operator):
        return binary
    left, right = binary.left, binary.right
    if isinstance(left, Tuple) and isinstance(right, Tuple) and len(left.clauses) == len(right.clauses):
        return _pairwise(binary, left, right, dialect)
    for ours, theirs in ((left, right), (right, left)):
        kind = getattr(ours, "type", None)
        if isinstance(kind, Moments) and isinstance(theirs, ColumnElement) and _is_time(theirs.type):
            return _with(binary, theirs, as_seconds(theirs, kind))
        if _is_duration(theirs) and (between := _between(ours)) is not None:
            return _with(_with(binary, theirs, type_coerce(theirs, WholeSeconds())), ours, between)
        if isinstance(kind, Ids):
            return _with_comparable_ids(binary, ours, theirs, dialect)
    return binary


def _pairwise(binary: BinaryExpression[Any], left: Tuple, right: Tuple, dialect: Dialect) -> BinaryExpression[Any]:
    pairs = [
        comparable(BinaryExpression(one, other, binary.operator), dialect)
        for one, other in zip(left.clauses, right.clauses, strict=True)
    ]
    return _with_sides(binary, tuple_(*(pair.left for pair in pairs)), tuple_(*(pair.right for pair in pairs)))


def _with_comparable_ids(
    binary: BinaryExpression[Any], ours: Any, theirs: Any, dialect: Dialect
) -> BinaryExpression[Any]:
    other = _column_of(theirs)
    if dialect.name == "sqlite" and other is not None and isinstance(other.type.dialect_impl(dialect), Uuid):
        if not isinstance(other, BindParameter):
            raise _unequal_uuid(str(other))
        return _with(binary, theirs, type_coerce(other, ours.type))
    if dialect.name == "postgresql" and _is_text(theirs):
        return _with(binary, ours, id_as_text(ours))
    return binary


def _between(difference: Any) -> ColumnElement[Any] | None:
    """The difference of two times, one of them ours, in seconds."""
    if isinstance(difference, Grouping):
        return _between(difference.element)
    if isinstance(difference, BinaryExpression) and difference.operator is operators.sub:
        left, right = difference.left, difference.right
        for ours, theirs in ((left, right), (right, left)):
            if isinstance(ours.type, Moments) and _is_time(theirs.type):
                sides = as_seconds(left, ours.type), as_seconds(right, ours.type)
                return BinaryExpression(*sides, operators.sub, type_=WholeSeconds())
    return None


def checked(compiler: type[SQLCompiler]) -> type[SQLCompiler]:
    """A dialect's compiler that puts what is compared with our columns into their form."""

    class Checked(compiler):  # type: ignore[misc, valid-type]
        def visit_binary(self, binary: BinaryExpression[Any], *args: Any, **kw: Any) -> Any:
            return super().visit_binary(comparable(binary, self.dialect), *args, **kw)

        def visit_case(self, clause: Case[Any], **kw: Any) -> str:
            if clause.value is None and any(_is_flag(condition) for condition, _ in clause.whens):
                clause = case(*((_truth(condition), then) for condition, then in clause.whens), else_=clause.else_)
            return super().visit_case(clause, **kw)  # type: ignore[no-any-return]

        def visit_funcfilter(self, funcfilter: FunctionFilter[Any], **kw: Any) -> str:
            if _is_flag(funcfilter.criterion):
                funcfilter = FunctionFilter(funcfilter.func, _truth(funcfilter.criterion))
            return super().visit_funcfilter(funcfilter, **kw)  # type: ignore[no-any-return]

    Checked.__name__ = compiler.__name__
    return Checked


def _with(binary: BinaryExpression[Any], side: Any, instead: Any) -> BinaryExpression[Any]:
    return _with_sides(binary, *((instead, binary.right) if binary.left is side else (binary.left, instead)))


def _with_sides(binary: BinaryExpression[Any], left: Any, right: Any) -> BinaryExpression[Any]:
    return BinaryExpression(
        left, right, binary.operator, type_=binary.type, negate=binary.negate, modifiers=binary.modifiers
    )


def _resolved(value: Any) -> Any:
    while not isinstance(value, ColumnElement) and hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    return value


def _expanding(values: BindParameter[Any], type_: TypeEngine[Any]) -> BindParameter[Any]:
    """The parameter of an IN, which can't be wrapped."""
    given: dict[str, Any] = {} if values.required else {"value": values.effective_value}
    return bindparam(values.key, type_=type_, expanding=True, unique=values.unique, **given)


def _is_duration(element: Any) -> bool:
    return isinstance(element, BindParameter) and isinstance(element.type, Interval)


def _is_flag(element: Any) -> bool:
    return isinstance(element, FlagColumn)


def _truth(element: Any) -> Any:
    return element == true() if _is_flag(element) else element


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
