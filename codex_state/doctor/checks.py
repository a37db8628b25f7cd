"""The checks of ``codex-state doctor``. None of them changes anything."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import func, or_, select

from codex_state import migrations
from codex_state.database.sql import server_now
from codex_state.database.state_files import read_only_uri
from codex_state.errors import ConfigurationError, DatabaseError, StateError, classify
from codex_state.migrations.locking import SIDE_FILE_SUFFIX
from codex_state.models import FileRow, JobState, RolloutFileState, Thread
from codex_state.models.base import columns_of, table_of
from codex_state.models.columns import FIRST_SECOND, LAST_SECOND
from codex_state.models.comparisons import Moments, id_as_text
from codex_state.repositories.base import seconds_of
from codex_state.rollout.files import WalkProblem
from codex_state.rollout.inventory import Comparison, paths_of
from codex_state.runtime import StateRuntime
from codex_state.settings import config_of


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """Something may go wrong, or costs more than it should."""
    PROBLEM = "problem"
    """Something is wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """The check's name, which stays the same between versions."""
    severity: Severity
    text: str
    advice: str = ""
    """What to do, if anything."""
    is_repairable: bool = False
    """Whether ``doctor --repair`` mends it."""


_FINDINGS = 20
_THREADS_AT_ONCE = 500
_LITTLE_SPACE = 200 * 1024 * 1024
_FROM_THE_FUTURE = (
    select(func.count())
    .select_from(table_of(Thread))
    .where(seconds_of(table_of(Thread).c.updated_at).between(server_now() + 86_400, LAST_SECOND))
)
_times = [column for column in columns_of(Thread) if isinstance(column.type, Moments)]
_UNREADABLE = select(id_as_text(table_of(Thread).c.id).label("id"), func.count().over().label("count")).where(
    or_(*(~seconds_of(time).between(FIRST_SECOND, LAST_SECOND) for time in _times))
)
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "ncpfs", "davfs"})
_MENDED = ((3, 44, 6), (3, 50, 7))
"""Versions before 3.51.3 that have the correction of the WAL-reset bug, with what follows in their line."""

_TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")

Check = Callable[[StateRuntime], Iterator[Finding]]


def check_file(path: Path, *, full: bool = False) -> Iterator[Finding]:
    """Check an SQLite file and what is around it. It is opened to read only.

    Args:
        path: the file, which exists.
        full: whether indexes are held against their tables as well, which takes several times as long.
    """
    yield from _sqlite_version(sqlite3.sqlite_version_info)
    yield from _permissions(path)
    yield from _place(path)
    yield from _integrity(path, full=full)


def check_state(runtime: StateRuntime) -> Iterator[Finding]:
    """Check what an open state holds. A check that can't be run is a problem of its own."""
    for check in (_schema, _references, _config, _rows, _files, _copies, _jobs, _clock, _logs, _server):
        try:
            yield from check(runtime)
        except StateError as error:
            yield Finding(check.__name__.strip("_"), Severity.PROBLEM, f"can't be checked: {error}")


def _sqlite_version(version: tuple[int, ...]) -> Iterator[Finding]:
    shown = ".".join(map(str, version))
    mended = any(version[:2] == line[:2] and version >= line for line in _MENDED)
    if (3, 7, 0) <= version < (3, 51, 3) and not mended:
        yield Finding(
            "sqlite",
            Severity.NOTE,
            f"SQLite {shown} has the WAL-reset bug: two writers and a checkpoint can damage the file, very rarely",
            "use a Python with SQLite 3.51.3 or later, 3.50.7 or 3.44.6, and keep backups: `codex-state backup FILE`",
        )
    else:
        yield Finding("sqlite", Severity.OK, f"SQLite {shown}")


def _permissions(path: Path) -> Iterator[Finding]:
    open_to_others = {
        each: status for each, status in _files_of(path).items() if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    }
    own = [each for each, status in open_to_others.items() if os.geteuid() in (0, status.st_uid)]
    if own:
        yield Finding(
            "permissions",
            Severity.WARNING,
            f"others may read or write {', '.join(map(str, own))}",
            "they are for their user alone: chmod 600",
            is_repairable=True,
        )
    if len(own) < len(open_to_others):
        foreign = ", ".join(str(each) for each in open_to_others if each not in own)
        yield Finding(
            "permissions",
            Severity.WARNING,
            f"others than the user to whom it belongs may read or write {foreign}, and that isn't you",
            "have that user run chmod 600, or keep a state of your own: set CODEX_SQLITE_HOME",
        )
    if open_to_others:
        return
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        yield Finding("permissions", Severity.NOTE, f"{path} can't be written", "the state is only read")
    else:
        yield Finding("permissions", Severity.OK, "the state's files are for their user alone")


def mend_permissions(path: Path) -> list[str]:
    """Make the state's files their user's alone.

    Returns:
        Which can't be, and why.
    """
    refused = []
    for each in _files_of(path):
        try:
            each.chmod(0o600)
        except FileNotFoundError:
            continue  # SQLite removes its log when nobody needs it any more
        except OSError as error:
            refused.append(f"the permissions of {each} can't be changed: {error.strerror}")
    return refused


def _files_of(path: Path) -> dict[Path, os.stat_result]:
    """The state's files that are there, no links, and what they are like."""
    found = {}
    for suffix in ("", "-wal", "-shm", "-queue"):
        each = path.with_name(path.name + suffix)
        with suppress(OSError):
            found[each] = each.lstat()
    return {each: status for each, status in found.items() if stat.S_ISREG(status.st_mode)}


def _place(path: Path) -> Iterator[Finding]:
    kind = _file_system_of(path, Path("/proc/self/mounts"))
    if kind in _REMOTE:
        yield Finding(
            "place",
            Severity.WARNING,
            f"{path.parent} is on a network file system ({kind}), where SQLite's locks and its log aren't safe",
            "set CODEX_SQLITE_HOME to a local directory",
        )
    free = shutil.disk_usage(path.parent).free
    if free < _LITTLE_SPACE:
        yield Finding("place", Severity.WARNING, f"{free >> 20} MiB are free in {path.parent}", "free some space")
    elif kind not in _REMOTE:
        yield Finding("place", Severity.OK, f"{free >> 20} MiB are free in {path.parent}")
    side_file = path.with_name(path.name + SIDE_FILE_SUFFIX)
    if os.path.exists(side_file):  # noqa: PTH110 - pathlib's raises
        yield Finding(
            "place", Severity.NOTE, f"{side_file} is there: somebody migrates just now, or was killed while doing so"
        )


def _file_system_of(path: Path, mounts: Path) -> str:
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    place = os.path.realpath(path.parent)
    best = ("", "")
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 2:
            at = fields[1].replace("\\040", " ").rstrip("/")
            if (place == at or place.startswith(f"{at}/")) and len(at) >= len(best[0]):
                best = (at, fields[2])
    return best[1]


def _integrity(path: Path, *, full: bool) -> Iterator[Finding]:
    check = "integrity_check" if full else "quick_check"
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
            found = [str(text) for (text,) in connection.execute(f"PRAGMA {check}({_FINDINGS})")]
    except sqlite3.Error as error:
        told = classify(error) or DatabaseError(str(error))
        found = [str(error)] if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} else []
        if not found:
            yield Finding("integrity", Severity.PROBLEM, f"{path} can't be read: {told}")
            return
    if found == ["ok"]:
        yield Finding("integrity", Severity.OK, f"{path} is whole" + ("" if full else " (--full looks at indexes too)"))
        return
    yield Finding(
        "integrity",
        Severity.PROBLEM,
        f"{path} is damaged: {' '.join(' '.join(found).split())}",
        "memories, jobs, names and logs are in it, threads can be read again: --repair sets it aside and saves every "
        "row that can be read",
        is_repairable=True,
    )


def _schema(runtime: StateRuntime) -> Iterator[Finding]:
    with runtime.read() as state:
        connection = state.session.connection()
        differences, revision = migrations.check(connection), migrations.current_revision(connection)
    for difference in differences[:_FINDINGS]:
        yield Finding("schema", Severity.PROBLEM, difference, "see `codex-state db check`")
    if not differences:
        yield Finding("schema", Severity.OK, f"the schema is that of {revision}")


def _references(runtime: StateRuntime) -> Iterator[Finding]:
    if runtime.database.dialect != "sqlite":
        return  # PostgreSQL never lets them be broken
    with runtime.read() as state:
        orphans = state.session.connection().exec_driver_sql("PRAGMA foreign_key_check").all()
    counts = Counter((table, parent) for table, _rowid, parent, _key in orphans)
    for (table, parent), count in counts.items():
        yield Finding(
            "references",
            Severity.PROBLEM,
            f"{count} rows of {table} refer to rows of {parent} that aren't there",
            "`codex-state backfill` brings back threads whose rollouts are there",
        )
    if not counts:
        yield Finding("references", Severity.OK, "every row has those that it refers to")


def _rows(runtime: StateRuntime) -> Iterator[Finding]:
    with runtime.read() as state:
        found = state.session.connection().execute(_UNREADABLE.limit(_FINDINGS)).all()
    if not found:
        yield Finding("rows", Severity.OK, "every thread's times can be read")
        return
    named = ", ".join(row.id for row in found)
    yield Finding(
        "rows",
        Severity.PROBLEM,
        f"{found[0].count} threads have a time that can't be read, so none of them is remembered: {named}",
        "give them whole epoch seconds by SQL; a listing makes rows anew whose rollouts are there",
    )


def _config(runtime: StateRuntime) -> Iterator[Finding]:
    try:
        config_of(runtime.codex_home)
    except ConfigurationError as error:
        yield Finding(
            "config",
            Severity.WARNING,
            str(error),
            "mend the file; until then, rollouts that name no provider need CODEX_STATE_DEFAULT_PROVIDER",
        )


def _files(runtime: StateRuntime) -> Iterator[Finding]:
    problems: list[WalkProblem] = []
    comparison = Comparison(runtime, problems.append)
    failed: list[FileRow] = []
    kinds: Counter[str] = Counter()
    for change in comparison:
        known, found = change.known, change.found
        if known is not None and found is not None and (known.size, known.mtime_ns) == (found.size, None):
            # It was read just after it was written, and will be looked at again.
            failed += [known] if known.state == RolloutFileState.FAILED else []
            continue
        kinds["gone" if found is None else "new" if known is None else "changed"] += 1
    if kinds:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield Finding(
            "files",
            Severity.WARNING,
            f"the index isn't as the home's files are: {told}",
            "`codex-state backfill`, or any listing, takes them in",
            is_repairable=True,
        )
    failed += comparison.failures
    places = {place.path: str(place) for place in comparison.unseen}
    unseen = [problem for problem in problems if not problem.is_link and problem.path not in places]
    if not (kinds or failed or unseen or places):
        yield Finding("files", Severity.OK, "the index is as the home's files are")
    with runtime.read() as state:
        counts = state.threads.count_by_home(runtime.codex_home)
    for home, count in counts.items():
        if home != runtime.home:
            text = f"{count} threads of this directory are known under the home {home!r}"
            yield Finding("files", Severity.WARNING, text, "`codex-state backfill --again` has them under this one")
    for text in [*places.values()][:_FINDINGS]:
        yield Finding("files", Severity.WARNING, text)
    for problem in unseen[:_FINDINGS]:
        yield Finding("files", Severity.WARNING, f"{problem.path} can't be looked at: {problem.error}")
    for failure in failed[:_FINDINGS]:
        yield Finding("files", Severity.WARNING, f"{failure.path} can't be indexed: {failure.error}")


def _copies(runtime: StateRuntime) -> Iterator[Finding]:
    with runtime.read() as state:
        threads = state.rollout_files.with_several(runtime.home)
    found = 0
    for start in range(0, len(threads), _THREADS_AT_ONCE):
        with runtime.read() as state:
            files = state.rollout_files.of_threads(threads[start : start + _THREADS_AT_ONCE], runtime.home)
        for thread_id, rows in sorted(files.items()):
            for paths in _of_one_name(paths_of(rows)):
                found += 1
                if found <= _FINDINGS:
                    yield Finding(
                        "copies",
                        Severity.WARNING,
                        f"a rollout of thread {thread_id} lies in several places: {', '.join(paths)}",
                        "`codex-state threads archive`, or `unarchive`, leaves one if they are equal; otherwise move "
                        "those that aren't wanted elsewhere",
                    )
    if not found:
        yield Finding("copies", Severity.OK, "each rollout lies in one place")


def _of_one_name(paths: list[str]) -> list[list[str]]:
    by_name: dict[str, list[str]] = {}
    for path in sorted(paths):
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    return [paths for paths in by_name.values() if len(paths) > 1]


def _jobs(runtime: StateRuntime) -> Iterator[Finding]:
    with runtime.read() as state:
        counts = state.work.overview().jobs
    failed = counts.get(JobState.FAILED, 0)
    if failed:
        yield Finding(
            "jobs",
            Severity.WARNING,
            f"{failed} extraction jobs failed",
            "`codex-state jobs list --status failed` says why, `codex-state jobs requeue` gives them another chance",
        )
    else:
        yield Finding("jobs", Severity.OK, f"{sum(counts.values())} extraction jobs, none failed")


def _clock(runtime: StateRuntime) -> Iterator[Finding]:
    with runtime.read() as state:
        count = state.session.connection().execute(_FROM_THE_FUTURE).scalar_one()
    if count:
        yield Finding(
            "clock",
            Severity.WARNING,
            f"{count} threads were changed in the future: a clock is or was wrong, here or where the files come from",
            "they stay at the top of every list until that time has come",
        )
    else:
        yield Finding("clock", Severity.OK, "no thread was changed in the future")


def _logs(runtime: StateRuntime) -> Iterator[Finding]:
    settings = runtime.settings
    with runtime.read() as state:
        held = state.logs.stats()
    beyond = (settings.log_max_bytes is not None and held.size > settings.log_max_bytes) or (
        settings.log_max_rows is not None and held.lines > settings.log_max_rows
    )
    text = f"{held.lines} log lines take {held.size / 2**20:.1f} MiB"
    if beyond:
        advice = "`codex-state logs prune` deletes the oldest"
        yield Finding("logs", Severity.WARNING, f"{text}, beyond their bounds", advice, is_repairable=True)
    else:
        yield Finding("logs", Severity.OK, text)


def _server(runtime: StateRuntime) -> Iterator[Finding]:
    if runtime.database.dialect == "sqlite":
        return
    with runtime.read() as state:
        connection = state.session.connection()
        shown = {
            name: str(connection.exec_driver_sql(f"SELECT current_setting('{name}', true)").scalar_one())
            for name in ("server_version", "fsync", *_TIMEOUTS)
        }
    yield Finding("server", Severity.OK, f"PostgreSQL {shown['server_version']}")
    if shown["fsync"] == "off":
        yield Finding("server", Severity.WARNING, "fsync is off: a crash of the server's machine may lose everything")
    for name in _TIMEOUTS:
        if shown[name] not in {"0", "None", ""}:
            yield Finding("server", Severity.NOTE, f"{name} is {shown[name]}: the server ends what takes longer")
