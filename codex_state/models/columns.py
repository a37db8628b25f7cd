"""The type map: how each kind of Python value is stored, on both databases.

Storage follows the original schema, so a row reads the same from any SQLite tool: text ids in lower case with hyphens,
whole epoch seconds, text paths, compact JSON, the *values* of enums. Text on PostgreSQL is collated as ``C``, which
makes its order the order of SQLite (bytes of UTF-8), and so keyset pages agree (law L9).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from string import ascii_letters
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Integer,
    String,
    Text,
    TypeDecorator,
    Uuid,
    func,
    literal_column,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from codex_state.errors import InvalidInputError, InvalidRowError
from codex_state.models.comparisons import (
    EmptyComparator,
    FlagComparator,
    IdComparator,
    Ids,
    Moments,
    Spelled,
    TimeComparator,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

text = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
"""Text whose order is that of its UTF-8 bytes on both databases."""

_SPELLING_ROUNDS = 4
"""How often needless parts are taken out: each round halves a row of slashes, as does ``normal_path`` in SQL."""


FIRST_SECOND = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
LAST_SECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
"""The first and the last that a calendar has. In SQLite, whatever is no number comes after all of them."""


def to_epoch_seconds(moment: datetime) -> int:
    """Whole epoch seconds of an aware time, rounded down (also before 1970)."""
    if not isinstance(moment, datetime):
        raise InvalidInputError(f"not a datetime: {moment!r}")
    if moment.tzinfo is None:
        raise InvalidInputError(f"time without a zone: {moment.isoformat()}; give an aware datetime")
    return (moment - _EPOCH) // timedelta(seconds=1)


def from_epoch_seconds(seconds: int) -> datetime:
    """The aware UTC time of whole epoch seconds."""
    try:
        return _EPOCH + timedelta(0, seconds)
    except (OverflowError, TypeError) as error:
        raise InvalidRowError(f"stored time out of range: {seconds!r}") from error


def _aware(moment: datetime) -> datetime:
    to_epoch_seconds(moment)
    return moment.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_aware)]
"""A time of an entity. Where entities are validated, one without a zone is refused and the others become UTC."""


# What reads a stored value. Types give these as they are, in place of process_result_value, which costs two calls more
# for each value: a page of 50 threads has hundreds.


def _moment_of(seconds: Any) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)


def _optional(stored: Any) -> str | None:
    return stored or None


def _flag_of(stored: Any) -> bool | None:
    # A sum of flags has their type.
    return bool(stored) if stored in (0, 1) else stored


def path_to_text(path: Path) -> str:
    """How a path is stored. The empty path, which Python writes as ``.``, means "unknown" and is stored as ``''``."""
    spelled = str(path)
    return "" if spelled == "." else spelled


def normal_spelling(path: str) -> str:
    r"""One spelling of a path, whatever needless slashes and dots it has, and however Windows spells its drive.

    ``/a//b/./`` is ``/a/b``; ``\\?\c:\x\`` is ``C:\x``. Nothing is looked up: a directory that doesn't exist has a
    normal spelling as well. ``normal_path`` is the same in SQL.
    """
    if path.startswith("/") and "//" not in (closed := f"{path}/") and "/./" not in closed:
        return path
    drive = path[4:] if path[:4] == "\\\\?\\" else path
    if drive[1:3] == ":\\" and drive[0].isascii() and drive[0].isalpha():
        return drive[:1].upper() + drive[1:].rstrip("\\")
    if not path:
        return path
    spelled = f"{path}/"
    for _ in range(_SPELLING_ROUNDS):
        spelled = spelled.replace("/./", "/").replace("//", "/")
    return spelled.rstrip("/") or "/"


def _normal_path(position: str) -> str:
    path = "{0}"
    drive = f"CASE WHEN substr({path}, 1, 4) = '\\\\?\\' THEN substr({path}, 5) ELSE {path} END"
    spelled = f"{path} || '/'"
    for _ in range(_SPELLING_ROUNDS):
        spelled = f"replace(replace({spelled}, '/./', '/'), '//', '/')"
    # Nearly every path is spelled so already, and a claim asks several times for each thread.
    is_normal = f"substr({path}, 1, 1) = '/' AND {position}({path} || '/', '//') + {position}({path} || '/', '/./') = 0"
    return (
        f"CASE WHEN {is_normal} THEN {path} "
        f"WHEN substr({drive}, 2, 2) = ':\\' AND {position}('{ascii_letters}', substr({drive}, 1, 1)) > 0 "
        f"THEN upper(substr({drive}, 1, 1)) || rtrim(substr({drive}, 2), '\\') "
        f"WHEN {path} = '' THEN '' ELSE coalesce(nullif(rtrim({spelled}, '/'), ''), '/') END"
    )


class normal_path(Spelled[str]):  # noqa: N801 - reads as the SQL function it is
    """``normal_path(text)``: one spelling for all that a path may have, as ``normal_spelling`` gives it."""

    inherit_cache = True
    type = String()
    name = "normal_path"
    on_sqlite = _normal_path("instr")
    on_postgresql = _normal_path("strpos")


_KEY_CHARACTERS = 500
"""No more fit into an index of PostgreSQL's, whatever they are."""


def directory_key(path: ColumnElement[str]) -> ColumnElement[str]:
    """How a directory's normal spelling begins, as SQL: as much of it as an index holds."""
    return func.substr(normal_path(path), literal_column("1"), literal_column(str(_KEY_CHARACTERS)))


def fits_directory_key(directory: str) -> bool:
    """Whether what is in or below a directory can be told by its ``directory_key``."""
    return len(directory) < _KEY_CHARACTERS


_LONGEST = timedelta(days=365_000)
"""What lasts longer is as good as for ever, and no calendar has its end."""


def whole_seconds(duration: timedelta) -> int:
    """A duration in whole seconds, never negative, and of a thousand years at most.

    Leases are compared in the seconds that rows store.

    Raises:
        InvalidInputError: it is a number, whose unit nobody knows, or something else.
    """
    return max(min(a_duration(duration), _LONGEST) // timedelta(seconds=1), 0)


def duration_of(seconds: int) -> timedelta:
    """The duration that a row stores, whoever wrote it: of a thousand years at most."""
    return timedelta(seconds=min(seconds, whole_seconds(_LONGEST)))


def a_duration(given: object, name: str = "") -> timedelta:
    """The same duration.

    Raises:
        InvalidInputError: it is a number, whose unit nobody knows, or something else.
    """
    if not isinstance(given, timedelta):
        place = f"{name}: " if name else ""
        example = given if isinstance(given, int | float) else 60
        raise InvalidInputError(
            f"{place}not a duration: {given!r}; give a timedelta, such as timedelta(seconds={example})"
        )
    return given


def a_whole_number(given: object, name: str) -> int:
    """The same number.

    Raises:
        InvalidInputError: it is something else, such as a text or a truth value.
    """
    if type(given) is not int:
        raise InvalidInputError(f"{name}: not a whole number: {given!r}")
    return given


def refuse_other_than_several(name: str, values: object, *kinds: type) -> None:
    """Check a list, a set or the like.

    Raises:
        InvalidInputError: it is one text, or something is of none of these kinds.
    """
    if isinstance(values, str):
        raise InvalidInputError(f"{name}: one text in place of several: {values!r}; give [{values!r}]")
    if not isinstance(values, Collection) or not all(isinstance(each, kinds) for each in values):
        raise InvalidInputError(f"{name}: not a list of {' or '.join(kind.__name__ for kind in kinds)}: {values!r}")


def _uuid_of(spelling: object) -> UUID:
    try:
        return UUID(spelling)  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInputError(f"not a UUID: {spelling!r}") from error


@lru_cache(maxsize=4096)
def _path_of(spelled: str | None) -> Path | None:
    """A path from its text. Working directories repeat, and parsing one costs more than all else in reading its row."""
    try:
        return None if spelled is None else Path(spelled)
    except TypeError as error:
        raise InvalidRowError(f"stored path is not a text: {spelled!r:.80}") from error


def _optional_path_of(spelled: str | None) -> Path | None:
    return _path_of(spelled) if spelled else None


class UuidText(TypeDecorator[UUID], Ids):
    """``uuid.UUID``: lower-case hyphenated text on SQLite, the native type on PostgreSQL. Both order alike."""

    impl = String
    cache_ok = True
    comparator_factory = IdComparator

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Uuid() if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        # Entities don't validate what their constructor is given, and a second spelling would be a second id.
        value = value if isinstance(value, UUID) else _uuid_of(value)
        return value if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        if value is None or isinstance(value, UUID):
            return value
        try:
            return UUID(value)
        except (ValueError, AttributeError, TypeError) as error:
            raise InvalidRowError(f"stored id is not a UUID: {value!r}") from error


class WholeNumber(TypeDecorator[int]):
    """``int`` of 64 bits. Anything else is refused: SQLite would store a text where it was given one.

    SQLite's INTEGER already has 64 bits, and only that spelling makes a key of its rowid.
    """

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else BigInteger())

    def bind_processor(self, dialect: Dialect) -> Callable[[int | None], int | None]:
        # In place of process_bind_param, which costs more: every log line has three of these.
        return _whole_number


def _whole_number(value: int | None) -> int | None:
    if type(value) is int or value is None:
        return value
    if isinstance(value, int):
        return int(value)  # a flag or an enum, which PostgreSQL would take for what it is
    raise InvalidInputError(f"not a whole number: {value!r}")


big_integer = WholeNumber()


class EpochSeconds(TypeDecorator[datetime], Moments):
    """Aware UTC ``datetime``, stored as whole epoch seconds. A naive time is refused."""

    impl = BigInteger
    cache_ok = True
    comparator_factory = TimeComparator

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_epoch_seconds(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        return _moment_of


class PathText(TypeDecorator[Path]):
    """``pathlib.Path``, stored as its text."""

    impl = text
    cache_ok = True

    def process_bind_param(self, value: Path | None, dialect: Dialect) -> str | None:
        return None if value is None else path_to_text(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Path | None]:
        return _path_of


class OptionalPath(TypeDecorator[Path]):
    """``pathlib.Path`` for which "unknown" is stored as the empty string. The empty path is taken for unknown."""

    impl = text
    cache_ok = True
    comparator_factory = EmptyComparator

    def process_bind_param(self, value: Path | None, dialect: Dialect) -> str:
        return "" if value is None else path_to_text(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Path | None]:
        return _optional_path_of


class OptionalText(TypeDecorator[str]):
    """Text for which "none" is stored as the empty string, as the original does in ``NOT NULL`` columns."""

    impl = text
    cache_ok = True
    comparator_factory = EmptyComparator

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str:
        return value or ""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None]:
        return _optional


class IntegerFlag(TypeDecorator[bool]):
    """``bool``, stored as 0 or 1 in an integer column on both databases. Such a column is a ``FlagColumn``."""

    impl = Integer
    cache_ok = True
    comparator_factory = FlagComparator

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> int | None:  # noqa: FBT001
        if value is None:
            return None
        if value not in (True, False):
            raise InvalidInputError(f"not a flag: {value!r}")
        return int(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], bool | None]:
        return _flag_of


class CompactJson(TypeDecorator[Any]):
    """Any JSON value, stored as compact text with its keys in their given order.

    Text on PostgreSQL as well, not ``jsonb``: that would sort the keys, and nothing queries inside these values.
    """

    impl = text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"value is not JSON: {error}") from error

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRowError(f"stored text is not JSON: {value!r:.80}") from error


class EnumText(TypeDecorator[StrEnum]):
    """A ``StrEnum``, stored as its value. The schema's CHECK refuses others on the way in, this type on the way out."""

    impl = text
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: StrEnum | str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            return self.enum(value).value
        except ValueError as error:
            raise InvalidInputError(f"not a {self.enum.__name__}: {value!r}") from error

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum | None:
        if value is None:
            return None
        try:
            return self.enum(value)
        except ValueError as error:
            known = ", ".join(member.value for member in self.enum)
            raise InvalidRowError(f"unknown {self.enum.__name__} {value!r} in a row; known: {known}") from error


stored_uuid: TypeEngine[Any] = Uuid(as_uuid=False).with_variant(Text(), "sqlite")
"""A UUID as its text, which is how SQLite stores it."""


def stored_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type of a column whose values are given, and come back, as they are stored: texts and numbers.

    Rows that come from rollouts by the thousand are made in that form, and nothing is gained by converting them twice.
    """
    if isinstance(kind, UuidText):
        return stored_uuid
    return kind.impl_instance if isinstance(kind, TypeDecorator) else kind


def one_of(column: str, enum: type[StrEnum]) -> str:
    """The SQL of a CHECK that ``column`` holds a value of ``enum``."""
    values = ", ".join(f"'{member.value}'" for member in enum)
    return f"{column} IN ({values})"
