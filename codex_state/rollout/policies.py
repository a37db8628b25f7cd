"""Who started a thread, and what it may do: the typed forms in a rollout, and the texts that a row stores.

The stored text of a value is the bare tag where the value is one (``cli``, ``never``), else compact JSON.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, json

_UUID_PATTERN = re.compile(
    r"(?:urn:uuid:)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
    r"|\{([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\}"
    r"|([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})",
    re.IGNORECASE | re.ASCII,
)


def canonical_uuid(text: str) -> str | None:
    """The lower-case hyphenated form of a UUID in any of its usual spellings; ``None`` when it isn't one.

    The spellings are the hyphenated one, 32 hexadecimal digits, ``{…}`` and ``urn:uuid:…``. ``uuid.UUID`` would accept
    more, for example hyphens anywhere.
    """
    match = _UUID_PATTERN.fullmatch(text)
    if match is None:
        return None
    spelled = match[1] or match[2] or "-".join(match.group(3, 4, 5, 6, 7))
    return spelled.lower()


class ThreadSpawn(Struct, kw_only=True):
    """A sub-agent that another thread spawned."""

    parent_thread_id: str
    depth: int
    agent_path: str | None = None
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_type: str | UnsetType | None = UNSET
    """The name of ``agent_role`` in older rollouts."""

    def __post_init__(self) -> None:
        parent = canonical_uuid(self.parent_thread_id)
        if parent is None:
            raise ValueError("parent_thread_id is not a UUID")
        self.parent_thread_id = parent
        if not isinstance(self.agent_type, UnsetType):
            self.agent_role, self.agent_type = self.agent_type, UNSET


class SubAgentKind(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A kind of sub-agent that has a value. Exactly one field is set."""

    thread_spawn: ThreadSpawn | UnsetType = UNSET
    other: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        _exactly_one(self)


class TaggedSource(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A source that has a value. Exactly one field is set."""

    subagent: Literal["review", "compact", "memory_consolidation"] | SubAgentKind | UnsetType = UNSET
    custom: str | UnsetType = UNSET
    internal: Literal["memory_consolidation"] | UnsetType = UNSET

    def __post_init__(self) -> None:
        _exactly_one(self)


def _exactly_one(choice: Struct) -> None:
    if sum(getattr(choice, field) is not UNSET for field in choice.__struct_fields__) != 1:
        raise ValueError("expected exactly one tag")


DEFAULT_SOURCE = "vscode"
"""The source of a thread whose rollout names none."""

_PLAIN_SOURCES = frozenset({"cli", "vscode", "exec", "mcp", "unknown"})
_NEVER_PLAIN = frozenset({"subagent", "custom", "internal"})


def check_source(source: str | TaggedSource) -> None:
    """Refuse a tag that needs a value but has none.

    Raises:
        ValueError: it does.
    """
    if isinstance(source, str) and source in _NEVER_PLAIN:
        raise ValueError(f"source {source!r} needs a value")


def source_text(source: str | TaggedSource) -> str:
    """What a row stores: a plain tag (``unknown`` for one that isn't known), else compact JSON."""
    if isinstance(source, str):
        return source if source in _PLAIN_SOURCES else "unknown"
    return json.encode(source).decode()


def spawned_agent_path(source: str | TaggedSource) -> str | None:
    """The agent path inside the source of a spawned thread."""
    if isinstance(source, TaggedSource) and isinstance(source.subagent, SubAgentKind):
        spawn = source.subagent.thread_spawn
        return None if isinstance(spawn, UnsetType) else spawn.agent_path
    return None


class DangerFullAccess(Struct, tag="danger-full-access", gc=False):
    """No sandbox."""


class ReadOnly(Struct, tag="read-only", omit_defaults=True, gc=False):
    """Reading is allowed everywhere, writing nowhere."""

    network_access: bool = False


class ExternalSandbox(Struct, tag="external-sandbox", gc=False):
    """Somebody else's sandbox."""

    network_access: Literal["restricted", "enabled"] = "restricted"


class WorkspaceWrite(Struct, tag="workspace-write", gc=False):
    """Writing is allowed in the working directory and the roots."""

    writable_roots: list[str] | UnsetType = UNSET
    network_access: bool = False
    exclude_tmpdir_env_var: bool = False
    exclude_slash_tmp: bool = False

    def __post_init__(self) -> None:
        if not self.writable_roots:
            self.writable_roots = UNSET


SandboxPolicy = DangerFullAccess | ReadOnly | ExternalSandbox | WorkspaceWrite


def sandbox_text(policy: SandboxPolicy) -> str:
    """What a row stores: always compact JSON."""
    return json.encode(policy).decode()


class GranularApproval(Struct, kw_only=True):
    """Which kinds of action ask the user."""

    sandbox_approval: bool
    rules: bool
    skill_approval: bool = False
    request_permissions: bool = False
    mcp_elicitations: bool


class Granular(Struct, forbid_unknown_fields=True):
    """An approval policy that differs by kind of action."""

    granular: GranularApproval


ApprovalPolicy = Literal["untrusted", "on-failure", "on-request", "never"] | Granular

DEFAULT_APPROVAL: Literal["on-request"] = "on-request"


def approval_text(policy: ApprovalPolicy) -> str:
    """What a row stores: a plain tag, else compact JSON."""
    return policy if isinstance(policy, str) else json.encode(policy).decode()
