"""SQL that the two databases spell differently, the time among it (law L3).

Leases compare times that the database server took inside the very statement that decides, so machines whose clocks
disagree still agree on who holds what. Statements say ``server_now()``; each dialect compiles it to its own moving
clock in whole epoch seconds. Tests need to move that clock: ``use_manual_clock`` replaces the expression for one engine
only. Statements stay the same constants, and every engine compiles its own text.

How long a holder may trust what such a statement granted is measured by a clock of its own process: ``trust_clock``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from sqlalchemy import BigInteger, Boolean, ColumnElement, Engine, Select, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from codex_state.errors import InvalidInputError
from codex_state.models.comparisons import Spelled

_MANUAL_CLOCK_ATTRIBUTE = "codex_state_manual_clock"

_CLOCKS = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}
"""The clocks that count the time for which the machine sleeps. On macOS, ``time.monotonic`` is another one."""

_CLOCK: int | None = getattr(time, _CLOCKS.get(sys.platform, ""), None)


def trust_clock() -> float:
    """Seconds on a clock that never jumps and that goes on while the machine sleeps, as a lease does."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class server_now(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """Now, in whole epoch seconds, by the database server's moving clock."""

    inherit_cache = True
    type = BigInteger()
    name = "server_now"


def use_manual_clock(engine: Engine, sql: str) -> None:
    """Make ``server_now()`` compile to ``sql`` on this engine. For tests: see ``codex_state.testing``.

    Call it before the engine's first statement that tells the time: compiled texts are cached.
    """
    setattr(engine.dialect, _MANUAL_CLOCK_ATTRIBUTE, sql)


@compiles(server_now, "sqlite")
def _server_now_sqlite(_element: ColumnElement[int], compiler: SQLCompiler, **_kw: Any) -> str:
    # strftime rather than unixepoch(): the latter needs SQLite 3.38. Fixed within a statement, moving between them.
    manual: str | None = getattr(compiler.dialect, _MANUAL_CLOCK_ATTRIBUTE, None)
    return manual or "CAST(strftime('%s', 'now') AS INTEGER)"


@compiles(server_now, "postgresql")
def _server_now_postgresql(_element: ColumnElement[int], compiler: SQLCompiler, **_kw: Any) -> str:
    # clock_timestamp(), because now() stands still for a whole transaction and a lease would look younger than it is.
    manual: str | None = getattr(compiler.dialect, _MANUAL_CLOCK_ATTRIBUTE, None)
    return manual or "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)"


class fresh_token(Spelled[str]):  # noqa: N801 - reads as the SQL function it is
    """A new random ownership token for every row that a statement touches (law L2)."""

    inherit_cache = True
    type = String()
    name = "fresh_token"
    on_sqlite = "lower(hex(randomblob(16)))"
    on_postgresql = "replace(CAST(gen_random_uuid() AS TEXT), '-', '')"


class contains(Spelled[bool]):  # noqa: N801 - reads as the SQL function it is
    """``contains(text, part)``: a case-sensitive search without wildcards, which LIKE has on neither database."""

    inherit_cache = True
    type = Boolean()
    name = "contains"
    on_sqlite = "instr({0}, {1}) > 0"
    on_postgresql = "strpos({0}, {1}) > 0"


class matches(Spelled[bool]):  # noqa: N801 - reads as the SQL function it is
    """``matches(text, pattern)``: LIKE with the wildcards ``%`` and ``_``, ASCII case ignored, and no escape."""

    inherit_cache = True
    type = Boolean()
    name = "matches"
    on_sqlite = "{0} LIKE ({1})"
    # its default escape is the backslash, which paths of Windows are full of
    on_postgresql = "{0} ILIKE ({1}) ESCAPE ''"


class holds(Spelled[bool]):  # noqa: N801 - reads as the SQL function it is
    """``holds(text, pattern)``: whether a part is in a text, ASCII case ignored; ``part_pattern`` makes the pattern."""

    inherit_cache = True
    type = Boolean()
    name = "holds"
    on_sqlite = "{0} LIKE ({1}) ESCAPE '!'"
    on_postgresql = "{0} ILIKE ({1}) ESCAPE '!'"


_LONGEST_PART = 10_000


def part_pattern(part: str) -> str:
    """What ``holds`` compares with.

    Raises:
        InvalidInputError: the part has a NUL, which no text here has, or is longer than databases compare.
    """
    if "\0" in part or len(part) > _LONGEST_PART:
        why = "it has a NUL" if "\0" in part else f"it is longer than {_LONGEST_PART:,} characters"
        raise InvalidInputError(f"a part that no text is looked through for: {why}: {part!r:.80}")
    return f"%{part.replace('!', '!!').replace('%', '!%').replace('_', '!_')}%"


class byte_length(Spelled[int]):  # noqa: N801 - reads as the SQL function it is
    """How many bytes of UTF-8 a text has."""

    inherit_cache = True
    type = BigInteger()
    name = "byte_length"
    # octet_length() needs SQLite 3.43
    on_sqlite = "length(CAST({0} AS BLOB))"
    on_postgresql = "octet_length({0})"


class unindexed(Spelled[Any]):  # noqa: N801 - reads as the SQL function it is
    """The same value, which SQLite won't look up in an index.

    Without statistics its planner prefers an equality to an order, even when almost every row is equal.
    """

    inherit_cache = True
    type = NullType()
    name = "unindexed"
    on_sqlite = "+{0}"
    on_postgresql = "{0}"


class stored_text(Spelled[Any]):  # noqa: N801 - reads as the SQL function it is
    """``stored_text(column)``: a text in its bytes on SQLite, whose file may hold any under the name of text."""

    inherit_cache = True
    type = NullType()
    name = "stored_text"
    on_sqlite = "CAST({0} AS BLOB)"
    on_postgresql = "{0}"


class json_rows(Spelled[Any]):  # noqa: N801 - reads as the SQL function it is
    """The elements of an array in JSON text as rows: many rows of values in one parameter of a constant statement."""

    inherit_cache = True
    type = NullType()
    name = "json_rows"
    on_sqlite = "json_each({0})"
    on_postgresql = "json_array_elements(CAST({0} AS JSON))"


class json_item(Spelled[str]):  # noqa: N801 - reads as the SQL function it is
    """``json_item(row, index)``: one text of such a row, which is itself an array; ``NULL`` for a JSON null."""

    inherit_cache = True
    type = String()
    name = "json_item"
    on_sqlite = "json_extract({0}, '$[' || {1} || ']')"
    on_postgresql = "({0} ->> {1})"


class among(Spelled[Any]):  # noqa: N801 - reads as the SQL function it is
    """``among(column, query)``: the column's value is one of the few that the query gives.

    PostgreSQL runs the query first and looks each value up in the column's index, whatever it knows of the table. A
    join or an IN would leave it to decide, which reads all of a table that was small when it was last analysed.
    """

    inherit_cache = True
    type = NullType()  # for a truth value SQLAlchemy would write "= 1", and SQLite would look at every row
    name = "among"
    on_sqlite = "{0} IN {1}"
    on_postgresql = "{0} = ANY (ARRAY{1})"

    def __init__(self, column: ColumnElement[Any], query: Select[Any]) -> None:
        super().__init__(column, query.scalar_subquery())
