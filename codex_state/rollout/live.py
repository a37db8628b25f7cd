"""Keeping a thread's row in step while its rollout is being written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlmodel import select, type_coerce

from codex_state import telemetry
from codex_state.errors import StateError
from codex_state.models import Thread, nanoseconds_of
from codex_state.models.columns import from_epoch_seconds, text, to_epoch_seconds
from codex_state.rollout.files import is_archived, modified_seconds, relative_to
from codex_state.rollout.fold import Fold, tool_drafts
from codex_state.rollout.format import RolloutItem, SessionMeta
from codex_state.rollout.index import normalized_cwd_text, thread_row, tools_of
from codex_state.rollout.inventory import follow_home
from codex_state.rollout.threads import ThreadMetadataBuilder, draft_of
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

    What the row knows stays: its git fields, its name, when it was archived. A thread without a row gets one. A row of
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
    metas = [item for item in items if isinstance(item, SessionMeta)]

    def work(state: State) -> Thread:
        with _counted("apply_rollout_items"):
            thread, draft_id = _apply(runtime, state, builder, items, updated_at=moment, memory_mode=memory_mode)
        if metas and metas[0].dynamic_tools and metas[0].id == draft_id:
            with _counted("persist_dynamic_tools"):
                state.dynamic_tools.persist(tools_of(thread.id, tool_drafts(metas[0])))
        return thread

    return runtime.run(work)


@contextmanager
def _counted(stage: str) -> Iterator[None]:
    """Counts an error of the database in its block, by the stage that it happened in."""
    try:
        yield
    except StateError:
        telemetry.count(telemetry.DB_ERROR, 1, stage=stage)
        raise


def _apply(
    runtime: StateRuntime,
    state: State,
    builder: ThreadMetadataBuilder,
    items: Sequence[RolloutItem],
    *,
    updated_at: datetime | None,
    memory_mode: str | None,
) -> tuple[Thread, str]:
    existing, cwd = _locked(state, builder.id)
    moved_here = existing is not None and existing.home != runtime.home
    if existing is not None and moved_here and (updated_at is None or updated_at < existing.updated_at):
        return existing, ""
    draft = draft_of(existing) if existing is not None else builder.draft(runtime.default_provider)
    draft.cwd = draft.cwd if cwd is None else cwd
    if moved_here and not is_archived(relative_to(runtime.codex_home, builder.rollout_path) or ""):
        draft.archived, draft.archived_at = 0, None  # it was archived where it is gone from
    if existing is None and memory_mode:
        draft.memory_mode = memory_mode
    fold = Fold(draft, runtime.default_provider)
    for item in items:
        fold.add(item)
    draft = fold.finish()
    draft.rollout_path = str(builder.rollout_path)
    if existing is not None and existing.rollout_path != builder.rollout_path:
        follow_home(state, runtime)
    draft.cwd = normalized_cwd_text(draft.cwd)
    if updated_at is not None:
        draft.updated_at, draft.updated_ns = to_epoch_seconds(updated_at), nanoseconds_of(updated_at)
    said_at = draft.updated_at if fold.memory_mode is not None else None
    state.rollout_files.upsert_threads([thread_row(draft, runtime.home, said_at)])
    stored = state.threads.get(builder.id)
    assert stored is not None
    return stored, draft.id


def _locked(state: State, thread_id: UUID) -> tuple[Thread | None, str | None]:
    """The row, and its directory as it is spelled there, which a path may not be.

    On PostgreSQL nobody else can change it before this transaction ends; on SQLite nobody can anyway.
    """
    cwd = select(type_coerce(Thread.cwd, text)).where(Thread.id == thread_id).with_for_update()
    spelled = state.session.connection().execute(cwd).scalar_one_or_none()
    return state.threads.get(thread_id), spelled


def _modified_at(path: Path) -> datetime | None:
    try:
        return from_epoch_seconds(modified_seconds(path.stat()))
    except OSError:
        return None
