"""Rows in the making: what a rollout says, in the form in which it is stored.

The fields of a ``ThreadDraft`` *are* the columns of ``threads`` that rollouts decide. The upsert from rollouts writes
exactly these, so that whatever else a row holds survives a rebuild. A process that only decodes rollouts needs no more
than these two structs.
"""

from __future__ import annotations

from msgspec import Struct

DEFAULT_SOURCE = "vscode"
"""The source of a thread whose rollout names none."""

DEFAULT_APPROVAL = "on-request"
DEFAULT_SANDBOX = '{"type":"read-only"}'
DEFAULT_MEMORY_MODE = "enabled"


class ThreadDraft(Struct, gc=False):
    """A thread's row in the making. Ids are texts, times whole epoch seconds."""

    id: str
    rollout_path: str
    created_at: int = 0
    updated_at: int = 0
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
    first_user_message: str = ""
    archived: int = 0
    archived_at: int | None = None
    git_sha: str | None = None
    git_branch: str | None = None
    git_origin_url: str | None = None
    memory_mode: str = DEFAULT_MEMORY_MODE
    name: str | None = None
    name_at: int | None = None
    preview: str | None = None
    thread_source: str | None = None
    originator: str | None = None
    parent_thread_id: str | None = None
    forked_from_id: str | None = None
    updated_ns: int = 0
    turns: int | None = None
    tokens_inherited: int = 0
    tokens_input: int = 0
    tokens_cached: int = 0
    tokens_output: int = 0
    tokens_reasoning: int = 0


class ToolDraft(Struct, gc=False):
    """A dynamic tool's row in the making."""

    name: str
    description: str
    input_schema: str
    """JSON text."""
    defer_loading: bool
    namespace: str | None
