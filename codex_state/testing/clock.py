"""A clock for tests in place of the database's.

Leases compare times that the database takes (law L3), so a test that wants an hour to pass must move the database's
clock. ``ManualClock`` stands still until it is told to move, forwards or backwards, and is shared: by every connection
of every database it was installed in, and by every process that opens it from the same file.
"""

from __future__ import annotations

import mmap
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import event, text

from codex_state.database import Database
from codex_state.database.execute import forget_prepared
from codex_state.database.sql import use_manual_clock

_SECONDS = struct.Struct("<q")
_FUNCTION = "codex_state_manual_now"
_TABLE = "codex_state_manual_clock"


class ManualClock:
    """The time of one or more databases, moved by hand.

    On SQLite each connection gets an SQL function that reads the clock's file. PostgreSQL has no such thing, so there
    the clock is mirrored in a helper table, which ``set`` and ``advance`` write in a transaction of their own.
    """

    def __init__(self, path: Path, start: datetime | None = None) -> None:
        """Open the clock whose state is the file ``path``.

        Args:
            path: a file for the clock alone; created when missing.
            start: what time it is; ``None`` leaves the clock as another process set it.
        """
        if start is None and not path.exists():
            start = datetime(2026, 2, 10, 12, 0, tzinfo=UTC)
        with path.open("a+b") as file:
            if file.tell() < _SECONDS.size:
                file.truncate(_SECONDS.size)
            self._memory = mmap.mmap(file.fileno(), _SECONDS.size)
        self._mirrors: list[Database] = []
        if start is not None:
            self.set(start)

    @property
    def seconds(self) -> int:
        """What time it is, in whole epoch seconds."""
        seconds: int = _SECONDS.unpack_from(self._memory)[0]
        return seconds

    @property
    def now(self) -> datetime:
        """What time it is."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def set(self, moment: datetime) -> None:
        """Make it ``moment``, which may lie in the past. Fractions of a second are dropped."""
        _SECONDS.pack_into(self._memory, 0, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1))
        for database in self._mirrors:
            self._mirror(database)

    def advance(self, duration: timedelta) -> None:
        """Let time pass; a negative duration turns the clock back."""
        self.set(self.now + duration)

    def install(self, database: Database) -> None:
        """Make this the clock of ``database``, in this process. No session may be open on it."""
        engine = database.engine
        if database.dialect == "sqlite":
            event.listen(engine.pool, "connect", self._teach)
            if database.path is None:
                # Its only connection is the database, so it can't be made anew.
                connection = engine.raw_connection()
                self._teach(connection.driver_connection, None)
                connection.close()
            else:
                engine.dispose()
            use_manual_clock(engine, f"{_FUNCTION}()")
        else:
            self._mirrors.append(database)
            with database.begin() as session:
                session.connection().execute(text(f"CREATE TABLE IF NOT EXISTS {_TABLE} (seconds bigint NOT NULL)"))
            self._mirror(database)
            use_manual_clock(engine, f"(SELECT seconds FROM {_TABLE})")  # noqa: S608 - a constant
        # Whatever was compiled so far asks the database's own clock.
        engine.clear_compiled_cache()
        forget_prepared(engine.dialect)

    def close(self) -> None:
        """Let go of the file. Databases that use the clock must be closed before."""
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _teach(self, connection: Any, _record: object) -> None:
        connection.create_function(_FUNCTION, 0, lambda: self.seconds)

    def _mirror(self, database: Database) -> None:
        with database.begin() as session:
            connection = session.connection()
            # Processes that share the clock may set it at once; the last one's reading of the file is right.
            connection.execute(text(f"LOCK TABLE {_TABLE} IN SHARE ROW EXCLUSIVE MODE"))
            connection.execute(text(f"DELETE FROM {_TABLE}"))  # noqa: S608 - a constant
            connection.execute(text(f"INSERT INTO {_TABLE} VALUES (:seconds)"), {"seconds": self.seconds})  # noqa: S608
