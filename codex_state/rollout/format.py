"""The lines of a rollout, of every version, typed, with only the fields that are read.

A rollout is JSONL: one object per line with ``timestamp``, ``type`` and ``payload``. Nearly every line is decoded by
one strict decoder, which checks it as JSON and builds no more than what is read. What it refuses goes through
``decode_tolerantly``, which keeps whatever can be understood (law L11): a value that has another type than expected is
left out and the fields beside it stay; a kind of line that isn't known is told apart from a broken one; and a record is
found again behind padding, behind the rest of a line that was cut, or behind another record on the same line.
"""

from __future__ import annotations

import functools
import json
import operator
import re
import types
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from typing import Annotated, Any, ClassVar, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from codex_state.drafts import DEFAULT_SOURCE
from codex_state.errors import RolloutError

_NAME_FORM = re.compile(r"(\d{1,4})-(\d{1,2})-(\d{1,2})T(\d{1,2})-(\d{1,2})-(\d{1,2})", re.ASCII)
_RFC_3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?:[Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_EPOCH = date(1970, 1, 1).toordinal()


def parse_timestamp(text: str) -> int | None:
    """Whole epoch seconds, rounded down, of ``2026-01-02T03-04-05`` (UTC) or of an RFC 3339 time; ``None`` for others.

    ``datetime.fromisoformat`` isn't used, because it accepts much that the original refuses: dates without a zone,
    basic forms, ``24:00``.
    """
    match = _RFC_3339.fullmatch(text) or _NAME_FORM.fullmatch(text)
    if match is None:
        return None
    year, month, day, *clock = match.groups("0")
    hour, minute, second = map(int, clock[:3])
    sign, zone_hours, zone_minutes = clock[3:] or ("+", "0", "0")
    zone = 3600 * int(zone_hours) + 60 * int(zone_minutes)
    days = _days(year, month, day)
    if days is None or hour > 23 or minute > 59 or second > 60 or int(zone_hours) > 23 or int(zone_minutes) > 59:
        return None
    # A leap second counts as the second before it.
    local = 86_400 * days + 3600 * hour + 60 * minute + min(second, 59)
    return local + zone if sign == "-" else local - zone


@lru_cache(maxsize=64)
def _days(year: str, month: str, day: str) -> int | None:
    """How many days after the epoch's it is."""
    try:
        return date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None


_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

_BLANK = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

_UUID = re.compile(
    r"(?:urn:uuid:)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
    r"|\{([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\}"
    r"|([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})",
    re.IGNORECASE | re.ASCII,
)


def trim(text: str) -> str:
    """Remove surrounding white space as Unicode defines it. ``str.strip`` would also remove separators like U+001C."""
    return text.strip(_BLANK)


def canonical_uuid(text: str) -> str | None:
    """The lower-case hyphenated form of a UUID in any of its usual spellings; ``None`` when it isn't one.

    The spellings are the hyphenated one, 32 hexadecimal digits, ``{…}`` and ``urn:uuid:…``. ``uuid.UUID`` would accept
    more, for example hyphens anywhere.
    """
    match = _UUID.fullmatch(text)
    if match is None:
        return None
    spelled = match[1] or match[2] or "-".join(match.group(3, 4, 5, 6, 7))
    return spelled.lower()


class GitInfo(Struct, omit_defaults=True):
    """Where the thread's repository stood when the thread started."""

    commit_hash: str | None = None
    branch: str | None = None
    repository_url: str | None = None


class ToolSpec(Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A tool that was defined for the thread, or a namespace of tools."""

    name: str
    description: str = ""
    input_schema: Raw = Raw(b"null")
    """Any JSON value, undecoded."""
    defer_loading: bool | None = None
    expose_to_context: bool | None = None
    """What older rollouts say instead of ``defer_loading``, and its opposite."""
    namespace: str | None = None
    type: str | None = None
    """``function``, ``namespace``, or nothing in older rollouts."""
    tools: list[ToolSpec] | None = None
    """The tools of a namespace."""

    def __post_init__(self) -> None:
        if nested_too_deeply(self.schema):  # which also refuses a number beyond a float's range
            raise ValueError("inputSchema is nested too deeply")

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

    def flattened(self) -> Iterator[ToolSpec]:
        """The tool itself, or the tools of a namespace, each with the namespace's name."""
        if self.type != "namespace":
            yield self
            return
        for tool in self.tools or ():
            yield msgspec.structs.replace(tool, namespace=tool.namespace or self.name)


class HistoryBase(Struct):
    """What a rollout goes on from: the history of a thread up to an ordinal."""

    thread_id: str
    end_ordinal_exclusive: _Int64 | None = None


class SessionMeta(Struct, kw_only=True, omit_defaults=True):
    """How a thread started. A fork's rollout may also hold its parent's."""

    id: str = ""
    """The thread's id; any spelling of a UUID is accepted and made the lower-case hyphenated one."""
    timestamp: str = ""
    cwd: str = ""
    originator: str | None = None
    cli_version: str = ""
    source: str | dict[str, Any] | None = None
    """Who started it; see ``source_text``."""
    model_provider: str | None = None
    agent_nickname: str | None = None
    agent_role: str | None = None
    agent_type: str | UnsetType | None = UNSET
    """The name of ``agent_role`` in older rollouts."""
    agent_path: str | None = None
    dynamic_tools: list[ToolSpec] | None = None
    memory_mode: str | None = None
    git: GitInfo | None = None
    thread_source: str | None = None
    parent_thread_id: str | None = None
    forked_from_id: str | None = None
    history_base: HistoryBase | None = None

    def __post_init__(self) -> None:
        canonical = canonical_uuid(self.id)
        if canonical is None:
            raise ValueError("id is not a UUID")
        self.id = canonical
        if not isinstance(self.agent_type, UnsetType):
            self.agent_role, self.agent_type = self.agent_type, UNSET

    @property
    def parent(self) -> str | None:
        """The thread that spawned this one, if it is a sub-agent's and says whose."""
        named = None if self.parent_thread_id is None else canonical_uuid(self.parent_thread_id)
        return named or spawned_by(self.source)

    @property
    def flat_tools(self) -> list[ToolSpec]:
        """Its tools with those of its namespaces, in their order."""
        return [tool for spec in self.dynamic_tools or () for tool in spec.flattened()]


class TurnContext(Struct, kw_only=True, omit_defaults=True, gc=False):
    """The settings of one turn. What isn't there stays as it was, except the effort."""

    cwd: str = ""
    approval_policy: str | dict[str, Any] | None = None
    sandbox_policy: Raw | UnsetType = UNSET
    permission_profile: Raw | UnsetType = UNSET
    """What later versions say in place of ``sandbox_policy``, or beside it."""
    model: str | None = None
    effort: str | UnsetType | None = None
    """How much the model thinks. A turn that names none has none; ``UNSET`` is one that can't be read."""


class ThreadSettings(Struct, kw_only=True, omit_defaults=True, frozen=True, gc=False):
    """The settings of a thread from here on, read like those of a turn."""

    cwd: str = ""
    approval_policy: str | dict[str, Any] | None = None
    sandbox_policy: Raw | UnsetType = UNSET
    permission_profile: Raw | UnsetType = UNSET
    model: str | None = None
    reasoning_effort: str | UnsetType | None = None


class Compacted(Struct, gc=False):
    """The history up to here was replaced by a summary."""

    message: str = ""


class ResponseItem(Struct, gc=False):
    """Something that went to or came from the model."""

    type: str = ""


class TokenUsage(Struct, kw_only=True, omit_defaults=True, gc=False):
    """Counted tokens."""

    total_tokens: _Int64
    input_tokens: _Int64 = 0
    cached_input_tokens: _Int64 = 0
    """Of the input."""
    output_tokens: _Int64 = 0
    reasoning_output_tokens: _Int64 = 0
    """Of the output."""


class TokenUsageInfo(Struct, kw_only=True, omit_defaults=True, gc=False):
    """The token usage of a thread."""

    total_token_usage: TokenUsage
    """Since the thread's history began, also where another thread began it."""
    last_token_usage: Raw | UnsetType = UNSET
    """Of the latest response alone, undecoded."""


class TokenCount(Struct, tag="token_count", gc=False):
    """How many tokens were used so far."""

    info: TokenUsageInfo | None = None


class TurnStarted(Struct, tag="turn_started", omit_defaults=True, gc=False):
    """A turn began."""

    turn_id: str | None = None


class TaskStarted(TurnStarted, tag="task_started"):
    """The same by its older name, which is still what is written."""


class UserMessage(Struct, tag="user_message", omit_defaults=True, gc=False):
    """What the user asked, up to version 0.150."""

    message: str = ""
    images: list[Raw] | None = None
    local_images: list[Raw] | None = None


class CompletedItem(Struct, omit_defaults=True, frozen=True, gc=False):
    """One finished item of a conversation."""

    type: str = ""
    content: Raw | UnsetType = UNSET
    """The parts of a message, undecoded."""


class ItemCompleted(Struct, tag="item_completed", gc=False):
    """An item was finished; ``UserMessage`` is what the user asked, in paginated rollouts."""

    item: CompletedItem = CompletedItem()


class Goal(Struct, frozen=True, gc=False):
    """What a thread is to reach."""

    objective: str = ""


class GoalUpdated(Struct, tag="thread_goal_updated", gc=False):
    """A thread was given a goal."""

    goal: Goal = Goal()


class NameUpdated(Struct, tag="thread_name_updated", omit_defaults=True, gc=False):
    """A user named the thread."""

    thread_id: str | None = None
    thread_name: str | None = None


class SettingsApplied(Struct, tag="thread_settings_applied", gc=False):
    """A thread's settings were changed, or noted."""

    thread_settings: ThreadSettings = ThreadSettings()


class OtherEvent(Struct, gc=False):
    """An event that says nothing about its thread's row. There is one subclass for each type of event."""

    type: ClassVar[str]


# Events of all versions from 2025 on, by their names: what isn't here is counted as unknown.
_OTHER_EVENTS = """
    agent_message agent_message_content_delta agent_message_delta agent_reasoning agent_reasoning_delta
    agent_reasoning_raw_content agent_reasoning_raw_content_delta agent_reasoning_section_break
    apply_patch_approval_request background_event collab_agent_interaction_begin collab_agent_interaction_end
    collab_agent_spawn_begin collab_agent_spawn_end collab_close_begin collab_close_end collab_resume_begin
    collab_resume_end collab_waiting_begin collab_waiting_end context_compacted conversation_path deprecation_notice
    dynamic_tool_call_request dynamic_tool_call_response elicitation_request entered_review_mode error
    exec_approval_request exec_command_begin exec_command_end exec_command_output_delta exited_review_mode
    get_history_entry_response guardian_assessment guardian_warning hook_completed hook_started image_generation_begin
    image_generation_end item_started list_custom_prompts_response list_remote_skills_response
    list_skills_response mcp_list_tools_response mcp_startup_complete mcp_startup_update mcp_tool_call_begin
    mcp_tool_call_end mcp_tool_call_progress model_reroute model_verification patch_apply_begin patch_apply_end
    patch_apply_updated plan_delta plan_update raw_response_item realtime_conversation_closed
    realtime_conversation_list_voices_response realtime_conversation_realtime realtime_conversation_sdp
    realtime_conversation_started reasoning_content_delta reasoning_raw_content_delta remote_skill_downloaded
    request_permissions request_user_input safety_buffering session_configured shutdown_complete
    skills_update_available stream_error sub_agent_activity task_complete terminal_interaction
    thread_queue_changed thread_rolled_back turn_aborted turn_complete turn_diff turn_moderation_metadata
    undo_completed undo_started view_image_tool_call warning web_search_begin web_search_end
""".split()  # noqa: SIM905 - a hundred lines of literals would hide the module

_other_event_types: list[type[Struct]] = [
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
_EVENTS: tuple[type[Struct], ...] = (
    TokenCount,
    TurnStarted,
    TaskStarted,
    UserMessage,
    ItemCompleted,
    GoalUpdated,
    NameUpdated,
    SettingsApplied,
)
_Event: Any = functools.reduce(operator.or_, [*_EVENTS, *_other_event_types])

RolloutItem = (
    SessionMeta
    | TurnContext
    | Compacted
    | ResponseItem
    | TokenCount
    | TurnStarted
    | UserMessage
    | ItemCompleted
    | GoalUpdated
    | NameUpdated
    | SettingsApplied
    | OtherEvent
)


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


class UnreadLine(Struct, gc=False):
    """A kind of line that is written in great numbers and isn't read: decoded as such, so that it costs nothing."""

    timestamp: str
    payload: ClassVar[None] = None


class _WorldState(UnreadLine, tag="world_state", gc=False):
    pass


class _TokenUsageRecord(UnreadLine, tag="token_usage_record", gc=False):
    pass


_PAYLOADS: dict[str, type[Struct]] = {
    "session_meta": SessionMeta,
    "response_item": ResponseItem,
    "compacted": Compacted,
    "turn_context": TurnContext,
}
_EVENT_TYPES: dict[str, type[Struct]] = {
    str(event.__struct_config__.tag): event for event in (*_EVENTS, *_other_event_types)
}
_LINE_OF: dict[type, type] = {
    SessionMeta: _SessionMetaLine,
    ResponseItem: _ResponseItemLine,
    Compacted: _CompactedLine,
    TurnContext: _TurnContextLine,
}

decode_strictly = msgspec.json.Decoder(
    _SessionMetaLine
    | _ResponseItemLine
    | _CompactedLine
    | _TurnContextLine
    | _EventLine
    | _WorldState
    | _TokenUsageRecord
).decode
"""Decode a line to a value whose ``payload`` is the item, ``None`` for one that isn't read.

It is the inner loop's: it raises what msgspec raises (``ValueError``, ``RecursionError``), and doesn't see bytes that
aren't UTF-8 in fields that it skips.
"""


class Line(NamedTuple):
    """One record of a rollout."""

    timestamp: str
    """When it was written; empty when it isn't known."""
    payload: Any


class Salvaged(NamedTuple):
    """What could be understood of a line that the strict decoder refuses."""

    lines: list[Line]
    broken: bool
    """Whether something of it couldn't, so that the line counts as a parse error."""
    unknown: int
    """How many of its records are of a kind that isn't known."""


_MAX_ATTEMPTS = 32
"""How many beginnings that turn out to be no record are tried on one line, so that a hostile one costs no more than
some readings."""

_RECORD = re.compile(
    r'\{\s*"(?:(?:timestamp|ordinal|payload|metadata)"\s*:'
    r'|type"\s*:\s*"(?:session_meta|response_item|compacted|turn_context|event_msg)")'
)
"""How a record may begin. What a record holds begins with another ``type``, or with anything else."""


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_scan = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
_PADDING = f"{_BLANK}\0\ufeff"
_PADDED = re.compile(f"[{re.escape(_PADDING)}]+")


def decode_tolerantly(line: bytes) -> Salvaged:
    """Read of a line whatever can be understood. A blank line, or one of nothing but padding, holds nothing."""
    try:
        text = line.decode()
        broken = False
    except UnicodeDecodeError:
        # What is whole beside the broken bytes is found; a text that holds them isn't taken.
        text = line.decode(errors="surrogateescape")
        broken = True
    lines: list[Line] = []
    unknown = 0
    for value in records_of(text):
        salvaged = _NOTHING if value is None else _record(value)
        lines += salvaged.lines
        unknown += salvaged.unknown
        broken = broken or salvaged.broken
    return Salvaged(lines, broken, unknown)


def records_of(text: str) -> Iterator[dict[str, Any] | None]:
    """The records on a line that isn't a whole one; ``None`` in place of what is none, or can't be read."""
    attempts = 0
    position, end = _skip_padding(text, 0), len(text.rstrip(_PADDING))
    while position < end:
        try:
            value, after = _scan(text, position)
        except (ValueError, RecursionError):
            value, after = None, position
        if _is_record(value):
            yield value
            position = _skip_padding(text, after)
            continue
        yield None
        attempts += 1
        if attempts == _MAX_ATTEMPTS:
            return
        # A text may just be what lies between the quote of a cut record and the first one of a whole record.
        following = _RECORD.search(text, after if isinstance(value, dict) else position + 1)
        position = end if following is None else following.start()


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str) or "payload" not in value:
        return False
    payload = value["payload"]
    return value["type"] != "event_msg" or (isinstance(payload, dict) and isinstance(payload.get("type"), str))


def _skip_padding(text: str, position: int) -> int:
    match = _PADDED.match(text, position)
    return position if match is None else match.end()


_NOTHING = Salvaged([], broken=True, unknown=0)


def _record(value: dict[str, Any]) -> Salvaged:
    kind, payload, timestamp = value["type"], value["payload"], value.get("timestamp")
    known = _PAYLOADS.get(kind)
    if known is None and kind == "event_msg":
        known = _EVENT_TYPES.get(payload["type"])
    if known is None:
        return Salvaged([], broken=False, unknown=1)
    tolerant = TolerantReader()
    item = tolerant.read(known, payload)
    if item is UNSET:
        return _NOTHING
    if isinstance(item, SessionMeta) and item.source is None and payload.get("source") is not None:
        item.source = UNKNOWN_SOURCE
    broken = bool(tolerant.left_out) or not isinstance(timestamp, str)
    return Salvaged([Line(timestamp if isinstance(timestamp, str) else "", item)], broken, 0)


class TolerantReader:
    """Makes a JSON value into a type, leaving out what doesn't fit."""

    def __init__(self) -> None:
        self.left_out = 0

    def read(self, wanted: Any, value: Any) -> Any:
        """The value as ``wanted``; ``UNSET`` when nothing of it fits."""
        try:
            return msgspec.json.decode(json.dumps(value, allow_nan=False), type=wanted)
        except (ValueError, RecursionError):
            pass
        for option in _options(wanted):
            if isinstance(value, dict) and isinstance(option, type) and issubclass(option, Struct):
                return self._struct(option, value)
            if isinstance(value, list) and get_origin(option) is list:
                (element,) = get_args(option)
                return [item for each in value if (item := self.read(element, each)) is not UNSET]
        self.left_out += 1
        return UNSET

    def _struct(self, wanted: type[Struct], value: dict[str, Any]) -> Any:
        fields = {}
        for field in msgspec.structs.fields(wanted):
            if field.encode_name in value:
                read = self.read(field.type, value[field.encode_name])
                if read is not UNSET or UnsetType in _options(field.type):
                    fields[field.name] = read
        try:
            return wanted(**fields)
        except (TypeError, ValueError):
            # It lacks what makes it what it is.
            self.left_out += 1
            return UNSET


def _options(wanted: Any) -> tuple[Any, ...]:
    if get_origin(wanted) in (Union, types.UnionType):
        return tuple(option for each in get_args(wanted) for option in _options(each))
    return _options(get_args(wanted)[0]) if get_origin(wanted) is Annotated else (wanted,)


def decode_line(line: bytes) -> RolloutItem:
    """The item on one line of a rollout, which must be a whole one of a known kind.

    Raises:
        RolloutError: the line isn't UTF-8, isn't exactly one JSON value, or isn't a line of a rollout that is read.
    """
    try:
        if not line.isascii():
            line.decode()
        item: RolloutItem | None = decode_strictly(line).payload
    except (ValueError, RecursionError) as error:
        raise RolloutError(f"not a rollout line: {error}; the line starts with {line[:60]!r}") from error
    if item is None:
        raise RolloutError(f"not a rollout line that is read; the line starts with {line[:60]!r}")
    return item


def encode_line(item: RolloutItem, timestamp: str) -> bytes:
    """The line of an item, without its newline, with the fields that are read.

    Args:
        item: what the line says.
        timestamp: when it was written, in UTC: ``2026-01-02T03:04:05.678Z``.
    """
    line_type = _LINE_OF.get(type(item), _EventLine)
    return msgspec.json.encode(line_type(timestamp, item))


class _Ordinal(Struct, gc=False):
    ordinal: _Int64 | None = None


_ordinal = msgspec.json.Decoder(_Ordinal).decode


def ordinal_of(line: bytes) -> int | None:
    """The place of a line in its thread's history, if it says so."""
    try:
        return _ordinal(line).ordinal
    except (ValueError, RecursionError):
        return None


# How a row spells what a rollout says: the bare text where it is one, else compact JSON.


UNKNOWN_SOURCE = "unknown"
"""The source of a thread whose rollout names one that isn't understood: it is never taken for interactive (law L11)."""

_PLAIN_SOURCES = frozenset({"cli", "vscode", "exec", "mcp", UNKNOWN_SOURCE})

_SPAWN_FIELDS = ("parent_thread_id", "depth", "agent_path", "agent_nickname", "agent_role")

_MAX_NESTING = 100
"""How deeply nested a value may be that is kept, so that every later reader can read it."""


def nested_too_deeply(value: Any) -> bool:
    """Whether a JSON value holds arrays and objects within each other to a depth that nobody means."""
    level = [value]
    for _ in range(_MAX_NESTING):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def source_text(source: str | dict[str, Any] | None) -> str:
    """Who started a thread, as a row stores it.

    ``cli``, ``vscode``, ``exec``, ``mcp``; ``unknown`` for another bare word; compact JSON for one with details, as
    sub-agents have. That of a spawned thread has its fields in the original's order, so that it can be looked for.
    """
    if source is None:
        return DEFAULT_SOURCE
    if isinstance(source, str):
        return source if source in _PLAIN_SOURCES else UNKNOWN_SOURCE
    if nested_too_deeply(source):
        return UNKNOWN_SOURCE
    spawn = _spawn(source)
    if not spawn:
        return compact_json(source)
    named = {"agent_path": None, "agent_nickname": None, "agent_role": spawn.get("agent_type")}
    whole = named | {name: value for name, value in spawn.items() if name != "agent_type"}
    if (parent := spawned_by(source)) is not None:
        whole["parent_thread_id"] = parent
    ordered = {name: whole[name] for name in _SPAWN_FIELDS if name in whole}
    return compact_json({"subagent": {"thread_spawn": ordered | whole}})


def _spawn(source: str | dict[str, Any] | None) -> dict[str, Any]:
    """What the source of a sub-agent's thread says of who spawned it; empty for any other."""
    subagent = source.get("subagent") if isinstance(source, dict) else None
    spawn = subagent.get("thread_spawn") if isinstance(subagent, dict) else None
    return spawn if isinstance(spawn, dict) else {}


def spawned_by(source: str | dict[str, Any] | None) -> str | None:
    """The thread that spawned a sub-agent's, by its source."""
    parent = _spawn(source).get("parent_thread_id")
    return canonical_uuid(parent) if isinstance(parent, str) else None


def spawned_agent_path(source: str | dict[str, Any] | None) -> str | None:
    """The agent path inside the source of a spawned thread."""
    path = _spawn(source).get("agent_path")
    return path if isinstance(path, str) else None


def approval_text(policy: str | dict[str, Any]) -> str:
    """When actions ask the user: the bare word, or compact JSON; ``unknown`` for JSON that is nested too deeply."""
    if isinstance(policy, str):
        return policy
    if nested_too_deeply(policy):
        return "unknown"
    granular = policy.get("granular")
    if isinstance(granular, dict):
        policy = {"granular": {"skill_approval": False, "request_permissions": False} | granular}
    return compact_json(policy)


def compact_json(value: Any) -> str:
    """JSON without needless white space, its keys in their order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@functools.lru_cache(maxsize=256)
def sandbox_text(policy: bytes) -> str | None:
    """What the sandbox of a thread is, as compact JSON of what the rollout says; ``None`` for a ``null``.

    A policy is a legacy one (``{"type":"read-only"}``) or a permission profile (``{"type":"managed",…}``). It is stored
    as it is said, whether or not it is understood: nothing is made safer than it was (law L11).
    """
    try:
        text = msgspec.json.format(policy, indent=-1).decode()
    except RecursionError:
        text = policy.decode()
    return None if text == "null" else text
