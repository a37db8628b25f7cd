"""Rollouts of every era, and homes with them, for tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from msgspec import Raw

from codex_state.rollout.format import (
    CompletedItem,
    Goal,
    GoalUpdated,
    HistoryBase,
    ItemCompleted,
    NameUpdated,
    RolloutItem,
    SessionMeta,
    SettingsApplied,
    ThreadSettings,
    TokenCount,
    TokenUsage,
    TokenUsageInfo,
    TurnContext,
    UserMessage,
    encode_line,
)

WRITTEN_AT = "2026-01-02T03:04:05.678Z"
CREATED_AT = 1_767_323_045
"""``WRITTEN_AT`` in epoch seconds."""

NAME_TIME = "2026-01-02T03-04-05"


def thread_id(number: int) -> UUID:
    """A fixed id of the version that the original uses."""
    return UUID(f"{number:08d}-0000-7000-8000-{number:012d}")


def session_meta(number: int = 1, **changes: Any) -> SessionMeta:
    values = {
        "id": str(thread_id(number)),
        "timestamp": WRITTEN_AT,
        "cwd": "/code-x/proj",
        "originator": "codex_cli_rs",
        "cli_version": "0.99.0",
        "source": "cli",
        "model_provider": "openai",
    }
    return SessionMeta(**values | changes)


def history_base(number: int, end: int | None) -> HistoryBase:
    """What a fork or a later segment goes on from: a thread's history before the ordinal ``end``."""
    return HistoryBase(str(thread_id(number)), end)


def raw(value: Any) -> Raw:
    """A value as the line has it, undecoded."""
    return Raw(json.dumps(value).encode())


def turn_context(**changes: Any) -> TurnContext:
    """Policies may be given as values."""
    values = {
        "cwd": "/code-x/turn",
        "approval_policy": "never",
        "sandbox_policy": {"type": "read-only"},
        "model": "gpt-5.1-codex",
    }
    return TurnContext(**_with_raw_policies(values | changes))


def settings_applied(**settings: Any) -> SettingsApplied:
    """New settings of the thread, and only these. Policies may be given as values."""
    return SettingsApplied(ThreadSettings(**_with_raw_policies(settings)))


def _with_raw_policies(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: raw(value) if name in ("sandbox_policy", "permission_profile") and isinstance(value, dict) else value
        for name, value in values.items()
    }


def user_message(
    text: str = "hello", *, images: list[str] | None = None, local_images: list[str] | None = None
) -> UserMessage:
    """What the user asked, up to version 0.150."""
    given, local = ([raw(each) for each in some] if some is not None else None for some in (images, local_images))
    return UserMessage(message=text, images=given, local_images=local)


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "text_elements": []}


def completed_message(*parts: str | dict[str, Any]) -> ItemCompleted:
    """What the user asked, from version 0.151 on: texts, or whole parts."""
    content = [text_part(part) if isinstance(part, str) else part for part in parts or ("hello",)]
    return ItemCompleted(CompletedItem("UserMessage", raw(content)))


def goal_updated(objective: str) -> GoalUpdated:
    return GoalUpdated(Goal(objective))


def name_updated(name: str | None, number: int | None = None) -> NameUpdated:
    """The name of the thread ``number``, or of the thread whose rollout says so."""
    return NameUpdated(None if number is None else str(thread_id(number)), name)


def token_count(total: int) -> TokenCount:
    return TokenCount(TokenUsageInfo(total_token_usage=TokenUsage(total_tokens=total)))


def line(item: RolloutItem | bytes, written_at: str = WRITTEN_AT) -> bytes:
    return item if isinstance(item, bytes) else encode_line(item, written_at)


def record(kind: str, payload: Any = None, **more: Any) -> bytes:
    """Any line, also of a kind that isn't known."""
    return json.dumps({"timestamp": WRITTEN_AT, "type": kind, "payload": payload or {}} | more).encode()


def event(kind: str, **fields: Any) -> bytes:
    """The line of any event, also of one that isn't known."""
    return record("event_msg", {"type": kind} | fields)


def numbered(*items: RolloutItem | bytes, start: int = 0) -> list[bytes]:
    """The lines of a paginated rollout: each has an ordinal."""
    lines = []
    for ordinal, item in enumerate(items, start):
        whole = json.loads(line(item))
        lines.append(json.dumps({"timestamp": whole.pop("timestamp"), "ordinal": ordinal} | whole).encode())
    return lines


def body(*items: RolloutItem | bytes) -> bytes:
    """The content of a rollout: items, or raw lines, each with its newline."""
    return b"".join(line(item) + b"\n" for item in items)


def segment_id(number: int) -> UUID:
    """A fixed id of a thread's later segment; a greater number is a later one."""
    return UUID(f"{number:08d}-1111-7000-8000-{number:012d}")


def rollout_name(number: int, time: str = NAME_TIME, *, segment: int | None = None) -> str:
    later = "" if segment is None else f"_{segment_id(segment)}"
    return f"rollout-{time}-{thread_id(number)}{later}.jsonl"


def rollout_path(
    home: Path, number: int, *, archived: bool = False, time: str = NAME_TIME, segment: int | None = None
) -> Path:
    name = rollout_name(number, time, segment=segment)
    if archived:
        return home / "archived_sessions" / name
    return home.joinpath("sessions", time[:4], time[5:7], time[8:10], name)


def write(path: Path, content: bytes, *, modified: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if modified is not None:
        os.utime(path, ns=(round(modified * 1e9), round(modified * 1e9)))
    return path


def write_rollout(
    home: Path,
    number: int = 1,
    *items: RolloutItem | bytes,
    archived: bool = False,
    time: str = NAME_TIME,
    segment: int | None = None,
    modified: float | None = None,
) -> Path:
    """A rollout at its usual place. Without items: a session_meta, a user message and a token count."""
    content = items or (session_meta(number), user_message(f"hello {number}"), token_count(number))
    path = rollout_path(home, number, archived=archived, time=time, segment=segment)
    return write(path, body(*content), modified=modified)
