"""The names that users gave to threads in Codex, from where each version keeps them.

Older versions append them to ``session_index.jsonl``, 0.120 also to the rollouts, and later ones keep them only in the
original's database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from codex_state.errors import RolloutError
from codex_state.models import RolloutFileState
from codex_state.original import original_database_stamp, original_names
from codex_state.rollout.files import storable_ns
from codex_state.rollout.fold import telling_time
from codex_state.rollout.format import canonical_uuid, parse_timestamp, trim
from codex_state.rollout.inventory import file_row
from codex_state.rollout.reading import open_rollout
from codex_state.runtime import State, StateRuntime

SESSION_INDEX = "session_index.jsonl"
ORIGINAL_DATABASES = "state.sqlite"
"""What the inventory calls the original's databases, whichever there are: a path that no rollout has."""

_AT_ONCE = 500

Run = Callable[[Callable[[State], object]], None]


class _Entry(msgspec.Struct, gc=False):
    id: str
    thread_name: str | None = None
    updated_at: Any = None


_decode = msgspec.json.Decoder(_Entry).decode


def session_index_names(path: Path) -> Iterator[tuple[UUID, str, int]]:
    """The last name of each thread in a ``session_index.jsonl``, with the epoch second when it was given.

    Lines that can't be read, and blank names, are passed over. Raises ``OSError``.
    """
    latest: dict[str, tuple[str, int]] = {}
    try:
        file, status = open_rollout(str(path))
    except RolloutError as error:
        raise OSError(str(error)) from error
    written = storable_ns(status.st_mtime_ns) // 1_000_000_000
    with file:
        for line in file:
            try:
                entry = _decode(line.strip(b"\0\xef\xbb\xbf \r\n"))
            except (ValueError, RecursionError):
                continue
            thread_id, name = canonical_uuid(entry.id), trim(entry.thread_name or "").replace("\0", "\ufffd")
            if thread_id is not None and name:
                at = parse_timestamp(entry.updated_at) if isinstance(entry.updated_at, str) else None
                latest[thread_id] = (name, written if at is None else at)
    for thread_id, (name, at) in latest.items():
        yield UUID(thread_id), name, at


class NameSources:
    """Where the names of a home's threads are kept, and whether any may have changed since they were last read."""

    def __init__(self, runtime: StateRuntime) -> None:
        """Look at the files, not into them."""
        self._runtime = runtime
        self._home = runtime.codex_home
        self._stamps: dict[str, tuple[int, int]] = {}
        try:
            status = (self._home / SESSION_INDEX).stat()
            self._stamps[SESSION_INDEX] = (status.st_size, storable_ns(status.st_mtime_ns))
        except FileNotFoundError:
            pass
        except OSError:
            self._stamps[SESSION_INDEX] = (0, 0)  # something is there, and will fail to be read
        stamp = original_database_stamp(self._home, runtime.settings.sqlite_home, own=runtime.database.path)
        if stamp is not None:
            self._stamps[ORIGINAL_DATABASES] = stamp[0], storable_ns(stamp[1])
        with runtime.read() as state:
            known = {path: state.rollout_files.get(path, runtime.home) for path in self._stamps}
        self.changed = {
            path
            for path, stamp in self._stamps.items()
            if (row := known[path]) is None or (row.size, row.mtime_ns) != stamp
        }

    def take(self, run: Run, on_failure: Callable[[str, str], None], *, everything: bool) -> None:
        """Take what changed, or everything when threads were added, whose names may have been there before them.

        Args:
            run: runs a unit of work, under the caller's lease.
            on_failure: called with a file that can't be read, and why.
            everything: also what looks the same.
        """
        wanted = set(self._stamps) if everything else self.changed
        if SESSION_INDEX in wanted:
            try:
                names = session_index_names(self._home / SESSION_INDEX)
                while batch := list(islice(names, _AT_ONCE)):
                    run(lambda state: state.threads.take_names(batch))
            except OSError as error:
                wanted.discard(SESSION_INDEX)
                on_failure(str(self._home / SESSION_INDEX), str(error).replace("the rollout ", "the names in "))
        if ORIGINAL_DATABASES in wanted:
            settings, own = self._runtime.settings, self._runtime.database.path
            originals = original_names(self._home, settings.sqlite_home, own=own)
            while found := list(islice(originals, _AT_ONCE)):
                run(lambda state: state.threads.take_original_names(found))
        if wanted:
            run(lambda state: self._note(state, wanted))

    def _note(self, state: State, paths: set[str]) -> None:
        home, read = self._runtime.home, RolloutFileState.INDEXED
        stamps = {path: self._stamps[path] for path in paths}
        state.rollout_files.put(
            [file_row(home, path, read, size, telling_time(mtime_ns)) for path, (size, mtime_ns) in stamps.items()]
        )
