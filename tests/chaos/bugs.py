"""Bugs that a worker of the chaos lives with, when the chaos itself is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import URL, Engine, create_engine

from codex_state.errors import classify
from tests.mutants.statements import sql_mutants

IMPATIENCE = "a server that is away is a lost connection like any other"
HASTE = "a commit is answered before it is written"
"""Bugs that only outages show."""

SESSIONS = "a pooler's connections are taken for sessions"
"""A bug that only a pooler shows."""


@contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """Plant one of them, or a mutant of the lease core, by its name."""
    if bug is None:
        yield
        return
    bugs: dict[str, Callable[[], AbstractContextManager[object]]] = {
        mutant.name: mutant.planted for mutant in sql_mutants()
    }
    bugs[IMPATIENCE] = _impatience
    bugs[HASTE] = lambda: patch.dict("codex_state.database.postgresql._SERVER_PATIENCE", synchronous_commit="off")
    bugs[SESSIONS] = lambda: patch("codex_state.database.postgresql.create_engine", _that_prepares)
    with bugs[bug]():
        yield


@contextmanager
def _impatience() -> Iterator[None]:
    with (
        patch("codex_state.database.engine.classify_connecting", classify),
        patch("codex_state.database.patience.classify_connecting", classify),
    ):
        yield


def _that_prepares(url: URL, *, connect_args: dict[str, Any], **options: Any) -> Engine:
    return create_engine(url, connect_args=connect_args | {"prepare_threshold": 0}, **options)
