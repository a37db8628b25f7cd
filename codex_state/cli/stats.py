"""``codex-state stats``: what threads took, in turns and tokens."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict, replace
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codex_state.cli.context import CodexHome, Json, Limit, NoRefresh, freshen, opened
from codex_state.cli.filters import Children, Cwd, Providers, Since, Sources, Until, directory, moment, reasons
from codex_state.cli.output import Column, bar_of, console_of, counted, note, write, write_json, write_table
from codex_state.cli.parsing import source_of
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from codex_state.models import StatisticsPage, StatisticsQuery, ThreadQuery, ThreadStatistics
    from codex_state.runtime import StateRuntime

_PIPED = sys.maxsize
"""``Column.below_width`` of what only terminals show."""

_TOTAL = "total"


def stats(
    context: typer.Context,
    *,
    by: Annotated[
        Literal["day", "month", "cwd", "model", "provider", "branch"], typer.Option(help="What to add up by.")
    ] = "day",
    since: Since = None,
    until: Until = None,
    cwd: Cwd = None,
    source: Sources = None,
    provider: Providers = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="M", help="Only this model. Repeatable.", show_default=False)
    ] = None,
    branch: Annotated[
        list[str] | None, typer.Option(metavar="B", help="Only this git branch. Repeatable.", show_default=False)
    ] = None,
    children: Children = True,
    all_homes: Annotated[
        bool, typer.Option("--all-homes", help="Also threads of other homes that share the database.")
    ] = False,
    utc: Annotated[bool, typer.Option("--utc", help="Days of UTC instead of this machine's zone.")] = False,
    limit: Limit = 30,
    no_refresh: NoRefresh = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
) -> None:
    """Add up threads, their turns and tokens: by day, month, directory, model, provider or branch.

    A thread counts as a whole on the day on which it was started, and under the model of its latest turn. What a fork
    took over from its parent counts for the parent alone. Archived threads count as well.
    """
    from codex_state.models import GroupBy, StatisticsQuery

    if as_json and as_csv:
        raise InvalidInputError("give either --json or --csv")
    with opened(context, codex_home) as runtime:
        query = StatisticsQuery(
            by=GroupBy(by),
            since=moment("--since", since),
            until=moment("--until", until, end_of_day=True),
            cwd=None if cwd is None else Path(directory(cwd)),
            sources=[source_of(text) for text in source or ()],
            providers=provider or (),
            models=model or (),
            branches=branch or (),
            home=None if all_homes else runtime.home,
            children=children,
            zone=UTC if utc else None,
            limit=limit,
        )
        freshen(runtime, no_refresh=no_refresh)
        page = _read(runtime, query)
        if page.total.uncounted and not (no_refresh or runtime.is_read_only) and _count_again(runtime):
            freshen(runtime)
            page = _read(runtime, query)
        why_none = [] if page.items else reasons(runtime, _listing_of(query))
    if as_json:
        items = [{by: item.key} | _numbers(item) for item in page.items]
        write_json({"by": by, "items": items, "total": _numbers(page.total), "more": page.more})
    elif as_csv:
        _write_csv(by, page)
    else:
        _write_table(by, page)
        if not page.items and limit:
            note("; ".join(["no threads match", *why_none]))
    if page.total.uncounted:
        threads = counted(page.total.uncounted, "thread")
        note(f"of {threads} only the total is known: nobody has read their rollouts again yet")


def _listing_of(query: StatisticsQuery) -> ThreadQuery:
    """The listing of the threads that would be added up, as nearly as there is one."""
    from codex_state.models import SortKey, ThreadQuery

    (branch, *other_branches), (model, *other_models) = query.branches or (None,), query.models or (None,)
    return ThreadQuery(
        sort_key=SortKey.CREATED_AT,
        home=query.home,
        all=True,
        cwd=query.cwd,
        sources=query.sources,
        providers=query.providers,
        branch=None if other_branches else branch,
        model=None if other_models else model,
        since=query.since,
        until=query.until,
        children=query.children,
    )


def _read(runtime: StateRuntime, query: StatisticsQuery) -> StatisticsPage:
    with runtime.read() as state:
        return state.threads.statistics(query)


def _count_again(runtime: StateRuntime) -> int:
    return runtime.run(lambda state: state.rollout_files.count_again(runtime.home))


def _numbers(item: ThreadStatistics) -> dict[str, int]:
    return {name: value for name, value in asdict(item).items() if name != "key"}


def _write_csv(by: str, page: StatisticsPage) -> None:
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow([by, *_numbers(page.total)])
    rows.writerows([item.key or "", *_numbers(item).values()] for item in page.items)
    write(lines.getvalue())


def _write_table(by: str, page: StatisticsPage) -> None:
    rows = page.items
    if sys.stdout.isatty() and len(rows) > 1:
        rows = [*rows, replace(page.total, key=_TOTAL)]
    most = max((item.tokens_total for item in page.items), default=0)
    width = console_of().width // 5
    write_table(_columns(by, lambda item: "" if item.key == _TOTAL else bar_of(item.tokens_total, most, width)), rows)
    if page.more and page.items:
        note("there are more: raise --limit")


def _columns(by: str, bar: Callable[[ThreadStatistics], str]) -> list[Column[ThreadStatistics]]:
    def number(header: str, name: str, from_width: int = 0) -> Column[ThreadStatistics]:
        return Column(
            header,
            lambda item: getattr(item, name),
            lambda item: _brief(getattr(item, name)),
            from_width=from_width,
            right=True,
        )

    room = console_of().width // 4

    def key(item: ThreadStatistics) -> str:
        whole = item.key or "-"
        # The end of a directory tells it from its neighbours.
        return whole if by != "cwd" or len(whole) <= room else f"…{whole[1 - room :]}"

    return [
        Column(by.upper(), lambda item: item.key, key, takes_the_rest=True, style="cyan"),
        number("THREADS", "threads"),
        number("TURNS", "turns"),
        number("INPUT", "tokens_input", 80),
        number("CACHED", "tokens_cached", 110),
        number("OUTPUT", "tokens_output", 80),
        number("REASONING", "tokens_reasoning", 110),
        number("TOKENS", "tokens_total"),
        Column("", bar, below_width=_PIPED, style="green"),
    ]


def _brief(number: int) -> str:
    """A number in at most six characters: ``1,234``, ``12.3k``, ``4.56M``."""
    if number < 10_000:
        return f"{number:,}"
    power = next(power for power in range(1, 7) if power == 6 or number < 999.5 * 1000**power)
    size = number / 1000**power
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{'kMGTPE'[power - 1]}"
