from __future__ import annotations

import json
import string
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rollout_files import (
    WRITTEN_AT,
    completed_message,
    event,
    goal_updated,
    history_base,
    line,
    name_updated,
    numbered,
    raw,
    record,
    session_meta,
    settings_applied,
    thread_id,
    token_count,
    turn_context,
    user_message,
)

from codex_state.errors import RolloutError
from codex_state.rollout import format as format_module
from codex_state.rollout.format import (
    Compacted,
    CompletedItem,
    GitInfo,
    Goal,
    GoalUpdated,
    HistoryBase,
    ItemCompleted,
    Line,
    NameUpdated,
    OtherEvent,
    ResponseItem,
    RolloutItem,
    Salvaged,
    SessionMeta,
    SettingsApplied,
    ThreadSettings,
    TokenCount,
    ToolSpec,
    TurnContext,
    UserMessage,
    approval_text,
    canonical_uuid,
    decode_line,
    decode_strictly,
    decode_tolerantly,
    encode_line,
    ordinal_of,
    sandbox_text,
    source_text,
    trim,
)

PARENT = str(thread_id(9))

_words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_optional = st.none() | _words
_ids = st.uuids().map(str)
_int64 = st.integers(-(2**63), 2**63 - 1)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)
_raw = _json.map(raw)
_objects = st.dictionaries(_words, _json, max_size=2)
_tools: st.SearchStrategy[ToolSpec] = st.builds(
    ToolSpec,
    name=_words,
    description=_words,
    input_schema=_raw,
    defer_loading=st.none() | st.booleans(),
    expose_to_context=st.none() | st.booleans(),
    namespace=_optional,
    type=st.sampled_from([None, "function"]),
)
_namespaces = st.builds(ToolSpec, name=_words, type=st.just("namespace"), tools=st.lists(_tools, max_size=2))
_metas = st.builds(
    SessionMeta,
    id=_ids,
    timestamp=_words,
    cwd=_words,
    originator=_optional,
    cli_version=_words,
    source=st.sampled_from([None, "cli", "vscode", "exec", "mcp", "unknown", "later"]) | _objects,
    model_provider=_optional,
    agent_nickname=_optional,
    agent_role=_optional,
    agent_path=_optional,
    dynamic_tools=st.none() | st.lists(_tools | _namespaces, max_size=2),
    memory_mode=_optional,
    git=st.none() | st.builds(GitInfo, commit_hash=_optional, branch=_optional, repository_url=_optional),
    thread_source=_optional,
    parent_thread_id=_optional,
    forked_from_id=_optional,
    history_base=st.none() | st.builds(HistoryBase, _ids, st.none() | _int64),
)
_settings: dict[str, st.SearchStrategy[Any]] = {
    "cwd": _words,
    "approval_policy": _optional | _objects,
    "sandbox_policy": st.just(msgspec.UNSET) | _raw,
    "permission_profile": st.just(msgspec.UNSET) | _raw,
    "model": _optional,
}
items: st.SearchStrategy[RolloutItem] = st.one_of(
    _metas,
    st.builds(TurnContext, effort=_optional, **_settings),
    st.builds(Compacted, message=_words),
    st.builds(ResponseItem, type=_words),
    st.none().map(TokenCount) | _int64.map(token_count),
    st.builds(
        UserMessage,
        message=_words,
        images=st.none() | st.lists(_raw, max_size=2),
        local_images=st.none() | st.lists(_raw, max_size=2),
    ),
    st.builds(ItemCompleted, st.builds(CompletedItem, _words, _raw)),
    st.builds(GoalUpdated, st.builds(Goal, _words)),
    st.builds(NameUpdated, _optional, _optional),
    st.builds(SettingsApplied, st.builds(ThreadSettings, reasoning_effort=_optional, **_settings)),
    st.sampled_from([kind() for kind in OtherEvent.__subclasses__()]),
)


def _said(item: RolloutItem) -> Any:
    """What an item says, however the values that it keeps undecoded are spelled."""
    return json.loads(encode_line(item, ""))


class TestOneLine:
    @given(items)
    def test_what_was_written_is_read_back(self, item: RolloutItem) -> None:
        assert decode_line(encode_line(item, WRITTEN_AT)) == item

    @given(st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_are_an_item_or_a_rollout_error(self, data: bytes) -> None:
        with suppress(RolloutError):
            decode_line(data)

    @given(items, st.data())
    def test_a_damaged_line_is_an_item_or_a_rollout_error(self, item: RolloutItem, data: st.DataObject) -> None:
        with suppress(RolloutError):
            decode_line(_damaged(item, data))

    @given(items, st.sampled_from(["", " ", "\t", " \r", "\r"]), st.sampled_from(["", "  ", "\r", "\n", "\r\n"]))
    def test_json_white_space_round_a_line_does_not_matter(self, item: RolloutItem, before: str, after: str) -> None:
        assert decode_line(before.encode() + encode_line(item, "t") + after.encode()) == item

    @given(items, items)
    def test_two_values_on_one_line_are_an_error(self, first: RolloutItem, second: RolloutItem) -> None:
        with pytest.raises(RolloutError):
            decode_line(encode_line(first, "t") + encode_line(second, "t"))

    @given(items, st.integers(min_value=1))
    def test_a_truncated_line_is_an_error(self, item: RolloutItem, length: int) -> None:
        whole = encode_line(item, "t")
        with pytest.raises(RolloutError):
            decode_line(whole[: -(length % len(whole)) or -1])

    def test_fixed_items_have_their_known_lines(self) -> None:
        assert line(user_message("hi")) == (
            b'{"type":"event_msg","timestamp":"2026-01-02T03:04:05.678Z",'
            b'"payload":{"type":"user_message","message":"hi"}}'
        )
        assert b'"total_tokens":7' in line(token_count(7))
        assert str(thread_id(1)).encode() in line(session_meta(1))
        assert decode_line(line(turn_context())) == turn_context()


def _damaged(item: RolloutItem, data: st.DataObject) -> bytes:
    whole = bytearray(encode_line(item, "t"))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    return bytes(whole)


def _event(payload: str) -> bytes:
    return f'{{"timestamp":"t","type":"event_msg","payload":{payload}}}'.encode()


def _tokens(total: str) -> bytes:
    return _event(f'{{"type":"token_count","info":{{"total_token_usage":{{"total_tokens":{total}}}}}}}')


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="nothing"),
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
        pytest.param(record("brand_new"), id="unknown type"),
        pytest.param(record("world_state"), id="a type that isn't read"),
        pytest.param(b'{"timestamp":"t","payload":{}}', id="no type"),
        pytest.param(event("brand_new_event", x=1), id="unknown event"),
        pytest.param(_event('{"message":"x"}'), id="event without type"),
        pytest.param(_event('{"type":"user_message","message":null}'), id="message null"),
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
        pytest.param(_tokens("12.5"), id="tokens as float"),
        pytest.param(
            _event('{"type":"agent_message","x":' + "[" * 100_000 + "]" * 100_000 + "}"), id="nested too deeply"
        ),
        pytest.param(record("session_meta", {"cwd": "/x"}), id="session_meta without id"),
        pytest.param(record("session_meta", {"id": "not-a-uuid"}), id="session_meta without a readable id"),
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
        pytest.param(event("user_message"), user_message(""), id="message missing"),
        pytest.param(event("token_count", info=None, rate_limits=None), TokenCount(), id="tokens not known"),
        pytest.param(event("token_count", total_tokens=7), TokenCount(), id="tokens of 2025"),
        pytest.param(_tokens("-5"), token_count(-5), id="negative tokens"),
        pytest.param(record("response_item", {"type": "brand_new"}), ResponseItem("brand_new"), id="unknown item"),
        pytest.param(record("session_meta", {"id": PARENT}), SessionMeta(id=PARENT), id="nothing but an id"),
        pytest.param(numbered(user_message("x"), start=7)[0], user_message("x"), id="an ordinal"),
        pytest.param(record("turn_context", {}, metadata={"a": 1}), TurnContext(), id="metadata"),
    ],
)
def test_what_any_version_writes_is_read(good: bytes, item: RolloutItem) -> None:
    assert decode_line(good) == item


@pytest.mark.parametrize("name", ["task_complete", "agent_reasoning", "thread_rolled_back"])
def test_an_event_that_says_nothing_of_its_thread_is_known_all_the_same(name: str) -> None:
    item = decode_line(event(name, turn_id="x"))
    assert isinstance(item, OtherEvent)
    assert item.type == name


def _meta(**changes: Any) -> bytes:
    return record("session_meta", msgspec.to_builtins(session_meta()) | changes)


class TestSessionMeta:
    def test_the_older_name_of_the_agent_role_is_read(self) -> None:
        assert decode_line(_meta(agent_type="reviewer")) == session_meta(agent_role="reviewer")

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
        self, fields: dict[str, bool], deferred: bool
    ) -> None:
        tool = {"name": "x", "description": "y", "inputSchema": {"a": [1.0]}} | fields
        item = decode_line(_meta(dynamic_tools=[tool]))
        assert isinstance(item, SessionMeta)
        (tool_read,) = item.flat_tools
        assert tool_read.is_deferred is deferred
        assert tool_read.schema == {"a": [1.0]}

    def test_the_tools_of_a_namespace_bear_its_name_and_keep_their_order(self) -> None:
        tools = [
            {"type": "function", "name": "first", "inputSchema": {}},
            {
                "type": "namespace",
                "name": "space",
                "tools": [
                    {"type": "function", "name": "second", "inputSchema": {}},
                    {"type": "function", "name": "third", "inputSchema": {}, "namespace": "own"},
                ],
            },
            {"type": "namespace", "name": "empty"},
            {"name": "fourth", "inputSchema": {}},
        ]
        item = decode_line(_meta(dynamic_tools=tools))
        assert isinstance(item, SessionMeta)
        assert [(tool.name, tool.namespace) for tool in item.flat_tools] == [
            ("first", None),
            ("second", "space"),
            ("third", "own"),
            ("fourth", None),
        ]

    @pytest.mark.parametrize(
        "odd",
        [
            5,
            None,
            {},
            {"description": "it has no name"},
            {"name": 5},
            {"name": "x", "inputSchema": "1e999"},
            {"name": "x", "inputSchema": "too deep"},
        ],
        ids=str,
    )
    def test_one_odd_tool_loses_nothing_else(self, odd: Any) -> None:
        good = [{"name": name, "inputSchema": {"a": 1}} for name in ("before", "after")]
        whole = _meta(dynamic_tools=[good[0], odd, good[1]], cwd="/here")
        whole = whole.replace(b'"1e999"', b"1e999").replace(b'"too deep"', b'{"a":' * 300 + b"1" + b"}" * 300)
        salvaged = decode_tolerantly(whole)
        (found,) = salvaged.lines
        assert salvaged.broken
        assert isinstance(found.payload, SessionMeta)
        assert found.payload.cwd == "/here"
        names = [tool.name for tool in found.payload.flat_tools]
        assert [name for name in names if name != "x"] == ["before", "after"]

    @pytest.mark.parametrize(
        ("changes", "parent"),
        [
            ({}, None),
            ({"parent_thread_id": PARENT.upper()}, PARENT),
            ({"parent_thread_id": "nobody"}, None),
            ({"source": {"subagent": {"thread_spawn": {"parent_thread_id": PARENT}}}}, PARENT),
            ({"source": {"subagent": {"thread_spawn": {"parent_thread_id": 5}}}}, None),
            ({"source": {"subagent": "review"}}, None),
            (
                {
                    "parent_thread_id": str(thread_id(8)),
                    "source": {"subagent": {"thread_spawn": {"parent_thread_id": PARENT}}},
                },
                str(thread_id(8)),
            ),
        ],
    )
    def test_a_sub_agents_parent_is_the_one_that_it_names_else_the_one_in_its_source(
        self, changes: dict[str, Any], parent: str | None
    ) -> None:
        assert session_meta(**changes).parent == parent


_FULL: list[tuple[str, RolloutItem]] = [
    (
        "session_meta",
        session_meta(
            agent_nickname="Bob",
            agent_role="reviewer",
            agent_path="/root/bob",
            dynamic_tools=[ToolSpec(name="t", description="d", input_schema=raw({"a": 1}))],
            memory_mode="disabled",
            git=GitInfo("c", "b", "u"),
            thread_source="user",
            parent_thread_id=PARENT,
            forked_from_id=PARENT,
            history_base=history_base(9, 5),
        ),
    ),
    ("turn_context", turn_context(permission_profile={"type": "managed"}, effort="high")),
    ("compacted", Compacted("so far")),
    ("response_item", ResponseItem("message")),
    ("event_msg", token_count(7)),
    ("event_msg", user_message("hi", images=["a"], local_images=["b"])),
    ("event_msg", completed_message("hi")),
    ("event_msg", goal_updated("finish")),
    ("event_msg", name_updated("mine", 1)),
    (
        "event_msg",
        settings_applied(
            cwd="/x",
            approval_policy="never",
            sandbox_policy={"type": "read-only"},
            permission_profile={"type": "managed"},
            model="m",
            reasoning_effort="high",
        ),
    ),
]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all fields in nested objects, also of those that hold further ones."""
    if not isinstance(value, dict):
        return []
    return [found for name, inner in value.items() for found in [(*path, name), *_leaves(inner, (*path, name))]]


def _put(value: Any, path: tuple[str, ...], new: Any) -> Any:
    return value | {path[0]: new if len(path) == 1 else _put(value[path[0]], path[1:], new)}


def _without(value: Any, path: tuple[str, ...]) -> Any:
    """The value without what lies at the path."""
    if not isinstance(value, dict) or path[0] not in value:
        return value
    rest = {name: inner for name, inner in value.items() if name != path[0]}
    return rest if len(path) == 1 else rest | {path[0]: _without(value[path[0]], path[1:])}


_MAKE_IT_WHAT_IT_IS = [
    ("id",),
    ("history_base", "thread_id"),
    ("info", "total_token_usage"),
    ("info", "total_token_usage", "total_tokens"),
]
_FIELDS = [
    pytest.param(kind, item, path, id=f"{type(item).__name__}.{'.'.join(path)}")
    for kind, item in _FULL
    for path in _leaves(_said(item)["payload"])
    if path not in _MAKE_IT_WHAT_IT_IS
    and not (kind == "event_msg" and path == ("type",))
    and not any(part in ("sandbox_policy", "permission_profile") for part in path[:-1])
]


class TestOneFieldIsOdd:
    """Law L11: what can't be understood never costs what is known beside it."""

    @pytest.mark.parametrize(("kind", "item", "path"), _FIELDS)
    @settings(max_examples=25)
    @given(odd=_json)
    @example(odd=5)
    @example(odd="text")
    @example(odd=[])
    @example(odd={})
    @example(odd=None)
    def test_the_others_are_read(self, kind: str, item: RolloutItem, path: tuple[str, ...], odd: Any) -> None:
        payload = _said(item)["payload"]
        changed = record(kind, _put(payload, path, odd))
        salvaged = decode_tolerantly(changed)
        (found,) = salvaged.lines
        assert salvaged.unknown == 0
        assert found.timestamp == WRITTEN_AT
        assert type(found.payload) is type(item)
        assert _without(_said(found.payload)["payload"], path) == _without(payload, path)
        assert salvaged.broken is not _is_strict(changed)

    @pytest.mark.parametrize("timestamp", [None, 5, [], {}])
    def test_a_record_without_a_readable_time_is_used(self, timestamp: Any) -> None:
        salvaged = decode_tolerantly(record("event_msg", {"type": "user_message", "message": "x"}, timestamp=timestamp))
        assert salvaged == Salvaged([Line("", user_message("x"))], broken=True, unknown=0)

    def test_a_number_of_tokens_that_cannot_be_read_leaves_the_count_out(self) -> None:
        assert decode_tolerantly(_tokens('"12"')).lines[0].payload == TokenCount()

    @pytest.mark.parametrize(
        "text", [rb'"\ud800"', rb'"a \udfff b"', rb'"\ud800\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc3"']
    )
    def test_a_text_that_is_not_unicode_is_left_out_alone(self, text: bytes) -> None:
        whole = record("turn_context", {"cwd": "/x", "model": "MODEL", "skipped": "SKIPPED"})
        salvaged = decode_tolerantly(whole.replace(b'"MODEL"', text))
        assert salvaged.lines == [(WRITTEN_AT, TurnContext(cwd="/x"))]
        assert salvaged.broken
        salvaged = decode_tolerantly(whole.replace(b'"SKIPPED"', text))
        assert salvaged.lines == [(WRITTEN_AT, TurnContext(cwd="/x", model="MODEL"))]

    @pytest.mark.parametrize("source", [5, True, [], ["cli"], 0, False])
    def test_a_source_that_cannot_be_read_is_never_taken_for_interactive(self, source: Any) -> None:
        """Law L11: it is not that of a rollout which names none."""
        (found,) = decode_tolerantly(_meta(source=source)).lines
        assert found.payload == session_meta(source="unknown")


def _is_strict(data: bytes) -> bool:
    try:
        decode_strictly(data)
    except ValueError:
        return False
    return True


class TestUnknownKinds:
    """Law L11: what isn't known is counted apart from what is broken."""

    @pytest.mark.parametrize(
        "data",
        [
            record("brand_new", {"a": 1}),
            record("brand_new", {"type": "user_message", "message": "x"}),
            b'{"timestamp":"t","type":"brand_new","payload":null}',
            b'{"timestamp":5,"type":"brand_new","payload":[]}',
            event("brand_new_event", a=1),
            event("user_message_v2", message="x"),
            record("world_state", {"full": True}),
            record("token_usage_record", {"usage": 5}),
        ],
    )
    def test_they_are_no_broken_lines(self, data: bytes) -> None:
        assert decode_tolerantly(data) == Salvaged([], broken=False, unknown=1)

    @pytest.mark.parametrize(
        "data",
        [
            b"{}",
            b'{"timestamp":"t","payload":{}}',
            b'{"timestamp":"t","type":5,"payload":{}}',
            b'{"timestamp":"t","type":"event_msg"}',
            b'{"timestamp":"t","type":"event_msg","payload":{"message":"x"}}',
            b'{"timestamp":"t","type":"event_msg","payload":{"type":5}}',
            b'{"timestamp":"t","type":"event_msg","payload":[]}',
            b'{"timestamp":"t","type":"turn_context","payload":[]}',
            b'{"timestamp":"t","type":"session_meta","payload":{"id":"nobody"}}',
            b"null",
            b"5",
            b"[]",
            b"x",
        ],
    )
    def test_what_is_no_record_is_broken(self, data: bytes) -> None:
        assert decode_tolerantly(data) == Salvaged([], broken=True, unknown=0)

    @pytest.mark.parametrize(
        "blank", [b"", b"\n", b"  \t\r\n", "\u3000\u00a0\u2028\n".encode(), b"\0" * 64 + b"\n", b"\xef\xbb\xbf\n"]
    )
    def test_white_space_and_padding_are_nothing_at_all(self, blank: bytes) -> None:
        assert decode_tolerantly(blank) == Salvaged([], broken=False, unknown=0)


_padding = st.sampled_from(
    [b"", b"\0", b"\0" * 500, b" ", b"\r", b"\t \0", b"\xef\xbb\xbf", b"\0\xef\xbb\xbf\0", "\u3000".encode()]
)
_broken_in_two = st.tuples(items, st.integers(min_value=0)).map(lambda drawn: _broken(*drawn))
_cut = _broken_in_two.map(lambda parts: parts[0])
_tail = _broken_in_two.map(lambda parts: parts[1])
_no_utf8 = st.lists(st.integers(0x80, 0xFF), min_size=1, max_size=4).map(bytes).filter(lambda data: not _is_utf8(data))
_damage = _cut | _tail | _no_utf8 | st.sampled_from([b"}", b"{", b"]", b'"', b"\\", b",", b"x", b"5 ", b"{}", b"null"])


def _broken(item: RolloutItem, position: int) -> tuple[bytes, bytes]:
    whole = encode_line(item, "t")
    at = 1 + position % (len(whole) - 1)
    return whole[:at], whole[at:]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class TestNeighbours:
    """Law L11: a record whose neighbour is damaged is still used."""

    @given(st.lists(st.tuples(_padding | _damage, items), max_size=5), _padding | _damage)
    def test_every_whole_record_is_found_in_order_whatever_stands_beside_it(
        self, parts: list[tuple[bytes, RolloutItem]], last: bytes
    ) -> None:
        whole = b"".join(before + encode_line(item, "t") for before, item in parts) + last
        salvaged = decode_tolerantly(whole)
        assert [_said(found.payload) for found in salvaged.lines] == [_said(item) for _, item in parts]
        assert all(found.timestamp == "t" for found in salvaged.lines)
        assert salvaged.unknown == 0

    @given(st.lists(st.tuples(_padding, items), max_size=5), _padding)
    def test_padding_and_several_records_on_one_line_are_no_fault(
        self, parts: list[tuple[bytes, RolloutItem]], last: bytes
    ) -> None:
        whole = b"".join(before + encode_line(item, "t") for before, item in parts) + last
        assert not decode_tolerantly(whole).broken

    @given(_damage, items)
    def test_damage_beside_a_record_is_counted(self, damage: bytes, item: RolloutItem) -> None:
        assert decode_tolerantly(damage + encode_line(item, "t")).broken

    def test_a_file_with_the_line_ends_of_old_systems_is_read_whole(self) -> None:
        whole = b"\r".join([line(session_meta()), *(line(user_message(str(number))) for number in range(200))])
        salvaged = decode_tolerantly(whole)
        assert len(salvaged.lines) == 201
        assert not salvaged.broken

    def test_what_a_cut_record_holds_does_not_hide_the_next_one(self) -> None:
        parts = [{"type": "message", "content": [{"type": "input_text", "text": "x"}]}] * 500
        cut = record("compacted", {"message": "", "replacement_history": parts})[:-9]
        salvaged = decode_tolerantly(cut + line(user_message("hi")))
        assert salvaged == Salvaged([Line(WRITTEN_AT, user_message("hi"))], broken=True, unknown=0)

    @given(st.binary(max_size=200) | st.lists(_padding | _damage).map(b"".join))
    def test_no_bytes_make_it_fail(self, data: bytes) -> None:
        decode_tolerantly(data)

    @given(items, st.data())
    def test_no_damage_makes_it_fail(self, item: RolloutItem, data: st.DataObject) -> None:
        decode_tolerantly(_damaged(item, data))

    @pytest.mark.parametrize(
        "piece",
        [
            b"{",
            b"[",
            b'"',
            b"1 ",
            b"{}",
            b'{"timestamp":',
            b'{"timestamp":"',
            b'{"timestamp":1}',
            b'{"timestamp":[1],',
            b'{"timestamp":"t","type":"event_msg","payload":',
            b'{"timestamp":"t","type":"event_msg","payload":{}}',
            b"{" + b" " * 1000,
            b"\xff{",
        ],
    )
    def test_a_hostile_line_costs_a_bounded_number_of_attempts(
        self, monkeypatch: pytest.MonkeyPatch, piece: bytes
    ) -> None:
        """Law L10: each attempt reads the line at most once."""
        attempts = 0
        scan: Callable[[str, int], tuple[Any, int]] = format_module._scan

        def counted(text: str, position: int) -> tuple[Any, int]:
            nonlocal attempts
            attempts += 1
            return scan(text, position)

        monkeypatch.setattr(format_module, "_scan", counted)
        salvaged = decode_tolerantly(piece * (1_000_000 // len(piece)))
        assert salvaged == Salvaged([], broken=True, unknown=0)
        assert attempts <= format_module._MAX_ATTEMPTS


class TestOrdinals:
    def test_a_line_of_a_paginated_rollout_says_its_place(self) -> None:
        assert [ordinal_of(each) for each in numbered(session_meta(), user_message(), start=4)] == [4, 5]

    @pytest.mark.parametrize(
        "data", [line(user_message()), b'{"ordinal":"4"}', b'{"ordinal":null}', b"x", b"[]", b'{"ordinal":4}{}', b""]
    )
    def test_other_lines_say_none(self, data: bytes) -> None:
        assert ordinal_of(data) is None


class TestSources:
    @pytest.mark.parametrize(
        ("source", "stored"),
        [
            (None, "vscode"),
            ("cli", "cli"),
            ("vscode", "vscode"),
            ("exec", "exec"),
            ("mcp", "mcp"),
            ("unknown", "unknown"),
            ("appServer", "unknown"),
            ("CLI", "unknown"),
            ("", "unknown"),
            ({"subagent": "review"}, {"subagent": "review"}),
            ({"subagent": "brand_new"}, {"subagent": "brand_new"}),
            ({"subagent": {"other": "guardian"}}, {"subagent": {"other": "guardian"}}),
            ({"custom": "atlas"}, {"custom": "atlas"}),
            ({"internal": "memory_consolidation"}, {"internal": "memory_consolidation"}),
            ({"brand_new": [1, None]}, {"brand_new": [1, None]}),
            ({}, {}),
            (
                {"subagent": {"thread_spawn": {"parent_thread_id": PARENT, "depth": 2, "agent_type": "worker"}}},
                {
                    "subagent": {
                        "thread_spawn": {
                            "agent_path": None,
                            "agent_nickname": None,
                            "agent_role": "worker",
                            "parent_thread_id": PARENT,
                            "depth": 2,
                        }
                    }
                },
            ),
        ],
        ids=str,
    )
    def test_a_source_is_stored_as_its_word_or_as_json(self, source: Any, stored: object) -> None:
        item = decode_line(_meta(source=source))
        assert isinstance(item, SessionMeta)
        text = source_text(item.source)
        assert (text if isinstance(stored, str) else json.loads(text)) == stored

    @pytest.mark.parametrize("spelled", [PARENT, PARENT.upper(), thread_id(9).hex])
    def test_that_of_a_spawned_thread_has_one_spelling(self, spelled: str) -> None:
        """So that it can be looked for by its text."""
        spawn = {"agent_role": "worker", "later": 1, "depth": 2, "parent_thread_id": spelled}
        assert source_text({"subagent": {"thread_spawn": spawn}}) == (
            f'{{"subagent":{{"thread_spawn":{{"parent_thread_id":"{PARENT}","depth":2,"agent_path":null,'
            '"agent_nickname":null,"agent_role":"worker","later":1}}}'
        )

    @given(_words.filter(lambda word: word not in ("cli", "vscode", "exec", "mcp")) | _objects)
    def test_one_that_is_not_known_is_never_taken_for_interactive(self, source: Any) -> None:
        """Law L11."""
        assert source_text(source) == "unknown" or source_text(source).startswith("{")


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "stored"),
        [
            (b'{"type": "read-only"}', '{"type":"read-only"}'),
            (b'{"type":"workspace-write","writable_roots":["/a b"]}', None),
            (b'{"type":"brand-new", "x": [1, 2]}', '{"type":"brand-new","x":[1,2]}'),
            (b'{"mode":"workspace-write"}', None),
            (b'"read-only"', None),
            (b'{"type":"managed","file_system":{"type":"restricted","entries":[]}}', None),
            (b'{"limit":1e999}', None),
            (b'{"a":' * 5000 + b"1" + b"}" * 5000, None),
            ('{"root":"/é"}'.encode(), None),
        ],
    )
    def test_a_sandbox_is_stored_as_the_rollout_says_it_whether_or_not_it_is_understood(
        self, policy: bytes, stored: str | None
    ) -> None:
        """Law L11: nothing is made to look safer than it was."""
        assert sandbox_text(policy) == (policy.decode() if stored is None else stored)

    def test_null_is_no_sandbox(self) -> None:
        assert sandbox_text(b"null") is None

    @given(_json.filter(lambda value: value is not None))
    def test_any_sandbox_keeps_its_meaning(self, policy: Any) -> None:
        text = sandbox_text(json.dumps(policy).encode())
        assert text is not None
        assert json.loads(text) == policy

    @pytest.mark.parametrize("word", ["untrusted", "on-failure", "on-request", "never", "unless-trusted", "later", ""])
    def test_an_approval_policy_is_stored_as_its_word_whatever_that_is(self, word: str) -> None:
        assert approval_text(word) == word

    def test_a_granular_approval_policy_is_stored_with_its_defaults(self) -> None:
        policy = {"granular": {"sandbox_approval": True, "rules": False, "mcp_elicitations": True}}
        assert json.loads(approval_text(policy)) == {
            "granular": {
                "skill_approval": False,
                "request_permissions": False,
                "sandbox_approval": True,
                "rules": False,
                "mcp_elicitations": True,
            }
        }

    @given(_objects)
    def test_any_other_approval_policy_keeps_its_meaning(self, policy: dict[str, Any]) -> None:
        assert json.loads(approval_text(policy)) == policy

    @pytest.mark.parametrize("depth", [100, 500, 980])
    def test_one_that_is_nested_beyond_sense_is_unknown(self, depth: int) -> None:
        nested: dict[str, Any] = {}
        for _ in range(depth):
            nested = {"a": nested}
        assert approval_text(nested) == source_text(nested) == "unknown"


class TestSpelling:
    @given(st.uuids())
    def test_every_spelling_of_a_uuid_is_made_the_lower_case_hyphenated_one(self, value: UUID) -> None:
        text = str(value)
        for spelling in (text, text.upper(), value.hex, value.hex.upper(), f"{{{text}}}", value.urn):
            assert canonical_uuid(spelling) == text

    @given(st.text(string.hexdigits + "-{}urnid:", max_size=50))
    def test_what_is_not_a_uuid_has_no_canonical_form(self, text: str) -> None:
        canonical = canonical_uuid(text)
        if canonical is not None:
            assert UUID(text) == UUID(canonical)

    @pytest.mark.parametrize(
        "text", ["", "0" * 31, "0" * 33, "{" + "0" * 32 + "}", "00000000-0000-0000-00000000000000-00"]
    )
    def test_a_lax_spelling_of_a_uuid_is_refused(self, text: str) -> None:
        assert canonical_uuid(text) is None

    def test_trimming_follows_unicodes_white_space(self) -> None:
        assert trim("\u00a0 \u3000 trimmed? \u200b\u3000") == "trimmed? \u200b"
        assert trim("\x1c x \x1f") == "\x1c x \x1f"
        assert trim(" \n") == ""
