"""The lines of a rollout, typed, with only the fields that are read.

A rollout is JSONL: one object per line with ``timestamp``, ``type`` and ``payload``. A line that can't be one counts
as a parse error and is skipped; the lines around it are kept. What is checked: the line is UTF-8 and exactly one JSON
value, the ``timestamp`` is a text, the types are known, and every field that can matter for a thread has its type.
Payloads that say nothing about a thread (response items, most events) are checked as JSON and by their type only.
"""

from __future__ import annotations

import functools
import json
import operator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from codex_state.errors import RolloutError
from codex_state.rollout.policies import (
    DEFAULT_SOURCE,
    ApprovalPolicy,
    SandboxPolicy,
    TaggedSource,
    canonical_uuid,
    check_source,
)

_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

_BLANK = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def trim(text: str) -> str:
    """Remove surrounding white space as Unicode defines it. ``str.strip`` would also remove separators like U+001C."""
    return text.strip(_BLANK)


class GitInfo(Struct, omit_defaults=True):
    """Where the thread's repository stood when the thread started."""

    commit_hash: str | None = None
    branch: str | None = None
    repository_url: str | None = None


class ToolSpec(Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A tool that was defined for the thread."""

    name: str
    description: str
    input_schema: Raw
    """Any JSON value, undecoded."""
    defer_loading: bool | None = None
    expose_to_context: bool | None = None
    """What older rollouts say instead of ``defer_loading``, and its opposite."""
    namespace: str | None = None

    def __post_init__(self) -> None:
        # A number beyond a float's range is read as infinite, which can't be written back as JSON.
        json.dumps(self.schema, allow_nan=False)

    @property
    def schema(self) -> Any:
        """The decoded ``input_schema``."""
        return msgspec.json.decode(self.input_schema)

    @property
    def is_deferred(self) -> bool:
        """Whether the tool is offered only when asked for."""
        if self.defer_loading is not None:
            return self.defer_loading
        return self.expose_to_context is False


class SessionMeta(Struct, kw_only=True, omit_defaults=True):
    """How a thread started. A fork's rollout also holds its parent's."""

    id: str
    """The thread's id; any spelling of a UUID is accepted and made the lower-case hyphenated one."""
    timestamp: str
    cwd: str
    originator: str
    cli_version: str
    source: str | TaggedSource = DEFAULT_SOURCE
    model_provider: str | None = None
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_type: str | UnsetType | None = UNSET
    """The name of ``agent_role`` in older rollouts."""
    agent_path: str | None = None
    dynamic_tools: list[ToolSpec] | None = None
    memory_mode: str | None = None
    git: GitInfo | None = None

    def __post_init__(self) -> None:
        canonical = canonical_uuid(self.id)
        if canonical is None:
            raise ValueError("id is not a UUID")
        self.id = canonical
        check_source(self.source)
        if not isinstance(self.agent_type, UnsetType):
            self.agent_role, self.agent_type = self.agent_type, UNSET


class TurnContext(Struct, kw_only=True, omit_defaults=True, gc=False):
    """The settings of one turn."""

    cwd: str
    approval_policy: ApprovalPolicy
    sandbox_policy: SandboxPolicy
    model: str
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed", "none"]


class Compacted(Struct, gc=False):
    """The history up to here was replaced by a summary."""

    message: str


class ResponseItem(Struct, gc=False):
    """Something that went to or came from the model."""

    type: str


class TokenUsage(Struct, kw_only=True, gc=False):
    """Counted tokens."""

    input_tokens: _Int64
    cached_input_tokens: _Int64
    output_tokens: _Int64
    reasoning_output_tokens: _Int64
    total_tokens: _Int64


class TokenUsageInfo(Struct, kw_only=True, omit_defaults=True, gc=False):
    """The token usage of a thread and of its last turn."""

    total_token_usage: TokenUsage
    last_token_usage: TokenUsage
    model_context_window: _Int64 | None = None


class TokenCount(Struct, tag="token_count", gc=False):
    """How many tokens were used so far."""

    info: TokenUsageInfo | None = None


class UserMessage(Struct, tag="user_message", omit_defaults=True, gc=False):
    """What the user asked."""

    message: str
    images: list[str] | None = None
    local_images: list[str] = []


class OtherEvent(Struct, gc=False):
    """An event that says nothing about its thread's row. There is one subclass for each type of event."""

    type: ClassVar[str]


# Events of all versions from 2025 on. Rollouts hold few of them; the others are known so that none counts as an error.
_OTHER_EVENTS = """
    agent_message agent_message_content_delta agent_message_delta agent_reasoning agent_reasoning_delta
    agent_reasoning_raw_content agent_reasoning_raw_content_delta agent_reasoning_section_break
    apply_patch_approval_request background_event collab_agent_interaction_begin collab_agent_interaction_end
    collab_agent_spawn_begin collab_agent_spawn_end collab_close_begin collab_close_end collab_resume_begin
    collab_resume_end collab_waiting_begin collab_waiting_end context_compacted conversation_path deprecation_notice
    dynamic_tool_call_request dynamic_tool_call_response elicitation_request entered_review_mode error
    exec_approval_request exec_command_begin exec_command_end exec_command_output_delta exited_review_mode
    get_history_entry_response guardian_assessment guardian_warning hook_completed hook_started image_generation_begin
    image_generation_end item_completed item_started list_custom_prompts_response list_remote_skills_response
    list_skills_response mcp_list_tools_response mcp_startup_complete mcp_startup_update mcp_tool_call_begin
    mcp_tool_call_end mcp_tool_call_progress model_reroute model_verification patch_apply_begin patch_apply_end
    patch_apply_updated plan_delta plan_update raw_response_item realtime_conversation_closed
    realtime_conversation_list_voices_response realtime_conversation_realtime realtime_conversation_sdp
    realtime_conversation_started reasoning_content_delta reasoning_raw_content_delta remote_skill_downloaded
    request_permissions request_user_input safety_buffering session_configured shutdown_complete
    skills_update_available stream_error sub_agent_activity task_complete task_started terminal_interaction
    thread_goal_updated thread_name_updated thread_queue_changed thread_rolled_back thread_settings_applied turn_aborted
    turn_complete turn_diff turn_moderation_metadata turn_started undo_completed undo_started view_image_tool_call
    warning web_search_begin web_search_end
""".split()  # noqa: SIM905 - a hundred lines of literals would hide the module

_other_event_types = [
    msgspec.defstruct(
        "".join(part.capitalize() for part in name.split("_")),
        [],
        bases=(OtherEvent,),
        namespace={"type": name},
        module=__name__,
        tag=name,
        gc=False,
    )
    for name in _OTHER_EVENTS
]
_Event: Any = functools.reduce(operator.or_, _other_event_types, TokenCount | UserMessage)

RolloutItem = SessionMeta | TurnContext | Compacted | ResponseItem | TokenCount | UserMessage | OtherEvent


class _SessionMetaLine(Struct, tag="session_meta", gc=False):
    timestamp: str
    payload: SessionMeta


class _ResponseItemLine(Struct, tag="response_item", gc=False):
    timestamp: str
    payload: ResponseItem


class _CompactedLine(Struct, tag="compacted", gc=False):
    timestamp: str
    payload: Compacted


class _TurnContextLine(Struct, tag="turn_context", gc=False):
    timestamp: str
    payload: TurnContext


class _EventLine(Struct, tag="event_msg", gc=False):
    timestamp: str
    payload: _Event


_LINE_OF: dict[type, type] = {
    SessionMeta: _SessionMetaLine,
    ResponseItem: _ResponseItemLine,
    Compacted: _CompactedLine,
    TurnContext: _TurnContextLine,
}

_decoder = msgspec.json.Decoder(_SessionMetaLine | _ResponseItemLine | _CompactedLine | _TurnContextLine | _EventLine)

decode_unchecked = _decoder.decode
"""Decode a line, as ``decode_line`` does, to a value whose ``payload`` is the item.

It is the inner loop's: it raises what msgspec raises (``ValueError``, ``RecursionError``), and doesn't see bytes that
aren't UTF-8 in fields that it skips.
"""


def decode_line(line: bytes) -> RolloutItem:
    """The item on one line of a rollout.

    Raises:
        RolloutError: the line isn't UTF-8, isn't exactly one JSON value, or isn't a line of a rollout.
    """
    try:
        if not line.isascii():
            line.decode()
        item: RolloutItem = decode_unchecked(line).payload
    except (ValueError, RecursionError) as error:
        raise RolloutError(f"not a rollout line: {error}; the line starts with {line[:60]!r}") from error
    return item


def encode_line(item: RolloutItem, timestamp: str) -> bytes:
    """The line of an item, without its newline, with the fields that are read.

    Args:
        item: what the line says.
        timestamp: when it was written, in UTC: ``2026-01-02T03:04:05.678Z``.
    """
    line_type = _LINE_OF.get(type(item), _EventLine)
    return msgspec.json.encode(line_type(timestamp, item))


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but white space. Such lines are skipped without being counted."""
    try:
        return not trim(line.decode())
    except UnicodeDecodeError:
        return False
