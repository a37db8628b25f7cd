"""``codex-state logs``: show the newest log lines, follow what is written, and keep them bounded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli.context import CodexHome, Commands, GlobalOptions, Json, opened, the_thread
from codex_state.cli.output import (
    counted,
    flush,
    moment_of,
    note,
    one_line,
    record_of,
    write,
    write_json,
    write_json_line,
)
from codex_state.cli.parsing import bytes_of, epoch_seconds_of, thread_id_or_beginning

if TYPE_CHECKING:
    from rich.text import Text

    from codex_state.models import LogEntry, LogQuery
    from codex_state.repositories import LogFollower
    from codex_state.runtime import State, StateRuntime

_LINES_PER_READ = 1000

_LEVEL_STYLES = {
    "CRITICAL": "bold red",
    "ERROR": "bold red",
    "WARN": "bold yellow",
    "WARNING": "bold yellow",
    "INFO": "bold green",
    "DEBUG": "bold blue",
    "TRACE": "bold magenta",
}

_PATCH = "ToolCall: apply_patch"


app = typer.Typer(cls=Commands, invoke_without_command=True)


@app.callback()
def logs(
    context: typer.Context,
    *,
    level: Annotated[str | None, typer.Option(metavar="LEVEL", help="Only this level.", show_default=False)] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--since",
            metavar="TIME",
            help="Not before: RFC 3339, unix seconds, 2h (ago), yesterday, or 2026-11-01.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", "--until", metavar="TIME", help="Not after: likewise.", show_default=False),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part of the module path. Repeatable.", show_default=False),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part of the file name. Repeatable.", show_default=False),
    ] = None,
    thread_id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this thread's lines. Repeatable.", show_default=False)
    ] = None,
    threadless: Annotated[bool, typer.Option("--threadless", help="Lines that belong to no thread.")] = False,
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Part of the message, case-sensitive.", show_default=False)
    ] = None,
    backfill: Annotated[int, typer.Option(metavar="N", min=0, help="How many lines from before now.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they are written.")] = False,
    poll_ms: Annotated[int, typer.Option(metavar="MS", min=10, help="How often to look for new lines.")] = 500,
    codex_home: CodexHome = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the newest log lines that match, and follow new ones.

    Options of one kind are alternatives; options of different kinds must all hold.
    """
    if context.invoked_subcommand is not None:
        if codex_home is not None:
            context.obj = GlobalOptions(codex_home=codex_home)
        return
    from codex_state.models import LogQuery
    from codex_state.repositories import LogFollower

    query = LogQuery(
        level=level or None,
        from_ts=epoch_seconds_of(from_) if from_ else None,
        to_ts=epoch_seconds_of(to, end_of_day=True) if to else None,
        module_like=_given(module),
        file_like=_given(file),
        include_threadless=threadless,
        search=search or None,
    )
    named = [thread_id_or_beginning(text) for text in _given(thread_id)]
    show = _printer(as_json=as_json)
    with opened(context, codex_home, needs_home=False) as runtime:
        query = replace(query, thread_ids=tuple(str(the_thread(runtime, told)) for told in named))
        follower = LogFollower(query)
        with runtime.read() as state:
            newest = _newest(state, query, backfill)
            if follow:
                follower.begin(state.logs)
        for entry in newest:
            show(entry)
        flush()
        if not follow:
            if not newest and not as_json:
                note("no lines match")
            return
        for entry in _following(runtime, follower, poll_ms / 1000):
            show(entry)


@app.command()
def prune(
    context: typer.Context,
    *,
    max_bytes: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="What may stay, like 16MiB.", show_default=False)
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-lines", metavar="N", min=0, help="How many may stay.", show_default=False)
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only newer lines stay: as for --from.", show_default=False),
    ] = None,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Delete the oldest lines and give their space back.

    Without options, what is beyond the bounds of the settings goes: CODEX_STATE_LOG_MAX_BYTES (64 MiB),
    CODEX_STATE_LOG_MAX_ROWS and CODEX_STATE_LOG_MAX_AGE (14 days). Others can write meanwhile.
    """
    cutoff = epoch_seconds_of(before) if before else None
    size = bytes_of(max_bytes) if max_bytes else None
    with opened(context, codex_home, writes=True, needs_home=False) as runtime:
        if cutoff is None and size is None and max_rows is None:
            deleted = runtime.database.keep_logs_within_bounds()
        else:
            with runtime.autocommit() as state:
                deleted = 0 if cutoff is None else state.logs.delete_before(cutoff)
                deleted += state.logs.retain(max_rows=max_rows, max_bytes=size)
        with runtime.read() as state:
            left = state.logs.stats()
    if as_json:
        write_json({"deleted": deleted, "lines": left.lines, "bytes": left.size})
    else:
        write(f"{counted(deleted, 'line')} deleted, {counted(left.lines, 'line')} left\n")


@app.command()
def stats(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Show how many lines there are, what they take, and what their bounds are."""
    with opened(context, codex_home, needs_home=False) as runtime:
        with runtime.read() as state:
            held = state.logs.stats()
        settings = runtime.settings
    age = settings.log_max_age
    bounds = {
        "max_bytes": settings.log_max_bytes,
        "max_rows": settings.log_max_rows,
        "max_age_seconds": None if age is None else int(age.total_seconds()),
    }
    if as_json:
        write_json({"lines": held.lines, "bytes": held.size, "oldest": held.oldest, "newest": held.newest} | bounds)
        return
    write(f"lines\t{held.lines}\nbytes\t{held.size}\n")
    for name, moment in (("oldest", held.oldest), ("newest", held.newest)):
        write(f"{name}\t{'-' if moment is None else moment_of(moment)}\n")
    for name, bound in bounds.items():
        write(f"{name}\t{'-' if bound is None else bound}\n")


def _given(values: list[str] | None) -> tuple[str, ...]:
    """Without empty values, which match everything and mean nothing."""
    return tuple(value for value in values or () if value)


def _newest(state: State, query: LogQuery, count: int) -> list[LogEntry]:
    return list(state.logs.query(replace(query, limit=count, descending=True)))[::-1] if count else []


def _following(runtime: StateRuntime, follower: LogFollower, pause: float) -> Iterator[LogEntry]:
    while True:
        entries = runtime.run_read(lambda state: follower.read(state.logs, _LINES_PER_READ))
        yield from entries
        if len(entries) < _LINES_PER_READ:
            flush()
            time.sleep(pause)


def _printer(*, as_json: bool) -> Callable[[LogEntry], None]:
    if as_json:
        return lambda entry: write_json_line(_as_json(entry))
    if not sys.stdout.isatty():
        return lambda entry: write(_text_of(entry).plain + "\n")
    from codex_state.cli.output import console_of

    console = console_of()
    # Without wrapping: a log line is as long as it is.
    return lambda entry: console.print(_text_of(entry), soft_wrap=True)


def _as_json(entry: LogEntry) -> dict[str, Any]:
    return {"timestamp": _timestamp(entry)} | record_of(entry)


def _timestamp(entry: LogEntry) -> str:
    from codex_state.cli.output import rfc3339

    try:
        return rfc3339(entry.timestamp, timespec="milliseconds")
    except OverflowError:
        return f"{entry.ts}.{entry.ts_nanos:09d}Z"


def _text_of(entry: LogEntry) -> Text:
    from rich.text import Text

    level = entry.level.upper()
    line = Text()
    line.append(_timestamp(entry), "dim")
    line.append(f" {one_line(level):<5} ", _LEVEL_STYLES.get(level, "bold"))
    line.append(f"[{one_line(entry.thread_id or '-')}]", "dim blue")
    line.append(f" {one_line(entry.target)}", "dim")
    line.append(" - ")
    return line.append_text(_message(entry.message or ""))


def _message(message: str) -> Text:
    from rich.text import Text

    is_patch = message.startswith(_PATCH)
    shown = Text()
    for number, text in enumerate(message.splitlines()):
        style = {"+": "green", "-": "red"}.get(text[:1], "bold") if is_patch else "bold"
        shown.append(("\n" if number else "") + one_line(text, keep_spaces=True), style)
    return shown
