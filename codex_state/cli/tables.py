"""Listings and details for people: fitted to the terminal, or plain tab-separated lines when piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from codex_state.cli.output import json_value, one_line, write

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

RowT = TypeVar("RowT")

_RELATIVE_UP_TO = timedelta(days=7)

_LONGEST_DETAIL = 400

_GAP = 2
"""Blanks between columns."""

WIDE = 120
"""From how many columns on a terminal has room for whole ids."""


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
    folded_to: int | None = None
    """Into lines of how many characters a terminal narrower than ``WIDE`` folds it."""
    takes_the_rest: bool = False
    """Whether it is cut or stretched so that the table fits. One column does."""
    right: bool = False
    style: str = ""


def console_of(*, stderr: bool = False) -> Console:
    """Rich's view of the terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def write_table(columns: Sequence[Column[RowT]], rows: Sequence[RowT]) -> None:
    """Print a listing: without a header and with whole values when piped."""
    if not sys.stdout.isatty():
        for row in rows:
            write("\t".join(text_of(column.value(row)) for column in columns if column.below_width is None) + "\n")
        return
    if not rows:
        return
    console = console_of()
    console.print(table_of(columns, rows, console.width))


def table_of(columns: Sequence[Column[RowT]], rows: Sequence[RowT], width: int) -> Table:
    """A listing for a terminal of this width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    shown = [column for column in columns if column.from_width <= width < (column.below_width or sys.maxsize)]
    cells = [[_short(column, row) for column in shown] for row in rows]
    folds = width < WIDE and any(column.folded_to for column in shown)
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
        whole = [Text(text) for text in texts]
        if folds:
            whole = [_in_lines(text, its_width) for text, its_width in zip(whole, widths, strict=True)]
        table.add_row(*whole)
    return table


def _in_lines(text: Text, width: int) -> Text:
    """A text in two lines at most, of which the second is cut: rows with a folded id have the room anyway."""
    lines = text.wrap(console_of(), width, overflow="fold")
    return text if len(lines) < 2 else type(text)("\n").join([lines[0], type(text)(" ").join(lines[1:])])


def _widths(columns: Sequence[Column[Any]], cells: Sequence[Sequence[str]], available: int) -> list[int]:
    """How wide each column is: as what it holds, but for the one that takes the rest."""
    from rich.cells import cell_len

    widths = [
        max(len(column.header), *(cell_len(texts[index]) for texts in cells)) for index, column in enumerate(columns)
    ]
    for index, column in enumerate(columns):
        if column.folded_to is not None and available < WIDE:
            widths[index] = min(widths[index], column.folded_to)
    for index, column in enumerate(columns):
        if column.takes_the_rest:
            rest = available - sum(widths) + widths[index] - _GAP * len(columns)
            widths[index] = max(min(widths[index], rest), len(column.header))
    return widths


def write_details(details: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one below the other. A terminal shows long texts in part."""
    if not sys.stdout.isatty():
        for name, value in details:
            write(f"{name}\t{text_of(value)}\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in details:
        table.add_row(name, Text(_detail(value)))
    console_of().print(table)


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
