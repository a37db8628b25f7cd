"""Keeping a thread's row in step while its rollout is being written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlmodel import select

from codex_state.models import Thread
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout.files import is_archived_path, modified_seconds
from codex_state.rollout.fold import DEFAULT_MEMORY_MODE, apply_item, storable, tool_drafts
from codex_state.rollout.lines import RolloutItem, SessionMeta
from codex_state.rollout.metadata import (
    ThreadMetadataBuilder,
    draft_of,
    normalized_cwd_text,
    prefer_existing_git_info,
    thread_of,
    tools_of,
)
from codex_state.runtime import State, StateRuntime


def apply_rollout_items(
    runtime: StateRuntime,
    builder: ThreadMetadataBuilder,
    items: Sequence[RolloutItem],
    *,
    updated_at: datetime | None = None,
    memory_mode: str | None = None,
) -> Thread | None:
    """Apply items that were just appended to a thread's rollout to its row, with its tools, in one transaction.

    What the row knows stays: its git fields, its title, when it was archived. A thread without a row gets one. A row of
    another home becomes this home's, unless the rollout there was written later: then it stays as it is. As one process
    at a time writes a rollout, so one at a time applies its items.

    Args:
        runtime: the open state.
        builder: who the thread is and where its rollout lies, for example from ``builder_from_items``.
        items: what was appended, in order. Without items nothing is done.
        updated_at: when that was; ``None`` for the file's modification time, if it can be read.
        memory_mode: what may be remembered of a thread that has no row yet, if the items don't say.

    Returns:
        The thread as it is now; ``None`` when there were no items.
    """
    if not items:
        return None
    moment = updated_at or _modified_at(builder.rollout_path)
    return runtime.run(lambda state: _apply(runtime, state, builder, items, updated_at=moment, memory_mode=memory_mode))


def _apply(
    runtime: StateRuntime,
    state: State,
    builder: ThreadMetadataBuilder,
    items: Sequence[RolloutItem],
    *,
    updated_at: datetime | None,
    memory_mode: str | None,
) -> Thread:
    existing = _locked(state, builder.id)
    moved_here = existing is not None and existing.home != runtime.home
    if existing is not None and moved_here and (updated_at is None or updated_at < existing.updated_at):
        return existing
    draft = draft_of(existing or builder.build(runtime.default_provider))
    if moved_here and not is_archived_path(runtime.codex_home, builder.rollout_path):
        draft.archived_at = None  # it was archived where it is gone from
    for item in items:
        apply_item(draft, item, runtime.default_provider)
    metas = [item for item in items if isinstance(item, SessionMeta)]
    told = next((meta.memory_mode for meta in reversed(metas) if meta.memory_mode is not None), None)
    draft.memory_mode = told or (draft.memory_mode if existing else memory_mode) or DEFAULT_MEMORY_MODE
    draft.rollout_path = str(builder.rollout_path)
    draft.cwd = normalized_cwd_text(draft.cwd)
    thread = thread_of(storable(draft), runtime.home)
    thread.updated_at = updated_at or thread.updated_at
    if existing is not None:
        prefer_existing_git_info(thread, existing)
    state.threads.upsert(thread)
    if told is not None:
        state.threads.set_memory_mode(thread.id, told)
    if metas and metas[0].dynamic_tools and metas[0].id == draft.id:
        state.dynamic_tools.persist(tools_of(thread.id, tool_drafts(metas[0])))
    return thread


def _locked(state: State, thread_id: UUID) -> Thread | None:
    """The row, which on PostgreSQL nobody else can change before this transaction ends; on SQLite nobody can anyway."""
    state.session.connection().execute(select(Thread.id).where(Thread.id == thread_id).with_for_update()).all()
    return state.threads.get(thread_id)


def _modified_at(path: Path) -> datetime | None:
    try:
        return from_epoch_seconds(modified_seconds(path.stat()))
    except OSError:
        return None
