"""``codex-state threads cat``: read a conversation, or take it elsewhere."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli.context import CodexHome, NoRefresh, ThreadId, freshen, not_found, opened, the_thread
from codex_state.cli.output import counted, note, one_line, rfc3339, text_lines, write, write_drawn, write_json_line
from codex_state.cli.parsing import thread_id_or_beginning
from codex_state.errors import InvalidInputError, RolloutError

if TYPE_CHECKING:
    from codex_state.models import Thread
    from codex_state.rollout.transcript import TranscriptItem

_GROUPS = {
    "messages": ("user", "agent"),
    "tools": ("command", "output"),
    "all": ("user", "agent", "reasoning", "command", "output", "notice"),
}
_KINDS = _GROUPS["all"]

_SHORT_LINES = 4
"""So many lines of an output, or of reasoning, are shown unless all are asked for."""


def cat(
    context: typer.Context,
    *,
    thread: ThreadId,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KINDS",
            help="Only these: user, agent, messages (both), reasoning, command, output, tools (both), notice. "
            "Parted by commas, or repeated.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only the last N of what would be shown.", show_default=False),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Outputs and all else whole, and turns that were taken back.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all of it as Markdown.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", "--json", help="Print all of it as one JSON object per line.")
    ] = False,
    no_pager: Annotated[bool, typer.Option("--no-pager", help="Print straight to the terminal.")] = False,
    no_refresh: NoRefresh = False,
    codex_home: CodexHome = None,
) -> None:
    """Read a thread's conversation.

    It comes from all files of the thread, and those that it was forked from. Messages are shown whole, commands in
    a line, and what they gave in a few; --full, --markdown and --jsonl have all of it.
    """
    from codex_state.rollout import find_thread_path, read_conversation

    if markdown and jsonl:
        raise InvalidInputError("--markdown and --jsonl are two formats; give one of the two")
    kinds = kinds_of(only, "--only")
    told = thread_id_or_beginning(thread)
    with opened(context, codex_home) as runtime:
        freshen(runtime, no_refresh=no_refresh)
        thread_id = the_thread(runtime, told)
        with runtime.read() as state:
            found = state.threads.get(thread_id)
        everything = read_conversation(runtime, thread_id, taken_back=full)
        try:
            first = next(everything, None)
        except RolloutError:
            if found is None and find_thread_path(runtime, thread_id) is None:
                raise not_found(runtime, thread_id) from None
            raise
        chosen = (item for item in _with(first, everything) if item.kind in kinds)
        items: Iterable[TranscriptItem] = chosen if last is None else _last_of(chosen, last)
        if jsonl:
            for item in items:
                write_json_line({"thread_id": str(thread_id)} | _as_json(item))
        elif markdown:
            for text in _as_markdown(found, items):
                write(text)
        else:
            _show(_as_text(found, items, full=full), pager=not no_pager)
            if first is None:
                note("nothing was said in this thread")


def kinds_of(words: Iterable[str] | None, option: str) -> frozenset[str]:
    """The kinds of items that the words given for an option mean, singular or plural; all of them for no words.

    Raises:
        InvalidInputError: one of them is none.
    """
    kinds: set[str] = set()
    for word in (part.strip().lower() for given in words or ("all",) for part in given.split(",")):
        named = _GROUPS.get(word) or _GROUPS.get(f"{word}s") or [kind for kind in _KINDS if word in (kind, f"{kind}s")]
        if not named:
            choices = ", ".join((*_KINDS, *_GROUPS))
            raise InvalidInputError(f"unknown kind {word!r} in {option}; expected any of {choices}")
        kinds.update(named)
    return frozenset(kinds)


def _with(first: TranscriptItem | None, others: Iterator[TranscriptItem]) -> Iterator[TranscriptItem]:
    if first is not None:
        yield first
    yield from others


def _last_of(items: Iterator[TranscriptItem], count: int) -> Iterator[TranscriptItem]:
    """The last items; where reading ends with an error, the last before that, and then the error."""
    kept: deque[TranscriptItem] = deque(maxlen=count)
    failed = None
    try:
        kept.extend(items)
    except RolloutError as error:
        failed = error
    yield from kept
    if failed is not None:
        raise failed


def _as_json(item: TranscriptItem) -> dict[str, Any]:
    return {
        "kind": item.kind.value,
        "at": item.at and rfc3339(item.at, timespec="milliseconds"),
        "text": item.text,
        "name": item.name,
        "call_id": item.call_id,
        "arguments": item.arguments,
        "images": item.images,
        "line": item.line,
        "ordinal": item.ordinal,
    }


# For people: lines of styled spans, which a terminal shows in colours and a pipe as they are.


@dataclass(frozen=True, slots=True)
class _Line:
    spans: tuple[tuple[str, str], ...] = ()
    """Texts and their styles."""
    indent: int = 0
    cut: bool = False
    """Whether a terminal cuts it at its width; others go on in the next line."""

    @property
    def plain(self) -> str:
        return (" " * self.indent + "".join(text for text, _ in self.spans)).rstrip()


def _line(text: str = "", style: str = "", *, indent: int = 0, cut: bool = False) -> _Line:
    return _Line(((text, style),), indent, cut)


def _show(lines: Iterator[_Line], *, pager: bool) -> None:
    if not sys.stdout.isatty():
        for line in lines:
            write(line.plain + "\n")
        return
    with _paged(wanted=pager) as file:
        put = write_drawn if file is None else file.write
        draw = _drawer()
        for line in lines:
            put(draw(line))


def _drawer() -> Callable[[_Line], str]:
    """What a terminal is sent to show a line."""
    from rich.padding import Padding
    from rich.text import Text

    from codex_state.cli.output import console_of

    # Not written by rich itself: it would end the process when the user leaves the pager, and fail where a character
    # can't be shown.
    drawn = io.StringIO()
    console = console_of(into=drawn)

    def draw(line: _Line) -> str:
        text = Text.assemble(*line.spans)
        console.print(
            Padding(text, (0, 0, 0, line.indent)) if line.indent else text,
            no_wrap=line.cut,
            overflow="ellipsis" if line.cut else "fold",
        )
        shown = drawn.getvalue()
        drawn.seek(0)
        drawn.truncate()
        return shown

    return draw


def _as_text(thread: Thread | None, items: Iterable[TranscriptItem], *, full: bool) -> Iterator[_Line]:
    if thread is not None:
        yield _line(one_line(thread.display_name or "-"), "bold", cut=True)
        about = [str(thread.cwd), thread.git_branch, thread.model]
        yield _line("  ".join(one_line(text) for text in about if text), "dim", cut=True)
        yield _line(str(thread.id), "dim")
    day: date | None = None
    was_tool = False
    for item in items:
        is_tool = item.kind in ("command", "output")
        if not (is_tool and was_tool):
            yield _line()
        was_tool = is_tool
        when = ""
        if item.at is not None and item.kind in ("user", "agent"):
            local = item.at.astimezone()
            when = f"  {local:%H:%M}" if local.date() == day else f"  {local:%Y-%m-%d %H:%M}"
            day = local.date()
        yield from _item_as_text(item, when, full=full)


def _item_as_text(item: TranscriptItem, when: str, *, full: bool) -> Iterator[_Line]:
    match item.kind.value:
        case "user" | "agent" as kind:
            yield _Line(((kind, "bold cyan" if kind == "user" else "bold green"), (when, "dim")))
            yield from _body(item.text, full=True)
        case "reasoning":
            yield _line("reasoning", "dim bold")
            yield from _body(item.text, "dim italic", full=full)
        case "command":
            yield from _command(item, full=full)
        case "output":
            yield from _output(item, full=full)
        case _:
            yield from _notice(item, full=full)
    yield from (_line(one_line(image), "magenta", indent=2 if item.kind == "output" else 0) for image in item.images)


def _body(text: str, style: str = "", *, indent: int = 0, full: bool, overwritten: bool = False) -> Iterator[_Line]:
    """The lines of a text: all of them, or a few and how many there are more."""
    lines = text_lines(text, overwritten=overwritten)
    while lines and not lines[-1].strip():
        lines.pop()
    shown = lines if full or len(lines) <= _SHORT_LINES + 1 else lines[:_SHORT_LINES]
    for line in shown:
        yield _line(line, style, indent=indent, cut=not full)
    if more := len(lines) - len(shown):
        yield _line(f"… {counted(more, 'more line')} (--full)", "dim italic", indent=indent)


def _command(item: TranscriptItem, *, full: bool) -> Iterator[_Line]:
    if item.is_command_line:
        lead = ("! " if item.is_by_user else "$ ", "bold magenta")
    else:
        lead = (f"{one_line(item.name or 'tool')}  ", "yellow")
    first, *others = text_lines(item.text) or [""]
    if full:
        yield _Line((lead, (first, "")))
        yield from (_line(line, indent=2) for line in others)
        return
    patched = (
        [] if item.is_command_line else [f"{verb[0]} {one_line(path)}" for verb, path in _PATCHED.findall(item.text)]
    )
    if patched:
        first, others = ", ".join(patched), []
    more = f"  … {counted(len(others), 'more line')} (--full)" if others else ""
    yield _Line((lead, (first, ""), (more, "dim italic")), cut=True)


_PATCHED = re.compile(r"^\*\*\* (Add|Update|Delete) File: (.+)$", re.MULTILINE)

_PREFACE = re.compile(
    r"\A(?:(?:Chunk ID|Wall time|Exit code|Process exited with code|Process running|Original token count|"
    r"Total output lines|Duration)[^\n]*\n)+Output:\n"
)
"""What some versions put before a command's own output."""

_FAILED = re.compile(r"(?:Exit code:|exited with code) (?P<status>-?[1-9][0-9]*)$", re.MULTILINE)


def _output(item: TranscriptItem, *, full: bool) -> Iterator[_Line]:
    preface = None if full else _PREFACE.match(item.text)
    text = item.text if preface is None else item.text[preface.end() :]
    if preface is not None and (failed := _FAILED.search(preface[0])) is not None:
        yield _line(f"exit status {failed['status']}", "red", indent=2)
    yield from _body(text, "dim", indent=2, full=full, overwritten=True)


def _notice(item: TranscriptItem, *, full: bool) -> Iterator[_Line]:
    style = "red" if item.name in ("error", "stream_error", "turn_aborted") else "magenta"
    lines = text_lines(item.text) or [""]
    yield _line(f"── {lines[0]}", style)
    yield from _body("\n".join(lines[1:]).strip("\n"), "dim", indent=3, full=full)


# Markdown.


def _as_markdown(thread: Thread | None, items: Iterable[TranscriptItem]) -> Iterator[str]:
    if thread is not None:
        yield f"# {one_line(thread.display_name or str(thread.id))}\n\n"
        about = {
            "Thread": str(thread.id),
            "Directory": str(thread.cwd),
            "Branch": thread.git_branch,
            "Model": thread.model,
            "Started": rfc3339(thread.created_at),
        }
        yield "".join(f"- {name}: `{one_line(text)}`\n" for name, text in about.items() if text)
    for item in items:
        yield "\n" + "\n\n".join(_item_as_markdown(item)) + "\n"


def _item_as_markdown(item: TranscriptItem) -> Iterator[str]:
    when = "" if item.at is None else f" · {rfc3339(item.at)}"
    match item.kind.value:
        case "user" | "agent" as kind:
            yield f"## {kind.capitalize()}{when}"
            if item.text:
                yield item.text.strip("\n")
        case "reasoning":
            yield "### Reasoning"
            yield "\n".join(f"> {line}".rstrip() for line in item.text.splitlines())
        case "command":
            yield f"**{one_line(item.name or 'command')}**"
            yield _fenced(item.text, "sh" if item.is_command_line else "")
        case "output":
            yield _fenced(item.text)
        case _:
            yield "\n".join(f"> {line}".rstrip() for line in item.text.splitlines())
    yield from item.images


def _fenced(text: str, language: str = "") -> str:
    """A text as it is, between fences that it doesn't hold itself."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# Long output on a terminal goes through the user's pager, as it is made

_PAGER_OPTIONS = {"LESS": "FRX", "LV": "-c"}
"""How pagers show colours and leave what fits on a screen there, unless the user said otherwise."""


@contextmanager
def _paged(*, wanted: bool = True) -> Iterator[IO[str] | None]:
    """Where to write what may be long: the pager's input, or ``None`` for stdout itself.

    There is no pager when stdout is no terminal, when none is wanted, and when ``$CODEX_STATE_PAGER``, else ``$PAGER``,
    is empty or ``cat``. The block ends quietly when the user leaves the pager.
    """
    command = _pager() if wanted and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
    if command is None:
        yield None
        return
    sys.stdout.flush()
    pager = subprocess.Popen(  # noqa: S603 - the user's own choice
        command,
        stdin=subprocess.PIPE,
        env=_PAGER_OPTIONS | os.environ,
        encoding=sys.stdout.encoding,
        errors="replace",
    )
    assert pager.stdin is not None
    # Ctrl-C is the pager's, which shares the terminal.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with suppress(BrokenPipeError):
            yield pager.stdin
    finally:
        with suppress(BrokenPipeError):
            pager.stdin.close()
        pager.wait()
        signal.signal(signal.SIGINT, before)


def _pager() -> list[str] | None:
    chosen = os.environ.get("CODEX_STATE_PAGER", os.environ.get("PAGER", "less"))
    try:
        command = shlex.split(chosen)
    except ValueError:
        return None
    found = shutil.which(command[0]) if command and command != ["cat"] else None
    return None if found is None else [found, *command[1:]]
