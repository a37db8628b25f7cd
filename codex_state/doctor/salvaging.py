"""Saving what can be read of a damaged SQLite file into a new one (L7)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codex_state import migrations
from codex_state.database import Database, file_url, prepare_sqlite_file
from codex_state.database.state_files import READERS_TABLE, VERSION_TABLE, is_missing, make_private_file, read_only_uri
from codex_state.errors import DatabaseBusyError, SchemaTooNewError, classify
from codex_state.migrations.environment import known_revisions

_AT_ONCE = 1024
"""So many rows are read by one statement; where it fails, halves of their range are tried, down to one row."""

_ATTEMPTS = 50_000
"""After so many failed reads of a table, what is left of it is given up."""

_FURTHEST = 2**24
"""Where rows are looked for when the largest number of one can't be found out."""

_MADE_ANEW = frozenset({"log_segments", VERSION_TABLE, READERS_TABLE})


@dataclass(slots=True)
class Salvaged:
    """What became of a damaged file."""

    set_aside: Path
    """Where the damaged file is now, with its side files."""
    rows: dict[str, int] = field(default_factory=dict)
    """How many rows of each table were saved."""
    incomplete: dict[str, str] = field(default_factory=dict)
    """What is known of rows that were not, by table."""


def salvage(path: Path) -> Salvaged:
    """Put a new file in the place of a damaged one, with every row that can be read. The damaged one is set aside.

    Whoever has the file open notices before they write again. Threads that were lost come back by a backfill.

    Raises:
        DatabaseBusyError: somebody wrote to the file meanwhile. Nothing was changed.
        StateError: the new file can't be written. Nothing was changed.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    fresh = path.with_name(f"{path.name}.salvage-{stamp}")
    before = _stamps(path)
    salvaged = Salvaged(aside)
    make_private_file(fresh)
    try:
        with closing(_Damaged(path)) as damaged:
            _make_schema(fresh, damaged.revision)
            _fill(fresh, damaged, salvaged)
        database = Database.open(file_url(fresh))
        try:
            migrations.upgrade(database.engine)
        finally:
            database.close()
        if _stamps(path) != before:
            raise DatabaseBusyError(f"somebody writes to {path}; stop what uses it, and try again")
        for suffix in ("-wal", "-shm", ""):
            each = path.with_name(path.name + suffix)
            if not is_missing(each):
                each.rename(aside.with_name(aside.name + suffix))
        fresh.rename(path)
    except sqlite3.Error as error:
        raise classify(error) or error from error
    finally:
        for suffix in ("", "-wal", "-shm", "-queue"):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    return salvaged


class _Damaged:
    """A damaged file, of which whatever can be is read."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(read_only_uri(path), uri=True)
        self._connection.text_factory = _text
        self.catalog: list[tuple[str, str, str]] = []
        """Kind, name and SQL of tables and indexes."""
        with suppress(sqlite3.Error):
            self.catalog = self._connection.execute(
                "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
            ).fetchall()

    @property
    def revision(self) -> str:
        """Which revision it says to be at; ours when it can't be read.

        Raises:
            SchemaTooNewError: a newer version's, which has what this one would leave behind.
        """
        revision = None
        with suppress(sqlite3.Error, TypeError):
            (revision,) = self._connection.execute("SELECT version_num FROM codex_state_version").fetchone()
        if revision in known_revisions():
            return str(revision)
        if isinstance(revision, str) and re.fullmatch(r"\d{4}_\w+", revision):
            raise SchemaTooNewError(f"the damaged file is at revision {revision!r}: upgrade codex-state to repair it")
        return migrations.HEAD

    def columns(self, table: str) -> list[str]:
        """The columns of a table."""
        return [row[1] for row in self._connection.execute(f"PRAGMA table_info({_quoted(table)})")]

    def rows(self, table: str, columns: Sequence[str], lost: list[int]) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a table that can be read. Numbers of those that can't be are counted in ``lost``."""
        names = ", ".join(map(_quoted, columns))
        statement = f"SELECT {names} FROM {_quoted(table)} NOT INDEXED WHERE rowid BETWEEN ? AND ?"  # noqa: S608
        last = self._last_rowid(table)
        pending = [(first, min(first + _AT_ONCE - 1, last)) for first in range(1, last + 1, _AT_ONCE)][::-1]
        failures = 0
        while pending:
            first, end = pending.pop()
            try:
                rows = self._connection.execute(statement, (first, end)).fetchall()
            except sqlite3.Error:
                failures += 1
                if first == end or failures > _ATTEMPTS:
                    lost[0] += end - first + 1
                    continue
                middle = (first + end) // 2
                pending += [(middle + 1, end), (first, middle)]
                continue
            if rows:
                yield rows

    def close(self) -> None:
        self._connection.close()

    def _last_rowid(self, table: str) -> int:
        found = []
        indexes = [name for kind, name, sql in self.catalog if kind == "index" and _is_on_any(sql, {table})]
        for hint in ("NOT INDEXED", *(f"INDEXED BY {_quoted(index)}" for index in indexes)):
            with suppress(sqlite3.Error):
                (largest,) = self._connection.execute(f"SELECT max(rowid) FROM {_quoted(table)} {hint}").fetchone()  # noqa: S608
                found.append(int(largest or 0))
        with suppress(sqlite3.Error, TypeError):
            (largest,) = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
            found.append(int(largest))
        return max(found) if found else _FURTHEST


def _make_schema(path: Path, revision: str) -> None:
    database = Database.open(file_url(path))
    try:
        prepare_sqlite_file(database)
        migrations.upgrade(database.engine, revision)
    finally:
        database.close()


def _fill(path: Path, damaged: _Damaged, salvaged: Salvaged) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as fresh:
        fresh.execute("PRAGMA foreign_keys = OFF")
        there = {name for (name,) in fresh.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        tables = [name for kind, name, _ in damaged.catalog if kind == "table"]
        for kind in ("table", "index"):  # those of a service, which shares the file
            for each, name, sql in damaged.catalog:
                if each == kind and name not in there and (kind == "table" or _is_on_any(sql, set(tables) - there)):
                    with suppress(sqlite3.Error):
                        fresh.execute(sql)
        for table in tables:
            if table not in _MADE_ANEW:
                _fill_table(fresh, damaged, table, salvaged)
        for table in sorted(there - set(tables) - _MADE_ANEW - {"sqlite_sequence"}):
            salvaged.rows[table] = 0
            salvaged.incomplete[table] = "its definition can't be read"


def _fill_table(fresh: sqlite3.Connection, damaged: _Damaged, table: str, salvaged: Salvaged) -> None:
    known = {row[1] for row in fresh.execute(f"PRAGMA table_info({_quoted(table)})")}
    columns = [name for name in damaged.columns(table) if name in known]
    names, places = ", ".join(map(_quoted, columns)), ", ".join("?" * len(columns))
    statement = f"INSERT OR REPLACE INTO {_quoted(table)} ({names}) VALUES ({places})"  # noqa: S608
    saved, refused, lost = 0, 0, [0]
    for rows in damaged.rows(table, columns, lost):
        fresh.execute("BEGIN")
        for row in rows:
            try:
                fresh.execute(statement, row)
                saved += 1
            except sqlite3.Error:
                refused += 1
        fresh.execute("COMMIT")
    salvaged.rows[table] = saved
    told = [f"{lost[0]} row numbers can't be read"] if lost[0] else []
    told += [f"{refused} rows hold what the schema refuses"] if refused else []
    if told:
        salvaged.incomplete[table] = ", ".join(told)


def _is_on_any(sql: str, tables: set[str]) -> bool:
    return any(f" {table} " in sql.replace("(", " (").replace('"', "") for table in tables)


def _stamps(path: Path) -> list[tuple[int, int]]:
    stamps = []
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            status = path.with_name(path.name + suffix).stat()
            stamps.append((status.st_size, status.st_mtime_ns))
    return stamps


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")
