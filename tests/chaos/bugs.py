"""Bugs that a worker of the chaos lives with, when the chaos itself is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

from codex_state.errors import classify
from tests.mutants.statements import sql_mutants

IMPATIENCE = "a server that is away is a lost connection like any other"
HASTE = "a commit is answered before it is written"
"""Bugs that only outages show."""


@contextmanager
def planted(bug: str | None) -> Iterator[None]:
    """Plant one of them, or a mutant of the lease core, by its name."""
    if bug is None:
        yield
        return
    bugs: dict[str, Callable[[], AbstractContextManager[object]]] = {
        mutant.name: mutant.planted for mutant in sql_mutants()
    }
    bugs[IMPATIENCE] = lambda: patch("codex_state.database.classify_connecting", classify)
    bugs[HASTE] = lambda: patch.dict("codex_state.database._SERVER_PATIENCE", synchronous_commit="off")
    with bugs[bug]():
        yield
