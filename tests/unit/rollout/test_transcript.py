"""Reading the conversation out of rollouts of every version."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from codex_state import RolloutError, TranscriptItem, TranscriptKind, read_transcript
from codex_state.rollout.reading import open_rollout
from codex_state.rollout.transcript import items_of
from tests.original import NAMES, unpack

_INJECTED = re.compile(r"<environment_context>\n|<user_shell_command>|\(instructions\)|injected user text")
"""How what nobody asked begins, in the fixtures: each tells what the client put in."""

_IMAGE_MARK = re.compile(r"<image[^>]*>|</image>")


def line_of(kind: str, payload: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"timestamp": "2026-01-02T03:04:05.678Z", "type": kind, "payload": payload, **more}).encode()


def only(items: list[TranscriptItem]) -> TranscriptItem:
    (item,) = items
    return item


def rollouts(home: Path) -> Iterator[Path]:
    for path in sorted(home.rglob("rollout-*.jsonl*")):
        if path.is_file():
            yield path


def what_the_model_saw(path: Path) -> tuple[Counter[str], Counter[str]]:
    """What the user asked and the agent answered by the response items: another account of the same conversation."""
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    last = ""
    with open_rollout(str(path))[0] as lines:
        for line in lines:
            record = json.loads(line)
            payload = record["payload"]
            if record["type"] == "compacted" and last.endswith("to: (instructions)"):
                answered -= Counter([last])  # the summary, where a version writes it down as an answer
            if payload.get("type") == "message" and payload["role"] != "developer":
                last = "".join(part.get("text", "") for part in payload["content"]).strip()
                if payload["role"] == "assistant":
                    answered[last] += 1
                elif not _INJECTED.match(last):
                    own = last.rpartition("## My request for Codex:")[2]
                    asked[_IMAGE_MARK.sub("", own).strip()] += 1
            hint = payload.get("user_facing_hint") or (payload.get("item") or {}).get("user_facing_hint")
            if hint is not None and hint != "current changes":
                asked[hint] += 1  # a review goes to another thread's model
    del asked[""]
    return asked, answered


@pytest.mark.parametrize("name", [name for name in NAMES if name != "edge"])
def test_every_message_of_every_version_comes_out_exactly_once(name: str, tmp_path: Path) -> None:
    unpack(name, tmp_path)
    messages = 0
    for path in rollouts(tmp_path):
        items = list(read_transcript(path, taken_back=True))
        said = {
            kind: Counter(item.text.strip() for item in items if item.kind is kind)
            for kind in (TranscriptKind.USER, TranscriptKind.AGENT)
        }
        del said[TranscriptKind.USER]["(instructions)"]  # of a review
        del said[TranscriptKind.USER][""]  # nothing but images
        asked, answered = what_the_model_saw(path)
        assert said[TranscriptKind.USER] == asked, path.name
        assert said[TranscriptKind.AGENT] == answered, path.name
        messages += asked.total()
    assert messages > 80


@pytest.mark.parametrize("name", [name for name in NAMES if name != "edge"])
def test_every_command_of_every_version_has_one_output(name: str, tmp_path: Path) -> None:
    unpack(name, tmp_path)
    names: Counter[str | None] = Counter()
    for path in rollouts(tmp_path):
        items = list(read_transcript(path, taken_back=True))
        commands = [item for item in items if item.kind is TranscriptKind.COMMAND]
        outputs = [item for item in items if item.kind is TranscriptKind.OUTPUT]
        assert Counter(item.call_id for item in commands) == Counter(item.call_id for item in outputs)
        assert all(item.text for item in commands)
        names.update(item.name for item in commands)
    assert {"exec_command", "apply_patch"} <= names.keys()


def test_the_edge_cases_are_read_without_an_error(tmp_path: Path) -> None:
    unpack("edge", tmp_path)
    assert sum(1 for path in rollouts(tmp_path) for _ in read_transcript(path)) > 200


def test_an_item_says_what_and_when_and_where() -> None:
    line = line_of("event_msg", {"type": "user_message", "message": " hello\nthere "}, ordinal=7)
    assert only(items_of(line, 3)) == TranscriptItem(
        kind=TranscriptKind.USER,
        text="hello\nthere",
        at=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
        line=3,
        ordinal=7,
    )


def test_what_an_editor_put_before_the_question_is_left_out() -> None:
    message = "# Context from my IDE setup:\n\n## Active file: a.py\n\n## My request for Codex:\nfix it\n"
    assert only(items_of(line_of("event_msg", {"type": "user_message", "message": message}))).text == "fix it"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"cmd":"echo \\"a\\" | wc","workdir":"/tmp"}', 'echo "a" | wc'),
        ('{"command":["bash","-lc","ls -l"],"timeout_ms":1000}', "ls -l"),
        ('{"command":["git","log","--grep","two words"]}', "git log --grep 'two words'"),
        ('{"command":"make"}', "make"),
    ],
)
def test_a_command_reads_as_one_would_type_it_and_keeps_its_arguments(arguments: str, text: str) -> None:
    call = {"type": "function_call", "name": "shell", "arguments": arguments, "call_id": "c1"}
    item = only(items_of(line_of("response_item", call)))
    assert (item.kind, item.name, item.call_id) == (TranscriptKind.COMMAND, "shell", "c1")
    assert (item.text, item.arguments) == (text, arguments)


@pytest.mark.parametrize("arguments", ['{"ticket":"T-1"}', "{not json", "", "[1]"])
def test_arguments_that_are_no_command_line_stay_as_they_are(arguments: str) -> None:
    call = {"type": "function_call", "name": "lookup", "namespace": "tickets", "arguments": arguments}
    item = only(items_of(line_of("response_item", call)))
    assert (item.name, item.text, item.arguments) == ("tickets.lookup", arguments, None)


@pytest.mark.parametrize(
    ("payload", "name", "text"),
    [
        ({"type": "local_shell_call", "action": {"type": "exec", "command": ["ls", "a b"]}}, "local_shell", "ls 'a b'"),
        ({"type": "web_search_call", "action": {"type": "search", "query": "tides"}}, "web_search", "tides"),
        ({"type": "web_search_call", "action": {"type": "open_page", "url": "http://x"}}, "web_open_page", "http://x"),
        ({"type": "web_search_call"}, "web_search", ""),
        ({"type": "tool_search_call", "arguments": {"query": "mail"}}, "tool_search", '{"query": "mail"}'),
    ],
)
def test_the_models_own_tools_are_commands(payload: dict[str, Any], name: str, text: str) -> None:
    item = only(items_of(line_of("response_item", payload)))
    assert (item.kind, item.name, item.text) == (TranscriptKind.COMMAND, name, text)


@pytest.mark.parametrize(
    "output",
    [
        "done",
        '{"output":"done","metadata":{"exit_code":0}}',
        {"content": "done", "success": True},
        [{"type": "input_text", "text": "done"}],
    ],
)
def test_an_output_is_what_the_tool_gave_however_it_is_wrapped(output: object) -> None:
    item = only(items_of(line_of("response_item", {"type": "function_call_output", "call_id": "c", "output": output})))
    assert (item.kind, item.call_id, item.text) == (TranscriptKind.OUTPUT, "c", "done")


def test_an_output_that_is_json_of_its_own_stays_as_it_is() -> None:
    output = '{"output":"x","more":1}'
    assert only(items_of(line_of("response_item", {"type": "function_call_output", "output": output}))).text == output


def test_what_the_user_ran_is_a_command_with_its_output() -> None:
    result = "<result>\nExit code: 0\na\n</result>"
    text = f"<user_shell_command>\n<command>\necho a\n</command>\n{result}\n</user_shell_command>"
    content = [{"type": "input_text", "text": text}]
    command, output = items_of(line_of("response_item", {"type": "message", "role": "user", "content": content}))
    assert (command.kind, command.name, command.text) == (TranscriptKind.COMMAND, "user_shell", "echo a")
    assert (output.kind, output.name, output.text) == (TranscriptKind.OUTPUT, "user_shell", "Exit code: 0\na")


def test_images_are_named_and_never_dumped() -> None:
    data = "data:image/png;base64," + "iVBORw0KGgo" * 1454
    lines = [
        line_of("event_msg", {"type": "user_message", "message": "look", "images": [data], "local_images": ["/a.png"]}),
        line_of(
            "event_msg",
            {
                "type": "item_completed",
                "item": {
                    "type": "UserMessage",
                    "content": [
                        {"type": "image", "image_url": data},
                        {"type": "local_image", "path": "/a.png"},
                        {"type": "mention", "name": "x", "path": "/x"},
                        {"type": "text", "text": "look"},
                    ],
                },
            },
        ),
        line_of(
            "response_item",
            {
                "type": "function_call_output",
                "output": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": data},
                    {"type": "input_image", "image_url": "/a.png"},
                ],
            },
        ),
    ]
    for line in lines:
        item = only(items_of(line))
        assert item.text == "look"
        assert item.images == ("[image, 12 KB, png]", "[image: /a.png]")
    generated = line_of("response_item", {"type": "image_generation_call", "result": "iVBORw0KGgo" * 20})
    assert only(items_of(generated)).images == ("[image, 165 bytes, png]",)
    inside = line_of("response_item", {"type": "function_call_output", "output": f'{{"url":"{data}"}}'})
    assert only(items_of(inside)).text == '{"url":"[image, 12 KB, png]"}'


def test_only_reasoning_that_can_be_read_is_shown() -> None:
    said = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
    }
    assert only(items_of(line_of("response_item", said))).text == "a\n\nb"
    raw = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "raw"}]}
    assert only(items_of(line_of("response_item", raw))).text == "raw"
    assert items_of(line_of("response_item", {"type": "reasoning", "summary": [], "encrypted_content": "AAAA"})) == []


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("response_item", {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}),
        ("response_item", {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}),
        ("response_item", {"type": "message", "role": "developer", "content": []}),
        ("event_msg", {"type": "agent_reasoning", "text": "a"}),
        ("event_msg", {"type": "context_compacted"}),
        ("event_msg", {"type": "item_completed", "item": {"type": "CommandExecution", "command": ["ls"]}}),
        ("event_msg", {"type": "a_later_event", "message": "hello"}),
        ("session_meta", {"id": "x"}),
        ("a_later_line", {}),
    ],
)
def test_lines_that_repeat_another_or_say_nothing_add_nothing(kind: str, payload: dict[str, Any]) -> None:
    assert items_of(line_of(kind, payload)) == []


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("event_msg", {"type": "thread_rolled_back", "num_turns": 2}, "the last 2 turns were taken back"),
        ("event_msg", {"type": "turn_aborted", "reason": "interrupted"}, "the turn was stopped: interrupted"),
        ("event_msg", {"type": "error", "message": "no network"}, "no network"),
        ("event_msg", {"type": "entered_review_mode", "user_facing_hint": "main"}, "a review of main began"),
        (
            "event_msg",
            {"type": "item_completed", "item": {"type": "EnteredReviewMode", "user_facing_hint": "main"}},
            "a review of main began",
        ),
        ("event_msg", {"type": "thread_goal_updated", "goal": {"objective": "ship"}}, "goal: ship"),
        ("compacted", {"message": "so far"}, "the history so far was replaced by a summary\n\nso far"),
        ("response_item", {"type": "agent_message", "author": "/root", "content": [{"text": "go"}]}, "/root said: go"),
    ],
)
def test_what_happened_beside_is_noticed(kind: str, payload: dict[str, Any], text: str) -> None:
    item = only(items_of(line_of(kind, payload)))
    assert (item.kind, item.text) == (TranscriptKind.NOTICE, text)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"timestamp":1,"type":"event_msg","payload":{"type":"user_message","message":"a","images":5}}', "a"),
        (b'\0\0{"timestamp":"","type":"event_msg","payload":{"type":"user_message","message":"a"}}', "a"),
        (b'{"timestamp":"","type":"event_msg","payload":{"type":"user_message","message":"a\xff"}}', "a\ufffd"),
        (b'{"timestamp":"","type":"event_msg","payload":{"type":"user_message","message":"a\\ud83d"}}', "a?"),
        (b'{"type":"x","pay{"timestamp":"","type":"event_msg","payload":{"type":"user_message","message":"a"}}', "a"),
    ],
)
def test_of_a_broken_line_what_can_be_understood_is_read(line: bytes, text: str) -> None:
    assert only(items_of(line, 1)).text == text


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{",
        b'{"type":"event_msg"}',
        b'{"type":"event_msg","payload":5}',
        b"[" * 100_000,
        b'{"type":"event_msg","payload":' + b"[" * 100_000,
    ],
)
def test_a_line_of_which_nothing_can_be_understood_says_nothing(line: bytes) -> None:
    assert items_of(line) == []


def test_what_a_review_is_asked_is_said_once_though_it_is_written_twice(tmp_path: Path) -> None:
    asked = line_of("event_msg", {"type": "user_message", "message": "check the names"})
    other = line_of("response_item", {"type": "message", "role": "user", "content": []})
    rollout = tmp_path / "rollout.jsonl"
    rollout.write_bytes(b"\n".join([asked, asked, other, asked]))
    assert [item.line for item in read_transcript(rollout)] == [1, 4]


def test_a_rollout_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"can't read the rollout .*gone\.jsonl"):
        list(read_transcript(tmp_path / "gone.jsonl"))
    damaged = tmp_path / "rollout.jsonl.zst"
    damaged.write_bytes(b"\x28\xb5\x2f\xfd damaged")
    with pytest.raises(RolloutError, match="damaged compression"):
        list(read_transcript(damaged))


def test_items_are_json_both_ways() -> None:
    item = only(items_of(line_of("event_msg", {"type": "user_message", "message": "a", "images": ["x"]}), 1))
    assert msgspec.json.decode(msgspec.json.encode(item), type=TranscriptItem) == item
