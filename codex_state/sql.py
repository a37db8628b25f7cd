"""SQL that the two databases spell differently."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, ColumnElement, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


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
