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
from string import ascii_letters
from typing import Any

from sqlalchemy import BigInteger, Boolean, ColumnElement, Engine, Select, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from codex_state.models.columns import SPELLING_ROUNDS

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


class fresh_token(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it is
    """A new random ownership token for every row that a statement touches (law L2)."""

    inherit_cache = True
    type = String()
    name = "fresh_token"


class contains(FunctionElement[bool]):  # noqa: N801 - reads as the SQL function it is
    """``contains(text, part)``: a case-sensitive search without wildcards, which LIKE has on neither database."""

    inherit_cache = True
    type = Boolean()
    name = "contains"


class matches(FunctionElement[bool]):  # noqa: N801 - reads as the SQL function it is
    """``matches(text, pattern)``: LIKE with the wildcards ``%`` and ``_``, ASCII case ignored, and no escape."""

    inherit_cache = True
    type = Boolean()
    name = "matches"


class byte_length(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """How many bytes of UTF-8 a text has."""

    inherit_cache = True
    type = BigInteger()
    name = "byte_length"


class unindexed(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """The same value, which SQLite won't look up in an index.

    Without statistics its planner prefers an equality to an order, even when almost every row is equal.
    """

    inherit_cache = True
    type = NullType()
    name = "unindexed"


class stored_text(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """``stored_text(column)``: a text in its bytes on SQLite, whose file may hold any under the name of text."""

    inherit_cache = True
    type = NullType()
    name = "stored_text"


class json_rows(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """The elements of an array in JSON text as rows: many rows of values in one parameter of a constant statement."""

    inherit_cache = True
    type = NullType()
    name = "json_rows"


class json_item(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it is
    """``json_item(row, index)``: one text of such a row, which is itself an array; ``NULL`` for a JSON null."""

    inherit_cache = True
    type = String()
    name = "json_item"


class is_any_of(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """``is_any_of(column, query)``: whether the query has the value, each looked up by an index of the column.

    A join or an IN leaves PostgreSQL to decide, which reads all of a table that was small when it was last analysed.
    """

    inherit_cache = True
    type = NullType()  # of a Boolean() SQLite is asked whether it is 1, which no index answers
    name = "is_any_of"


class normal_path(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it is
    """``normal_path(text)``: one spelling for all that a path may have, as ``normal_spelling`` gives it."""

    inherit_cache = True
    type = String()
    name = "normal_path"


class among(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """``among(column, query)``: the column's value is one of the few that the query gives.

    PostgreSQL runs the query first and looks each value up in the column's index, whatever it knows of the table.
    """

    inherit_cache = True
    type = NullType()  # for a truth value SQLAlchemy would write "= 1", and SQLite would look at every row
    name = "among"

    def __init__(self, column: ColumnElement[Any], query: Select[Any]) -> None:
        super().__init__(column, query.scalar_subquery())


@compiles(normal_path, "sqlite")
def _normal_path_sqlite(element: normal_path, compiler: SQLCompiler, **kw: Any) -> str:
    return _normal_path(compiler.process(element.clauses, **kw), position="instr")


@compiles(normal_path, "postgresql")
def _normal_path_postgresql(element: normal_path, compiler: SQLCompiler, **kw: Any) -> str:
    return _normal_path(compiler.process(element.clauses, **kw), position="strpos")


def _normal_path(path: str, *, position: str) -> str:
    drive = f"CASE WHEN substr({path}, 1, 4) = '\\\\?\\' THEN substr({path}, 5) ELSE {path} END"
    spelled = f"{path} || '/'"
    for _ in range(SPELLING_ROUNDS):
        spelled = f"replace(replace({spelled}, '/./', '/'), '//', '/')"
    # Nearly every path is spelled so already, and a claim asks several times for each thread.
    is_normal = f"substr({path}, 1, 1) = '/' AND {position}({path} || '/', '//') + {position}({path} || '/', '/./') = 0"
    return (
        f"CASE WHEN {is_normal} THEN {path} "
        f"WHEN substr({drive}, 2, 2) = ':\\' AND {position}('{ascii_letters}', substr({drive}, 1, 1)) > 0 "
        f"THEN upper(substr({drive}, 1, 1)) || rtrim(substr({drive}, 2), '\\') "
        f"WHEN {path} = '' THEN '' ELSE coalesce(nullif(rtrim({spelled}, '/'), ''), '/') END"
    )


@compiles(fresh_token, "sqlite")
def _fresh_token_sqlite(_element: ColumnElement[str], _compiler: SQLCompiler, **_kw: Any) -> str:
    return "lower(hex(randomblob(16)))"


@compiles(fresh_token, "postgresql")
def _fresh_token_postgresql(_element: ColumnElement[str], _compiler: SQLCompiler, **_kw: Any) -> str:
    return "replace(CAST(gen_random_uuid() AS TEXT), '-', '')"


@compiles(contains, "sqlite")
def _contains_sqlite(element: contains, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(contains, "postgresql")
def _contains_postgresql(element: contains, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"


@compiles(matches, "sqlite")
def _matches_sqlite(element: matches, compiler: SQLCompiler, **kw: Any) -> str:
    text, pattern = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{text} LIKE ({pattern})"


@compiles(matches, "postgresql")
def _matches_postgresql(element: matches, compiler: SQLCompiler, **kw: Any) -> str:
    # Its default escape is the backslash, which paths of Windows are full of.
    text, pattern = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{text} ILIKE ({pattern}) ESCAPE ''"


@compiles(byte_length, "sqlite")
def _byte_length_sqlite(element: byte_length, compiler: SQLCompiler, **kw: Any) -> str:
    # octet_length() needs SQLite 3.43.
    return f"length(CAST({compiler.process(element.clauses, **kw)} AS BLOB))"


@compiles(byte_length, "postgresql")
def _byte_length_postgresql(element: byte_length, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **kw)})"


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    column, query = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} IN {query}"


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    column, query = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} = ANY (ARRAY{query})"


@compiles(unindexed, "sqlite")
def _unindexed_sqlite(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


@compiles(unindexed, "postgresql")
def _unindexed_postgresql(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(is_any_of, "sqlite")
def _is_any_of_sqlite(element: is_any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, query = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} IN {query}"


@compiles(is_any_of, "postgresql")
def _is_any_of_postgresql(element: is_any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, query = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} = ANY (ARRAY{query})"


@compiles(stored_text, "sqlite")
def _stored_text_sqlite(element: stored_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS BLOB)"


@compiles(stored_text, "postgresql")
def _stored_text_postgresql(element: stored_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(json_rows, "sqlite")
def _json_rows_sqlite(element: json_rows, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(json_rows, "postgresql")
def _json_rows_postgresql(element: json_rows, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


@compiles(json_item, "sqlite")
def _json_item_sqlite(element: json_item, compiler: SQLCompiler, **kw: Any) -> str:
    row, index = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"json_extract({row}, '$[' || {index} || ']')"


@compiles(json_item, "postgresql")
def _json_item_postgresql(element: json_item, compiler: SQLCompiler, **kw: Any) -> str:
    row, index = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({row} ->> {index})"
