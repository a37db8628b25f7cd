"""Where rollouts lie, what they are called, and how to walk them in a fixed order.

A home keeps rollouts under ``sessions/YYYY/MM/DD/`` and, once archived, under ``archived_sessions/``. Both are walked
to any depth. Only regular files named ``rollout-*.jsonl`` count, or ``rollout-*.jsonl.zst`` when the plain file is
gone; links to files or directories are not followed (the two roots themselves may be links).

A file's *watermark* is its path relative to the home with ``/``, without ``.zst``: compressing a rollout doesn't change
it. Files are walked in the order of their watermarks, so "everything up to this watermark is done" is a resumable
position.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from codex_state.rollout.policies import canonical_uuid

SESSIONS_DIRECTORY = "sessions"
ARCHIVED_SESSIONS_DIRECTORY = "archived_sessions"
PREFIX = "rollout-"
SUFFIX = ".jsonl"
COMPRESSED_SUFFIX = ".jsonl.zst"

_NAME_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2})-([0-9]{2})-([0-9]{2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class RolloutFile:
    """A rollout that was met on a walk."""

    path: str
    watermark: str
    archived: bool
    """Whether it lies under ``archived_sessions``."""


@dataclass(frozen=True, slots=True)
class WalkProblem:
    """A directory, or an entry of one, that was passed over."""

    path: str
    error: str


class RolloutName(NamedTuple):
    """What a rollout's file name says."""

    created_at: datetime
    """The time in the name, taken as UTC. The original writes local time there: it may be off by the zone's offset."""
    thread_id: UUID


OnProblem = Callable[[WalkProblem], None]


def is_rollout_name(name: str) -> bool:
    """Whether a file of this name is a rollout, plain or compressed."""
    return name.startswith(PREFIX) and name.endswith((SUFFIX, COMPRESSED_SUFFIX))


def parse_rollout_name(name: str) -> RolloutName | None:
    """Read ``rollout-2026-01-02T03-04-05-<uuid>.jsonl`` (or ``.jsonl.zst``); ``None`` when the name isn't one."""
    plain = plain_name(name)
    if not plain.startswith(PREFIX) or not plain.endswith(SUFFIX):
        return None
    core = plain[len(PREFIX) : -len(SUFFIX)]
    position = core.rfind("-")
    while position >= 0:
        thread_id = canonical_uuid(core[position + 1 :])
        if thread_id is not None:
            created_at = _parse_name_time(core[:position])
            return None if created_at is None else RolloutName(created_at, UUID(thread_id))
        position = core.rfind("-", 0, position)
    return None


def _parse_name_time(text: str) -> datetime | None:
    match = _NAME_TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def rollout_date_parts(name: str) -> tuple[str, str, str] | None:
    """Year, month and day by their place in a rollout's name, which also name its directory; not validated further."""
    if not name.startswith(PREFIX):
        return None
    date = name[len(PREFIX) : len(PREFIX) + 10]
    return (date[:4], date[5:7], date[8:10]) if len(date) == 10 else None


def plain_name(name: str) -> str:
    """The name without ``.zst``."""
    return name.removesuffix(".zst") if name.endswith(COMPRESSED_SUFFIX) else name


def watermark_of(home: Path, path: Path) -> str:
    """The watermark of a rollout; of one outside the home its whole path."""
    inside = path.relative_to(home) if path.is_relative_to(home) else path
    return plain_name(inside.as_posix())


def is_archived_path(home: Path, path: Path) -> bool:
    """Whether the rollout lies under the home's ``archived_sessions``."""
    return path.is_relative_to(home / ARCHIVED_SESSIONS_DIRECTORY)


def modified_seconds(status: os.stat_result) -> int:
    """When a file was last written, in whole epoch seconds, rounded down."""
    return status.st_mtime_ns // 1_000_000_000


def walk_rollouts(
    home: Path,
    *,
    after: str | None = None,
    archived: bool | None = None,
    on_problem: OnProblem | None = None,
) -> Iterator[RolloutFile]:
    """The rollouts of a home in the order of their watermarks.

    Memory holds the entries of the directories between the home and the current file, not the whole tree.

    Args:
        home: the Codex home. It may lack either root.
        after: only rollouts whose watermark is greater; directories wholly before it are not opened.
        archived: only those under ``archived_sessions``, or only the others; ``None`` for both.
        on_problem: called with every directory that can't be read and every name that isn't UTF-8; the walk goes on.
    """
    report = on_problem or _ignore
    for root in sorted((ARCHIVED_SESSIONS_DIRECTORY, SESSIONS_DIRECTORY)):
        in_archive = root == ARCHIVED_SESSIONS_DIRECTORY
        if archived in (None, in_archive) and (home / root).is_dir():
            yield from _walk(str(home / root), f"{root}/", in_archive, after or "", report)


def find_rollouts(
    home: Path, thread_id: UUID, *, archived: bool | None = None, on_problem: OnProblem | None = None
) -> list[Path]:
    """The rollouts whose names end with exactly this id, the last watermark first."""
    spelled = str(thread_id)
    found = []
    for file in walk_rollouts(home, archived=archived, on_problem=on_problem):
        name = os.path.basename(file.path)  # noqa: PTH119 - a hundred thousand Path objects would cost more than the walk
        if spelled not in name.lower():
            continue
        parsed = parse_rollout_name(name)
        if parsed is not None and parsed.thread_id == thread_id:
            found.append(Path(file.path))
    return found[::-1]


def _ignore(_problem: WalkProblem) -> None:
    pass


def _walk(
    directory: str,
    prefix: str,
    archived: bool,  # noqa: FBT001
    after: str,
    report: OnProblem,
) -> Iterator[RolloutFile]:
    for key, name in _ordered_entries(directory, report):
        if key.endswith("/"):
            below = prefix + key
            # Everything below starts with `below`, so it is all before `after` unless `after` lies below or earlier.
            if below > after or after.startswith(below):
                yield from _walk(f"{directory}/{name}", below, archived, after, report)
        elif prefix + key > after:
            yield RolloutFile(f"{directory}/{name}", prefix + key, archived)


def _ordered_entries(directory: str, report: OnProblem) -> list[tuple[str, str]]:
    """The directories and rollouts in a directory, as (sort key, name).

    The key of a directory ends with ``/``. Sorting by keys at every level gives the order of the whole paths: after
    ``a-b`` comes ``a/…``, as the characters want it.
    """
    directories: list[str] = []
    plain: set[str] = set()
    compressed: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    directories.append(name)
                elif is_rollout_name(name) and entry.is_file(follow_symlinks=False):
                    if name.endswith(SUFFIX):
                        plain.add(name)
                    else:
                        compressed.append(name)
    except OSError as error:
        report(WalkProblem(directory, error.strerror or str(error)))
    keyed = [(f"{name}/", name) for name in directories]
    keyed += [(name, name) for name in plain]
    keyed += [(plain_name(name), name) for name in compressed if plain_name(name) not in plain]
    return sorted(entry for entry in keyed if _is_utf8(directory, entry[1], report))


def _is_utf8(directory: str, name: str, report: OnProblem) -> bool:
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            # The database stores paths as UTF-8 text, so such a path could never be found again.
            report(WalkProblem(f"{directory}/{ascii(name)[1:-1]}", "the name is not UTF-8"))
            return False
    return True
