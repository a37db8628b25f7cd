"""What has changed in a home since its files were last read, and which file of a thread counts.

The tree is walked and held against the inventory, both in the order of their paths, so that neither need be in memory.
A file is the same while its size and its time in nanoseconds are; one that was read within seconds of its last write is
read again, because its next change might not show.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from msgspec import Struct

from codex_state.models import FileRow, RolloutFileState
from codex_state.rollout.files import (
    ARCHIVED_SESSIONS_DIRECTORY,
    SESSIONS_DIRECTORY,
    FoundFile,
    OnProblem,
    WalkProblem,
    is_directory,
    parse_any_name,
    walk_rollouts,
)
from codex_state.runtime import State, StateRuntime

_log = logging.getLogger("codex_state")

_MISSING = "it isn't there; if what it held is gone for good, make an empty directory"


class Change(Struct, frozen=True, gc=False):
    """A file that isn't as the inventory knows it."""

    path: str
    """Relative to the home, with ``/``."""
    found: FoundFile | None
    """What is there now; ``None`` when it is gone."""
    known: FileRow | None
    """What the inventory says; ``None`` when it is new."""

    @property
    def is_retry(self) -> bool:
        """Whether the file looks unchanged, and only the reason why it couldn't be read may be over."""
        known, found = self.known, self.found
        return (
            known is not None
            and found is not None
            and known.state == RolloutFileState.FAILED
            and (known.size, known.mtime_ns) == (found.size, None)
        )

    @property
    def named(self) -> str | None:
        """Whose file it is by its name."""
        named = parse_any_name(self.path.rpartition("/")[2])
        return None if named is None else str(named.thread_id)


@dataclass(frozen=True, slots=True)
class UnseenPlace:
    """A place that can't be looked into, or a link that isn't followed, where rollouts are known that may still be."""

    path: str
    error: str
    rollouts: int
    """How many are known."""
    is_link: bool = False
    """Whether it is a symbolic link below a root, which is no fault."""

    def __str__(self) -> str:
        return f"{self.path} can't be looked at: {self.error} (known rollouts out of reach: {self.rollouts:,})"


class Comparison:
    """One walk through the home's tree and the inventory. Iterate over it once: it gives the changes."""

    def __init__(self, runtime: StateRuntime, on_problem: OnProblem | None = None) -> None:
        """Compare the runtime's home with what its database knows of it."""
        self.failures: list[FileRow] = []
        """Files that failed before and look the same; filled as the comparison goes."""
        self.unseen: list[UnseenPlace] = []
        """Places where files are known that may still be there; there are none before the comparison is over."""
        self._runtime = runtime
        self._on_problem = on_problem
        self._passed_over: dict[str, WalkProblem] = {}
        """By their paths in the home, each with a ``/`` after it."""
        self._out_of_reach: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Change]:
        home = self._runtime.codex_home
        missing = [root for root in (SESSIONS_DIRECTORY, ARCHIVED_SESSIONS_DIRECTORY) if not is_directory(home / root)]
        self._passed_over = {f"{root}/": WalkProblem(str(home / root), _MISSING) for root in missing}
        with self._runtime.read() as state:
            orphans = frozenset(state.rollout_files.without_threads(self._runtime.home))
        known = self._known()
        row = next(known, None)
        for file in walk_rollouts(home, on_problem=self._note):
            while row is not None and row.path < file.path:
                yield from self._gone(row)
                row = next(known, None)
            if row is None or row.path != file.path:
                yield Change(file.path, file, None)
                continue
            is_same = (row.size, row.mtime_ns) == (file.size, file.mtime_ns) and row.state != RolloutFileState.GONE
            if not is_same or row.path in orphans:
                yield Change(file.path, file, row)
            elif row.state == RolloutFileState.FAILED:
                self.failures.append(row)
            row = next(known, None)
        while row is not None:
            yield from self._gone(row)
            row = next(known, None)
        for place, count in self._out_of_reach.items():
            problem = self._passed_over[place]
            if problem.error == _MISSING and self._on_problem is not None:
                self._on_problem(problem)
            self.unseen.append(UnseenPlace(problem.path, problem.error, count, problem.is_link))

    def _known(self) -> Iterator[FileRow]:
        """All rows in their order, each page from a snapshot of its own: a reader that stays keeps the WAL growing."""
        after: str | None = ""
        while after is not None:
            with self._runtime.read() as state:
                rows = state.rollout_files.page(self._runtime.home, after=after)
            after = None
            for row in rows:
                yield row
                after = row.path

    def _gone(self, row: FileRow) -> Iterator[Change]:
        if row.state == RolloutFileState.GONE or "/" not in row.path:  # those in the home itself hold names of threads
            return
        parts = row.path.split("/")
        above = ("/".join(parts[:depth]) + "/" for depth in range(1, len(parts) + 1))
        place = next((place for place in above if place in self._passed_over), None)
        if place is None:
            yield Change(row.path, None, row)
        else:
            self._out_of_reach[place] += 1

    def _note(self, problem: WalkProblem) -> None:
        inside = os.path.relpath(problem.path, self._runtime.codex_home)
        self._passed_over[f"{Path(inside).as_posix()}/"] = problem
        if self._on_problem is not None:
            self._on_problem(problem)


def old_root_of(runtime: StateRuntime) -> str | None:
    """Where the home lay when its rows were written, if that was elsewhere; it ends with ``/``."""
    with runtime.read() as state:
        return _old_root_in(state, runtime)


def follow_home(state: State, runtime: StateRuntime) -> None:
    """Have all rows of a home that was moved or copied say where their files lie now.

    Files are known relative to the home. Rows say whole paths, which callers want. One row tells where all of them say
    that the home lies, so whoever writes the path of one has the others follow before.
    """
    old_root = _old_root_in(state, runtime)
    if old_root is not None:
        state.rollout_files.move_home(old_root, f"{runtime.codex_home}/", runtime.home)
        _log.info("the home was moved from %s, which its rows say now", old_root)


def _old_root_in(state: State, runtime: StateRuntime) -> str | None:
    sample = state.rollout_files.sample(runtime.home)
    if sample is None:
        return None
    path, stored = sample
    if stored == f"{runtime.codex_home}/{path}":
        return None
    root = stored.removesuffix(path)
    try:
        if os.path.samefile(root, runtime.codex_home):  # noqa: PTH121 - another spelling of the same directory
            return None
    except OSError:
        pass
    return root


def known_paths(runtime: StateRuntime, thread_id: UUID) -> list[str]:
    """The files of a thread that were there when they were last looked for."""
    spelled = str(thread_id)
    with runtime.read() as state:
        return paths_of(state.rollout_files.of_threads({spelled}, runtime.home).get(spelled, []))


def paths_of(rows: Iterable[FileRow]) -> list[str]:
    """The paths of files that were there when they were last looked for."""
    return [row.path for row in rows if row.state != RolloutFileState.GONE]


def file_row(
    home: str,
    path: str,
    state: RolloutFileState,
    size: int,
    mtime_ns: int | None,
    *,
    thread_id: str | None = None,
    error: str | None = None,
    parse_errors: int | None = None,
    unknown_lines: int | None = None,
) -> dict[str, Any]:
    """What the inventory is to know of a file, as it is stored: see ``RolloutFile``."""
    return {
        "home": home,
        "path": path,
        "thread_id": thread_id,
        "size": size,
        "mtime_ns": mtime_ns,
        "state": state.value,
        "error": error,
        "parse_errors": parse_errors,
        "unknown_lines": unknown_lines,
    }
