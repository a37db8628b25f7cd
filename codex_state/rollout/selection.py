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

_Row = tuple[Path, datetime]

_CHUNK = 200


def every_rollout() -> Selection:
    """All of them."""
    return iter


def those_without_a_row(runtime: StateRuntime) -> Selection:
    """Those that no row of this home points at. Holds every path that a row points at, about 200 bytes each."""
    with runtime.read() as state:
        known = frozenset(str(path) for path in state.threads.rollout_paths(runtime.home))
    return lambda files: (file for file in files if file.path not in known)


def those_that_changed(runtime: StateRuntime) -> Selection:
    """Those that were written, added, moved or restored since they were indexed, and those that failed.

    A row is up to date when it points at the rollout and has its modification time. Rows are looked up for a few
    hundred rollouts at a time.
    """

    def select(files: Iterable[RolloutFile]) -> Iterator[RolloutFile]:
        source = iter(files)
        while chunk := list(islice(source, _CHUNK)):
            rows = _rows_of(runtime, chunk)
            for file in chunk:
                if not _is_up_to_date(runtime.codex_home, file, rows.get(file.path)):
                    yield file

    return select


def _rows_of(runtime: StateRuntime, files: list[RolloutFile]) -> dict[str, _Row]:
    """The row of each rollout's thread: by the id in its name, else (a fork's name may have another id) by its path."""
    ids = {file.path: thread_id for file in files if (thread_id := _named_id(file)) is not None}
    with runtime.read() as state:
        by_id = state.threads.rollouts_of(set(ids.values()))
        rows = {path: by_id[thread_id] for path, thread_id in ids.items() if thread_id in by_id}
        for path, updated_at in state.threads.rollouts_at([file.path for file in files if file.path not in rows]):
            rows[str(path)] = (path, updated_at)
    return rows


def _is_up_to_date(home: Path, file: RolloutFile, row: _Row | None) -> bool:
    if row is None:
        return False
    path, updated_at = row
    if str(path) != file.path:
        # Of several rollouts of one thread the last one counts, for as long as it is there.
        return file.watermark < watermark_of(home, path) and path.is_file()
    try:
        status = os.stat(file.path)  # noqa: PTH116 - a Path for each of a hundred thousand files adds up
    except OSError:
        return True  # gone since it was met
    return modified_seconds(status) == to_epoch_seconds(updated_at)


def _named_id(file: RolloutFile) -> UUID | None:
    name = parse_rollout_name(file.watermark.rpartition("/")[2])
    return None if name is None else name.thread_id
