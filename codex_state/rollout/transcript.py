"""What was said in a thread, and done: one model for the lines of every version's rollouts.

A conversation is in a rollout more than once: as events for whoever watches (``event_msg``), and as what went to and
came from the model (``response_item``), among it much that nobody said: instructions, ``<environment_context>``, the
prompt and the answer of a compaction. Of each thing one kind of line is read, the same in every version, so that it
comes out once whether one line is looked at or all of them:

- **user** and **agent**: the events ``user_message`` and ``agent_message``, and in paginated rollouts the
  ``item_completed`` that stand in their place. Messages among the response items repeat them, or are injected.
- **command** and **output**: the response items, which every version writes for every tool. The ``item_completed`` of
  commands and tools repeat them. What the user ran by ``!command`` is only in a ``<user_shell_command>`` message.
- **reasoning**: the response item's summary; its events repeat it. What is encrypted is nobody's to read.
- **notice**: what happened beside: compaction, a turn that was stopped, errors, reviews, goals, names.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from os import PathLike, fspath
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct

from codex_state.errors import InvalidInputError, RolloutError
from codex_state.rollout.fold import user_text
from codex_state.rollout.format import TolerantReader, parse_timestamp, records_of
from codex_state.rollout.reading import open_rollout, unreadable


class TranscriptKind(StrEnum):
    """What an item of a transcript is."""

    USER = "user"
    """What the user asked."""
    AGENT = "agent"
    """What the agent answered."""
    REASONING = "reasoning"
    """The summary of what the agent thought."""
    COMMAND = "command"
    """A command that was run, or another tool that was called."""
    OUTPUT = "output"
    """What a command or a tool gave."""
    NOTICE = "notice"
    """What else happened: a compaction, an interruption, an error, a review."""


class TranscriptItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message, command, output or notice of a thread."""

    kind: TranscriptKind
    text: str = ""
    """What was said. Of a command, the command line or the patch; the arguments as they are where it is neither."""
    at: datetime | None = None
    """When it was written down, in UTC."""
    name: str | None = None
    """The tool's name, with its namespace before a dot; of a notice, the name of what happened."""
    call_id: str | None = None
    """What joins an output to its command."""
    arguments: str | None = None
    """All arguments of a call, where the text is only one of them: JSON as the model wrote it."""
    images: tuple[str, ...] = ()
    """The images that belong to it, each named: ``[image, 12 KB, png]``, ``[image: /tmp/shot.png]``."""
    line: int | None = None
    """Which line of its file says so, from 1."""
    ordinal: int | None = None
    """Its place in the thread's history, in paginated rollouts."""

    @property
    def is_command_line(self) -> bool:
        """Whether its text is a command line for a shell, not what another tool was given."""
        return self.kind is TranscriptKind.COMMAND and (
            self.arguments is not None or self.name in (LOCAL_SHELL, USER_SHELL)
        )

    @property
    def is_by_user(self) -> bool:
        """Whether the user said or ran it."""
        return self.kind is TranscriptKind.USER or self.name == USER_SHELL


USER_SHELL = "user_shell"
"""The name of a command that the user ran, not the agent."""

LOCAL_SHELL = "local_shell"
"""The name of the model's own shell, whose calls have no other."""


def items_of(line: bytes, number: int | None = None) -> list[TranscriptItem]:
    """What one line of a rollout adds to its transcript: nearly always one item or none.

    A line that can't be read says nothing; of one that can in part, the rest is read (law L11).

    Args:
        line: the line, with or without its end.
        number: which line of its file it is, from 1.
    """
    try:
        if not line.isascii():
            line.decode()
        record = _record(line)
        reader = _reader_of(record.type, record.payload)
        if reader is None:
            return []
        said = list(reader.read(msgspec.json.decode(record.payload, type=reader.type)))
    except (ValueError, RecursionError):
        return list(_items_of_broken(line, number))
    return [_placed(item, record.timestamp, number, record.ordinal) for item in said]


def read_transcript(
    path: str | PathLike[str], *, before: int | None = None, taken_back: bool = False
) -> Iterator[TranscriptItem]:
    """The items of one rollout, plain or compressed, in their order. No more than a line is held at a time.

    What a thread goes on from, in other files, isn't looked for: see ``read_conversation``.

    Args:
        path: the rollout.
        before: only up to the line with this ordinal, which isn't read itself.
        taken_back: also the turns that were rolled back later. Else only the notice remains that they were.

    Raises:
        RolloutError: the file can't be read, or only to where it is damaged.
    """
    if not isinstance(path, str | PathLike):
        raise InvalidInputError(f"expected the path of a rollout, not {path!r}")
    left_out = [] if taken_back else turns_of(path, before=before).taken_back
    previous: TranscriptItem | None = None
    for number, line in numbered_lines(path):
        if left_out and any(number in lines for lines in left_out):
            continue
        for item in items_of(line, number):
            if _is_from(item, before):
                return
            if previous is None or not _is_written_twice(previous, item):
                yield item
            previous = item


class Turns(NamedTuple):
    """The turns of a rollout that the user asked for, by the lines on which they begin, from 1."""

    begin: list[int]
    """Those that are left."""
    taken_back: list[range]
    """Those that were rolled back, each range with all lines up to the one that says so. They may overlap."""


def turns_of(path: str | PathLike[str], *, before: int | None = None) -> Turns:
    """Find the turns of a rollout. What the user adds while one runs belongs to it, where a rollout tells turns apart.

    Of a damaged file, those before the damage are found.

    Args:
        path: the rollout.
        before: as for ``read_transcript``.
    """
    turns = Turns([], [])
    with suppress(RolloutError):
        _find_turns(numbered_lines(path), before, turns)
    return turns


def _find_turns(lines: Iterator[tuple[int, bytes]], before: int | None, turns: Turns) -> None:
    begin, taken_back = turns
    tells_apart, is_new = False, True
    for number, line in lines:
        # Nothing but a tag is spelled like one: within a text, its quotes are escaped.
        if b'"task_started"' in line or b'"turn_started"' in line:
            tells_apart = is_new = True
        elif b'"thread_rolled_back"' in line:
            if begin and (count := _count_of_rolled_back(line)):
                taken_back.append(range(begin[-count:][0], number))
                del begin[-count:]
                is_new = True
        elif b'"user_message"' in line or b'"UserMessage"' in line:
            for item in items_of(line, number):
                if _is_from(item, before):
                    return
                if is_new or not tells_apart:
                    begin.append(number)
                is_new = False


def numbered_lines(path: str | PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The lines of a rollout, from 1.

    Raises:
        RolloutError: the file can't be read, or only to where it is damaged.
    """
    file, _ = open_rollout(fspath(path))
    with file:
        try:
            yield from enumerate(file, start=1)
        except OSError as error:
            raise unreadable(fspath(path), error) from error


def _is_from(item: TranscriptItem, ordinal: int | None) -> bool:
    """Whether an item is at an ordinal or after it. Lines that tell none are counted."""
    if ordinal is None:
        return False
    return ordinal <= ((item.line or 0) - 1 if item.ordinal is None else item.ordinal)


def _count_of_rolled_back(line: bytes) -> int:
    try:
        return max(_rolled_back(line).payload.num_turns, 0)
    except (ValueError, RecursionError):
        return 0


def _is_written_twice(before: TranscriptItem, item: TranscriptItem) -> bool:
    """Reviews up to 0.147 write what they are asked in two lines, one directly below the other."""
    return item.kind is before.kind is TranscriptKind.USER and (item.text, item.images, item.line) == (
        before.text,
        before.images,
        before.line and before.line + 1,
    )


class _Record(Struct, gc=False):
    type: str
    payload: Raw
    timestamp: str = ""
    ordinal: int | None = None


class _Tag(Struct, frozen=True, gc=False):
    type: str = ""


class _ItemTag(Struct, gc=False):
    item: _Tag = _Tag()


_record = msgspec.json.Decoder(_Record).decode
_tag = msgspec.json.Decoder(_Tag).decode
_item_tag = msgspec.json.Decoder(_ItemTag).decode


class _Reader(NamedTuple):
    type: type[Struct]
    read: Callable[[Any], Iterable[TranscriptItem]]


def _reader_of(line_type: str, payload: Raw | bytes) -> _Reader | None:
    """How a payload is read; ``None`` for one that adds nothing to a transcript."""
    readers = _READERS.get(line_type)
    if readers is None:
        return None
    kind = "" if line_type == "compacted" else _tag(payload).type
    if kind == "item_completed":
        return _ITEM_READERS.get(_item_tag(payload).item.type)
    return readers.get(kind)


def _items_of_broken(line: bytes, number: int | None) -> Iterator[TranscriptItem]:
    """The items of a line that the strict way refuses. Bytes that are no text are shown as such in the text."""
    for value in records_of(line.decode(errors="replace")):
        if value is None:
            continue
        try:
            # Half a surrogate pair is JSON, and no text.
            payload = json.dumps(value["payload"], ensure_ascii=False).encode(errors="replace")
            reader = _reader_of(value["type"], payload)
        except (ValueError, RecursionError):
            continue
        if reader is None:
            continue
        read = TolerantReader().read(reader.type, json.loads(payload))
        timestamp, ordinal = value.get("timestamp"), value.get("ordinal")
        for item in () if read is UNSET else reader.read(read):
            yield _placed(
                item,
                timestamp if isinstance(timestamp, str) else "",
                number,
                ordinal if type(ordinal) is int else None,
            )


def _placed(item: TranscriptItem, timestamp: str, line: int | None, ordinal: int | None) -> TranscriptItem:
    return msgspec.structs.replace(item, at=_moment(timestamp), line=line, ordinal=ordinal)


def _moment(timestamp: str) -> datetime | None:
    seconds = parse_timestamp(timestamp)
    if seconds is None:
        return None
    try:
        return datetime.fromisoformat(timestamp).astimezone(UTC)
    except (ValueError, OverflowError):  # a leap second, or a form of the original's own
        return datetime.fromtimestamp(seconds, UTC)


# What the lines hold, and what is read of them.


class _Part(Struct, gc=False):
    """A part of a message, or of what a tool gave."""

    type: str = ""
    text: str = ""
    image_url: str = ""
    path: str = ""

    @property
    def image(self) -> str | None:
        return _image(self.image_url or self.path) if self.type in _IMAGE_PARTS else None


_IMAGE_PARTS = frozenset({"image", "local_image", "input_image", "inputImage"})


class _UserMessage(Struct, gc=False):
    message: str = ""
    images: list[str] | None = None
    local_images: list[str] | None = None

    def items(self) -> Iterator[TranscriptItem]:
        yield from _message(TranscriptKind.USER, self.message, [*(self.images or ()), *(self.local_images or ())])


class _AgentMessage(Struct, gc=False):
    message: str = ""

    def items(self) -> Iterator[TranscriptItem]:
        yield from _message(TranscriptKind.AGENT, self.message)


class _CompletedMessage(Struct, frozen=True, gc=False):
    content: list[_Part] | None = None
    text: str = ""
    """Of a plan."""


class _CompletedItem(Struct, gc=False):
    item: _CompletedMessage = _CompletedMessage()

    def user_items(self) -> Iterator[TranscriptItem]:
        parts = self.item.content or ()
        text = "".join(part.text for part in parts if part.type == "text")
        images = [part.image_url or part.path for part in parts if part.image is not None]
        yield from _message(TranscriptKind.USER, text, images)

    def agent_items(self) -> Iterator[TranscriptItem]:
        text = "".join(part.text for part in self.item.content or ())
        yield from _message(TranscriptKind.AGENT, text or self.item.text)


def _message(kind: TranscriptKind, text: str, images: Iterable[str] = ()) -> Iterator[TranscriptItem]:
    text = _without_images(user_text(text) if kind is TranscriptKind.USER else text)
    named = tuple(_image(image) for image in images)
    if named or text.strip():
        yield TranscriptItem(kind=kind, text=text, images=named)


class _Summary(Struct, gc=False):
    text: str = ""


class _Reasoning(Struct, gc=False):
    summary: list[_Summary] | None = None
    content: list[_Summary] | None = None

    def items(self) -> Iterator[TranscriptItem]:
        text = "\n\n".join(part.text for part in self.summary or self.content or ())
        yield from _message(TranscriptKind.REASONING, text)


class _FunctionCall(Struct, gc=False):
    """A call of any tool: a function, one with free text as its input, or a search for tools."""

    name: str = "tool_search"
    namespace: str | None = None
    arguments: str | dict[str, Any] = ""
    input: str = ""
    call_id: str | None = None

    def items(self) -> Iterator[TranscriptItem]:
        given = self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)
        given = _without_images(given or self.input)
        text = _command_line(given)
        yield TranscriptItem(
            kind=TranscriptKind.COMMAND,
            text=given if text is None else text,
            name=f"{self.namespace}.{self.name}" if self.namespace else self.name,
            call_id=self.call_id,
            arguments=None if text is None else given,
        )


class _ShellAction(Struct, frozen=True, gc=False):
    command: list[str] = []


class _LocalShellCall(Struct, gc=False):
    action: _ShellAction = _ShellAction()
    call_id: str | None = None

    def items(self) -> Iterator[TranscriptItem]:
        line = _shell_line(self.action.command)
        yield TranscriptItem(kind=TranscriptKind.COMMAND, text=line, name=LOCAL_SHELL, call_id=self.call_id)


class _WebAction(Struct, gc=False):
    type: str = ""
    query: str = ""
    queries: list[str] | None = None
    url: str = ""
    pattern: str = ""


class _WebSearch(Struct, gc=False):
    action: _WebAction | None = None

    def items(self) -> Iterator[TranscriptItem]:
        action = self.action or _WebAction()
        asked = [action.query] if action.query else action.queries or []
        text = " ".join(part for part in (*asked, action.url, action.pattern) if part)
        yield TranscriptItem(kind=TranscriptKind.COMMAND, text=text, name=f"web_{action.type or 'search'}")


class _ImageGeneration(Struct, gc=False):
    revised_prompt: str | None = None
    result: str = ""

    def items(self) -> Iterator[TranscriptItem]:
        images = (_image(f"data:;base64,{self.result}"),) if self.result else ()
        yield TranscriptItem(
            kind=TranscriptKind.COMMAND, text=self.revised_prompt or "", name="image_generation", images=images
        )


class _WrappedOutput(Struct, gc=False):
    """The two ways in which outputs were wrapped: by tools in their text, and by 2025's rollouts around it."""

    output: str | None = None
    metadata: dict[str, Any] | None = None
    content: str | None = None


class _Output(Struct, gc=False):
    output: str | list[_Part] | _WrappedOutput = ""
    call_id: str | None = None

    def items(self) -> Iterator[TranscriptItem]:
        output = self.output
        images: tuple[str, ...] = ()
        if isinstance(output, list):
            images = tuple(image for part in output if (image := part.image) is not None)
            text = "\n".join(part.text for part in output if part.text)
        else:
            text = _unwrapped(output if isinstance(output, str) else output.content or output.output or "")
        yield TranscriptItem(
            kind=TranscriptKind.OUTPUT, text=_without_images(text), call_id=self.call_id, images=images
        )


_USER_SHELL = re.compile(
    r"\s*<user_shell_command>\s*<command>\n?(?P<command>.*?)\n?</command>\s*"
    r"<result>\n?(?P<result>.*?)\n?</result>\s*</user_shell_command>\s*",
    re.DOTALL,
)


class _ModelMessage(Struct, gc=False):
    """A message among the response items: see the module for why only one form of it is read."""

    role: str = ""
    content: list[_Part] | None = None

    def items(self) -> Iterator[TranscriptItem]:
        for part in self.content or () if self.role == "user" else ():
            if (ran := _USER_SHELL.fullmatch(part.text)) is not None:
                yield TranscriptItem(kind=TranscriptKind.COMMAND, text=ran["command"], name=USER_SHELL)
                yield TranscriptItem(kind=TranscriptKind.OUTPUT, text=_without_images(ran["result"]), name=USER_SHELL)


class _Compacted(Struct, gc=False):
    message: str = ""

    def items(self) -> Iterator[TranscriptItem]:
        yield _notice("compacted", f"the history so far was replaced by a summary\n\n{self.message}".rstrip())


class _TurnAborted(Struct, gc=False):
    reason: str = ""

    def items(self) -> Iterator[TranscriptItem]:
        yield _notice("turn_aborted", f"the turn was stopped: {self.reason}".removesuffix(": "))


class _RolledBack(Struct, gc=False):
    num_turns: int = 0

    def items(self) -> Iterator[TranscriptItem]:
        taken = "the last turn was" if self.num_turns == 1 else f"the last {self.num_turns} turns were"
        yield _notice(ROLLED_BACK, f"{taken} taken back")


class _Failure(Struct, gc=False):
    type: str = ""
    message: str = ""

    def items(self) -> Iterator[TranscriptItem]:
        yield _notice(self.type, self.message)


class _Goal(Struct, frozen=True, gc=False):
    objective: str = ""


class _GoalUpdated(Struct, gc=False):
    goal: _Goal = _Goal()

    def items(self) -> Iterator[TranscriptItem]:
        yield _notice("thread_goal_updated", f"goal: {self.goal.objective}")


class _NameUpdated(Struct, gc=False):
    thread_name: str | None = None

    def items(self) -> Iterator[TranscriptItem]:
        yield _notice("thread_name_updated", f"named {self.thread_name}" if self.thread_name else "no longer named")


class _ReviewHint(Struct, frozen=True, gc=False):
    user_facing_hint: str | None = None


class _Review(_ReviewHint, frozen=True, gc=False):
    item: _ReviewHint = _ReviewHint()
    """In paginated rollouts, what else is in the event itself."""

    def begun(self) -> Iterator[TranscriptItem]:
        of = self.user_facing_hint or self.item.user_facing_hint
        yield _notice("entered_review_mode", f"a review of {of} began" if of else "a review began")

    def ended(self) -> Iterator[TranscriptItem]:
        yield _notice("exited_review_mode", "the review ended")


class _AgentsMessage(Struct, gc=False):
    """What another agent said to this one."""

    author: str = ""
    content: list[_Part] | None = None

    def items(self) -> Iterator[TranscriptItem]:
        text = "".join(part.text for part in self.content or ())
        if text.strip():
            yield _notice("agent_message", f"{self.author or 'another agent'} said: {text}")


ROLLED_BACK = "thread_rolled_back"
"""The name of the notice that turns were taken back."""


class _RolledBackLine(Struct, gc=False):
    payload: _RolledBack


_rolled_back = msgspec.json.Decoder(_RolledBackLine).decode


def _notice(name: str, text: str) -> TranscriptItem:
    return TranscriptItem(kind=TranscriptKind.NOTICE, name=name, text=_without_images(text))


def _reader(struct: type[Struct], read: str = "items") -> _Reader:
    return _Reader(struct, getattr(struct, read))


_READERS: dict[str, dict[str, _Reader]] = {
    "event_msg": {
        "user_message": _reader(_UserMessage),
        "agent_message": _reader(_AgentMessage),
        "turn_aborted": _reader(_TurnAborted),
        ROLLED_BACK: _reader(_RolledBack),
        "error": _reader(_Failure),
        "stream_error": _reader(_Failure),
        "warning": _reader(_Failure),
        "thread_goal_updated": _reader(_GoalUpdated),
        "thread_name_updated": _reader(_NameUpdated),
        "entered_review_mode": _reader(_Review, "begun"),
        "exited_review_mode": _reader(_Review, "ended"),
    },
    "response_item": {
        "message": _reader(_ModelMessage),
        "agent_message": _reader(_AgentsMessage),
        "reasoning": _reader(_Reasoning),
        "function_call": _reader(_FunctionCall),
        "custom_tool_call": _reader(_FunctionCall),
        "tool_search_call": _reader(_FunctionCall),
        "local_shell_call": _reader(_LocalShellCall),
        "web_search_call": _reader(_WebSearch),
        "image_generation_call": _reader(_ImageGeneration),
        "function_call_output": _reader(_Output),
        "custom_tool_call_output": _reader(_Output),
    },
    "compacted": {"": _reader(_Compacted)},
}
"""How each payload is read, by the types of its line and its own. What isn't here adds nothing."""

_ITEM_READERS: dict[str, _Reader] = {
    "UserMessage": _reader(_CompletedItem, "user_items"),
    "AgentMessage": _reader(_CompletedItem, "agent_items"),
    "Plan": _reader(_CompletedItem, "agent_items"),
    "EnteredReviewMode": _reader(_Review, "begun"),
    "ExitedReviewMode": _reader(_Review, "ended"),
}
"""How an ``item_completed`` is read, by the type of its item."""


# Making what was written readable.


def _command_line(arguments: str) -> str | None:
    """The command line among a call's arguments; ``None`` when there is none."""
    if not arguments.startswith("{"):
        return None
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    command = given.get("command", given.get("cmd"))
    if isinstance(command, list):
        return _shell_line([str(word) for word in command])
    return command if isinstance(command, str) else None


_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})


def _shell_line(words: list[str]) -> str:
    """A command as one would type it: without the shell that was only there to run it."""
    if len(words) == 3 and words[0].rpartition("/")[2] in _SHELLS and words[1] in ("-c", "-lc"):
        return words[2]
    return shlex.join(words)


def _unwrapped(output: str) -> str:
    """What a tool gave, without the JSON that some versions put around it."""
    if not output.startswith("{"):
        return output
    try:
        wrapped = msgspec.json.decode(output, type=_WrappedOutput)
    except (ValueError, RecursionError):
        return output
    return output if wrapped.output is None or wrapped.metadata is None else wrapped.output


_DATA_URL = re.compile(r"data:(?:image/(?P<type>[\w.+-]+))?;base64,(?P<data>[A-Za-z0-9+/_-]*=*)", re.ASCII)


def _image(source: str) -> str:
    """The name of an image by its address: never its bytes."""
    if not source.startswith("data:"):
        return f"[image: {source}]" if source else "[image]"
    match = _DATA_URL.match(source)
    return "[image]" if match is None else _named(match)


def _without_images(text: str) -> str:
    """A text in which images are named in place of their bytes."""
    return _DATA_URL.sub(_named, text) if ";base64," in text else text


_MAGIC = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
"""How images of a kind begin in base64."""


def _named(match: re.Match[str]) -> str:
    data = match["data"]
    size = len(data) * 3 // 4
    kind = match["type"] or next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    shown = f"{size} bytes" if size < 1000 else f"{round(size / 1000):,} KB"
    return f"[image, {shown}, {kind}]" if kind else f"[image, {shown}]"
