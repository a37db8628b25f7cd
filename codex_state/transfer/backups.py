"""Copies of a whole state in one SQLite file, and going back to one (law L7)."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL

from codex_state import migrations
from codex_state.database import Database, file_of, prepare_sqlite_file, state_files
from codex_state.database.errors import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseReadOnlyError,
    advice_for,
    raised_as_ours,
)
from codex_state.database.sqlite import Access
from codex_state.database.state_files import READERS_TABLE, VERSION_TABLE
from codex_state.errors import ConfigurationError, DatabaseBusyError, RestoreRefusedError, StateError, classify
from codex_state.models import LOCAL_HOME
from codex_state.rollout.files import may_be_file
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from codex_state.transfer.copying import copy_state
from codex_state.transfer.tables import stored_tables

_PAGES_AT_ONCE = 256

_ROLLOUTS_LOOKED_FOR = 10_000
"""So many of a backup's rollouts are looked for in the home, until one is found."""

_NOTES = frozenset({"backfill_state", "log_segments", VERSION_TABLE, READERS_TABLE, "sqlite_sequence", "sqlite_stat1"})
"""Tables that every state has rows in, or whose rows say something of the other tables only."""


_OF_A_WRITE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
}
"""What goes wrong where a copy goes to, and not where it comes from."""


@dataclass(slots=True)
class Restored:
    """What a restore did."""

    place: str
    """The state's file, or the server and the name of its database."""
    revision: str
    """Of the schema that the backup has; the state's is today's."""
    set_aside: Path | None = None
    """Where the state is that was there before."""
    rows: dict[str, int] = field(default_factory=dict)
    """How many rows each table has now."""


def back_up_file(source: Path, target: Path) -> int:
    """Copy an SQLite database while others write to it: what is committed when it begins, whole. Returns its bytes.

    Raises:
        ConfigurationError: something is at ``target`` already, or its directory can't be written.
        DatabaseError: the source can't be read, or the disk is full.
    """
    if not state_files.is_ours(source):
        raise ConfigurationError(f"{source} holds no state of codex-state yet; run `codex-state backfill`")
    with _new_file(target) as part:
        _copy_file(source, part)
    return target.stat().st_size


def back_up_server(runtime: StateRuntime, target: Path) -> int:
    """Copy every row of a state on a server into a new SQLite file. Returns its bytes.

    Rows of the runtime's home are those of the backup's own home; others keep their homes' names.

    Raises:
        ConfigurationError: something is at ``target`` already, or its directory can't be written.
        StateError: a row can't be copied.
        DatabaseError: one of the databases failed.
    """
    with _new_file(target) as part:
        with _opened(part, runtime.settings.model_copy(update={"home": LOCAL_HOME})) as copied:
            report = copy_state(runtime, copied)
        if not report.complete:
            raise StateError(f"not everything can be copied, so there is no backup: {report.left[0]}")
        _make_one_file(part)
    return target.stat().st_size


def restore_file(backup: Path, settings: StateSettings, *, replace: bool = False, any_home: bool = False) -> Restored:
    """Put a backup in the place of the SQLite file that the settings name, with today's schema.

    The backup is read only. A state that is there is never deleted: it stays beside, under another name.

    Args:
        backup: what ``codex-state backup`` made, or any whole copy of a state file.
        settings: where the state is to be.
        replace: whether a state that holds rows may be set aside.
        any_home: whether the backup may be of another home.

    Raises:
        RestoreRefusedError: the backup isn't whole, no state of ours, or of another home; or a state that holds rows
            is in its place, or another program's file.
        DatabaseBusyError: somebody has the state open.
        SchemaTooNewError: the backup is of a newer version.
        DatabaseError: a file can't be read or written.
    """
    place = file_of(settings)
    if place is None:
        raise RestoreRefusedError("a backup can't be restored into a database in memory")
    path = place.resolve()
    if backup.resolve() == path:
        raise RestoreRefusedError(f"{backup} is the state itself; name a backup")
    revision = _revision_of(backup)
    is_there = _require_replaceable(path, replace=replace)
    if not state_files.can_be_written(path):
        raise DatabaseReadOnlyError(f"{path} can't be written, or its directory; nothing was changed")
    state_files.make_directory(path.parent)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    fresh, aside = (path.with_name(f"{path.name}.{what}-{stamp}") for what in ("restoring", "before-restore"))
    with _prepared(backup, fresh, settings, any_home=any_home) as runtime:
        rows = _rows_of(runtime)
    try:
        _make_one_file(fresh)
        if not is_there:
            state_files.move_logs(path, aside)
            _place(fresh, path)
        elif not state_files.replace_file(path, fresh, aside):
            raise DatabaseBusyError(f"somebody has {path} open; stop what uses the state, and try again")
    except OSError as error:
        raise ConfigurationError(f"can't put the backup at {path}: {error.strerror}") from error
    finally:
        _remove(fresh)
    return Restored(str(path), revision, aside if is_there else None, rows)


def restore_into_server(backup: Path, runtime: StateRuntime, *, any_home: bool = False) -> Restored:
    """Copy a backup into a state on a server that holds no rows yet.

    Raises:
        RestoreRefusedError: the backup isn't whole, no state of ours, or of another home; or the database holds rows.
        SchemaTooNewError: the backup is of a newer version.
        DatabaseError: one of the databases failed. Run it again into another empty database.
    """
    revision = _revision_of(backup)
    if held := {name: rows for name, rows in _rows_of(runtime).items() if name not in _NOTES and rows}:
        raise RestoreRefusedError(
            f"{runtime.database.place} holds {_told(held)}; restore into an empty database (CODEX_STATE_DATABASE_URL), "
            "or put the file into a home of its own and merge by `codex-state db copy --to URL`"
        )
    with (
        tempfile.TemporaryDirectory(prefix="codex-state-") as directory,
        _prepared(backup, Path(directory, "backup.sqlite"), runtime.settings, any_home=any_home) as copied,
    ):
        report = copy_state(copied, runtime)
    if not report.complete:
        raise StateError(f"not everything of {backup} could be stored in {runtime.database.place}: {report.left[0]}")
    return Restored(runtime.database.place, revision, None, _rows_of(runtime))


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A file beside ``target`` that gets its name when the block ends well."""
    if not state_files.is_missing(target):
        raise ConfigurationError(f"{target} is there already; name another file")
    part = target.with_name(f"{target.name}.part")
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise ConfigurationError(
            f"{part} is there: a backup that was interrupted leaves it; remove it, unless one is running now"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"can't write {part}: {error.strerror}") from error
    try:
        yield part
        part.rename(target)
    finally:
        _remove(part)


def _copy_file(source: Path, target: Path) -> None:
    uri = state_files.read_only_uri(source)
    try:
        with closing(sqlite3.connect(uri, uri=True)) as read, closing(sqlite3.connect(target)) as written:
            read.execute("BEGIN")
            read.execute("SELECT count(*) FROM sqlite_master").fetchone()  # one snapshot for all of it
            read.backup(written, pages=_PAGES_AT_ONCE)
            (found,) = written.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        place = target if error.sqlite_errorcode in _OF_A_WRITE else source
        told = classify(error, _url_of(place)) or DatabaseError(str(error))
        raise type(told)(f"copying {source} to {target}: {told}") from error
    if found != "ok":
        found = " ".join(found.split())
        advice = advice_for(DatabaseCorruptError)
        raise DatabaseCorruptError(f"{source} isn't whole: {found} ({advice})", orig=sqlite3.DatabaseError(found))
    _make_one_file(target)


def _make_one_file(path: Path) -> None:
    """Have all of a database in its file, without a log beside it, and on the disk."""
    with raised_as_ours(), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"can't write {path}: {error.strerror}") from error


def _revision_of(backup: Path) -> str:
    if not may_be_file(backup):
        raise RestoreRefusedError(f"there is no file {backup}")
    database = Database.open(_url_of(backup), access=Access.READ_ONLY)
    try:
        with database.autocommit() as session:
            revision = migrations.verified_revision(session.connection())
    except DatabaseCorruptError as error:
        raise _not_whole(backup, error) from error
    finally:
        database.close()
    if revision is None:
        raise RestoreRefusedError(f"{backup} holds no state of codex-state")
    return revision


def _not_whole(backup: Path, error: DatabaseCorruptError) -> RestoreRefusedError:
    """Without the advice of the error, which is about a damaged state."""
    return RestoreRefusedError(f"{backup} is no whole backup: {error.orig or error.__cause__ or error}")


@contextmanager
def _prepared(backup: Path, fresh: Path, settings: StateSettings, *, any_home: bool) -> Iterator[StateRuntime]:
    """A copy of the backup with today's schema, found to be whole and of this home. It goes when the block raises."""
    state_files.make_private_file(fresh)
    try:
        try:
            _copy_file(backup, fresh)
        except DatabaseCorruptError as error:
            raise _not_whole(backup, error) from error
        with _opened(fresh, settings) as runtime:
            if not any_home:
                _require_home(runtime, backup)
            yield runtime
    except BaseException:
        _remove(fresh)
        raise


def _require_home(runtime: StateRuntime, backup: Path) -> None:
    """Make sure that a backup is of the runtime's home: by the names of homes, and by the rollouts that it knows."""
    own = {runtime.home, LOCAL_HOME}
    advice = "; --any-home restores it all the same"
    with runtime.read() as state:
        connection = state.session.connection()
        homes = set(connection.exec_driver_sql("SELECT DISTINCT home FROM threads").scalars())
        known = connection.exec_driver_sql(
            "SELECT home, path FROM rollout_files WHERE state <> 'gone' LIMIT ?", (_ROLLOUTS_LOOKED_FOR,)
        ).all()
    if homes and not homes & own:
        raise RestoreRefusedError(f"{backup} is of another home ({', '.join(sorted(homes))}){advice}")
    paths = [runtime.codex_home / path for home, path in known if home in own]
    if paths and not any(map(os.path.lexists, paths)):
        raise RestoreRefusedError(
            f"none of the rollouts that {backup} knows, like {known[0].path}, is in {runtime.codex_home}: it is of "
            f"another home, or they are to be restored first{advice}"
        )


def _require_replaceable(path: Path, *, replace: bool) -> bool:
    """Make sure that what is at ``path`` may be set aside; whether anything is."""
    if state_files.is_missing(path):
        return False
    if not may_be_file(path):
        raise RestoreRefusedError(f"{path} is not a file")
    try:
        held = _rows_of_file(path)
        if not state_files.is_ours(path) and held:
            raise RestoreRefusedError(f"{path} belongs to another program; set CODEX_SQLITE_HOME to another directory")
        what = _told({name: rows for name, rows in held.items() if name not in _NOTES and rows})
    except DatabaseCorruptError:
        what = "what may be saved by `codex-state doctor --repair`"
    if what and not replace:
        raise RestoreRefusedError(f"{path} holds {what}; --replace sets it aside, under another name beside it")
    return True


def _rows_of_file(path: Path) -> dict[str, int]:
    with raised_as_ours(), closing(sqlite3.connect(state_files.read_only_uri(path), uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(_count_of(name)).fetchone()[0] for name in names}


def _count_of(table: str) -> str:
    quoted = table.replace('"', '""')
    return f'SELECT count(*) FROM "{quoted}"'  # noqa: S608 - a name of the schema


def _rows_of(runtime: StateRuntime) -> dict[str, int]:
    with runtime.read() as state:
        connection = state.session.connection()
        return {table.name: table.count(connection) for table in stored_tables()}


def _told(rows: dict[str, int]) -> str:
    return ", ".join(f"{count:,} of {name}" for name, count in rows.items())


@contextmanager
def _opened(path: Path, settings: StateSettings) -> Iterator[StateRuntime]:
    """A state in a file that is nobody's yet, with today's schema. None of its logs go."""
    database = Database.open(_url_of(path))
    try:
        prepare_sqlite_file(database)
        migrations.ensure_current(database.engine)
        yield StateRuntime(settings, database)
    finally:
        database.close()


def _url_of(path: Path) -> URL:
    return URL.create("sqlite", database=str(path.absolute()))


def _place(fresh: Path, path: Path) -> None:
    """Never over a state that somebody has made meanwhile."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise DatabaseBusyError(f"somebody has just made {path}; stop what uses the state, and try again") from None
    except OSError:  # a file system without hard links
        fresh.rename(path)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal", "-queue", "-migration"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
