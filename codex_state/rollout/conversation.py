"""A thread's whole conversation: its files in their order, and before them what it was forked from.

A thread may lie in several files: one that was reverted goes on in another, from an ordinal of the earlier ones. A fork
up to 0.147 has a copy of its parent's history in its own file; a later one names the ordinal of its parent up to which
it shares it. Which of a thread's files count is decided as for its row: see ``index``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import msgspec
from msgspec import Struct

from codex_state.errors import RolloutError
from codex_state.rollout.files import rank
from codex_state.rollout.fold import extract
from codex_state.rollout.format import (
    SessionMeta,
    SettingsApplied,
    TurnContext,
    canonical_uuid,
    decode_tolerantly,
    ordinal_of,
)
from codex_state.rollout.inventory import known_paths
from codex_state.rollout.lookup import find_thread_path
from codex_state.rollout.reading import read_session_meta
from codex_state.rollout.transcript import (
    TranscriptItem,
    TranscriptKind,
    numbered_lines,
    read_transcript,
    turns_of,
)
from codex_state.runtime import StateRuntime

_MAX_PARTS = 1000
"""So many files make up a conversation at most, however they refer to each other."""


@dataclass(frozen=True, slots=True)
class ConversationPart:
    """A file that a conversation is in, or a part of one."""

    thread_id: UUID
    """Whose file it is: the thread's own, or one that it was forked from."""
    path: Path | None
    """Where it is; ``None`` when it can't be found."""
    before: int | None = None
    """Up to which ordinal it counts; ``None`` for all of it."""


def conversation_parts(runtime: StateRuntime, thread_id: UUID) -> list[ConversationPart]:
    """The files of a thread's conversation, the earliest first.

    Raises:
        RolloutError: the home holds no rollout of the thread.
    """
    path = find_thread_path(runtime, thread_id)
    if path is None:
        raise RolloutError(f"no rollout of thread {thread_id} in {runtime.codex_home}")
    parts = [ConversationPart(thread_id, path)]
    later = _meta_of(path)
    while later is not None and (base := later.history_base) is not None and len(parts) < _MAX_PARTS:
        owner = canonical_uuid(base.thread_id)
        before = _earliest(base.end_ordinal_exclusive, parts[-1].before)
        if owner is None or before == 0:
            break
        found = _earlier_file(runtime, UUID(owner), before, later, {part.path for part in parts})
        parts.append(ConversationPart(UUID(owner), found, before))
        later = None if found is None else _meta_of(found)
    return parts[::-1]


def _earlier_file(
    runtime: StateRuntime, owner: UUID, before: int | None, later: SessionMeta, seen: set[Path | None]
) -> Path | None:
    """The newest file of a thread that was there when a later one went on from it, and begins before an ordinal."""
    known = sorted(known_paths(runtime, owner), key=lambda path: rank(path, str(owner)), reverse=True)
    paths = [runtime.codex_home / path for path in known]
    if not paths and (found := find_thread_path(runtime, owner)) is not None:
        paths = [found]
    for path in paths:
        meta = _meta_of(path)
        if path in seen or (meta is not None and meta.timestamp > later.timestamp):
            continue
        if before is None or _begins_at(path) < before:
            return path
    return None


def _meta_of(path: Path) -> SessionMeta | None:
    try:
        return read_session_meta(path)
    except RolloutError:
        return None


def _begins_at(path: Path) -> int:
    """The ordinal of a file's first line; a file that can't be read begins too late for all."""
    try:
        _, line = next(numbered_lines(path), (0, b""))
    except RolloutError:
        return 2**63
    return ordinal_of(line) or 0


def _earliest(*ordinals: int | None) -> int | None:
    return min((ordinal for ordinal in ordinals if ordinal is not None), default=None)


def read_conversation(runtime: StateRuntime, thread_id: UUID, *, taken_back: bool = False) -> Iterator[TranscriptItem]:
    """The items of a thread's whole conversation, as it stands: from all its files, and those of its parents.

    Notices tell where a fork begins and what can't be found.

    Args:
        runtime: the open state.
        thread_id: the thread.
        taken_back: as for ``read_transcript``.

    Raises:
        RolloutError: the home holds no rollout of the thread, or one can't be read, or makes no thread.
    """
    previous: ConversationPart | None = None
    item: TranscriptItem | None = None
    for part in conversation_parts(runtime, thread_id):
        if previous is not None and previous.thread_id != part.thread_id:
            yield _notice("forked", f"forked from {previous.thread_id}")
        elif previous is not None:
            yield _notice("reverted", "the thread was reverted to here")
        if part.path is None:
            yield _notice("missing", f"the earlier history is missing: no rollout of thread {part.thread_id}")
        else:
            for item in read_transcript(part.path, before=part.before, taken_back=taken_back):
                yield item
        previous = part
    if item is None and previous is not None and previous.path is not None:
        extract(str(previous.path), runtime.default_provider)  # a file without any thread isn't one that says nothing


def _notice(name: str, text: str) -> TranscriptItem:
    return TranscriptItem(kind=TranscriptKind.NOTICE, name=name, text=text)


class TokensByKind(Struct, frozen=True, gc=False):
    """Counted tokens. Those from the cache are among the input, those of reasoning among the output."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_output_tokens: int = 0
    total_tokens: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counts by their names."""
        return msgspec.structs.asdict(self)


class ConversationSummary(Struct, frozen=True, gc=False):
    """A conversation in numbers."""

    turns: int
    """How many turns the user asked for that weren't taken back, with those before a fork."""
    models: tuple[str, ...]
    """The models that were used, in the order of their first use."""
    tokens: TokensByKind | None
    """How many tokens the thread itself used, by its own last count; ``None`` when nothing was counted."""


def summarize_conversation(runtime: StateRuntime, thread_id: UUID) -> ConversationSummary:
    """Read a thread's whole conversation for its numbers.

    Raises:
        RolloutError: the home holds no rollout of the thread, or one can't be read.
    """
    turns = 0
    models: dict[str, None] = {}
    tokens: TokensByKind | None = None
    for part in conversation_parts(runtime, thread_id):
        if part.path is None:
            continue
        turns += len(turns_of(part.path, before=part.before).begin)
        for _, line in numbered_lines(part.path):
            # Nothing but a tag is spelled like one: within a text, its quotes are escaped.
            is_count = b'"token_count"' in line and part.thread_id == thread_id
            is_settings = b'"turn_context"' in line or b'"thread_settings_applied"' in line
            if (is_count or is_settings) and _is_before(line, part.before):
                tokens = _tokens_of(line) or tokens
                models |= dict.fromkeys(_models_of(line))
    return ConversationSummary(turns, tuple(models), tokens)


def _is_before(line: bytes, ordinal: int | None) -> bool:
    return ordinal is None or (ordinal_of(line) or 0) < ordinal


def _models_of(line: bytes) -> Iterator[str]:
    for record in decode_tolerantly(line).lines:
        payload = record.payload
        settings = payload.thread_settings if isinstance(payload, SettingsApplied) else payload
        if isinstance(payload, SettingsApplied | TurnContext) and settings.model:
            yield settings.model


class _Usage(Struct, gc=False):
    total_token_usage: TokensByKind


class _Count(Struct, gc=False):
    info: _Usage | None = None


class _CountLine(Struct, gc=False):
    payload: _Count


_count_line = msgspec.json.Decoder(_CountLine).decode


def _tokens_of(line: bytes) -> TokensByKind | None:
    try:
        info = _count_line(line).payload.info
    except (ValueError, RecursionError):
        return None
    return None if info is None else info.total_token_usage
