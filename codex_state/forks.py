"""What a fork does to SQLite, and how its child stays safe.

SQLite notes in the process's memory which locks the process holds on a file, because the system's file locks belong to
processes. A child inherits the notes but not the locks. If it opened a connection of its own while an inherited one is
still there, SQLite would believe to hold the lock already and take none; whoever closes the file elsewhere would then
remove the WAL under the child, and what the child commits afterwards would be lost.

So a child first closes the inherited connections, which clears the notes. It can do that to idle ones only: one that
was in use may be in the middle of its parent's transaction. Then the file can't be opened safely in this process, and
is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path

from codex_state.errors import DatabaseUnavailableError

_unsafe_files: set[tuple[int, int]] = set()
_left_alone: list[sqlite3.Connection] = []
"""Kept alive, because an unreachable connection would be closed."""


def close_inherited(path: Path, idle: Collection[sqlite3.Connection], in_use: Collection[sqlite3.Connection]) -> None:
    """Give up the connections to ``path`` that this process inherited by the fork it was just made by."""
    for connection in idle:
        connection.close()
    if in_use:
        _left_alone.extend(in_use)
        _unsafe_files.update(_identities_of(path))


def refuse_unsafe(path: Path) -> None:
    """Refuse a file to which an inherited connection is still open.

    Raises:
        DatabaseUnavailableError: the process was forked while its parent had a session open on the file.
    """
    if _unsafe_files and not _unsafe_files.isdisjoint(_identities_of(path)):
        raise DatabaseUnavailableError(
            f"this process was forked while a session of its parent was open on {path}, which SQLite can't share; "
            "fork outside of sessions, or start processes with the 'spawn' or 'forkserver' method"
        )


def _identities_of(path: Path) -> list[tuple[int, int]]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [(status.st_dev, status.st_ino)]
