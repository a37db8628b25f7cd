"""The original Codex's own databases, read as a guest does: nothing is written, and nothing is left beside them (L12).

The original keeps them in WAL mode. To open such a file in the usual way, read-only as well, makes SQLite create
``-wal`` and ``-shm`` beside it when no program has them, and nobody would clear them away. So a file is opened by what
lies beside it:

* No ``-wal`` with content: all is in the file. It is opened as ``immutable``, without locks and side files, and each
  page of rows counts only if the file is still the same afterwards.
* A ``-wal`` with content: a program runs, or ended by force. File and ``-wal`` are copied to a temporary directory, in
  this order, and read there. A checkpoint meanwhile does no harm: what it wrote into the file is in the copied ``-wal``
  too, and wins. Only if the ``-wal`` was begun anew in the meantime is the copy made again.
* Not in WAL mode (old or restored files): ``mode=ro``, which waits for locks as any reader does and creates nothing.
  Only what a killed writer left half done (a hot journal) is copied with it and rolled back in the copy.

A file that this process has open as its own state mustn't be opened here: when a file is closed, POSIX drops all locks
that the process has on it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import UUID

from codex_state.errors import (
    ConfigurationError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    NotADatabaseError,
    StateError,
    classify,
)
from codex_state.settings import config_of

_log = logging.getLogger("codex_state")

_STATE_FILE = re.compile(r"state(?:_([0-9]{1,9}))?\.sqlite", re.ASCII)
_MEMORIES_FILE = re.compile(r"memories(?:_v([0-9]{1,9}))?_([0-9]{1,9})\.sqlite", re.ASCII)
_GOALS_FILE = re.compile(r"goals_([0-9]{1,9})\.sqlite", re.ASCII)
_MAGIC = b"SQLite format 3\0"
_WRITE_VERSION = 18  # where the header says 1 for rollback journals, 2 for WAL
_WAL_HEADER = 32  # it holds the salts, which change whenever the WAL is begun anew
_COPIES = 5
_PAUSE = 0.05
_PAGE = 500
_LAST_SECOND = 253402300799  # of the year 9999

OnProblem = Callable[[Path, StateError], None]
"""Told of a database that couldn't be read; the others go on."""


def log_problem(path: Path, error: StateError) -> None:
    """Warn of a database that couldn't be read."""
    _log.warning("can't read the original's database %s: %s", path, error)


class OriginalName(NamedTuple):
    """What the original's database calls a thread."""

    thread_id: UUID
    name: str
    at: int
    """Epoch seconds of the thread's last change: the original keeps no time for the name itself, which isn't newer."""


def original_names(
    home: Path,
    sqlite_home: Path | None = None,
    *,
    own: Path | None = None,
    on_problem: OnProblem = log_problem,
) -> Iterator[OriginalName]:
    """What the newest of the original's state databases calls its threads.

    Nothing is raised for databases that are missing or can't be read.

    Args:
        home: the Codex home.
        sqlite_home: where the original's databases lie, if ``CODEX_SQLITE_HOME`` says so.
        own: the state file that this process has open, which is left alone whatever its name.
        on_problem: told of a database that can't be read; by default it is logged.
    """
    for path in state_databases(home, sqlite_home, own=own):
        try:
            with OriginalDatabase.open(path) as database:
                if not database.is_the_originals("threads"):
                    continue
                for names in names_in(database):
                    yield from names
        except StateError as error:
            on_problem(path, error)
        # Without going on to older ones: their names may have been replaced long ago.
        return


_NAMES = (
    "SELECT rowid, id, name, updated_at FROM threads "
    "WHERE name IS NOT NULL AND name <> '' AND rowid > ? ORDER BY rowid LIMIT ?"
)


def names_in(database: OriginalDatabase) -> Iterator[list[OriginalName]]:
    """What one state database calls its threads, some hundred at a time; nothing if its version has no names."""
    if database.has("threads", "name"):
        for rows in database.pages(_NAMES):
            yield [name for row in rows if (name := _name_of(row)) is not None]


def _name_of(row: tuple[Any, ...]) -> OriginalName | None:
    _, spelled, name, at = row
    thread_id, name = uuid_of(spelled), text_of(name).strip()
    return OriginalName(thread_id, name, second_of(at) or 0) if thread_id is not None and name else None


def original_database_stamp(
    home: Path, sqlite_home: Path | None = None, *, own: Path | None = None
) -> tuple[int, int] | None:
    """Size and last change, in nanoseconds, of the original's state databases with their WALs; ``None`` without one.

    Of all that bear the name of one, whoever wrote them: sizes are added, and the latest change counts. As with any
    file, what changed just before the stamp was taken may change again within the same tick of the clock.
    """
    size = changed = 0
    for path in state_databases(home, sqlite_home, own=own):
        for file in (path, _beside(path, "-wal")):
            with contextlib.suppress(OSError):
                found = file.stat()
                size, changed = size + found.st_size, max(changed, found.st_mtime_ns)
    return (size, changed) if changed else None


def database_directories(home: Path, sqlite_home: Path | None = None) -> list[Path]:
    """Where the original may keep the databases of a home: where it is told to first, then in the home itself."""
    told = [sqlite_home] if sqlite_home is not None else []
    with contextlib.suppress(ConfigurationError, RuntimeError):
        configured = config_of(home).get("sqlite_home")
        if isinstance(configured, str) and configured:
            told.append(home / Path(configured).expanduser())
    return list(dict.fromkeys([*told, home]))


def state_databases(home: Path, sqlite_home: Path | None = None, *, own: Path | None = None) -> list[Path]:
    """All files but ``own`` that bear the name of an original's state database, the newest first. Never raises."""
    return _databases(_STATE_FILE, home, sqlite_home, own)


def memory_databases(home: Path, sqlite_home: Path | None = None, *, own: Path | None = None) -> list[Path]:
    """All files but ``own`` that bear the name of an original's database of memories, the newest first."""
    return _databases(_MEMORIES_FILE, home, sqlite_home, own)


def goal_databases(home: Path, sqlite_home: Path | None = None, *, own: Path | None = None) -> list[Path]:
    """All files but ``own`` that bear the name of an original's database of goals, the newest first."""
    return _databases(_GOALS_FILE, home, sqlite_home, own)


def _databases(pattern: re.Pattern[str], home: Path, sqlite_home: Path | None, own: Path | None) -> list[Path]:
    found: list[Path] = []
    for directory in database_directories(home, sqlite_home):
        with contextlib.suppress(OSError):
            named = [(match, path) for path in directory.iterdir() if (match := pattern.fullmatch(path.name))]
            named.sort(key=lambda entry: [int(number or 0) for number in entry[0].groups()], reverse=True)
            found.extend(path for _, path in named if path.is_file() and not _same(path, own))
    return found


def _same(path: Path, own: Path | None) -> bool:
    try:
        return own is not None and path.samefile(own)
    except OSError:
        return False


class OriginalDatabase:
    """One database of the original's, held open for reading."""

    @classmethod
    def open(cls, path: Path, *, wait: float = 1.0) -> Self:
        """Open a database without leaving a trace.

        Args:
            path: the database's file.
            wait: how many seconds to wait for a lock.

        Raises:
            DatabaseBusyError: somebody locks it, or writes so fast that no copy can be had.
            DatabaseUnavailableError: it can't be read.
            NotADatabaseError: it is no SQLite database.
        """
        return cls(path, wait)

    def __init__(self, path: Path, wait: float) -> None:
        self.path = path
        self._file = Path(path.resolve())  # SQLite's side files lie beside what a link leads to
        self._wait = wait
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._immutable_as_of: tuple[int, ...] | None = None
        self._connection: sqlite3.Connection | None = None
        try:
            with self._classified():
                self._connection = self._connect()
                self._tables = self._read_schema()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database, and of the copy if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a state file of this package under the original's name."""
        return "codex_state_version" in self._tables

    def is_the_originals(self, table: str) -> bool:
        """Whether it was made by the original's migrations, and has this table."""
        return "_sqlx_migrations" in self._tables and table in self._tables

    def has(self, table: str, *columns: str) -> bool:
        """Whether the database has this table, with these columns."""
        return table in self._tables and self._tables[table].issuperset(columns)

    def pages(self, query: str, *, size: int = _PAGE) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query, some at a time.

        Args:
            query: selects the rowid first and ends in ``rowid > ? ORDER BY rowid LIMIT ?``.
            size: how many rows at most are given at once.

        Raises:
            DatabaseError: what can't be read. Pages that were given before are right.
        """
        after = -1
        while True:
            with self._classified():
                rows = self._rows(query, (after, size))
            if rows:
                yield rows
            if len(rows) < size:
                return
            after = rows[-1][0]

    def _rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        try:
            rows = self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error:
            if self._immutable_as_of is None or self._immutable_as_of == _state_of(self._file):
                raise
        else:
            if self._immutable_as_of is None or self._immutable_as_of == _state_of(self._file):
                return rows
        # The program that writes it has started meanwhile: what was just read may be half of its work.
        self._connection.close()
        self._connection = self._connect_to_a_copy()
        return self._connection.execute(query, parameters).fetchall()

    def _read_schema(self) -> dict[str, set[str]]:
        tables = [name for (name,) in self._rows("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {
            table: {column for (column,) in self._rows("SELECT name FROM pragma_table_info(?)", (table,))}
            for table in tables
        }

    def _connect(self) -> sqlite3.Connection:
        state = _state_of(self._file)
        with self._file.open("rb") as file:
            header = file.read(100)
        if header and not header.startswith(_MAGIC):
            raise NotADatabaseError("it is not an SQLite database")
        if _size_of(_beside(self._file, "-wal")):
            return self._connect_to_a_copy()
        if header and header[_WRITE_VERSION] == 1:
            return self._connect_with_locks()
        self._immutable_as_of = state
        return self._connected(self._file, "mode=ro&immutable=1")

    def _connect_with_locks(self) -> sqlite3.Connection:
        connection = self._connected(self._file, "mode=ro")
        try:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
        except sqlite3.Error as error:
            connection.close()
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
                raise
            return self._connect_to_a_copy()
        return connection

    def _connect_to_a_copy(self) -> sqlite3.Connection:
        self._immutable_as_of = None
        self._directory = tempfile.TemporaryDirectory(prefix="codex_state-", ignore_cleanup_errors=True)
        copied = Path(self._directory.name) / "copy.sqlite"
        for attempt in range(_COPIES):
            if attempt:
                time.sleep(_PAUSE)
            generation = _generation_of(self._file)
            shutil.copyfile(self._file, copied)
            for suffix in ("-wal", "-journal"):  # after the file, see above
                _beside(copied, suffix).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(_beside(self._file, suffix), _beside(copied, suffix))
            if _generation_of(self._file) == generation:
                return self._connected(copied, "mode=rw" if _size_of(_beside(copied, "-journal")) else "mode=ro")
        raise DatabaseBusyError("it is being written all the time; try again later")

    def _connected(self, file: Path, how: str) -> sqlite3.Connection:
        connection = sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, timeout=self._wait, isolation_level=None)
        connection.text_factory = lambda stored: stored.decode("utf-8", "replace")
        return connection

    @contextlib.contextmanager
    def _classified(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise (classify(error) or DatabaseError(str(error))) from error
        except OSError as error:
            raise DatabaseUnavailableError(f"it can't be read: {error.strerror or error}") from error


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _state_of(file: Path) -> tuple[int, ...]:
    """What a write to the database changes."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, _size_of(_beside(file, "-wal"))


def _generation_of(file: Path) -> tuple[Any, ...]:
    """What stays the same as long as a copy of the file, followed by one of its side files, is whole."""
    journal = _beside(file, "-journal")
    with contextlib.suppress(OSError), _beside(file, "-wal").open("rb") as wal:
        header = wal.read(_WAL_HEADER)
        if header:
            return file.stat().st_ino, header
    with contextlib.suppress(OSError):
        found = journal.stat()
        return *_state_of(file), found.st_size, found.st_mtime_ns
    return _state_of(file)


def uuid_of(spelled: Any) -> UUID | None:
    """An id as the original writes it; ``None`` for anything else."""
    try:
        return UUID(spelled)
    except (ValueError, AttributeError, TypeError):
        return None


def text_of(stored: Any) -> str:
    """A stored text; empty for anything that isn't one."""
    return stored if isinstance(stored, str) else ""


def second_of(stored: Any) -> int | None:
    """Epoch seconds that a time can be made of; ``None`` for anything else."""
    return stored if isinstance(stored, int) and 0 <= stored <= _LAST_SECOND else None
