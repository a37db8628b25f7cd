"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from codex_state.cli import exits
from codex_state.errors import StateError

if TYPE_CHECKING:
    from codex_state.models import StateModel

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029"  # controls, among them the escape that starts a terminal's commands
    "\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # changes of the writing direction, which can make a line lie
)

_UNPRINTABLE_IN_JSON = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
"""``json.dumps`` itself makes line breaks only between values, and leaves most of the others as they are."""

_UNPRINTABLE_IN_TEXT = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def write(text: str) -> None:
    """Write to stdout, on a terminal without commands to it. When nobody reads any more, the process ends quietly.

    Raises:
        StateError: stdout can't be written, for example because the disk is full.
    """
    write_drawn(_UNPRINTABLE_IN_TEXT.sub("\ufffd", text) if sys.stdout.isatty() else text)


def write_drawn(text: str) -> None:
    """``write`` for text that was drawn for a terminal: its colours stay, so all else in it must be safe already."""
    with _mishaps():
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            # A terminal that can't show a character must not cost the whole listing.
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def flush() -> None:
    """Make what was written visible now, with the same ends as ``write``."""
    with _mishaps():
        sys.stdout.flush()


def write_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object: on a terminal indented, else on one line."""
    if not sys.stdout.isatty():
        write_json_line(value)
        return
    write(_UNPRINTABLE_IN_JSON.sub(_escaped, json.dumps(value, ensure_ascii=not _speaks_unicode(), indent=2)) + "\n")


def write_json_line(value: Mapping[str, Any]) -> None:
    """Write one JSON object on one line."""
    line = json.dumps(value, ensure_ascii=not _speaks_unicode(), separators=(",", ":"))
    write((_UNPRINTABLE_IN_JSON.sub(_escaped, line) if sys.stdout.isatty() else line) + "\n")


def note(message: str) -> None:
    """Tell people something beside the result, on stderr."""
    sys.stderr.write(f"codex-state: {one_line(message)}\n")


def record_of(entity: StateModel) -> dict[str, Any]:
    """All columns of an entity, as JSON values."""
    return {name: json_value(value) for name, value in columns_of(entity)}


def columns_of(entity: StateModel) -> list[tuple[str, Any]]:
    """The columns of an entity with their values, in the order of the table."""
    return [(name, getattr(entity, name)) for name in entity.column_names()]


def json_value(value: Any) -> Any:
    """A stored value as JSON: times in RFC 3339 and UTC, ids and paths as text."""
    match value:
        case datetime():
            return rfc3339(value)
        case UUID():
            return str(value)
        case Path():
            from codex_state.models.columns import path_to_text

            return path_to_text(value)
        case _:
            return value


def rfc3339(moment: datetime, *, timespec: str = "seconds") -> str:
    """A moment in UTC, like ``2026-01-31T08:00:00Z``."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def moment_of(seconds: int) -> str:
    """Epoch seconds as a moment in UTC; those that no calendar has as they are."""
    try:
        return rfc3339(datetime.fromtimestamp(seconds, UTC))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def one_line(text: str, *, keep_spaces: bool = False) -> str:
    """Text that is safe in one line of a terminal: neither line breaks nor commands to the terminal.

    Args:
        text: any text.
        keep_spaces: whether runs of spaces stay, as indented code needs them.
    """
    return _UNPRINTABLE.sub("\ufffd", text.expandtabs(4) if keep_spaces else " ".join(text.split()))


_TERMINAL_COMMAND = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)")
"""Colours, movements, titles, links: what programs write for a terminal, and isn't text."""


def text_lines(text: str) -> list[str]:
    """The lines of a text, each safe on a terminal. Of one that was written over, the last form is taken."""
    plain = _TERMINAL_COMMAND.sub("", text).replace("\r\n", "\n")
    return (
        [one_line(line.rstrip("\r").rpartition("\r")[2], keep_spaces=True) for line in plain.split("\n")]
        if plain
        else []
    )


def counted(count: int, noun: str) -> str:
    """How many, like ``1 thread`` and ``1,000 threads``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


@contextmanager
def _mishaps() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Python would try to write the rest when it ends, and complain; now that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(exits.READER_GONE) from None
        raise StateError(f"can't write the output: {error.strerror}") from error
