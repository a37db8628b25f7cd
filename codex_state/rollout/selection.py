"""Which rollouts a backfill handles: all after a watermark, those that changed, or those that have no row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from uuid import UUID

from codex_state.models.columns import to_epoch_seconds
from codex_state.rollout.files import RolloutFile, modified_seconds, parse_rollout_name, watermark_of
from codex_state.runtime import StateRuntime

Selection = Callable[[Iterable[RolloutFile]], Iterator[RolloutFile]]

_Row = tuple[Path, datetime, str]

_CHUNK = 200


def every_rollout() -> Selection:
    """All of them."""
    return iter


def those_without_a_row(runtime: StateRuntime) -> Selection:
    """Those that no row of this home points at. Holds every path that a row points at, about 200 bytes each."""
    with runtime.read() as state:
        known = frozenset(str(path) for path in state.threads.rollout_paths(runtime.home))
    return lambda files: (file for file in files if file.path not in known)


def those_that_changed(runtime: StateRuntime, *, first_time: bool) -> Selection:
    """Those that were written, added, moved or restored since they were indexed, and those that failed.

    A row is up to date when it points at the rollout and has its modification time, or when it is another home's whose
    rollout isn't older. Rows are looked up for a few hundred rollouts at a time.

    Args:
        runtime: the open state.
        first_time: whether the index isn't complete yet. Then a copy that is as old as another home's is handled too:
            the thread may have moved here. Later it isn't, or the homes would take the row from each other by turns.
    """

    def select(files: Iterable[RolloutFile]) -> Iterator[RolloutFile]:
        source = iter(files)
        while chunk := list(islice(source, _CHUNK)):
            rows = _rows_of(runtime, chunk)
            for file in chunk:
                if not _is_up_to_date(runtime, file, rows.get(file.path), first_time=first_time):
                    yield file

    return select


def _rows_of(runtime: StateRuntime, files: list[RolloutFile]) -> dict[str, _Row]:
    """The row of each rollout's thread: by the id in its name, else (a fork's name may have another id) by its path."""
    ids = {file.path: thread_id for file in files if (thread_id := _named_id(file)) is not None}
    with runtime.read() as state:
        by_id = state.threads.rollouts_of(set(ids.values()))
        rows = {path: by_id[thread_id] for path, thread_id in ids.items() if thread_id in by_id}
        others = [file.path for file in files if file.path not in rows]
        for path, updated_at in state.threads.rollouts_at(others, runtime.home):
            rows[str(path)] = (path, updated_at, runtime.home)
    return rows


def _is_up_to_date(runtime: StateRuntime, file: RolloutFile, row: _Row | None, *, first_time: bool) -> bool:
    if row is None:
        return False
    path, updated_at, home = row
    if home == runtime.home and str(path) != file.path:
        # Of several rollouts of one thread the last one counts, for as long as it is there.
        return file.watermark < watermark_of(runtime.codex_home, path) and path.is_file()
    try:
        status = os.stat(file.path)  # noqa: PTH116 - a Path for each of a hundred thousand files adds up
    except OSError:
        return True  # gone since it was met
    here, known = modified_seconds(status), to_epoch_seconds(updated_at)
    if home != runtime.home:
        return here < known if first_time else here <= known
    return here == known


def _named_id(file: RolloutFile) -> UUID | None:
    name = parse_rollout_name(file.watermark.rpartition("/")[2])
    return None if name is None else name.thread_id
