"""Where rollouts lie, what they are called, which of several is a thread's, and how to walk them in a fixed order.

A home keeps rollouts under ``sessions/YYYY/MM/DD/`` and, once archived, under ``archived_sessions/``. Both are walked
to any depth. Only regular files named ``rollout-*.jsonl`` or ``rollout-*.jsonl.zst`` count; links to files or
directories are not followed (the two roots themselves may be links).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct

from codex_state.rollout.format import canonical_uuid

SESSIONS_DIRECTORY = "sessions"
ARCHIVED_SESSIONS_DIRECTORY = "archived_sessions"
PREFIX = "rollout-"
SUFFIX = ".jsonl"
COMPRESSED_SUFFIX = ".jsonl.zst"

_NAME = re.compile(
    r"rollout-([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2})-([0-9]{2})-([0-9]{2})-(?P<id>[^_]+?)(?:_(?P<segment>.+))?",
    re.ASCII,
)
_COPY = re.compile(r"(rollout-[0-9T-]{19}-[0-9a-f-]{36}(?:_[0-9a-f-]{36})?)[^0-9a-f_-].*", re.ASCII | re.IGNORECASE)
"""What file managers and synchronisers make of a name: ``… (1)``, ``… 2``, ``….sync-conflict-…``."""

_MOST_NS = 2**63 - 1


class FoundFile(Struct, frozen=True, gc=False):
    """A rollout that was met on a walk."""

    path: str
    """Relative to the home, with ``/``."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class WalkProblem:
    """A directory, or an entry of one, that was passed over: what lies there isn't gone for that."""

    path: str
    error: str
    is_link: bool = False
    """Whether it is a symbolic link, which is no fault."""


class RolloutName(NamedTuple):
    """What a rollout's file name says."""

    created_at: datetime
    """The time in the name, taken as UTC. The original writes local time there: it may be off by the zone's offset."""
    thread_id: UUID
    segment: UUID | None = None
    """Which later part of the thread it is: a thread that was reverted goes on in another file."""
    is_copy: bool = False
    """Whether it is a copy that something else than the original made, by its name."""


OnProblem = Callable[[WalkProblem], None]


def is_rollout_name(name: str) -> bool:
    """Whether a file of this name is a rollout, plain or compressed."""
    return name.startswith(PREFIX) and name.endswith((SUFFIX, COMPRESSED_SUFFIX))


@lru_cache(maxsize=4096)
def parse_rollout_name(name: str) -> RolloutName | None:
    """Read ``rollout-2026-01-02T03-04-05-<uuid>[_<segment>].jsonl`` (or ``.jsonl.zst``).

    ``None`` when the name isn't one, which the name of a copy isn't either: see ``parse_any_name``.
    """
    plain = plain_name(name)
    return _parse(plain[: -len(SUFFIX)], is_copy=False) if plain.endswith(SUFFIX) else None


def parse_any_name(name: str) -> RolloutName | None:
    """Read the name of a rollout or of a copy of one; ``None`` when it is neither."""
    parsed = parse_rollout_name(name)
    if parsed is not None or not is_rollout_name(name):
        return parsed
    copy = _COPY.fullmatch(plain_name(name).removesuffix(SUFFIX))
    return None if copy is None else _parse(copy[1], is_copy=True)


def _parse(core: str, *, is_copy: bool) -> RolloutName | None:
    match = _NAME.fullmatch(core)
    if match is None:
        return None
    thread_id = canonical_uuid(match["id"])
    segment = None if match["segment"] is None else canonical_uuid(match["segment"])
    if thread_id is None or (segment is None) != (match["segment"] is None):
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        created_at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return RolloutName(created_at, UUID(thread_id), None if segment is None else UUID(segment), is_copy)


def rollout_date_parts(name: str) -> tuple[str, str, str] | None:
    """Year, month and day by their place in a rollout's name, which also name its directory; not validated further."""
    if not name.startswith(PREFIX):
        return None
    date = name[len(PREFIX) : len(PREFIX) + 10]
    return (date[:4], date[5:7], date[8:10]) if len(date) == 10 else None


def plain_name(name: str) -> str:
    """The name without ``.zst``."""
    return name.removesuffix(".zst") if name.endswith(COMPRESSED_SUFFIX) else name


def is_archived(path: str) -> bool:
    """Whether a path relative to the home is that of an archived rollout."""
    return path.startswith(f"{ARCHIVED_SESSIONS_DIRECTORY}/")


def relative_to(home: Path, path: Path) -> str | None:
    """A path inside the home, relative to it, with ``/``; ``None`` for one outside."""
    for root in (home, Path(os.path.realpath(home))):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return None


def modified_seconds(status: os.stat_result) -> int:
    """When a file was last written, in whole epoch seconds, rounded down."""
    return status.st_mtime_ns // 1_000_000_000


def storable_ns(mtime_ns: int) -> int:
    """A file's time in nanoseconds, or the nearest that a database can hold: from the years 1677 to 2262."""
    return max(-_MOST_NS - 1, min(mtime_ns, _MOST_NS))


def may_be_file(path: Path) -> bool:
    """Whether a file is at ``path``, or may be: what can't be looked at for lack of permission isn't gone."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        return error.errno not in {errno.ENAMETOOLONG, errno.ELOOP}


def is_directory(path: Path) -> bool:
    """Whether a directory is at ``path`` and can be reached. Never raises."""
    return os.path.isdir(path)  # noqa: PTH112 - pathlib's raises for lack of permission


def is_gone(home: Path, path: str) -> bool:
    """Whether a file isn't there that was. One to which a link leads, or whose root isn't there, is only out of reach.

    Args:
        home: the Codex home.
        path: relative to the home.
    """
    parts = path.split("/")
    root, *below = [home.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    if may_be_file(home / path) or not is_directory(root):
        return False
    return not any(os.path.islink(each) for each in below)  # noqa: PTH114 - pathlib's raises for lack of permission


def walk_rollouts(
    home: Path, *, archived: bool | None = None, on_problem: OnProblem | None = None
) -> Iterator[FoundFile]:
    """The rollouts of a home in the order of their paths.

    Memory holds the entries of the directories between the home and the current file, not the whole tree.

    Args:
        home: the Codex home. It may lack either root.
        archived: only those under ``archived_sessions``, or only the others; ``None`` for both.
        on_problem: called with every directory that can't be read, every name that isn't UTF-8 and every symbolic link
            that is passed over; the walk goes on. A root that isn't there is no problem, a link to nowhere is one.
    """
    report = on_problem or (lambda _problem: None)
    for root in sorted((ARCHIVED_SESSIONS_DIRECTORY, SESSIONS_DIRECTORY)):
        in_archive = root == ARCHIVED_SESSIONS_DIRECTORY
        if archived not in (None, in_archive):
            continue
        if (why := _why_no_root(home / root)) is None:
            yield from _walk(str(home / root), f"{root}/", report)
        elif why:
            report(WalkProblem(str(home / root), why))


def _why_no_root(root: Path) -> str | None:
    """Why a root can't be walked; empty when nothing is there, which is no fault, ``None`` when it can be."""
    try:
        return None if stat.S_ISDIR(root.stat().st_mode) else "not a directory"
    except FileNotFoundError:
        return f"a symbolic link to {root.readlink()}, which isn't there" if root.is_symlink() else ""
    except OSError as error:
        return error.strerror or str(error)


def find_rollouts(
    home: Path, thread_id: UUID, *, archived: bool | None = None, on_problem: OnProblem | None = None
) -> list[Path]:
    """The rollouts whose names say exactly this id, the thread's newest first, copies last."""
    spelled = str(thread_id)
    walk = walk_rollouts(home, archived=archived, on_problem=on_problem)
    likely = [file.path for file in walk if spelled in file.path.lower()]
    named = ((path, parse_any_name(path.rpartition("/")[2])) for path in likely)
    found = [path for path, name in named if name is not None and name.thread_id == thread_id]
    return [home / path for path in sorted(found, key=lambda path: rank(path, spelled), reverse=True)]


def rank(path: str, thread_id: str) -> tuple[Any, ...]:
    """The order of the files of one thread: the greatest is the one that counts.

    Files that bear the thread's name come after copies and others, then the time in the name and the segment decide,
    then a rollout in ``sessions`` comes after an archived one and a plain one after a compressed one. When a file was
    last written doesn't matter: copying and restoring change that.

    Args:
        path: relative to the home.
        thread_id: the thread.
    """
    name = path.rpartition("/")[2]
    parsed = parse_any_name(name)
    is_own = parsed is not None and str(parsed.thread_id) == thread_id
    return (
        is_own and parsed is not None and not parsed.is_copy,
        is_own,
        _EARLIEST if parsed is None else parsed.created_at,
        "" if parsed is None or parsed.segment is None else str(parsed.segment),
        not is_archived(path),
        not name.endswith(COMPRESSED_SUFFIX),
        path,
    )


_EARLIEST = datetime.min.replace(tzinfo=UTC)


def _walk(directory: str, prefix: str, report: OnProblem) -> Iterator[FoundFile]:
    # A stack of its own: directories may be nested more deeply than calls.
    pending = [(directory, prefix, iter(_ordered_entries(directory, report)))]
    while pending:
        directory, prefix, entries = pending[-1]
        for key, size, mtime_ns in entries:
            if size is None:
                below = f"{directory}/{key[:-1]}"
                pending.append((below, prefix + key, iter(_ordered_entries(below, report))))
                break
            yield FoundFile(prefix + key, size, mtime_ns)
        else:
            pending.pop()


def _ordered_entries(directory: str, report: OnProblem) -> list[tuple[str, int | None, int]]:
    """The directories and rollouts in a directory, as (sort key, size of a file, its time).

    The key of a directory ends with ``/``. Sorting by keys at every level gives the order of the whole paths: after
    ``a-b`` comes ``a/…``, as the characters want it. Plain tuples of plain values cost Python's garbage collector
    nothing: others would have it go through all that the process holds, again and again.
    """
    found: list[tuple[str, int | None, int]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if is_rollout_name(name) and entry.is_file(follow_symlinks=False):
                    if name.isascii() or _is_utf8(directory, name, report):
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue  # deleted just now: the others are still there
                        found.append((name, status.st_size, storable_ns(status.st_mtime_ns)))
                elif entry.is_dir(follow_symlinks=False):
                    if _is_utf8(directory, name, report):
                        found.append((f"{name}/", None, 0))
                elif entry.is_symlink() and (is_rollout_name(name) or _may_lead_to_directory(entry)):
                    report(WalkProblem(f"{directory}/{name}", "a symbolic link, which isn't followed", is_link=True))
    except OSError as error:
        report(WalkProblem(directory, error.strerror or str(error)))
    found.sort(key=itemgetter(0))
    return found


def _may_lead_to_directory(link: os.DirEntry[str]) -> bool:
    try:
        return not link.is_file()  # it may lead to a disk that isn't mounted
    except OSError:
        return True  # who knows where it leads: in circles, for instance


def _is_utf8(directory: str, name: str, report: OnProblem) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        # The database stores paths as UTF-8 text, so such a path could never be found again.
        report(WalkProblem(f"{directory}/{ascii(name)[1:-1]}", "the name is not UTF-8"))
        return False
    return True
