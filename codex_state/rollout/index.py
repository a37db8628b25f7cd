"""From the files of a thread to its rows: which one counts, what it says, and what the inventory notes of each.

What a backfill does for many files, everything else does for one: there is no other way into the index.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from codex_state import telemetry
from codex_state.drafts import ThreadDraft, ToolDraft
from codex_state.errors import ConfigurationError, IntegrityViolationError, InvalidInputError, RolloutError
from codex_state.models import DynamicTool, FileRow, RolloutFileState, Thread
from codex_state.models.columns import from_epoch_seconds, path_to_text
from codex_state.models.directories import normalized_cwd_text
from codex_state.rollout.files import FoundFile, is_archived, is_gone, rank, relative_to, storable_ns
from codex_state.rollout.fold import Extraction, go_on_from, telling_time
from codex_state.rollout.inventory import Change, file_row, follow_home, paths_of
from codex_state.rollout.reading import git_of
from codex_state.rollout.worker import DefaultProvider, Extracted, Failed, NoProvider, Result, extract_one
from codex_state.runtime import State, StateRuntime


@dataclass(slots=True)
class Settled:
    """What a batch of changes comes to: rows to be written in one transaction."""

    extractions: list[Extraction] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    """Files that are gone, of threads that have others."""
    gone: set[str] = field(default_factory=set)
    """Threads whose last file is gone."""
    unreadable: dict[str, tuple[Path, datetime | None]] = field(default_factory=dict)
    """Threads whose file is gone and of which only files are left that can't be read: the newest, and when it was
    archived, if it was."""
    file_of: dict[str, str] = field(default_factory=dict)
    """The file of each thread among ``extractions``."""


def default_provider_of(runtime: StateRuntime) -> DefaultProvider:
    """The provider of threads that name none, or why it isn't known: only those threads need it."""
    try:
        return runtime.default_provider
    except ConfigurationError as error:
        return NoProvider(str(error))


class Settling:
    """Decides for batches of changed files; reads again only where a thread has several."""

    def __init__(self, runtime: StateRuntime) -> None:
        """Decide for the runtime's home."""
        self._runtime = runtime
        self._home = str(runtime.codex_home)
        self._provider = default_provider_of(runtime)
        # For this run only: links may change while a service lives.
        self._normalized = lru_cache(maxsize=4096)(normalized_cwd_text)

    def settle(self, batch: Sequence[tuple[Change, Result | None]]) -> Settled:
        """What these changes come to. Nothing is written yet.

        Args:
            batch: each change with what its file says; ``None`` for a file that is gone.
        """
        settled = Settled(dropped={change.path for change, _ in batch if change.found is None})
        results = {change.path: result for change, result in batch if result is not None}
        found = {change.path: change.found for change, _ in batch if change.found is not None}
        threads = _by_thread(batch)
        for path in threads.pop("", ()):
            if isinstance(failed := results[path], Failed):
                settled.files[path] = self._row(path, found[path], RolloutFileState.FAILED, None, failed)
        with self._runtime.read() as state:
            known = state.rollout_files.of_threads(threads.keys(), self._runtime.home)
        for thread_id, paths in threads.items():
            rows = {row.path: row for row in known.get(thread_id, ())}
            unchanged = {path for path in paths_of(rows.values()) if path not in found} - settled.dropped
            present = _newest_first([*paths, *unchanged], thread_id)
            if present:
                if rows:
                    settled.dropped |= {path for path, row in rows.items() if row.state == RolloutFileState.GONE}
                    settled.dropped.difference_update(present)
                files = {path: found.get(path) or rows[path] for path in present}
                has_row_of = {path for path, row in rows.items() if row.state == RolloutFileState.INDEXED}
                if not self._choose(settled, thread_id, files, results) and not has_row_of.issubset(present):
                    self._lose(settled, thread_id, files)
            elif rows:
                settled.gone.add(thread_id)
                for path in rows.keys() & settled.dropped:
                    settled.dropped.remove(path)
                    settled.files[path] = self._row(path, rows[path], RolloutFileState.GONE, thread_id)
        return settled

    def _choose(
        self, settled: Settled, thread_id: str, files: dict[str, FoundFile | FileRow], results: dict[str, Result]
    ) -> bool:
        """The newest of a thread's files that can be read makes its row. ``files`` has the newest first.

        Returns:
            Whether there is one.
        """
        winner = None
        for position, (path, looked) in enumerate(files.items()):
            if winner is not None:
                # Not read for this: a newer file of the thread is there. Whether it could be doesn't matter now.
                settled.files[path] = self._row(path, looked, RolloutFileState.SUPERSEDED, thread_id)
                if isinstance(result := results.get(path), Extracted):
                    _take_name(winner, result.extraction.draft)
                continue
            result = results.get(path) or extract_one(f"{self._home}/{path}", self._provider)
            if isinstance(result, Failed):
                settled.files[path] = self._row(path, looked, RolloutFileState.FAILED, thread_id, result)
            elif result.extraction.draft.id == thread_id:
                winner = result.extraction.draft
                self._win(settled, path, result.extraction, [*files][position + 1 :])
        return winner is not None

    def _lose(self, settled: Settled, thread_id: str, files: dict[str, FoundFile | FileRow]) -> None:
        """The file that made a thread's row is gone, and no other can be read. What is there isn't gone for that."""
        path = next((path for path in files if path in settled.files), None)
        if path is None:
            settled.gone.add(thread_id)
            return
        mtime_ns = files[path].mtime_ns
        written_at = datetime.now(UTC) if mtime_ns is None else from_epoch_seconds(mtime_ns // 1_000_000_000)
        settled.unreadable[thread_id] = Path(self._home, path), written_at if is_archived(path) else None

    def _win(self, settled: Settled, path: str, extraction: Extraction, earlier: Sequence[str]) -> None:
        draft = extraction.draft
        if extraction.base_end is not None:
            go_on_from(extraction, [f"{self._home}/{each}" for each in earlier])
        for each in reversed(earlier):
            # Where the repository stood at first: in the oldest file that says so.
            if (git := git_of(Path(self._home, each), draft.id)) is not None:
                draft.git_sha = git.commit_hash or draft.git_sha
                draft.git_branch = git.branch or draft.git_branch
                draft.git_origin_url = git.repository_url or draft.git_origin_url
                break
        draft.rollout_path = f"{self._home}/{path}"
        draft.cwd = self._normalized(draft.cwd)
        draft.archived = int(is_archived(path))
        draft.archived_at = draft.updated_at if draft.archived else None
        settled.extractions.append(extraction)
        settled.file_of[draft.id] = path
        settled.files[path] = file_row(
            self._runtime.home,
            path,
            RolloutFileState.INDEXED,
            extraction.size,
            extraction.mtime_ns,
            thread_id=draft.id,
            parse_errors=extraction.parse_errors,
            unknown_lines=extraction.unknown_lines,
        )

    def _row(
        self,
        path: str,
        looked: FoundFile | FileRow,
        state: RolloutFileState,
        thread_id: str | None,
        failed: Failed | None = None,
    ) -> dict[str, Any]:
        # As everything that is known of a file, this holds wherever the home is moved to.
        error = None if failed is None else failed.error.replace(f"{self._home}/{path}", path)
        mtime_ns = looked.mtime_ns and telling_time(looked.mtime_ns)
        if failed is not None and failed.may_pass:
            mtime_ns = None  # what kept it from being read may be over at any time
        return file_row(self._runtime.home, path, state, looked.size, mtime_ns, thread_id=thread_id, error=error)


def _take_name(draft: ThreadDraft, earlier: ThreadDraft) -> None:
    """The newest name counts, in whichever file it was given: as if the earlier file had been stored before."""
    if earlier.id == draft.id and earlier.name_at is not None and earlier.name_at > (draft.name_at or 0):
        draft.name, draft.name_at = earlier.name, earlier.name_at


def _newest_first(paths: list[str], thread_id: str) -> list[str]:
    return paths if len(paths) < 2 else sorted(paths, key=lambda path: rank(path, thread_id), reverse=True)


def _by_thread(batch: Iterable[tuple[Change, Result | None]]) -> dict[str, list[str]]:
    """All threads for which something may have changed, and which of the files are theirs now.

    A file's content says whose it is; its name does where it can't be read. Those that are nobody's are under ``""``.
    """
    threads: dict[str, list[str]] = {}
    for change, result in batch:
        owner = result.extraction.draft.id if isinstance(result, Extracted) else change.named or ""
        paths = threads.setdefault(owner, [])
        if result is not None:
            paths.append(change.path)
        if change.known is not None and change.known.thread_id is not None:
            threads.setdefault(change.known.thread_id, [])
    return threads


def store(state: State, settled: Settled, home: str) -> None:
    """Write what a batch came to, in the caller's transaction (law L5)."""
    rows = [thread_row(each.draft, home, each.memory_mode_at) for each in settled.extractions]
    state.rollout_files.upsert_threads(rows)
    owners = {UUID(extraction.tools_thread_id) for extraction in settled.extractions if extraction.tools}
    homes = state.rollout_files.homes_of(owners)
    for extraction in settled.extractions:
        # The head may be another thread's, which may have no row; and the thread may be another home's.
        if extraction.tools and homes.get(UUID(extraction.tools_thread_id)) == home:
            state.dynamic_tools.persist(tools_of(UUID(extraction.tools_thread_id), extraction.tools))
    state.phase1_jobs.reopen_found([extraction.draft.id for extraction in settled.extractions])
    state.rollout_files.put([*settled.files.values()])
    state.rollout_files.drop(settled.dropped, home)
    state.threads.mark_gone([UUID(thread_id) for thread_id in settled.gone], home)
    for thread_id, (path, archived_at) in settled.unreadable.items():
        if archived_at is None:
            state.threads.mark_unarchived(UUID(thread_id), path, home=home)
        else:
            state.threads.mark_archived(UUID(thread_id), path, archived_at, home=home)


def store_singly(state: State, settled: Settled, home: str) -> None:
    """``store``, with each thread by itself: one that can't be stored is noted as failed and stops no other."""
    for extraction in settled.extractions:
        path = settled.file_of[extraction.draft.id]
        one = Settled([extraction], {path: settled.files[path]})
        try:
            with state.session.begin_nested():
                store(state, one, home)
        except (InvalidInputError, IntegrityViolationError) as error:
            row = settled.files[path]
            settled.files[path] = row | {"state": RolloutFileState.FAILED.value, "error": str(error)}
    store(state, replace(settled, extractions=[]), home)


def thread_row(draft: ThreadDraft, home: str, memory_mode_said_at: int | None) -> dict[str, Any]:
    """The parameters that write a draft: see ``RolloutFileRepository.upsert_threads``."""
    row = msgspec.structs.asdict(draft)
    row["home"], row["memory_mode_said_at"] = home, memory_mode_said_at
    return row


def take_in(runtime: StateRuntime, paths: Iterable[str]) -> None:
    """Bring the rows of a few files up to date, whatever became of them.

    Args:
        runtime: the open state.
        paths: relative to the home, with ``/``. A file that is gone while its tree is there counts as gone.
    """
    batch: list[tuple[Change, Result | None]] = []
    with runtime.read() as state:
        known = {path: state.rollout_files.get(path, runtime.home) for path in dict.fromkeys(paths)}
    for path, row in known.items():
        found = look_at(runtime, path)
        if found is not None:
            result = extract_one(f"{runtime.codex_home}/{path}", default_provider_of(runtime))
            batch.append((Change(path, found, row), result))
        elif row is not None and is_gone(runtime.codex_home, path):
            batch.append((Change(path, None, row), None))
    settled = Settling(runtime).settle(batch)
    runtime.run(lambda state: _store_one_by_one(state, settled, runtime))


def _store_one_by_one(state: State, settled: Settled, runtime: StateRuntime) -> None:
    follow_home(state, runtime)
    store(state, settled, runtime.home)


def look_at(runtime: StateRuntime, path: str) -> FoundFile | None:
    """A file of the home as a walk finds it; ``None`` when it isn't there."""
    try:
        status = os.lstat(runtime.codex_home / path)
    except OSError:
        return None
    return FoundFile(path, status.st_size, storable_ns(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None


def index_rollout(runtime: StateRuntime, path: Path) -> Thread:
    """Read a rollout and write its thread, memory mode and tools, all or none. What only the row knows is kept.

    It need not be the file that counts: when its thread has a newer one, the thread's row says what that one says. A
    file outside the home is taken for the thread's.

    Raises:
        RolloutError: the file can't be read, holds no usable line, or doesn't say whose it is.
    """
    result = extract_one(str(path), default_provider_of(runtime))
    if isinstance(result, Failed):
        raise RolloutError(result.error)
    extraction = result.extraction
    if extraction.parse_errors:
        telemetry.count(telemetry.DB_ERROR, extraction.parse_errors, stage="reconcile_rollout")
    inside = relative_to(runtime.codex_home, path)
    found = None if inside is None else look_at(runtime, inside)
    if inside is None or found is None:
        extraction.draft.cwd = normalized_cwd_text(extraction.draft.cwd)
        settled = Settled([extraction])
    else:
        settled = Settling(runtime).settle([(Change(inside, found, None), result)])
    runtime.run(lambda state: _store_one_by_one(state, settled, runtime))
    with runtime.read() as state:
        thread = state.threads.get(UUID(extraction.draft.id))
    assert thread is not None
    return thread


def tools_of(thread_id: UUID, drafts: Iterable[ToolDraft]) -> list[DynamicTool]:
    """The entities of a thread's tools, in their order."""
    return [
        DynamicTool(
            thread_id=thread_id,
            position=position,
            name=draft.name,
            description=draft.description,
            input_schema=json.loads(draft.input_schema),
            defer_loading=draft.defer_loading,
            namespace=draft.namespace,
        )
        for position, draft in enumerate(drafts)
    ]


def normalize_cwd(cwd: Path) -> Path:
    """The directory without links and ``..``, so that its threads are found whatever way it was spelled.

    A directory that doesn't exist (any more) stays as it is, and so does the empty path. On WSL, ``/mnt/<drive>`` paths
    are made lower case, because there case doesn't matter.
    """
    return Path(normalized_cwd_text(path_to_text(cwd)))
