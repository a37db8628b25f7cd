"""``codex-state workers`` and ``codex-state jobs watch``: who works on what, how fast, and what fails."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli.context import CodexHome, Json, Limit, opened
from codex_state.cli.output import (
    Column,
    bar_of,
    console_of,
    flush,
    json_value,
    note,
    one_line,
    rfc3339,
    since,
    some_more,
    table_of,
    until,
    write,
    write_json,
    write_json_line,
    write_table,
)
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.console import Group, RenderableType
    from rich.text import Text

    from codex_state.models import Holding, WorkOverview
    from codex_state.runtime import StateRuntime

_MOST_HOLDERS = 1000
_CHROME = 9
"""Lines of the live view beside its two lists."""

_STYLES = {"working": "green", "claimed": "cyan", "over": "yellow", "failed": "red"}


def workers(
    context: typer.Context,
    *,
    limit: Limit = 200,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List who holds what: jobs, consolidations, named locks and backfills, and what is left of each lease.

    A holder is over when its lease is, and dead when its process on this host has ended: anybody may take over then.
    """
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        held, more = some_more(_by_holder(state.work.holdings(limit=limit + 1)), limit)
    if as_json:
        write_json({"items": [_record(each) for each in held], "more": more})
        return
    write_table(_columns(), held)
    if more:
        note(f"there are more than {limit:,}: raise --limit")
    elif not held:
        note("nobody holds anything")


def watch(
    context: typer.Context,
    *,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=86_400, help="How long to wait between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    window: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="Over how long the rate is measured.")] = 300,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Watch the jobs: how many, how fast, why they fail, who holds them.

    A terminal shows one view that is kept up to date, until Ctrl-C. Otherwise there is a line for each look.
    """
    if window > 7 * 86_400:
        raise InvalidInputError("--window is a week at most")
    with opened(context, codex_home, needs_home=False) as runtime:
        if sys.stdout.isatty() and not as_json:
            _live(runtime, interval, timedelta(seconds=window), once=once)
            return
        while True:
            overview, held = _look(runtime, timedelta(seconds=window))
            if as_json:
                write_json_line(_overview_record(overview, held))
            else:
                write(_line(overview) + "\n")
            flush()
            if once:
                return
            time.sleep(interval)


def _live(runtime: StateRuntime, interval: float, window: timedelta, *, once: bool) -> None:
    from rich.live import Live

    console = console_of()
    if once:
        console.print(_view(*_look(runtime, window), console.width, console.height))
        return
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        while True:
            live.update(_view(*_look(runtime, window), console.width, console.height), refresh=True)
            time.sleep(interval)


def _look(runtime: StateRuntime, window: timedelta) -> tuple[WorkOverview, list[Holding]]:
    # Whoever watches goes on when the connection is lost, or the server restarted.
    return runtime.run_read(
        lambda state: (state.work.overview(window=window), state.work.holdings(limit=_MOST_HOLDERS))
    )


def _by_holder(held: Sequence[Holding]) -> list[Holding]:
    """Those of a process together. There may be many jobs, which come last."""
    return sorted(held, key=lambda each: (each.state is not None, each.owner_name or "", each.owner, each.kind))


def _state_of(each: Holding) -> str:
    if each.is_dead:
        return "dead"
    return "over" if each.is_over else "held" if each.state is None else each.state.value


def _left(each: Holding) -> str:
    return "-" if each.ends_at is None else until(each.ends_at, each.now)


def _columns() -> list[Column[Holding]]:
    return [
        Column("PROCESS", lambda h: h.owner_name, lambda h: h.owner_name or "-"),
        Column("SESSION", lambda h: h.owner, lambda h: h.owner or "-", from_width=160, style="dim"),
        Column("WHAT", lambda h: h.kind.value),
        Column("STATE", _state_of),
        Column("SINCE", lambda h: h.since, lambda h: since(h.since, h.now), from_width=80, style="dim"),
        Column("SEEN", lambda h: h.renewed_at, lambda h: since(h.renewed_at, h.now), from_width=80, style="dim"),
        Column("LEFT", lambda h: h.ends_at, _left),
        Column("CRASHES", lambda h: h.crashes, from_width=120, right=True),
        Column("KEY", lambda h: h.key, takes_the_rest=True, style="cyan"),
    ]


def _record(each: Holding) -> dict[str, Any]:
    left = None if each.ends_at is None else max(int((each.ends_at - each.now).total_seconds()), 0)
    return {name: json_value(value) for name, value in asdict(each).items() if name != "now"} | {
        "state": _state_of(each),
        "seconds_left": left,
    }


def _overview_record(overview: WorkOverview, held: Sequence[Holding]) -> dict[str, Any]:
    time_left = overview.time_left
    return {
        "at": rfc3339(overview.now),
        "jobs": {state.value: count for state, count in overview.jobs.items()},
        "pending": overview.pending,
        "pending_is_complete": overview.pending_is_complete,
        "oldest_pending": json_value(overview.oldest_pending),
        "window_seconds": int(overview.window.total_seconds()),
        "done_lately": overview.done_lately,
        "failed_lately": overview.failed_lately,
        "jobs_per_minute": round(overview.rate * 60, 3),
        "seconds_left": None if time_left is None else int(time_left.total_seconds()),
        "crashes": overview.crashes,
        "reasons": [{"reason": reason, "jobs": jobs} for reason, jobs in overview.reasons],
        "holders": len({each.owner_name for each in held}),
    }


def _figures(overview: WorkOverview) -> list[str]:
    more = "" if overview.pending_is_complete else "+"
    return [
        f"{overview.pending:,}{more} pending",
        *(f"{count:,} {state.value}" for state, count in overview.jobs.items()),
    ]


def _speed(overview: WorkOverview) -> list[str]:
    time_left = overview.time_left
    waiting = overview.oldest_pending
    return [
        f"{overview.rate * 60:.1f} done a minute",
        "time left " + ("unknown" if time_left is None else _duration(time_left)),
        *([f"{overview.failed_lately:,} failed lately"] if overview.failed_lately else []),
        *([f"{overview.crashes:,} crash{'es' if overview.crashes > 1 else ''}"] if overview.crashes else []),
        *([f"oldest pending {since(waiting, overview.now)}"] if waiting is not None else []),
    ]


def _line(overview: WorkOverview) -> str:
    return f"{_clock(overview.now)} {', '.join(_figures(overview))}; {', '.join(_speed(overview))}"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"


def _duration(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    if seconds >= 86_400:
        return f"{seconds // 86_400}d {seconds % 86_400 // 3600}h"
    return (
        f"{seconds // 3600}h {seconds % 3600 // 60:02}m" if seconds >= 3600 else f"{seconds // 60}m {seconds % 60:02}s"
    )


def _view(overview: WorkOverview, held: Sequence[Holding], width: int, height: int) -> Group:
    """As much as has room: how jobs stand, why they fail, who holds them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(
            f"codex-state jobs  {_clock(overview.now)}  (Ctrl-C ends)", style="bold", no_wrap=True, overflow="ellipsis"
        ),
        _done(overview, width),
        _coloured(_figures(overview)),
        Text(", ".join(_speed(overview))),
    ]
    room = max(height - _CHROME, 2)
    reasons = overview.reasons[: max(room // 3, 1)]
    if reasons:
        why = Table.grid(padding=(0, 2, 0, 0))
        why.add_column(justify="right", style="red", no_wrap=True)
        why.add_column(no_wrap=True, overflow="ellipsis")
        for reason, jobs in reasons:
            why.add_row(f"{jobs:,}", Text(one_line(reason)))
        parts += [Text(""), Text("WHY THEY FAIL", style="bold"), why]
        room -= len(reasons) + 1
    holders = _by_holder(held)
    shown = holders[: max(room, 1)]
    if shown:
        parts += [Text(""), table_of(_columns(), shown, width)]
        if len(holders) > len(shown):
            parts.append(Text(f"and {len(holders) - len(shown):,} more: `codex-state workers` lists all", style="dim"))
    return Group(*parts)


def _coloured(figures: Sequence[str]) -> Text:
    """Figures of which those that aren't nothing have the colour of their state."""
    from rich.text import Text

    texts = (
        Text(each, style="" if each.startswith("0 ") else _STYLES.get(each.rpartition(" ")[2], "")) for each in figures
    )
    return Text(", ").join(texts)


def _done(overview: WorkOverview, width: int) -> Text:
    """How much is done, as a bar."""
    from rich.text import Text

    from codex_state.models import JobState

    done = overview.jobs[JobState.DONE]
    total = done + overview.left + overview.jobs[JobState.FAILED]
    share = f"{done / max(total, 1):4.0%} done "
    return Text(share).append(bar_of(done, total, min(width, 100) - len(share)), style="green")
