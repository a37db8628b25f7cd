"""A worker that upgrades a database and kills itself right after the first statement with a fragment in it."""

from __future__ import annotations

import os
import signal
from typing import Any

import alembic.command  # noqa: F401 - before the fork
from sqlalchemy import event

from codex_state import migrations
from codex_state.database import Database
from tests.chaos.channel import Channel


def work(_channel: Channel, url: str, fragment: str) -> None:
    database = Database.open(url)

    def die(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if fragment in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(database.engine, "after_cursor_execute", die)
    migrations.upgrade(database.engine)
