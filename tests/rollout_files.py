"""Homes with rollouts, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

from codex_state.rollout.lines import (
    RolloutItem,
    SessionMeta,
    TokenCount,
    TokenUsage,
    TokenUsageInfo,
    TurnContext,
    UserMessage,
    encode_line,
)
from codex_state.rollout.policies import ReadOnly

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


def turn_context(**changes: Any) -> TurnContext:
    values = {
        "cwd": "/code-x/turn",
        "approval_policy": "never",
        "sandbox_policy": ReadOnly(),
        "model": "gpt-5.1-codex",
        "summary": "auto",
    }
    return TurnContext(**values | changes)


def user_message(text: str = "hello", **changes: Any) -> UserMessage:
    return UserMessage(message=text, **changes)


def token_count(total: int) -> TokenCount:
    usage = TokenUsage(
        input_tokens=1, cached_input_tokens=0, output_tokens=1, reasoning_output_tokens=0, total_tokens=total
    )
    return TokenCount(TokenUsageInfo(total_token_usage=usage, last_token_usage=usage))


def line(item: RolloutItem | bytes) -> bytes:
    return item if isinstance(item, bytes) else encode_line(item, WRITTEN_AT)


def body(*items: RolloutItem | bytes) -> bytes:
    """The content of a rollout: items, or raw lines, each with its newline."""
    return b"".join(line(item) + b"\n" for item in items)


def rollout_name(number: int, time: str = NAME_TIME) -> str:
    return f"rollout-{time}-{thread_id(number)}.jsonl"


def rollout_path(home: Path, number: int, *, archived: bool = False, time: str = NAME_TIME) -> Path:
    name = rollout_name(number, time)
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
    modified: float | None = None,
) -> Path:
    """A rollout at its usual place. Without items: a session_meta, a user message and a token count."""
    content = items or (session_meta(number), user_message(f"hello {number}"), token_count(number))
    return write(rollout_path(home, number, archived=archived, time=time), body(*content), modified=modified)
