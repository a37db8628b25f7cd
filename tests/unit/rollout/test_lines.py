from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import line, session_meta, thread_id, token_count, turn_context, user_message

from codex_state.errors import RolloutError
from codex_state.rollout.lines import (
    Compacted,
    GitInfo,
    OtherEvent,
    ResponseItem,
    RolloutItem,
    SessionMeta,
    TokenCount,
    TokenUsage,
    TokenUsageInfo,
    ToolSpec,
    TurnContext,
    UserMessage,
    decode_line,
    encode_line,
    is_blank,
    trim,
)
from codex_state.rollout.policies import (
    DangerFullAccess,
    ExternalSandbox,
    Granular,
    GranularApproval,
    ReadOnly,
    SubAgentKind,
    TaggedSource,
    ThreadSpawn,
    WorkspaceWrite,
)

_words = st.text(max_size=12)
_optional = st.none() | _words
_ids = st.uuids().map(str)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)
_tools = st.builds(
    ToolSpec,
    name=_words,
    description=_words,
    input_schema=_json.map(lambda value: msgspec.Raw(json.dumps(value).encode())),
    defer_loading=st.none() | st.booleans(),
    expose_to_context=st.none() | st.booleans(),
    namespace=_optional,
)
_sources = (
    st.sampled_from(["cli", "vscode", "exec", "mcp", "unknown", "later"])
    | st.builds(TaggedSource, custom=_words)
    | st.builds(TaggedSource, subagent=st.sampled_from(["review", "compact"]) | st.builds(SubAgentKind, other=_words))
    | st.builds(
        TaggedSource,
        subagent=st.builds(
            SubAgentKind,
            thread_spawn=st.builds(
                ThreadSpawn, parent_thread_id=_ids, depth=st.integers(0, 9), agent_path=_optional, agent_role=_optional
            ),
        ),
    )
)
_metas = st.builds(
    SessionMeta,
    id=_ids,
    timestamp=_words,
    cwd=_words,
    originator=_words,
    cli_version=_words,
    source=_sources,
    model_provider=_optional,
    agent_nickname=_optional,
    agent_role=_optional,
    agent_path=_optional,
    dynamic_tools=st.none() | st.lists(_tools, max_size=2),
    memory_mode=_optional,
    git=st.none() | st.builds(GitInfo, commit_hash=_optional, branch=_optional, repository_url=_optional),
)
_contexts = st.builds(
    TurnContext,
    cwd=_words,
    approval_policy=st.sampled_from(["untrusted", "on-failure", "on-request", "never"])
    | st.builds(
        Granular,
        granular=st.builds(
            GranularApproval, sandbox_approval=st.booleans(), rules=st.booleans(), mcp_elicitations=st.booleans()
        ),
    ),
    sandbox_policy=st.builds(ReadOnly, network_access=st.booleans())
    | st.just(DangerFullAccess())
    | st.just(ExternalSandbox())
    | st.builds(WorkspaceWrite, writable_roots=st.lists(_words, max_size=2)),
    model=_words,
    effort=st.sampled_from([None, "none", "minimal", "low", "medium", "high", "xhigh"]),
    summary=st.sampled_from(["auto", "concise", "detailed", "none"]),
)
_int64 = st.integers(-(2**63), 2**63 - 1)
_usage = st.builds(
    TokenUsage,
    input_tokens=_int64,
    cached_input_tokens=_int64,
    output_tokens=_int64,
    reasoning_output_tokens=_int64,
    total_tokens=_int64,
)
items: st.SearchStrategy[RolloutItem] = st.one_of(
    _metas,
    _contexts,
    st.builds(Compacted, message=_words),
    st.builds(ResponseItem, type=_words),
    st.builds(
        TokenCount,
        info=st.none()
        | st.builds(
            TokenUsageInfo, total_token_usage=_usage, last_token_usage=_usage, model_context_window=st.none() | _int64
        ),
    ),
    st.builds(
        UserMessage,
        message=_words,
        images=st.none() | st.lists(_words, max_size=2),
        local_images=st.lists(_words, max_size=2),
    ),
    st.sampled_from([kind() for kind in OtherEvent.__subclasses__()]),
)


@given(items)
def test_what_was_written_is_read_back(item: RolloutItem) -> None:
    assert decode_line(encode_line(item, "2026-01-02T03:04:05.678Z")) == item


@given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_item_or_a_rollout_error(data: bytes) -> None:
    try:
        decode_line(data)
    except RolloutError:
        is_blank(data)


@given(items, st.data())
def test_a_damaged_line_is_an_item_or_a_rollout_error(item: RolloutItem, data: st.DataObject) -> None:
    whole = bytearray(encode_line(item, "t"))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(RolloutError):
        decode_line(bytes(whole))


@given(items, st.sampled_from(["", " ", "\t", " \r", "\r"]), st.sampled_from(["", "  ", "\r", "\n", "\r\n"]))
def test_json_white_space_round_a_line_does_not_matter(item: RolloutItem, before: str, after: str) -> None:
    assert decode_line(before.encode() + encode_line(item, "t") + after.encode()) == item


@given(items, items)
def test_two_values_on_one_line_are_an_error(first: RolloutItem, second: RolloutItem) -> None:
    with pytest.raises(RolloutError):
        decode_line(encode_line(first, "t") + encode_line(second, "t"))


@given(items, st.integers(min_value=1))
def test_a_truncated_line_is_an_error(item: RolloutItem, length: int) -> None:
    whole = encode_line(item, "t")
    with pytest.raises(RolloutError):
        decode_line(whole[: -(length % len(whole)) or -1])


def _event(payload: str) -> bytes:
    return f'{{"timestamp":"t","type":"event_msg","payload":{payload}}}'.encode()


_USAGE = '{"input_tokens":1,"cached_input_tokens":0,"output_tokens":1,"reasoning_output_tokens":0,"total_tokens":%s}'


def _tokens(total: str) -> bytes:
    usage = _USAGE % total
    return _event(f'{{"type":"token_count","info":{{"total_token_usage":{usage},"last_token_usage":{usage}}}}}')


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"null", id="a scalar"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"42", id="a number"),
        pytest.param(b'"s"', id="a text"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b"x", id="not json"),
        pytest.param(b"\0" * 64, id="NUL bytes"),
        pytest.param(b"\xef\xbb\xbf" + line(session_meta()), id="a byte order mark"),
        pytest.param(b'{"timestamp":"t","type":"event_msg"}', id="no payload"),
        pytest.param(
            b'{"timestamp":12,"type":"event_msg","payload":{"type":"user_message","message":"x"}}', id="number as time"
        ),
        pytest.param(b'{"type":"event_msg","payload":{"type":"user_message","message":"x"}}', id="no time"),
        pytest.param(b'{"timestamp":"t","type":"brand_new","payload":{}}', id="unknown type"),
        pytest.param(b'{"timestamp":"t","payload":{}}', id="no type"),
        pytest.param(_event('{"type":"brand_new_event","x":1}'), id="unknown event"),
        pytest.param(_event('{"message":"x"}'), id="event without type"),
        pytest.param(b'{"timestamp":"t","type":"response_item","payload":{"x":1}}', id="response item without type"),
        pytest.param(_event('{"type":"user_message","message":null}'), id="message null"),
        pytest.param(_event('{"type":"user_message","images":[]}'), id="message missing"),
        pytest.param(_event('{"type":"user_message","message":"x","local_images":null}'), id="local images null"),
        pytest.param(_event('{"type":"user_message","message":"x","images":[1]}'), id="image not a text"),
        pytest.param(_event(r'{"type":"user_message","message":"lone \ud800 surrogate"}'), id="lone surrogate"),
        pytest.param(_event(r'{"type":"agent_message","message":"\ud800"}'), id="lone surrogate in a skipped field"),
        pytest.param(_event('{"type":"agent_message","message":NaN}'), id="NaN"),
        pytest.param(_event('{"type":"agent_message","message":Infinity}'), id="Infinity"),
        pytest.param(_event('{"type":"agent_message","message":"\x01"}'), id="control character"),
        pytest.param(
            b'{"timestamp":"t","type":"event_msg","payload":{"type":"agent_message","message":"\xff"}}',
            id="not UTF-8 in a skipped field",
        ),
        pytest.param(_tokens("10000000000000000000"), id="tokens beyond 64 bits"),
        pytest.param(_tokens('"12"'), id="tokens as text"),
        pytest.param(_tokens("12.0"), id="tokens as float"),
        pytest.param(
            _event(f'{{"type":"token_count","info":{{"total_token_usage":{_USAGE % 7}}}}}'), id="no last usage"
        ),
        pytest.param(
            _event('{"type":"agent_message","x":' + "[" * 100_000 + "]" * 100_000 + "}"), id="nested too deeply"
        ),
    ],
)
def test_a_line_that_cannot_be_one_is_an_error(bad: bytes) -> None:
    with pytest.raises(RolloutError, match="not a rollout line"):
        decode_line(bad)


@pytest.mark.parametrize(
    ("good", "item"),
    [
        pytest.param(
            _event('{"type":"user_message","message":"first","message":"second"}'),
            user_message("second"),
            id="the last of a repeated key counts",
        ),
        pytest.param(
            b'{"timestamp":"t","type":"event_msg","type":"event_msg","payload":{"type":"user_message","message":"x"}}',
            user_message("x"),
            id="a repeated type",
        ),
        pytest.param(
            b'{"payload":{"message":"x","type":"user_message"},"type":"event_msg","timestamp":"t"}',
            user_message("x"),
            id="any order of keys",
        ),
        pytest.param(
            _event('{"type":"user_message","message":"x","client_id":1,"zzz":{}}'), user_message("x"), id="unknown keys"
        ),
        pytest.param(
            _event('{"type":"user_message","message":"x","images":null}'), user_message("x"), id="images null"
        ),
        pytest.param(
            _event('{"type":"token_count","info":null,"rate_limits":null}'), TokenCount(), id="tokens not known"
        ),
        pytest.param(_event('{"type":"token_count","total_tokens":7}'), TokenCount(), id="tokens of 2025"),
        pytest.param(_tokens("-5"), None, id="negative tokens"),
        pytest.param(
            b'{"timestamp":"t","type":"response_item","payload":{"type":"brand_new_item"}}',
            ResponseItem("brand_new_item"),
            id="unknown response item",
        ),
        pytest.param(_event('{"type":"turn_started","turn_id":"x"}'), None, id="later name of task_started"),
    ],
)
def test_what_the_original_accepts_is_accepted(good: bytes, item: RolloutItem | None) -> None:
    decoded = decode_line(good)
    assert item is None or decoded == item


def _meta(**changes: Any) -> bytes:
    payload = msgspec.to_builtins(session_meta()) | changes
    payload = {key: value for key, value in payload.items() if value is not ...}
    return json.dumps({"timestamp": "t", "type": "session_meta", "payload": payload}).encode()


@pytest.mark.parametrize("field", ["id", "timestamp", "cwd", "originator", "cli_version"])
def test_a_session_meta_needs_its_five_fields(field: str) -> None:
    decode_line(_meta())
    with pytest.raises(RolloutError):
        decode_line(_meta(**{field: ...}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "not-a-uuid"),
        ("git", {"commit_hash": 5}),
        ("dynamic_tools", [{"description": "x", "inputSchema": {}}]),
        ("dynamic_tools", [{"name": "x", "description": "y", "input_schema": {}}]),
        ("memory_mode", 5),
    ],
)
def test_a_wrong_field_makes_the_whole_session_meta_an_error(field: str, value: object) -> None:
    with pytest.raises(RolloutError):
        decode_line(_meta(**{field: value}))


def test_the_older_name_of_the_agent_role_is_read() -> None:
    item = decode_line(_meta(agent_type="reviewer"))
    assert isinstance(item, SessionMeta)
    assert item.agent_role == "reviewer"
    assert item == session_meta(agent_role="reviewer")


@pytest.mark.parametrize(
    ("fields", "deferred"),
    [
        ({}, False),
        ({"deferLoading": True}, True),
        ({"deferLoading": False}, False),
        ({"exposeToContext": False}, True),
        ({"exposeToContext": True}, False),
        ({"deferLoading": False, "exposeToContext": False}, False),
        ({"deferLoading": True, "exposeToContext": True}, True),
    ],
)
def test_a_tool_is_deferred_by_its_newer_field_else_by_the_opposite_of_the_older(
    fields: dict[str, bool], deferred: bool
) -> None:
    item = decode_line(_meta(dynamic_tools=[{"name": "x", "description": "y", "inputSchema": {"a": [1.0]}} | fields]))
    assert isinstance(item, SessionMeta)
    assert item.dynamic_tools is not None
    (tool,) = item.dynamic_tools
    assert tool.is_deferred is deferred
    assert tool.schema == {"a": [1.0]}


def test_a_tool_schema_with_a_number_that_no_database_can_give_back_is_an_error() -> None:
    bad = _meta(dynamic_tools=[{"name": "x", "description": "y", "inputSchema": 12345}]).replace(b"12345", b"1e999")
    with pytest.raises(RolloutError):
        decode_line(bad)


@pytest.mark.parametrize("blank", [b"", b"\n", b"  \t\r\n", "\u3000\u00a0\u2028\n".encode()])
def test_white_space_is_blank(blank: bytes) -> None:
    assert is_blank(blank)


@pytest.mark.parametrize("text", [b"x", b"\0", b"\xff", "\u200b".encode(), b"\x1c"])
def test_everything_else_is_not_blank(text: bytes) -> None:
    assert not is_blank(text)


def test_trimming_follows_unicodes_white_space() -> None:
    assert trim("\u00a0 \u3000 trimmed? \u200b\u3000") == "trimmed? \u200b"
    assert trim("\x1c x \x1f") == "\x1c x \x1f"
    assert trim(" \n") == ""


def test_fixed_items_have_their_known_lines() -> None:
    assert decode_line(line(turn_context())) == turn_context()
    assert line(user_message("hi")) == (
        b'{"type":"event_msg","timestamp":"2026-01-02T03:04:05.678Z","payload":{"type":"user_message","message":"hi"}}'
    )
    assert b'"total_tokens":7' in line(token_count(7))
    assert str(thread_id(1)).encode() in line(session_meta(1))
