"""How far a backfill is: a bar on a terminal, now and then a line elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from codex_state.cli.output import counted, note
from codex_state.cli.tables import console_of

if TYPE_CHECKING:
    from rich.progress import Progress, Task
    from rich.table import Table

    from codex_state.rollout.backfilling import BackfillProgress, OnProgress
    from codex_state.transfer.reports import CopyProgress, OnCopyProgress

ProgressT = TypeVar("ProgressT")

_SECONDS_BETWEEN_LINES = 5.0

_ROOM_FOR_KEYS = 8
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
