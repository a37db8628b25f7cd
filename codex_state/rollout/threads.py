"""Threads from rollouts: the entities and values in front of the fold, and a row kept in step while a rollout grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy.dialects import sqlite
from sqlmodel import select, type_coerce

from codex_state import telemetry
from codex_state.drafts import DEFAULT_APPROVAL, DEFAULT_SANDBOX, DEFAULT_SOURCE, ThreadDraft
from codex_state.errors import StateError
from codex_state.models import LOCAL_HOME, DynamicTool, Thread, nanoseconds_of
from codex_state.models.columns import from_epoch_seconds, path_to_text, text, to_epoch_seconds
from codex_state.models.directories import normalized_cwd_text
from codex_state.repositories.rollout_files import ROLLOUT_COLUMNS
from codex_state.rollout.files import is_archived, modified_seconds, parse_rollout_name, relative_to
from codex_state.rollout.fold import Fold, extract, tool_drafts
from codex_state.rollout.format import (
    GoalUpdated,
    ItemCompleted,
    NameUpdated,
    RolloutItem,
    SessionMeta,
    SettingsApplied,
    TaskStarted,
    TokenCount,
    TurnContext,
    TurnStarted,
    UserMessage,
    approval_text,
    compact_json,
    parse_timestamp,
    source_text,
    spawned_agent_path,
)
from codex_state.rollout.index import thread_row, tools_of
from codex_state.rollout.inventory import follow_home
from codex_state.runtime import State, StateRuntime

_COUNTED = frozenset(
    {"turns", "tokens_inherited", "tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning"}
)
COMPARED_FIELDS = tuple(
    name for name in ROLLOUT_COLUMNS if name not in {"archived", "memory_mode", "name", "name_at"} | _COUNTED
)
"""What ``diff_fields`` compares, in its order: what a rollout tells of its thread, but for what is counted of it."""

_GIT_FIELDS = ("git_sha", "git_branch", "git_origin_url")
_AFFECTING = frozenset(
    {
        SessionMeta,
        TurnContext,
        SettingsApplied,
        TokenCount,
        TurnStarted,
        TaskStarted,
        UserMessage,
        ItemCompleted,
        GoalUpdated,
        NameUpdated,
    }
)


@dataclass(slots=True)
class ThreadMetadataBuilder:
    """What is known of a thread when it starts; ``build`` makes the thread of it.

    Three values are needed, the others have the defaults of a new thread.
    """

    id: UUID
    rollout_path: Path
    created_at: datetime
    source: str | dict[str, Any] = DEFAULT_SOURCE
    """A word such as ``cli``, or what a sub-agent's rollout says: ``{"subagent": …}``."""
    updated_at: datetime | None = None
    """``None`` means ``created_at``."""
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_path: str | None = None
    """``None`` means the one in ``source``, if that is a spawned thread's."""
    model_provider: str | None = None
    cwd: Path = field(default_factory=Path)
    cli_version: str | None = None
    sandbox_policy: str | dict[str, Any] = DEFAULT_SANDBOX
    """JSON, as text or decoded."""
    approval_mode: str | dict[str, Any] = DEFAULT_APPROVAL
    archived_at: datetime | None = None
    git_sha: str | None = None
    git_branch: str | None = None
    git_origin_url: str | None = None

    def build(self, default_provider: str) -> Thread:
        """The thread. Its times are cut to whole seconds.

        Args:
            default_provider: the provider when the builder names none.
        """
        return thread_of(self.draft(default_provider))

    def draft(self, default_provider: str) -> ThreadDraft:
        """The same as ``build`` gives, in the form in which it is stored."""
        policy = self.sandbox_policy
        return ThreadDraft(
            id=str(self.id),
            rollout_path=str(self.rollout_path),
            created_at=to_epoch_seconds(self.created_at),
            updated_at=to_epoch_seconds(self.updated_at or self.created_at),
            source=source_text(self.source),
            agent_nickname=self.agent_nickname,
            agent_role=self.agent_role,
            agent_path=self.agent_path or spawned_agent_path(self.source),
            model_provider=self.model_provider or default_provider,
            cwd=path_to_text(self.cwd),
            cli_version=self.cli_version or "",
            sandbox_policy=policy if isinstance(policy, str) else compact_json(policy),
            approval_mode=approval_text(self.approval_mode),
            archived=int(self.archived_at is not None),
            archived_at=None if self.archived_at is None else to_epoch_seconds(self.archived_at),
            git_sha=self.git_sha,
            git_branch=self.git_branch,
            git_origin_url=self.git_origin_url,
        )


@dataclass(frozen=True, slots=True)
class ExtractionOutcome:
    """All that one rollout says about its thread."""

    thread: Thread
    memory_mode: str | None
    """The last one that the rollout names; ``None`` when it names none, and then the thread's is ``enabled``."""
    dynamic_tools: list[DynamicTool]
    """The tools that the rollout's head defines, usually for this thread: see each tool's ``thread_id``."""
    parse_errors: int
    """Lines of which something could not be read. What could was used."""
    unknown_lines: int
    """Lines of a kind that isn't known, or isn't read, which is no fault of theirs."""


def extract_metadata(path: Path, default_provider: str) -> ExtractionOutcome:
    """Read a rollout once and fold it into its thread.

    ``updated_at`` is the file's modification time. ``archived_at`` isn't known from the file; ``cwd`` is as the rollout
    spells it: see ``normalize_cwd``.

    Args:
        path: the rollout, plain or compressed.
        default_provider: the provider of a thread that names none.

    Raises:
        RolloutError: the file can't be read, holds no usable line, or doesn't say whose it is.
    """
    extraction = extract(str(path), default_provider)
    return ExtractionOutcome(
        thread=thread_of(extraction.draft),
        memory_mode=extraction.memory_mode,
        dynamic_tools=tools_of(UUID(extraction.tools_thread_id), extraction.tools) if extraction.tools else [],
        parse_errors=extraction.parse_errors,
        unknown_lines=extraction.unknown_lines,
    )


def builder_from_session_meta(meta: SessionMeta, rollout_path: Path) -> ThreadMetadataBuilder | None:
    """The builder that a session_meta gives; ``None`` when its timestamp can't be read."""
    created_at = parse_timestamp(meta.timestamp)
    if created_at is None:
        return None
    git = meta.git
    return ThreadMetadataBuilder(
        id=UUID(meta.id),
        rollout_path=rollout_path,
        created_at=from_epoch_seconds(created_at),
        source=DEFAULT_SOURCE if meta.source is None else meta.source,
        agent_nickname=meta.agent_nickname,
        agent_role=meta.agent_role,
        agent_path=meta.agent_path,
        model_provider=meta.model_provider,
        cwd=Path(meta.cwd),
        cli_version=meta.cli_version,
        git_sha=None if git is None else git.commit_hash,
        git_branch=None if git is None else git.branch,
        git_origin_url=None if git is None else git.repository_url,
    )


def builder_from_items(items: Iterable[RolloutItem], rollout_path: Path) -> ThreadMetadataBuilder | None:
    """The builder of a rollout: from its first session_meta, else its name; ``None`` when neither will do."""
    first = next((item for item in items if isinstance(item, SessionMeta)), None)
    if first is not None and (builder := builder_from_session_meta(first, rollout_path)) is not None:
        return builder
    named = parse_rollout_name(rollout_path.name)
    return None if named is None else ThreadMetadataBuilder(named.thread_id, rollout_path, named.created_at)


def apply_rollout_item(thread: Thread, item: RolloutItem, default_provider: str) -> None:
    """Change the thread by what one item of its rollout says."""
    before = draft_of(thread)
    fold = Fold(draft_of(thread), default_provider)
    fold.add(item)
    after = thread_of(fold.finish(), thread.home)
    for name in ROLLOUT_COLUMNS:
        if getattr(before, name) != getattr(fold.draft, name):
            setattr(thread, name, getattr(after, name))


def rollout_item_affects_thread_metadata(item: RolloutItem) -> bool:
    """Whether an item of this kind can change its thread's row."""
    return type(item) in _AFFECTING


def diff_fields(thread: Thread, other: Thread) -> list[str]:
    """The names of the fields in which two threads differ, in the order of ``COMPARED_FIELDS``."""
    return [name for name in COMPARED_FIELDS if getattr(thread, name) != getattr(other, name)]


def prefer_existing_git_info(thread: Thread, existing: Thread) -> None:
    """Replace each git field of ``thread`` that ``existing`` knows: a rollout only tells where it stood at first."""
    for name in _GIT_FIELDS:
        known = getattr(existing, name)
        if known is not None:
            setattr(thread, name, known)


def thread_of(draft: ThreadDraft, home: str = LOCAL_HOME) -> Thread:
    """The entity of a draft."""
    stored = {**_other_defaults(), **asdict(draft), "home": home}
    return Thread.snapshot([read(stored[name]) for name, (_, read) in _conversions().items()])


def draft_of(thread: Thread) -> ThreadDraft:
    """The draft of an entity."""
    conversions = _conversions()
    return ThreadDraft(**{name: conversions[name][0](getattr(thread, name)) for name in ROLLOUT_COLUMNS})


@cache
def _conversions() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """How the value of each column is stored, and how it is read: the columns' own types say so."""
    columns = Thread.__table__.columns  # type: ignore[attr-defined]
    dialect = sqlite.dialect()
    kinds = {name: columns[name].type for name in Thread.column_names()}
    return {
        name: (kind.bind_processor(dialect) or _as_it_is, kind.result_processor(dialect, None) or _as_it_is)
        for name, kind in kinds.items()
    }


@cache
def _other_defaults() -> dict[str, Any]:
    """The columns that rollouts don't decide, as a new row has them."""
    return {name: Thread.model_fields[name].default for name in Thread.column_names() if name not in ROLLOUT_COLUMNS}


def _as_it_is(value: Any) -> Any:
    return value


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
    if existing is not None:
        draft = draft_of(existing)
    else:
        draft = builder.draft(builder.model_provider or runtime.default_provider)
    draft.cwd = draft.cwd if cwd is None else cwd
    if moved_here and not is_archived(relative_to(runtime.codex_home, builder.rollout_path) or ""):
        draft.archived, draft.archived_at = 0, None  # it was archived where it is gone from
    if existing is None and memory_mode:
        draft.memory_mode = memory_mode
    fold = Fold(draft, draft.model_provider)
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
