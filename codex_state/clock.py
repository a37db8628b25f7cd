"""The database's time as a SQL expression (law L3).

Leases compare times that the database server took inside the very statement that decides, so machines whose clocks
disagree still agree on who holds what. Statements say ``server_now()``; each dialect compiles it to its own moving
clock in whole epoch seconds.

Tests need to move that clock. ``use_manual_clock`` replaces the expression for one engine only: statements stay the
same constants, and every engine compiles its own text.

How long a holder may trust what such a statement granted is measured by a clock of its own process: ``trust_clock``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

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
