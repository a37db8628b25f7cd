"""What commands print: results on stdout, fitted to the terminal or plain when piped; everything else on stderr."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from codex_state.cli import READER_GONE
from codex_state.errors import StateError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task
    from rich.table import Table

    from codex_state.models import StateModel
    from codex_state.rollout.backfilling import BackfillProgress, OnProgress
    from codex_state.transfer.copying import CopyProgress, OnCopyProgress


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
    with mishaps():
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            # A terminal that can't show a character must not cost the whole listing.
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def flush() -> None:
    """Make what was written visible now, with the same ends as ``write``."""
    with mishaps():
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


_COMMAND = re.compile("`[^`]+`")
_UNBROKEN = "\0"


def note(message: str) -> None:
    """Tell people something beside the result, on stderr."""
    tell(f"codex-state: {one_line(message)}")


def tell(line: str) -> None:
    """Write a line to stderr. A terminal doesn't break its words, nor what stands between backticks, to be copied."""
    with suppress(OSError):  # it is no terminal
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or sys.maxsize
        whole = _COMMAND.sub(lambda command: command[0].replace(" ", _UNBROKEN), line)
        line = textwrap.fill(whole, columns, break_long_words=False, break_on_hyphens=False).replace(_UNBROKEN, " ")
    sys.stderr.write(f"{line}\n")


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
    line = _UNPRINTABLE.sub("\ufffd", text.expandtabs(4) if keep_spaces else " ".join(text.split()))
    # What the terminal hasn't may be narrower there, so it is replaced before anything is measured.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line if line.isascii() or encoding == "utf-8" else line.encode(encoding, "replace").decode(encoding)


_TERMINAL_COMMAND = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)")
"""Colours, movements, titles, links: what programs write for a terminal, and isn't text."""


def text_lines(text: str, *, overwritten: bool = False) -> list[str]:
    """The lines of a text, each safe on a terminal.

    Args:
        text: any text.
        overwritten: of a line that was written over, as programs do to show progress, the last form is taken.
    """
    plain = _TERMINAL_COMMAND.sub("", text).replace("\r\n", "\n")
    if not plain:
        return []
    lines = plain.split("\n") if overwritten else re.split("[\r\n]", plain)
    return [one_line(line.rstrip("\r").rpartition("\r")[2], keep_spaces=True) for line in lines]


def counted(count: int, noun: str) -> str:
    """How many, like ``1 thread`` and ``1,000 threads``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


@contextmanager
def mishaps() -> Iterator[None]:
    """End quietly when nobody reads the output any more.

    Raises:
        StateError: it can't be written for another reason, or the current directory is gone.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise  # of a file, which is no output
        if isinstance(error, FileNotFoundError):
            raise StateError("the current directory is gone; go to one that is there") from error
        # Python would try to write the rest when it ends, and complain; now that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(READER_GONE) from None
        raise StateError(f"can't write the output: {error.strerror}") from error


RowT = TypeVar("RowT")

_RELATIVE_UP_TO = timedelta(days=7)

_LONGEST_DETAIL = 400

_GAP = 2
"""Blanks between columns."""

_AROUND_ROWS = 3
"""Lines of a terminal beside a listing's rows: its header, what is told of it, and the shell's next line."""


@dataclass(frozen=True, slots=True)
class Column(Generic[RowT]):
    """One column of a listing."""

    header: str
    value: Callable[[RowT], Any]
    """The whole value, as it is printed when piped."""
    short: Callable[[RowT], str] | None = None
    """How a terminal shows it; ``None`` shows the whole value."""
    from_width: int = 0
    """Narrower terminals leave the column out."""
    lead: Callable[[RowT], str] | None = None
    """What a terminal shows before it as it is, blanks included."""
    below_width: int | None = None
    """Terminals of this width or more leave it out, and so do pipes."""
    takes_the_rest: bool = False
    """Whether it is cut or stretched so that the table fits. One column does."""
    right: bool = False
    style: str = ""


def console_of(*, stderr: bool = False, into: IO[str] | None = None) -> Console:
    """Rich's view of the terminal.

    Args:
        stderr: of stderr, not stdout.
        into: where to write instead what is shown on the terminal in the end.
    """
    from rich.console import Console

    if into is None:
        return Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return Console(file=into, force_terminal=True, width=console_of().width, highlight=False, markup=False, emoji=False)


def write_table(columns: Sequence[Column[RowT]], rows: Sequence[RowT]) -> None:
    """Print a listing: without a header and with whole values when piped."""
    if not sys.stdout.isatty():
        for row in rows:
            write("\t".join(text_of(column.value(row)) for column in columns if column.below_width is None) + "\n")
        return
    if not rows:
        return
    console = console_of()
    table = table_of(columns, rows, console.width)
    if len(rows) + _AROUND_ROWS > console.height:
        table.show_footer, table.footer_style = True, "bold"  # the header has scrolled away
        for shown in table.columns:
            shown.footer = shown.header
    draw(table)


def draw(thing: Any) -> None:
    """Show something of rich's on the terminal, with what that has for characters that it hasn't."""
    drawn = io.StringIO()
    console_of(into=drawn).print(thing)
    write_drawn(drawn.getvalue())


def table_of(columns: Sequence[Column[RowT]], rows: Sequence[RowT], width: int) -> Table:
    """A listing for a terminal of this width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    shown = [column for column in columns if column.from_width <= width < (column.below_width or sys.maxsize)]
    cells = [[_short(column, row) for column in shown] for row in rows]
    widths = _widths(shown, cells, width)
    for column, its_width in zip(shown, widths, strict=True):
        table.add_column(
            column.header,
            width=its_width,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
            style=column.style,
        )
    for texts in cells:
        table.add_row(*map(Text, texts))
    return table


def _widths(columns: Sequence[Column[Any]], cells: Sequence[Sequence[str]], available: int) -> list[int]:
    """How wide each column is: as what it holds, but for the one that takes the rest."""
    from rich.cells import cell_len

    widths = [
        max(len(column.header), *(cell_len(texts[index]) for texts in cells)) for index, column in enumerate(columns)
    ]
    for index, column in enumerate(columns):
        if column.takes_the_rest:
            rest = available - sum(widths) + widths[index] - _GAP * len(columns)
            widths[index] = max(min(widths[index], rest), len(column.header))
    return widths


def write_details(details: Iterable[tuple[str, Any]], commands: Iterable[tuple[str, str]] = ()) -> None:
    """Print names and values, one below the other. A terminal shows long texts in part.

    Args:
        details: names and values.
        commands: command lines to be copied, which nothing but the terminal itself breaks.
    """
    if not sys.stdout.isatty():
        for name, value in (*details, *commands):
            write(f"{name}\t{text_of(value)}\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in details:
        table.add_row(name, Text(_detail(value)))
    draw(table)
    for name, command in commands:
        write(f"{name}: {one_line(command)}\n")


def text_of(value: Any) -> str:
    """A value in one line of text; nothing for ``None``."""
    match json_value(value):
        case None:
            return ""
        case bool() as flag:
            return "yes" if flag else "no"
        case plain:
            return one_line(str(plain))


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """A moment in at most ten characters: how long ago it was, or its local date when that is a week or more."""
    if moment is None:
        return "-"
    age = (now or datetime.now(UTC)) - moment
    if age < timedelta(0) or age >= _RELATIVE_UP_TO:
        return f"{moment.astimezone():%Y-%m-%d}"
    seconds = int(age.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return "now"


def since(moment: datetime | None, now: datetime) -> str:
    """How long ago a moment was, in at most five characters for thirty years."""
    return "-" if moment is None else _brief(max(int((now - moment).total_seconds()), 0))


def until(moment: datetime, now: datetime) -> str:
    """How long it is until a moment, in at most five characters; ``over`` when it has come."""
    return "over" if moment <= now else _brief(int((moment - now).total_seconds()))


def left(end: datetime, now: datetime) -> str:
    """How much of a lease is left, in at most ten characters."""
    brief = until(end, now)
    return brief if brief == "over" else f"{brief} left"


def _brief(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def bar_of(value: int, most: int, width: int) -> str:
    """A bar for a share of ``most``, in eighths of a character where the terminal has those."""
    eighths = 0 if most <= 0 else max(round(8 * width * value / most), int(value > 0))
    whole, rest = divmod(eighths, 8)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return "#" * (whole + (rest >= 4) or int(eighths > 0))
    return "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def some_more(rows: Sequence[RowT], limit: int) -> tuple[Sequence[RowT], bool]:
    """The first ``limit`` of rows of which one more was asked for, and whether there was one more."""
    return rows[:limit], len(rows) > limit


def short_key(scope_key: str) -> str:
    """A scope's key in a few characters: the last part of a directory."""
    return scope_key.rstrip("/").rpartition("/")[2][:18] or scope_key


def _detail(value: Any) -> str:
    text = text_of(value)
    if isinstance(value, datetime):
        return f"{text} ({age})" if (age := ago(value)).endswith(("ago", "now")) else text
    if len(text) > _LONGEST_DETAIL:
        return f"{text[:_LONGEST_DETAIL]}… ({len(text)} characters; --json has all)"
    return text or "-"


def _short(column: Column[RowT], row: RowT) -> str:
    shown = text_of(column.value(row)) if column.short is None else one_line(column.short(row))
    return shown if column.lead is None else column.lead(row) + shown


ProgressT = TypeVar("ProgressT")

_SECONDS_BETWEEN_LINES = 5.0

_ROOM_FOR_KEYS = 8
_SILENT_SECONDS = 1.0
"""So long a search finds nothing before it says that it works."""
"""For pressing Ctrl-C a few times."""

_MEGABYTE = 1_000_000


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """A callback that shows progress in the way that suits stderr, for the time of the block."""
    if not sys.stderr.isatty():
        yield _lines(figures_of)
        return
    with bar_on_stderr() as bar:
        task = bar.add_task("Indexing", total=None, figures="")

        def show(progress: BackfillProgress) -> None:
            bar.update(
                task,
                total=progress.bytes_total or 1,
                completed=progress.bytes_done,
                figures=figures_of(progress),
            )

        yield show


class Looking:
    """Tells a terminal how many threads were looked through, when nothing was found for a while."""

    def __init__(self) -> None:
        self.threads = 0
        self._bar: Progress | None = None
        self.pause()

    def __call__(self, threads: int) -> None:
        """So many were looked through."""
        self.threads = threads
        if self._bar is None:
            if time.monotonic() < self._from or not sys.stderr.isatty():
                return
            self._bar = bar_on_stderr()
            self._task = self._bar.add_task("Looking", total=None, figures="")
            self._bar.start()
        self._bar.update(self._task, figures=f"{counted(threads, 'thread')} looked through")

    def pause(self) -> None:
        """Make room for a result."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._from = time.monotonic() + _SILENT_SECONDS


@contextmanager
def shown_looking() -> Iterator[Looking]:
    """A callback for a search, for the time of the block."""
    looking = Looking()
    try:
        yield looking
    finally:
        looking.pause()


@contextmanager
def shown_copy_progress() -> Iterator[OnCopyProgress]:
    """The same for a copy."""
    if not sys.stderr.isatty():
        yield _lines(lambda progress: f"{progress.stage.value} {copy_figures_of(progress)}")
        return
    with bar_on_stderr() as bar:
        task = bar.add_task("Copying", total=None, figures="")

        def show(progress: CopyProgress) -> None:
            bar.update(
                task,
                description=progress.stage.value.capitalize(),
                total=progress.rows_total or 1,
                completed=progress.rows_done,
                figures=copy_figures_of(progress),
            )

        yield show


def copy_figures_of(progress: CopyProgress) -> str:
    """Rows and the table, in one short line."""
    return f"{progress.rows_done:,}/{counted(progress.rows_total, 'row')}, {progress.table}"


def bar_on_stderr() -> Progress:
    """A bar that goes away at its end, with the columns ``description`` and ``figures``.

    It leaves room at its right for the ``^C`` that a terminal shows. That would make a full line wrap, and then the
    bar couldn't be erased.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    console = console_of(stderr=True)

    class Bar(Progress):
        def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
            table = super().make_tasks_table(tasks)
            table.width = max(console.width - _ROOM_FOR_KEYS, 1)
            return table

    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[figures]}")
    return Bar(*columns, console=console, transient=True, expand=True)


def figures_of(progress: BackfillProgress) -> str:
    """Files, speed, failures and the time left, in one short line."""
    parts = [
        f"{progress.files_done:,}/{counted(progress.files_total, 'file')}",
        f"{progress.bytes_per_second / _MEGABYTE:,.0f} MB/s",
        f"{progress.failed:,} failed",
    ]
    if progress.seconds_left is not None:
        parts.append(f"{_clock(progress.seconds_left)} left")
    return ", ".join(parts)


def _lines(figures: Callable[[ProgressT], str]) -> Callable[[ProgressT], None]:
    last = time.monotonic()

    def show(progress: ProgressT) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(figures(progress))

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
