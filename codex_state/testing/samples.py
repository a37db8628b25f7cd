"""Entities for tests, complete but for what a test is about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from codex_state.models import DynamicTool, LogEntry, Thread

NOON = datetime(2026, 2, 10, 12, 0, tzinfo=UTC)
"""The time of everything that isn't given another."""


def a_thread(**values: Any) -> Thread:
    """A thread that listings show: it has a first message and isn't archived."""
    defaults: dict[str, Any] = {
        "id": uuid4(),
        "rollout_path": Path("/home/sessions/rollout.jsonl"),
        "created_at": NOON,
        "updated_at": NOON,
        "source": "cli",
        "model_provider": "openai",
        "cwd": Path("/code"),
        "title": "hello",
        "first_user_message": "hello",
        "sandbox_policy": '{"type":"read-only"}',
        "approval_mode": "on-request",
    }
    return Thread(**(defaults | values))


def a_tool(thread: Thread, position: int = 0, **values: Any) -> DynamicTool:
    """A tool of ``thread``."""
    defaults: dict[str, Any] = {
        "thread_id": thread.id,
        "position": position,
        "name": f"tool {position}",
        "description": "does something",
        "input_schema": {"type": "object"},
    }
    return DynamicTool(**(defaults | values))


def a_log_line(message: str | None = "hello", **values: Any) -> LogEntry:
    """A log line."""
    defaults: dict[str, Any] = {"ts": int(NOON.timestamp()), "ts_nanos": 0, "level": "INFO", "target": "tests"}
    return LogEntry(message=message, **(defaults | values))
