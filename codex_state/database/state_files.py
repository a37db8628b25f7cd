"""The files of a state, in a directory that belongs to somebody else (laws L7 and L12).

The home is the original's and its user's. So our file has a name that the original doesn't take for one of its own, a
file counts as ours only after a look inside, what we make is for its user alone, and no link is followed to it.

The file was once called ``state_4.sqlite``, as the original's was, and originals of early 2026 delete every file of
that kind but their own. A file of ours with that name is renamed when a state is opened, and only while nobody else has
it open: SQLite finds a database's log by the name that it was opened by.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from codex_state.errors import ConfigurationError, StateError
from codex_state.settings import STATE_DATABASE_NAME, STATE_DATABASE_VERSION

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock alone keeps two renamings apart
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("codex_state")

VERSION_TABLE = "codex_state_version"
"""The table of our revision: a file that holds it is ours. A service's own history is in Alembic's
``alembic_version``."""

READERS_TABLE = "codex_state_readers"
"""The table that says, to versions that don't know our revision, whether they can use the schema all the same."""

FORMER_NAME = f"state_{STATE_DATABASE_VERSION}.sqlite"
"""What the state file was called before."""

QUEUE_SUFFIX = "-queue"
"""The side file of an SQLite database on which its waiting writers queue."""

_WAL_SUFFIX, _INDEX_SUFFIX = "-wal", "-shm"
_SIDE_FILE_SUFFIXES = ("-journal", _INDEX_SUFFIX, _WAL_SUFFIX, QUEUE_SUFFIX)

_INDEX_BYTES = 32 * 1024
"""The least that the index of a log has."""

_STATE_FILE = re.compile(rf"{STATE_DATABASE_NAME}_(?P<version>[0-9]+)\.sqlite", re.ASCII)

_PATIENCE_SECONDS = 0.5
"""How long somebody who looks at a file for a moment is waited for before it is taken to be in use."""

_POLL_SECONDS = 0.005


def make_private_directory(directory: Path) -> None:
    """Create a directory and its parents, each for its user alone, unless they are there. Raises ``OSError``."""
    for each in (*reversed(directory.parents), directory):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def make_directory(directory: Path) -> None:
    """Create a directory of the state and its parents, each for its user alone, unless they are there.

    Raises:
        ConfigurationError: something that isn't a directory is in the way, or it can't be created.
    """
    try:
        make_private_directory(directory)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{directory} is not a directory; set CODEX_HOME or CODEX_SQLITE_HOME to one"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"can't create the directory {directory}: {error.strerror}") from error


def require_home(home: Path) -> None:
    """Make sure that a home is there, without making it: a mistyped name isn't a new home.

    Raises:
        ConfigurationError: it isn't there, isn't a directory, or can't be looked at.
    """
    try:
        is_directory = stat.S_ISDIR(home.stat().st_mode)
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no Codex home at {home}; name one by --codex-home or CODEX_HOME, or create the directory"
        ) from None
    except NotADirectoryError:
        is_directory = False
    except OSError as error:
        raise ConfigurationError(f"can't look at the Codex home {home}: {error.strerror}") from error
    if not is_directory:
        raise ConfigurationError(f"{home} is not a directory; set CODEX_HOME to one")


def open_side_file(path: Path) -> int:
    """Open a file that is only there to be locked, and make it when it is missing. Raises ``OSError``.

    A new one is for its user alone. An existing one is never cut, and a link at its place is refused.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def make_private_file(path: Path) -> None:
    """Make an empty file for its user alone, unless something is there. Without leave to do it nothing happens.

    SQLite would make it readable for all; its log and the log's index have the file's own permissions.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def can_be_written(path: Path) -> bool:
    """Whether a state can be kept at ``path``: in the file, and beside it, where SQLite has its log."""
    directory = path.parent
    while is_missing(directory):
        directory = directory.parent
    effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective) and (
        is_missing(path) or os.access(path, os.W_OK, effective_ids=effective)
    )


def is_missing(path: Path) -> bool:
    """Whether nothing is at ``path``. What can't be looked at may be there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def read_only_uri(path: Path) -> str:
    """By which SQLite reads a file and leaves everything around it as it is.

    A file in WAL mode is read together with its log. Where there is none, nobody has the file open, and SQLite would
    make an empty log, which it can't on a medium that can't be written. Such a file says everything by itself and is
    read as one that doesn't change (``immutable``): what is written after it was opened isn't seen.

    A log without its index (``-shm``), on a medium where the index can't be made, can't be read at all.
    """
    log, index = (path.with_name(path.name + suffix) for suffix in (_WAL_SUFFIX, _INDEX_SUFFIX))
    has_log = not is_missing(log) and (_is_whole_index(index) or log.stat().st_size > 0)
    return _uri(path, "mode=ro" if has_log else "mode=ro&immutable=1")


def _is_whole_index(index: Path) -> bool:
    """Whether a log's index may be in use: on a full disk SQLite leaves the beginning of one, beside an empty log."""
    try:
        return index.lstat().st_size >= _INDEX_BYTES
    except FileNotFoundError:
        return False
    except OSError:
        return True


def existing_uri(path: Path) -> str:
    """By which SQLite opens a file to write, and makes none when it isn't there."""
    return _uri(path, "mode=rw")


def is_ours(path: Path) -> bool:
    """Whether a file is a state of ours: it holds the table of our revision. The look changes nothing.

    Raises:
        DatabaseError: it can't be read, or is no database.
    """
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            return _has_our_table(connection)
    except sqlite3.Error as error:
        raise _classified(error) from error


def _classified(error: sqlite3.Error) -> Exception:
    # Here, and not above, because it brings SQLAlchemy.
    from codex_state.errors import classify

    return classify(error) or error


def locate(path: Path, *, adopt: bool) -> Path:
    """The state file to open for the one at ``path``: that, or one of ours that still has the former name.

    Args:
        path: where the settings say that the file is.
        adopt: whether a file with the former name is renamed to ``path``. One that somebody else has open stays.

    Raises:
        DatabaseError: a file of ours with the former name can't be prepared for its new one.
    """
    former = path.with_name(FORMER_NAME)
    if not is_missing(path) or is_missing(former):
        return path
    with _one_at_a_time(path.parent):
        # Again: whoever had the lock may have done it.
        if not is_missing(path) or not _is_surely_ours(former):
            return path
        if not adopt:
            return former
        try:
            renamed = _renamed(former, path)
        except sqlite3.Error as error:
            raise _classified(error) from error
    if renamed or is_missing(former):
        return path
    _log.warning(
        "%s is open in another process, so it is used where it is; it becomes %s once nobody has it open",
        former,
        path.name,
    )
    return former


def replace_file(path: Path, fresh: Path, aside: Path) -> bool:
    """Put ``fresh`` in the place of the file at ``path``, which stays as ``aside``; whether nobody had it open.

    A file is at ``path`` at every moment, the old one or the new one, where the file system has hard links. A damaged
    file can't be asked who has it open; whoever has finds out before the next commit.

    Raises:
        OSError: a file can't be renamed.
    """
    with _one_at_a_time(path.parent), closing(_connected(path)) as connection:
        try:
            if not _held_alone(connection):
                return False
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise _classified(error) from error
        move_logs(path, aside)
        try:
            os.link(path, aside)
        except OSError:
            path.rename(aside)
        fresh.replace(path)
    return True


def move_logs(path: Path, aside: Path) -> None:
    """Move what SQLite keeps beside a file away from its name: another file there must not meet it."""
    for ending in (_WAL_SUFFIX, _INDEX_SUFFIX, "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))


def remove_older_state_files(directory: Path) -> list[Path]:
    """Remove our state files of older versions, each with its side files, and return what was removed.

    Only regular files named ``codex_state_<n>.sqlite`` with n below ours count, and only if they hold our table and
    nobody has them open. A newer version's file is left alone with a warning: its program may still need it. Nothing
    here raises; what can't be removed is logged.
    """
    removed: list[Path] = []
    newer = set()
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        _log.warning("can't look for older state files in %s: %s", directory, error)
        return []
    for path in entries:
        match = _STATE_FILE.fullmatch(path.name)
        if match is None or not _is_regular_file(path):
            continue
        version = int(match["version"])
        if version > STATE_DATABASE_VERSION:
            newer.add(path.name)
        elif version < STATE_DATABASE_VERSION and _is_surely_ours(path):
            removed += _removed(path)
    for name in sorted(newer):
        _log.warning("left the newer %s in %s alone", name, directory)
    return removed


def _removed(path: Path) -> list[Path]:
    removed = []
    try:
        with closing(_connected(path)) as connection:
            if not _held_alone(connection):
                _log.warning("left the older %s alone: another process has it open", path)
                return []
            # The file itself is the last to go: without it nobody could tell whose the others are.
            for each in (*(path.with_name(path.name + suffix) for suffix in _SIDE_FILE_SUFFIXES), path):
                if _is_regular_file(each):
                    each.unlink(missing_ok=True)
                    removed.append(each)
                    _log.info("removed the older state file %s", each)
    except (OSError, sqlite3.Error) as error:
        _log.warning("can't remove the older state file %s: %s", path, error)
    return removed


def _renamed(former: Path, path: Path) -> bool:
    """Rename a file that nobody has open; whether nobody had."""
    with closing(_connected(former)) as connection:
        if not _held_alone(connection):
            return False
        # Its log is in it now and gone, and nobody can begin a new one before this connection is closed.
        if not is_missing(former):
            former.rename(path)
            _log.info("renamed %s to %s", former, path.name)
    with suppress(OSError):
        former.with_name(former.name + QUEUE_SUFFIX).rename(path.with_name(path.name + QUEUE_SUFFIX))
    return True


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(existing_uri(path), uri=True, isolation_level=None, timeout=0)


def _held_alone(connection: sqlite3.Connection) -> bool:
    """Take the file for this connection alone, and its log into the file; whether nobody else has it open."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            # Everyone who has a file in WAL mode open holds a lock on it, and this needs it to be the only one.
            (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode == "delete":
                connection.execute("BEGIN EXCLUSIVE")
                return True
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)


def _is_surely_ours(path: Path) -> bool:
    try:
        return is_ours(path)
    except (StateError, sqlite3.Error, OSError) as error:
        _log.warning("left %s alone, because it can't be told whose it is: %s", path, error)
        return False


def _has_our_table(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (VERSION_TABLE,))
    return found.fetchone() is not None


def _is_regular_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def require_regular(path: Path) -> None:
    """Refuse what is no file in a database's place, or in that of the files beside it: SQLite would wait for a pipe.

    Raises:
        NotADatabaseError: a pipe, a device, a directory or the like is there, or a link to one.
    """
    for place in (path, *(path.with_name(path.name + suffix) for suffix in (_WAL_SUFFIX, _INDEX_SUFFIX))):
        try:
            mode = place.stat().st_mode
        except (OSError, ValueError):
            continue  # opening it says what is wrong, if anything is
        if not stat.S_ISREG(mode):
            # Here, and not above, because it brings SQLAlchemy.
            from codex_state.errors import NotADatabaseError

            kind = _KINDS.get(stat.S_IFMT(mode), "a device")
            raise NotADatabaseError(f"{place} is {kind}, where a file should be; move it aside")


def _uri(path: Path, parameters: str) -> str:
    require_regular(path)
    return f"file:{quote(os.fsencode(path.absolute()))}?{parameters}"


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """One process at a time looks for the former name and renames it. The lock is the directory's: nothing is left."""
    descriptor = None
    # Where there are no locks, SQLite's own, which is held while the file is renamed, must do.
    with suppress(OSError):
        if fcntl is not None:
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
