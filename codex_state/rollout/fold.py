"""What a rollout says about its thread: its lines are folded into a draft of the thread's row, in one pass.

The fields of a ``ThreadDraft`` *are* the columns that rollouts decide, in the form in which they are stored, which is
cheap to change and to send from one process to another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import astuple

from codex_state.drafts import ThreadDraft, ToolDraft
from codex_state.errors import RolloutError
from codex_state.rollout.files import RolloutName, modified_seconds, parse_rollout_name, storable_ns
from codex_state.rollout.format import (
    CompletedItem,
    GoalUpdated,
    ItemCompleted,
    NameUpdated,
    ResponseItem,
    RolloutItem,
    SessionMeta,
    SettingsApplied,
    TaskStarted,
    ThreadSettings,
    TokenCount,
    TurnContext,
    TurnStarted,
    UserMessage,
    approval_text,
    canonical_uuid,
    decode_strictly,
    decode_tolerantly,
    ordinal_of,
    parse_timestamp,
    sandbox_text,
    source_text,
    trim,
)
from codex_state.rollout.own_work import OwnWork, add_earlier
from codex_state.rollout.reading import Lines, open_rollout, skip_blank_lines, unreadable, why_unusable

USER_MESSAGE_BEGIN = "## My request for Codex:"
"""In a message that an editor put context in front of: where the user's own words begin."""

IMAGE_ONLY = "[Image]"
"""The first user message of a thread that began with nothing but images."""

MAX_TOOLS = 4096
MAX_BYTES_OF_TOOL = 256 * 1024
MAX_BYTES_OF_TOOLS = 2 * 1024 * 1024
"""How many tools of a thread are kept, and how much of each and of all: names, descriptions and schemas. One that is
beyond isn't kept and counts as a parse error; those after it are still looked at."""

_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, which are all that Python's times can say."""

_RACY_NS = 2_000_000_000
"""A file that was written in the last seconds may be written again without its time showing it: some file systems keep
times in steps of two seconds."""


class Extraction(Struct, gc=False):
    """All that one rollout says."""

    draft: ThreadDraft
    size: int
    """Of the file before it was read. By this and the next it shows whether it is the same now."""
    mtime_ns: int | None
    """When it was last written; ``None`` when that can't be trusted to show the next change."""
    memory_mode: str | None
    """The last one that any session_meta names, also a parent's; ``None`` when none does."""
    memory_mode_at: int | None
    """When that was said; ``None`` when it isn't known."""
    tools: list[ToolDraft]
    tools_thread_id: str
    """Whose tools they are: the thread of the file's first session_meta, which may not be the draft's."""
    parse_errors: int
    """Lines of which something could not be read."""
    unknown_lines: int
    """Lines of a kind that isn't read."""
    base_end: int | None
    """The thread's history up to this ordinal is in earlier files of the same thread; ``None`` when it is all here."""


def telling_time(mtime_ns: int) -> int | None:
    """The time of a file's last write, unless it is so recent that the next write might bear it as well."""
    return None if abs(time.time_ns() - mtime_ns) < _RACY_NS else mtime_ns


class Fold:
    """Folds the items of one rollout as they come.

    The first session_meta decides whose rollout it is, but it need not come first. When something before it could not
    be read, that may have been the thread's own, as in a fork, which goes on with its parent's: then the name of the
    file counts.
    """

    def __init__(self, draft: ThreadDraft, default_provider: str) -> None:
        """Go on from ``draft``. One without an id gets that of the first session_meta."""
        self.draft = draft
        self.memory_mode: str | None = None
        self.memory_mode_at: int | None = None
        self.first_meta: SessionMeta | None = None
        self.damaged = False
        """Whether something could not be read so far."""
        self._default_provider = default_provider
        self._response_came_first = False
        self.own_work = OwnWork(draft)
        self._salvaging = False
        self._salvaged = ThreadDraft("", "")
        """What was asked by lines that aren't whole: it counts where no whole line says what was asked."""
        self._apply = _IN_HEAD

    def add(self, item: RolloutItem, timestamp: str = "") -> None:
        """Change the draft by what one item says."""
        apply = self._apply.get(type(item))
        if apply is not None:
            apply(self, item, timestamp)

    def all_lines(self, lines: Lines) -> tuple[int, int, bool]:
        """Fold every line. Nearly all the time of a backfill is spent here.

        Returns:
            How many lines have something that can't be read, how many are of a kind that isn't read, and whether any
            could be used.
        """
        apply = self._apply
        parse_errors = unknown_lines = 0
        used = None
        for line in lines:
            try:
                if not line.isascii():
                    line.decode()  # msgspec doesn't check fields that it skips
                record = decode_strictly(line)
            except (ValueError, RecursionError):
                if line.isspace():
                    skip_blank_lines(lines)
                    continue
                salvaged = decode_tolerantly(line)
                parse_errors += salvaged.broken
                unknown_lines += salvaged.unknown
                self.damaged = self.damaged or salvaged.broken
                self._salvaging = True
                for record in salvaged.lines:
                    used = record
                    self.add(record.payload, record.timestamp)
                self._salvaging = False
                continue
            item = record.payload
            kind = type(item)
            if kind in apply:
                apply[kind](self, item, record.timestamp)
                apply = self._apply
            elif item is None:
                unknown_lines += 1
                continue
            used = record
        return parse_errors, unknown_lines, used is not None

    def _response_item(self, _item: ResponseItem, _timestamp: str) -> None:
        self._response_came_first = True

    def _session_meta(self, meta: SessionMeta, timestamp: str) -> None:
        if meta.memory_mode:
            self.memory_mode, self.memory_mode_at = meta.memory_mode, parse_timestamp(timestamp)
        draft = self.draft
        if self.first_meta is None and not draft.id:
            self.first_meta = meta
            self._apply = _AFTER_HEAD
            self._begin(meta)
            self.own_work.begins(meta)
        if meta.id != draft.id:
            # A fork's rollout may hold its parent's session_meta, which says nothing about the fork.
            self.own_work.copies(timestamp)
            return
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
        draft.thread_source = meta.thread_source or draft.thread_source
        draft.originator = meta.originator or draft.originator
        draft.parent_thread_id = meta.parent or draft.parent_thread_id
        if meta.forked_from_id is not None:
            draft.forked_from_id = canonical_uuid(meta.forked_from_id) or draft.forked_from_id

    def _begin(self, meta: SessionMeta) -> None:
        draft = self.draft
        created_at = parse_timestamp(meta.timestamp)
        if created_at is None or self.damaged:
            named = parse_rollout_name(os.path.basename(draft.rollout_path))  # noqa: PTH119 - a text, not a Path
            is_strange = named is not None and str(named.thread_id) != meta.id
            if created_at is None or is_strange:
                _take(named, draft)
                return
        draft.id, draft.created_at = meta.id, created_at

    def _turn_context(self, turn: TurnContext, _timestamp: str) -> None:
        approval = turn.approval_policy
        if type(approval) is dict and "reject" in approval:
            # A form that only 0.102 to 0.118 wrote. Later originals refuse the whole turn, and their answer counts.
            return
        draft = self.draft
        # A turn may run elsewhere; the thread belongs to the directory that it was started in.
        draft.cwd = draft.cwd or turn.cwd
        self._settings(turn, turn.effort)

    def _settings_applied(self, event: SettingsApplied, _timestamp: str) -> None:
        settings = event.thread_settings
        self.draft.cwd = settings.cwd or self.draft.cwd
        self._settings(settings, settings.reasoning_effort)

    def _settings(self, settings: TurnContext | ThreadSettings, effort: str | UnsetType | None) -> None:
        draft = self.draft
        approval = settings.approval_policy
        if approval is not None:
            draft.approval_mode = approval if type(approval) is str else approval_text(approval)
        policy = settings.permission_profile
        text = None if policy is UNSET else sandbox_text(bytes(policy))
        if text is None:
            policy = settings.sandbox_policy
            text = None if policy is UNSET else sandbox_text(bytes(policy))
        draft.sandbox_policy = text or draft.sandbox_policy
        draft.model = settings.model or draft.model
        if effort is not UNSET:
            draft.reasoning_effort = effort

    def _token_count(self, count: TokenCount, timestamp: str) -> None:
        if count.info is not None:
            self.own_work.counted(count.info, self.draft, timestamp)

    def _turn_started(self, turn: TurnStarted, timestamp: str) -> None:
        self.own_work.turn_started(turn.turn_id, self.draft, timestamp)

    def _user_message(self, message: UserMessage, timestamp: str) -> None:
        self.own_work.asked(timestamp)
        self._asked(message.message, has_image=bool(message.images or message.local_images))

    def _item_completed(self, event: ItemCompleted, _timestamp: str) -> None:
        if event.item.type == "UserMessage" and not (self.draft.title and self.draft.first_user_message):
            text, has_image = _content_of(event.item)
            self._asked(text, has_image=has_image)

    def _asked(self, message: str, *, has_image: bool) -> None:
        draft = self._salvaged if self._salvaging else self.draft
        if draft.title and draft.first_user_message:
            return
        text = user_text(message)
        draft.first_user_message = draft.first_user_message or text or (IMAGE_ONLY if has_image else "")
        draft.title = draft.title or text

    def _goal_updated(self, event: GoalUpdated, _timestamp: str) -> None:
        self.draft.preview = self.draft.preview or trim(event.goal.objective) or None

    def _name_updated(self, event: NameUpdated, timestamp: str) -> None:
        name = trim(event.thread_name or "")
        if name and canonical_uuid(event.thread_id or self.draft.id) == self.draft.id:
            self.draft.name = name
            self.draft.name_at = parse_timestamp(timestamp) or self.draft.created_at

    def finish(self) -> ThreadDraft:
        """The draft after all items.

        Raises:
            RolloutError: neither the items nor the file's name say whose rollout it is.
        """
        draft = self.draft
        if not draft.id:
            _take(parse_rollout_name(os.path.basename(draft.rollout_path)), draft)  # noqa: PTH119 - as above
        self.own_work.finish(draft)
        draft.first_user_message = draft.first_user_message or self._salvaged.first_user_message
        draft.title = draft.title or self._salvaged.title
        draft.model_provider = draft.model_provider or self._default_provider
        draft.memory_mode = self.memory_mode or draft.memory_mode
        return storable(draft)

    @property
    def tools(self) -> tuple[str, list[ToolDraft], int]:
        """Whose tools the rollout's head names, those that are kept, and how many aren't: see ``tool_drafts``.

        A head that starts with a response item has none.
        """
        if self.first_meta is None:
            return "", [], 0
        if self._response_came_first:
            return self.first_meta.id, [], 0
        kept = tool_drafts(self.first_meta)
        return self.first_meta.id, kept, len(self.first_meta.flat_tools) - len(kept)


_AFTER_HEAD: dict[type, Callable[[Fold, Any, str], None]] = {
    SessionMeta: Fold._session_meta,  # noqa: SLF001 - the class's own table
    TurnContext: Fold._turn_context,  # noqa: SLF001
    SettingsApplied: Fold._settings_applied,  # noqa: SLF001
    TokenCount: Fold._token_count,  # noqa: SLF001
    TurnStarted: Fold._turn_started,  # noqa: SLF001
    TaskStarted: Fold._turn_started,  # noqa: SLF001
    UserMessage: Fold._user_message,  # noqa: SLF001
    ItemCompleted: Fold._item_completed,  # noqa: SLF001
    GoalUpdated: Fold._goal_updated,  # noqa: SLF001
    NameUpdated: Fold._name_updated,  # noqa: SLF001
}
"""What is done with each kind of item. Functions, not methods: a table of methods for each file would be a cycle."""

_IN_HEAD = _AFTER_HEAD | {ResponseItem: Fold._response_item}  # noqa: SLF001
"""The same before the first session_meta. Nearly all lines are response items, and only there they matter."""


def _take(named: RolloutName | None, draft: ThreadDraft) -> None:
    """Take from a file's name whose rollout it is."""
    if named is None:
        raise RolloutError(
            f"the rollout {draft.rollout_path} doesn't say whose it is: it has no session_meta with a readable "
            "timestamp, and its name is not rollout-<time>-<id>.jsonl"
        )
    draft.id, draft.created_at = str(named.thread_id), int(named.created_at.timestamp())


def user_text(message: str) -> str:
    """The user's own words: what follows the first marker, or all of it, without surrounding white space."""
    _, marker, after = message.partition(USER_MESSAGE_BEGIN)
    return trim(after if marker else message)


class _Part(Struct, gc=False):
    type: str = ""
    text: str | Raw = ""


_parts = msgspec.json.Decoder(list[Raw]).decode
_part = msgspec.json.Decoder(_Part).decode


def _content_of(item: CompletedItem) -> tuple[str, bool]:
    """The text of a message, and whether it has an image. Parts that can't be read are passed over."""
    texts, has_image = [], False
    try:
        parts = _parts(item.content) if isinstance(item.content, Raw) else []
    except ValueError:
        return "", False
    for raw in parts:
        try:
            part = _part(raw)
        except ValueError:
            continue
        if part.type == "text" and isinstance(part.text, str):
            texts.append(part.text)
        has_image = has_image or part.type in ("image", "local_image")
    return "".join(texts), has_image


def tool_drafts(meta: SessionMeta) -> list[ToolDraft]:
    """The tools that a session_meta defines, in their order, within the bounds of bytes (law L10)."""
    kept, left = list[ToolDraft](), MAX_BYTES_OF_TOOLS
    for tool in meta.flat_tools:
        schema, description = bytes(tool.input_schema).decode(), _without_nul(tool.description)
        size = len(tool.name) + len(tool.input_schema) + len(description)
        if size <= min(MAX_BYTES_OF_TOOL, left) and len(kept) < MAX_TOOLS:
            left -= size
            namespace = tool.namespace and _without_nul(tool.namespace)
            kept.append(ToolDraft(_without_nul(tool.name), description, schema, tool.is_deferred, namespace))
    return kept


def extract(path: str, default_provider: str) -> Extraction:
    """Read a rollout once, from its first byte to its last.

    Args:
        path: the rollout, plain or compressed.
        default_provider: the provider of a thread that names none.

    Raises:
        RolloutError: the file can't be read, holds no usable line, or doesn't say whose it is.
    """
    fold = Fold(ThreadDraft("", path), default_provider)
    # What is appended while reading makes the file newer than its row, never the row newer than it should be.
    file, status = open_rollout(path)
    mtime_ns = telling_time(storable_ns(status.st_mtime_ns))
    with file:
        try:
            parse_errors, unknown_lines, used = fold.all_lines(file)
        except OSError as error:
            raise unreadable(path, error) from error
    if not used:
        raise RolloutError(f"the rollout {path} {why_unusable(path, parse_errors, unknown_lines)}")
    draft = fold.finish()
    draft.updated_at, draft.updated_ns = modified_seconds(status), status.st_mtime_ns % 1_000_000_000
    if not _EARLIEST <= draft.updated_at <= _LATEST:
        raise RolloutError(f"the rollout {path} has a modification time out of range: {draft.updated_at} s")
    owner, tools, tools_left = fold.tools
    return Extraction(
        draft=draft,
        size=status.st_size,
        mtime_ns=mtime_ns,
        memory_mode=fold.memory_mode,
        memory_mode_at=fold.memory_mode_at,
        tools=tools,
        tools_thread_id=owner,
        parse_errors=parse_errors + tools_left,
        unknown_lines=unknown_lines,
        base_end=_base_end(fold.first_meta, draft.id),
    )


def go_on_from(extraction: Extraction, earlier: Sequence[str]) -> None:
    """Give a thread that goes on from earlier files what those say and its last one doesn't.

    Its first message, its goal, its name and its tools are usually in the first file, and so is the count of its tokens
    until the last one counts some. Earlier files count up to the ordinal at which the later one begins; one that begins
    at or after it was rolled back wholly. One that can't be read is passed over.

    Args:
        extraction: of the thread's last file.
        earlier: the thread's other files, the newest first.
    """
    draft, end = extraction.draft, extraction.base_end
    for path in earlier:
        if not end:
            return
        fold = Fold(ThreadDraft("", path), extraction.draft.model_provider)
        try:
            with open_rollout(path)[0] as file:
                begins_at = _fold_up_to(fold, file, end)
            found = fold.finish()
        except (OSError, RolloutError):
            continue
        if begins_at is None or begins_at >= end or found.id != draft.id:
            continue
        draft.title = found.title or draft.title
        draft.first_user_message = found.first_user_message or draft.first_user_message
        draft.preview = found.preview or draft.preview
        add_earlier(draft, found, fold.own_work.inherited)
        if not draft.name:
            draft.name, draft.name_at = found.name, found.name_at
        if not extraction.tools:
            extraction.tools_thread_id, extraction.tools, _ = fold.tools
        # Where its head is lost, its first ordinal says where it goes on from.
        end = begins_at if fold.first_meta is None else min(end, _base_end(fold.first_meta, draft.id) or 0)


def _base_end(meta: SessionMeta | None, thread_id: str) -> int | None:
    """Up to which ordinal a thread's history is in earlier files of its own; ``None`` when it is all in this one."""
    base = None if meta is None else meta.history_base
    return base.end_ordinal_exclusive if base is not None and canonical_uuid(base.thread_id) == thread_id else None


def _fold_up_to(fold: Fold, lines: Lines, end: int) -> int | None:
    """Fold the lines before an ordinal. Lines that have none are counted.

    Returns:
        The ordinal of the file's first line; ``None`` when no line can be read.
    """
    begins_at: int | None = None
    following = 0
    for line in lines:
        salvaged = decode_tolerantly(line)
        if not salvaged.lines and not salvaged.unknown:
            if line.isspace():
                skip_blank_lines(lines)
            continue
        ordinal = ordinal_of(line)
        if ordinal is None:
            ordinal = following
            meta = next((each.payload for each in salvaged.lines if isinstance(each.payload, SessionMeta)), None)
            if begins_at is None and meta is not None and meta.history_base is not None:
                ordinal = meta.history_base.end_ordinal_exclusive or 0
        if begins_at is None:
            begins_at = ordinal
        if ordinal >= end:
            break
        for each in salvaged.lines:
            fold.add(each.payload, each.timestamp)
        following = ordinal + 1
    return begins_at


def storable(draft: ThreadDraft) -> ThreadDraft:
    """The draft with texts that both databases can store."""
    for value in astuple(draft):
        if type(value) is str and "\0" in value:
            break
    else:
        return draft
    for name in draft.__struct_fields__:
        text = getattr(draft, name)
        if isinstance(text, str):
            setattr(draft, name, _without_nul(text))
    return draft


def _without_nul(text: str) -> str:
    """Replace NUL characters, which PostgreSQL can't store and SQLite's functions stop at."""
    return text.replace("\0", "\ufffd")
