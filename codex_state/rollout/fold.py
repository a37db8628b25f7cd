"""What a rollout says about its thread: folding its items, in one pass over the file.

The fold works on a ``ThreadDraft``, the row in the making: plain values, as they are stored, which are cheap to change
and to send from one process to another. ``metadata`` puts the entities in front of it.
"""

from __future__ import annotations

import os

from msgspec import Struct

from codex_state.errors import RolloutError
from codex_state.rollout.files import modified_seconds, parse_rollout_name
from codex_state.rollout.lines import (
    ResponseItem,
    RolloutItem,
    SessionMeta,
    TokenCount,
    TurnContext,
    UserMessage,
    decode_unchecked,
    is_blank,
    trim,
)
from codex_state.rollout.policies import DEFAULT_APPROVAL, DEFAULT_SOURCE, approval_text, sandbox_text, source_text
from codex_state.rollout.reading import Lines, lines_of, open_rollout, unreadable
from codex_state.rollout.times import parse_timestamp

DEFAULT_SANDBOX = '{"type":"read-only"}'
DEFAULT_MEMORY_MODE = "enabled"

USER_MESSAGE_BEGIN = "## My request for Codex:"
"""In a message that an editor put context in front of: where the user's own words begin."""

IMAGE_ONLY = "[Image]"
"""The first user message of a thread that began with nothing but images."""


_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, which are all that Python's times can say."""


class ThreadDraft(Struct):
    """A thread's row in the making. Times are whole epoch seconds; ``cwd`` is empty while it isn't known."""

    id: str
    rollout_path: str
    created_at: int
    updated_at: int
    source: str = DEFAULT_SOURCE
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_path: str | None = None
    model_provider: str = ""
    model: str | None = None
    reasoning_effort: str | None = None
    cwd: str = ""
    cli_version: str = ""
    title: str = ""
    sandbox_policy: str = DEFAULT_SANDBOX
    approval_mode: str = DEFAULT_APPROVAL
    tokens_used: int = 0
    first_user_message: str | None = None
    archived_at: int | None = None
    git_sha: str | None = None
    git_branch: str | None = None
    git_origin_url: str | None = None
    memory_mode: str = DEFAULT_MEMORY_MODE


class ToolDraft(Struct):
    """A dynamic tool's row in the making."""

    name: str
    description: str
    input_schema: str
    """JSON text."""
    defer_loading: bool
    namespace: str | None


class Extraction(Struct):
    """All that one rollout says."""

    draft: ThreadDraft
    memory_mode: str | None
    """The last one that any session_meta names, also a parent's; ``None`` when none does."""
    tools: list[ToolDraft]
    tools_thread_id: str
    """Whose tools they are: the thread of the file's first session_meta, which may not be the draft's."""
    parse_errors: int


_AFFECTING = frozenset({SessionMeta, TurnContext, TokenCount, UserMessage})


def affects_thread(item: RolloutItem) -> bool:
    """Whether an item can change its thread's row."""
    return type(item) in _AFFECTING


def apply_item(draft: ThreadDraft, item: RolloutItem, default_provider: str) -> None:
    """Change the draft by what one item says."""
    if isinstance(item, TokenCount):
        if item.info is not None:
            draft.tokens_used = max(0, item.info.total_token_usage.total_tokens)
    elif isinstance(item, UserMessage):
        _apply_user_message(draft, item)
    elif isinstance(item, TurnContext):
        # A turn may run elsewhere; the thread belongs to the directory that it was started in.
        draft.cwd = draft.cwd or item.cwd
        draft.sandbox_policy = sandbox_text(item.sandbox_policy)
        draft.approval_mode = approval_text(item.approval_policy)
        draft.model = item.model
        draft.reasoning_effort = item.effort
    elif isinstance(item, SessionMeta) and item.id == draft.id:
        # Not of another id: a fork's rollout embeds its parent's session_meta, which says nothing about the fork.
        _apply_session_meta(draft, item)
    if not draft.model_provider:
        draft.model_provider = default_provider


def _apply_session_meta(draft: ThreadDraft, meta: SessionMeta) -> None:
    draft.source = source_text(meta.source)
    draft.agent_nickname = meta.agent_nickname
    draft.agent_role = meta.agent_role
    draft.agent_path = meta.agent_path
    if meta.model_provider is not None:
        draft.model_provider = meta.model_provider
    draft.cli_version = meta.cli_version or draft.cli_version
    draft.cwd = meta.cwd or draft.cwd
    if meta.git is not None:
        draft.git_sha = meta.git.commit_hash
        draft.git_branch = meta.git.branch
        draft.git_origin_url = meta.git.repository_url


def _apply_user_message(draft: ThreadDraft, message: UserMessage) -> None:
    if draft.title and draft.first_user_message is not None:
        return
    text = user_text(message.message)
    if draft.first_user_message is None:
        draft.first_user_message = text or (IMAGE_ONLY if message.images or message.local_images else None)
    draft.title = draft.title or text


def user_text(message: str) -> str:
    """The user's own words: what follows the first marker, or all of it, without surrounding white space."""
    _, marker, after = message.partition(USER_MESSAGE_BEGIN)
    return trim(after if marker else message)


def draft_from_session_meta(meta: SessionMeta, rollout_path: str, default_provider: str) -> ThreadDraft | None:
    """The draft that a session_meta begins; ``None`` when its timestamp can't be read."""
    created_at = parse_timestamp(meta.timestamp)
    if created_at is None:
        return None
    draft = ThreadDraft(meta.id, rollout_path, created_at, created_at, model_provider=default_provider)
    _apply_session_meta(draft, meta)
    draft.model_provider = draft.model_provider or default_provider
    return draft


def draft_from_name(rollout_path: str, default_provider: str) -> ThreadDraft | None:
    """The draft that a rollout's file name begins; ``None`` when the name doesn't say time and id."""
    name = parse_rollout_name(os.path.basename(rollout_path))  # noqa: PTH119 - a plain text on the hot path
    if name is None:
        return None
    created_at = int(name.created_at.timestamp())
    return ThreadDraft(str(name.thread_id), rollout_path, created_at, created_at, model_provider=default_provider)


def tool_drafts(meta: SessionMeta) -> list[ToolDraft]:
    """The tools that a session_meta defines, in their order."""
    return [
        ToolDraft(
            _without_nul(tool.name),
            _without_nul(tool.description),
            bytes(tool.input_schema).decode(),
            tool.is_deferred,
            tool.namespace and _without_nul(tool.namespace),
        )
        for tool in meta.dynamic_tools or ()
    ]


class RolloutFold:
    """Folds the items of one rollout as they come.

    The first session_meta decides whose rollout it is, but it need not come first. What comes before it is folded into
    a draft without an owner, and handed over.
    """

    def __init__(self, rollout_path: str, default_provider: str) -> None:
        self.rollout_path = rollout_path
        self.memory_mode: str | None = None
        self._default_provider = default_provider
        self._draft: ThreadDraft | None = None
        self._first_meta: SessionMeta | None = None
        self._response_came_first = False

    def add(self, item: RolloutItem) -> None:
        """Take the next item. One that doesn't affect a thread matters only before the first session_meta."""
        if isinstance(item, SessionMeta):
            self.memory_mode = item.memory_mode or self.memory_mode
            if self._first_meta is None:
                self._first_meta = item
                self._draft = self._begin(item)
                return
        elif isinstance(item, ResponseItem):
            self._response_came_first = self._response_came_first or self._first_meta is None
            return
        if self._draft is None:
            self._draft = ThreadDraft("", self.rollout_path, 0, 0)
        apply_item(self._draft, item, self._default_provider)

    def finish(self) -> ThreadDraft:
        """The draft after all items.

        Raises:
            RolloutError: neither the items nor the file's name say whose rollout it is.
        """
        draft = self._draft
        if draft is None or self._first_meta is None:
            draft = self._begin(None)
        draft.memory_mode = self.memory_mode or DEFAULT_MEMORY_MODE
        return draft

    def _begin(self, meta: SessionMeta | None) -> ThreadDraft:
        draft = None
        if meta is not None:
            draft = draft_from_session_meta(meta, self.rollout_path, self._default_provider)
        if draft is None:
            draft = draft_from_name(self.rollout_path, self._default_provider)
            if draft is None:
                raise RolloutError(
                    f"the rollout {self.rollout_path} doesn't say whose it is: it has no session_meta with a readable "
                    "timestamp, and its name is not rollout-<time>-<id>.jsonl"
                )
            if meta is not None:
                apply_item(draft, meta, self._default_provider)
        return draft if self._draft is None else _hand_over(self._draft, draft)

    @property
    def tools(self) -> tuple[str, list[ToolDraft]]:
        """The tools of the rollout's head, and whose they are. A head that starts with a response item has none."""
        if self._first_meta is None:
            return "", []
        return self._first_meta.id, [] if self._response_came_first else tool_drafts(self._first_meta)


def _hand_over(early: ThreadDraft, draft: ThreadDraft) -> ThreadDraft:
    """Put what the items before the first session_meta said into the draft that it began."""
    draft.cwd = draft.cwd or early.cwd
    for field in (
        "model",
        "reasoning_effort",
        "title",
        "sandbox_policy",
        "approval_mode",
        "tokens_used",
        "first_user_message",
    ):
        setattr(draft, field, getattr(early, field))
    return draft


def extract(path: str, default_provider: str) -> Extraction:
    """Read a rollout once, from its first byte to its last.

    Args:
        path: the rollout, plain or compressed.
        default_provider: the provider of a thread that names none.

    Raises:
        RolloutError: the file can't be read, holds no usable line, or doesn't say whose it is.
    """
    fold = RolloutFold(path, default_provider)
    # What is appended while reading makes the file newer than its row, never the row newer than it should be.
    file, status = open_rollout(path)
    with file:
        try:
            parse_errors = _fold_lines(lines_of(file, status), fold)
        except OSError as error:
            raise unreadable(path, error) from error
    draft = fold.finish()
    draft.updated_at = modified_seconds(status)
    if not _EARLIEST <= draft.updated_at <= _LATEST:
        raise RolloutError(f"the rollout {path} has a modification time out of range: {draft.updated_at} s")
    owner, tools = fold.tools
    return Extraction(storable(draft), fold.memory_mode, tools, owner, parse_errors)


def _fold_lines(lines: Lines, fold: RolloutFold) -> int:  # noqa: C901 - a call per line would cost a tenth of the speed
    """Fold every line and count those that can't be one. Nearly all the time of a backfill is spent here."""
    decode, add = decode_unchecked, fold.add
    parse_errors = 0
    headless = True
    usage = place = context = item = None
    for line in lines:
        try:
            if not line.isascii():
                line.decode()  # msgspec doesn't check fields that it skips
            item = decode(line).payload
        except (ValueError, RecursionError):
            if not is_blank(line):
                parse_errors += 1
            continue
        kind = type(item)
        # Of the many token counts and turn contexts only the last counts, whatever comes between; but where the thread
        # is, if no session_meta says it, is said by the first.
        if kind is TokenCount:
            if item.info is not None:
                usage = item
        elif kind is TurnContext:
            context = item
            if place is None and item.cwd:
                place = item
        elif kind in _AFFECTING or headless:
            add(item)
            headless = headless and kind is not SessionMeta
    if item is None:
        raise RolloutError(f"the rollout {fold.rollout_path} holds no usable line ({parse_errors} can't be read)")
    for last in (place, context, usage):
        if last is not None:
            add(last)
    return parse_errors


_TEXT_FIELDS = (
    "source",
    "agent_nickname",
    "agent_role",
    "agent_path",
    "model_provider",
    "model",
    "cwd",
    "cli_version",
    "title",
    "sandbox_policy",
    "approval_mode",
    "first_user_message",
    "git_sha",
    "git_branch",
    "git_origin_url",
    "memory_mode",
)


def storable(draft: ThreadDraft) -> ThreadDraft:
    """The draft with texts that both databases can store."""
    for field in _TEXT_FIELDS:
        text = getattr(draft, field)
        if text and "\0" in text:
            setattr(draft, field, _without_nul(text))
    return draft


def _without_nul(text: str) -> str:
    """Replace NUL characters, which PostgreSQL can't store and SQLite's functions stop at."""
    return text.replace("\0", "\ufffd")
