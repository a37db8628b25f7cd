"""From one rollout to its rows: what a backfill does for every file, for a single one."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from uuid import UUID

from codex_state import telemetry
from codex_state.models import Thread
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout.files import is_archived_path, modified_seconds
from codex_state.rollout.metadata import ExtractionOutcome, extract_metadata, normalize_cwd
from codex_state.runtime import State, StateRuntime


def index_rollout(runtime: StateRuntime, path: Path) -> Thread:
    """Read a rollout and write its thread, memory mode and tools, all or none. What only the row knows is kept.

    Raises:
        RolloutError: the file can't be read, holds no usable line, or doesn't say whose it is.
    """
    outcome = extract_metadata(path, runtime.default_provider)
    if outcome.parse_errors:
        telemetry.count(telemetry.DB_ERROR, outcome.parse_errors, stage="reconcile_rollout")
    thread = complete_thread(outcome, archived=is_archived_path(runtime.codex_home, path))
    thread.home = runtime.home
    with runtime.begin() as state:
        store(state, thread, outcome)
    return thread


def complete_thread(outcome: ExtractionOutcome, *, archived: bool) -> Thread:
    """The row of an extracted thread: its directory normalised, archived since the file was last written."""
    thread = outcome.thread
    thread.cwd = normalize_cwd(thread.cwd)
    thread.archived_at = (thread.archived_at or thread.updated_at) if archived else None
    return thread


def store(state: State, thread: Thread, outcome: ExtractionOutcome) -> None:
    """Write a thread with its tools, in the caller's transaction (law L5)."""
    state.threads.upsert_from_rollouts([thread])
    homes = {thread_id: home for thread_id, (_, _, home) in state.threads.rollouts_of(_owners_of(outcome)).items()}
    state.dynamic_tools.persist(tool for tool in outcome.dynamic_tools if homes.get(tool.thread_id) == thread.home)


def _owners_of(outcome: ExtractionOutcome) -> set[UUID]:
    return {tool.thread_id for tool in outcome.dynamic_tools}


def repair_row(runtime: StateRuntime, thread_id: UUID, path: Path) -> None:
    """Make the thread's row agree with where its rollout lies.

    An existing row keeps everything but its path, its archived mark and the spelling of its directory; nothing is
    written when they are right already, or when the row belongs to another home whose rollout isn't older. A missing
    one, or one of another home that was left behind, is made from the rollout.

    Raises:
        RolloutError: there is no row, and the file can't be made into one.
    """
    archived = is_archived_path(runtime.codex_home, path)
    with runtime.read() as state:
        thread = state.threads.get(thread_id)
    if thread is None or (thread.home != runtime.home and _modified_at(path) > thread.updated_at):
        index_rollout(runtime, path)
        return
    if thread.home != runtime.home:
        return
    cwd = normalize_cwd(thread.cwd)
    if (thread.rollout_path, thread.cwd, thread.archived_at is not None) == (path, cwd, archived):
        return
    archived_at = None
    if archived:
        archived_at = thread.archived_at or _modified_at(path)
    with runtime.begin() as state:
        state.threads.relocate(thread_id, path, cwd=cwd, archived_at=archived_at, home=runtime.home)


def _modified_at(path: Path) -> datetime:
    return from_epoch_seconds(modified_seconds(path.stat()))
