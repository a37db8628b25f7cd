"""Waiting for a server that is away for a while, because it restarts.

What waits is the making of a connection: nothing has begun then, so that every unit of work, whichever way it is
opened, may wait there. Only a server that may come back is waited for.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from codex_state.database.errors import ServerUnavailableError, classify_connecting

_log = logging.getLogger("codex_state")

_FIRST_PAUSE_SECONDS = 0.16
"""A restart takes longer than a conflict between transactions."""

_LONGEST_PAUSE_SECONDS = 2.0
"""A server that is away for long is asked about once a second by each caller."""


class Patience:
    """How long one caller waits in total, from the first refusal on."""

    def __init__(self, total: timedelta, tell: Callable[[ServerUnavailableError], None] | None = None) -> None:
        """Wait for ``total``, and ``tell`` why when the waiting begins."""
        self._total, self._tell = total.total_seconds(), tell
        self._pause, self._deadline = _FIRST_PAUSE_SECONDS, 0.0

    def outlasts(self, error: ServerUnavailableError) -> bool:
        """Wait a little; whether to try again. Not when the time is over."""
        if not self._deadline:
            self._deadline = time.monotonic() + self._total
            if self._tell is not None and self._total:
                self._tell(error)
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        _log.info("the server is away; waiting for %.1f s more: %s", left, error)
        # Full jitter, so that not all come at once to a server that is back.
        time.sleep(random.uniform(0, min(self._pause, left)))  # noqa: S311
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return True


_of_caller: ContextVar[Patience | None] = ContextVar("codex_state_patience", default=None)


@contextmanager
def waiting(patience: Patience) -> Iterator[None]:
    """Wait with this patience in the block, in place of the database's own."""
    before = _of_caller.set(patience)
    try:
        yield
    finally:
        _of_caller.reset(before)


def wait_for_server(engine: Engine, total: timedelta) -> None:
    """Have every connection of the engine's pool wait for ``total`` for a server that is away."""
    dialect = engine.dialect
    connect = dialect.connect

    def connect_patiently(*args: Any, **options: Any) -> Any:
        patience = _of_caller.get() or Patience(total)
        while True:
            try:
                return connect(*args, **options)
            except dialect.loaded_dbapi.Error as error:
                told = classify_connecting(error, engine.url)
                if not isinstance(told, ServerUnavailableError) or not patience.outlasts(told):
                    raise

    # Not as a listener of ``do_connect``: those of a service's own, which may bring a password, come before.
    dialect.connect = connect_patiently  # type: ignore[method-assign]
