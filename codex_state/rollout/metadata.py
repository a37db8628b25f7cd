"""Threads from rollouts: the entities and values in front of the fold."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from uuid import UUID

from codex_state.models import LOCAL_HOME, DynamicTool, Thread
from codex_state.models.columns import from_epoch_seconds, path_to_text, to_epoch_seconds
from codex_state.rollout.fold import (
    ThreadDraft,
    ToolDraft,
    affects_thread,
    apply_item,
    draft_from_name,
    draft_from_session_meta,
    extract,
)
from codex_state.rollout.lines import RolloutItem, SessionMeta, trim
from codex_state.rollout.policies import (
    DEFAULT_APPROVAL,
    DEFAULT_SOURCE,
    ApprovalPolicy,
    ReadOnly,
    SandboxPolicy,
    TaggedSource,
    approval_text,
    sandbox_text,
    source_text,
    spawned_agent_path,
)

_WSL_DRIVE = re.compile(r"/mnt/[A-Za-z](/|$)")

COMPARED_FIELDS = (
    "id",
    "rollout_path",
    "created_at",
    "updated_at",
    "source",
    "agent_nickname",
    "agent_role",
    "agent_path",
    "model_provider",
    "model",
    "reasoning_effort",
    "cwd",
    "cli_version",
    "title",
    "sandbox_policy",
    "approval_mode",
    "tokens_used",
    "first_user_message",
    "archived_at",
    "git_sha",
    "git_branch",
    "git_origin_url",
)
"""What ``diff_fields`` compares, in its order: everything a rollout tells."""

_TIMES = ("created_at", "updated_at", "archived_at")
_CONVERTED_FIELDS = ("id", "rollout_path", "cwd", *_TIMES)
_PLAIN_FIELDS = tuple(name for name in ThreadDraft.__struct_fields__ if name not in _CONVERTED_FIELDS)
_GIT_FIELDS = ("git_sha", "git_branch", "git_origin_url")


@dataclass(slots=True)
class ThreadMetadataBuilder:
    """What is known of a thread when it starts; ``build`` makes the thread of it.

    Four values are needed, the others have the defaults of a new thread.
    """

    id: UUID
    rollout_path: Path
    created_at: datetime
    source: str | TaggedSource = DEFAULT_SOURCE
    updated_at: datetime | None = None
    """``None`` means ``created_at``."""
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_path: str | None = None
    """``None`` means the one in ``source``, if that is a spawned thread's."""
    model_provider: str | None = None
    cwd: Path = field(default_factory=Path)
    cli_version: str | None = None
    sandbox_policy: SandboxPolicy = field(default_factory=ReadOnly)
    approval_mode: ApprovalPolicy = DEFAULT_APPROVAL
    archived_at: datetime | None = None
    git_sha: str | None = None
    git_branch: str | None = None
    git_origin_url: str | None = None

    def build(self, default_provider: str) -> Thread:
        """The thread. Its times are cut to whole seconds.

        Args:
            default_provider: the provider when the builder names none.
        """
        return thread_of(
            ThreadDraft(
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
                sandbox_policy=sandbox_text(self.sandbox_policy),
                approval_mode=approval_text(self.approval_mode),
                archived_at=None if self.archived_at is None else to_epoch_seconds(self.archived_at),
                git_sha=self.git_sha,
                git_branch=self.git_branch,
                git_origin_url=self.git_origin_url,
            )
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
    """Lines that are neither blank nor a line of a rollout. They were skipped, the others used."""


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
    )


def builder_from_session_meta(meta: SessionMeta, rollout_path: Path) -> ThreadMetadataBuilder | None:
    """The builder that a session_meta gives; ``None`` when its timestamp can't be read."""
    draft = draft_from_session_meta(meta, str(rollout_path), "")
    if draft is None:
        return None
    return ThreadMetadataBuilder(
        id=UUID(draft.id),
        rollout_path=rollout_path,
        created_at=from_epoch_seconds(draft.created_at),
        source=meta.source,
        agent_nickname=meta.agent_nickname,
        agent_role=meta.agent_role,
        agent_path=meta.agent_path,
        model_provider=meta.model_provider,
        cwd=Path(meta.cwd),
        cli_version=meta.cli_version,
        git_sha=draft.git_sha,
        git_branch=draft.git_branch,
        git_origin_url=draft.git_origin_url,
    )


def builder_from_items(items: Iterable[RolloutItem], rollout_path: Path) -> ThreadMetadataBuilder | None:
    """The builder of a rollout: from its first session_meta, else its name; ``None`` when neither will do."""
    first = next((item for item in items if isinstance(item, SessionMeta)), None)
    if first is not None and (builder := builder_from_session_meta(first, rollout_path)) is not None:
        return builder
    draft = draft_from_name(str(rollout_path), "")
    if draft is None:
        return None
    return ThreadMetadataBuilder(UUID(draft.id), rollout_path, from_epoch_seconds(draft.created_at))


def apply_rollout_item(thread: Thread, item: RolloutItem, default_provider: str) -> None:
    """Change the thread by what one item of its rollout says."""
    before = draft_of(thread)
    draft = draft_of(thread)
    apply_item(draft, item, default_provider)
    for name in draft.__struct_fields__:
        value = getattr(draft, name)
        if value != getattr(before, name):
            setattr(thread, name, Path(value) if name == "cwd" else value)


def rollout_item_affects_thread_metadata(item: RolloutItem) -> bool:
    """Whether an item can change its thread: session_meta, turn_context, token counts and user messages can."""
    return affects_thread(item)


def diff_fields(thread: Thread, other: Thread) -> list[str]:
    """The names of the fields in which two threads differ, in the order of ``COMPARED_FIELDS``."""
    return [name for name in COMPARED_FIELDS if getattr(thread, name) != getattr(other, name)]


def prefer_existing_git_info(thread: Thread, existing: Thread) -> None:
    """Replace each git field of ``thread`` that ``existing`` knows: a rollout only tells where it stood at first."""
    for name in _GIT_FIELDS:
        known = getattr(existing, name)
        if known is not None:
            setattr(thread, name, known)


def prefer_existing_explicit_title(thread: Thread, existing: Thread) -> None:
    """Keep the title that the user gave to ``existing``, unless ``thread`` has one that was given, too.

    A title was given when it isn't blank and isn't the first user message.
    """
    if _has_explicit_title(existing) and not _has_explicit_title(thread):
        thread.title = existing.title


def _has_explicit_title(thread: Thread) -> bool:
    title = trim(thread.title)
    return bool(title) and title != trim(thread.first_user_message or "")


def normalize_cwd(cwd: Path) -> Path:
    """The directory without links and ``..``, so that its threads are found whatever way it was spelled.

    A directory that doesn't exist (any more) stays as it is, and so does the empty path. On WSL, ``/mnt/<drive>`` paths
    are made lower case, because there case doesn't matter.
    """
    return Path(normalized_cwd_text(path_to_text(cwd)))


def normalized_cwd_text(cwd: str) -> str:
    """``normalize_cwd`` for the text of a path."""
    if not cwd:
        return cwd
    try:
        real = os.path.realpath(cwd, strict=True)
    except (OSError, ValueError):
        real = cwd
    else:
        if cwd.startswith("//") and not cwd.startswith("///"):
            # POSIX leaves the meaning of exactly two slashes to the system, so they are kept.
            real = f"/{real}"
    if _is_wsl() and _WSL_DRIVE.match(real):
        return "".join(character.lower() if character.isascii() else character for character in real)
    return real


@lru_cache(maxsize=4096)
def _directory(cwd: str) -> Path:
    return Path(cwd)


@cache
def _is_wsl() -> bool:
    return "microsoft" in platform.release().lower()


def thread_of(draft: ThreadDraft, home: str = LOCAL_HOME) -> Thread:
    """The entity of a draft."""
    archived_at = None if draft.archived_at is None else from_epoch_seconds(draft.archived_at)
    values = {
        **{name: getattr(draft, name) for name in _PLAIN_FIELDS},
        "id": UUID(draft.id),
        "rollout_path": Path(draft.rollout_path),
        "created_at": from_epoch_seconds(draft.created_at),
        "updated_at": from_epoch_seconds(draft.updated_at),
        "cwd": _directory(draft.cwd),
        "archived": archived_at is not None,
        "archived_at": archived_at,
        "home": home,
    }
    return Thread.snapshot([values[name] for name in Thread.column_names()])


def draft_of(thread: Thread) -> ThreadDraft:
    """The draft of an entity."""
    values = {name: getattr(thread, name) for name in ThreadDraft.__struct_fields__}
    for name in _TIMES:
        moment = values[name]
        values[name] = None if moment is None else to_epoch_seconds(moment)
    return ThreadDraft(
        **values | {"id": str(thread.id), "rollout_path": str(thread.rollout_path), "cwd": path_to_text(thread.cwd)}
    )


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
