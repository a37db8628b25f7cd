"""Statements that are compiled once for each kind of database, and not again for every state that a test opens.

What a statement is compiled to depends on the driver, the server's version and the clock that it asks, not on the
engine. Processes that tests start compile everything themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import Dialect, Executable

from codex_state.database import execute, sql

_compile = execute._prepare
_MOST = 5000
_compiled: dict[tuple[Any, ...], Any] = {}


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within the block, engines of the same kind share what was compiled."""
    with patch.object(execute, "_prepare", _shared):
        yield


def _shared(statement: Executable, dialect: Dialect) -> Any:
    clock = getattr(dialect, sql._MANUAL_CLOCK_ATTRIBUTE, None)
    kind = (statement, dialect.driver, getattr(dialect, "server_version_info", None), clock)
    if kind not in _compiled:
        if len(_compiled) >= _MOST:
            _compiled.clear()
        _compiled[kind] = _compile(statement, dialect)
    return _compiled[kind]
