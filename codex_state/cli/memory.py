"""``codex-state memory run``: a pass of the memory pipeline, with an extractor of yours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import FAILED
from codex_state.cli.context import CodexHome, Commands, Json, function_of, opened, quiet_log, seconds
from codex_state.cli.output import bar_on_stderr, counted, flush, json_value, note, one_line, write, write_json

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import ColumnElement

    from codex_state.memory import (
        ConsolidationOptions,
        ConsolidationReport,
        ConsolidationResult,
        Phase1Options,
        Phase1Progress,
        Phase1Report,
        Phase1Result,
    )
    from codex_state.runtime import StateRuntime


_NAMED_FAILURES = 20
_SECONDS_BETWEEN_LINES = 5.0

_MOST_DAYS = 1_000_000
"""Any age: 2,700 years."""

app = typer.Typer(cls=Commands, no_args_is_help=True, help="The pipeline that extracts and consolidates memories.")


@app.callback()
def _group() -> None:
    """Keep ``run`` a command of its own, although it is the only one."""


@app.command()
def run(
    context: typer.Context,
    *,
    extractor: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="What to remember of a thread: gets a Thread, returns an ExtractedMemory or None. May be async.",
            show_default=False,
        ),
    ],
    consolidator: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Then consolidates each dirty scope: gets the scope and its memories. May be async.",
            show_default=False,
        ),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Find modules in this directory as well, like `.`.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="How many threads at most.")] = 64,
    lease: Annotated[
        int,
        seconds("How long a worker may be silent; the same for all workers.", least=2),
    ] = 3600,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="How many threads at the same time.")] = 64,
    timeout: Annotated[
        int,
        seconds("How long one extraction may take; 0 for no bound."),
    ] = 3600,
    attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often a failing thread is tried, in later runs.")
    ] = 1,
    max_age: Annotated[
        int,
        typer.Option(
            metavar="DAYS", min=0, max=_MOST_DAYS, help="Leave threads alone that are older than this; 0 for any age."
        ),
    ] = 30,
    forever: Annotated[
        bool, typer.Option("--forever", help="Run pass after pass, until SIGTERM or Ctrl-C; for a service.")
    ] = False,
    every: Annotated[
        int,
        seconds("With --forever: how long to wait when there is nothing.", least=1),
    ] = 60,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Run one pass: extract what is to be remembered of recent threads, each once, whoever else does the same.

    A thread whose extractor raises is named, and is failed for good unless --attempts says otherwise. When the first
    extractions all fail alike, the pass stops and fails none. With --forever each pass that did something is told by a
    line, or with --json by one object on a line.
    """
    from datetime import timedelta
    from uuid import uuid4

    from codex_state.memory import ConsolidationOptions, Phase1Options, RetryPolicy

    work = _Work(
        extract=function_of(extractor, import_from),
        consolidate=None if consolidator is None else function_of(consolidator, import_from),
        owner=uuid4(),
        extraction=Phase1Options(
            lease=timedelta(seconds=lease),
            limit=limit,
            concurrency=concurrency,
            timeout=timedelta(seconds=timeout) if timeout else None,
            retry=RetryPolicy(attempts=attempts) if attempts > 1 else None,
            max_age=timedelta(days=max_age or _MOST_DAYS),
        ),
        consolidation=ConsolidationOptions(
            concurrency=concurrency, timeout=timedelta(seconds=timeout) if timeout else None
        ),
    )
    with opened(context, codex_home, writes=True) as runtime:
        try:
            while True:
                report, consolidated = work.run(runtime)
                did_something = bool(report.claimed or (consolidated and consolidated.results))
                if did_something or not forever:
                    _tell(work, report, consolidated, as_json=as_json, on_one_line=forever)
                if not forever:
                    break
                flush()
                if report.stopped or not did_something:
                    time.sleep(every)
        except (KeyboardInterrupt, SystemExit):
            note("interrupted; what was stored is kept, and what wasn't finished was given back")
            if forever:
                return
            raise
        if not report.claimed and limit:
            note(f"nothing to extract: {why_nothing(runtime, work.extraction)}")
    if report.stopped or (report.failed and report.failed == report.claimed):
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Work:
    """What each pass does."""

    extract: Callable[..., Any]
    consolidate: Callable[..., Any] | None
    owner: UUID
    extraction: Phase1Options
    consolidation: ConsolidationOptions

    def run(self, runtime: StateRuntime) -> tuple[Phase1Report, ConsolidationReport | None]:
        """Extract, then consolidate."""
        report = _extract(runtime, self.extract, self.owner, self.extraction)
        if self.consolidate is None:
            return report, None
        return report, _consolidate(runtime, self.consolidate, self.owner, self.consolidation)


def _tell(
    work: _Work, report: Phase1Report, consolidated: ConsolidationReport | None, *, as_json: bool, on_one_line: bool
) -> None:
    if as_json and on_one_line:
        write(json.dumps(_as_json(work.owner, report, consolidated), ensure_ascii=False) + "\n")
    elif as_json:
        write_json(_as_json(work.owner, report, consolidated))
    else:
        write("".join(f"{line}\n" for line in _summary(report, consolidated)))
    _name_failures(report, consolidated)


def _extract(runtime: StateRuntime, extract: Callable[..., Any], owner: UUID, options: Phase1Options) -> Phase1Report:
    from codex_state.memory import arun_phase1, run_phase1
    from codex_state.memory.async_bridge import is_async

    with _shown_progress() as progress, quiet_log():
        if not is_async(extract):
            return run_phase1(runtime, extract, owner=owner, options=options, progress=progress)
        import asyncio

        return asyncio.run(arun_phase1(runtime, extract, owner=owner, options=options, progress=progress))


def _consolidate(
    runtime: StateRuntime, consolidate: Callable[..., Any], owner: UUID, options: ConsolidationOptions
) -> ConsolidationReport:
    from codex_state.memory import aconsolidate_memories, consolidate_memories
    from codex_state.memory.async_bridge import is_async

    with quiet_log():
        if not is_async(consolidate):
            return consolidate_memories(runtime, consolidate, owner=owner, options=options)
        import asyncio

        return asyncio.run(aconsolidate_memories(runtime, consolidate, owner=owner, options=options))


@contextmanager
def _shown_progress() -> Iterator[Callable[[Phase1Progress], None]]:
    import sys

    if not sys.stderr.isatty():
        yield _lines()
        return
    with bar_on_stderr() as bar:
        task = bar.add_task("Extracting", total=None, figures="")

        def show(progress: Phase1Progress) -> None:
            bar.update(task, total=progress.claimed or 1, completed=progress.finished, figures=_figures_of(progress))

        yield show


def _lines() -> Callable[[Phase1Progress], None]:
    last = time.monotonic()

    def show(progress: Phase1Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(_figures_of(progress))

    return show


def _figures_of(progress: Phase1Progress) -> str:
    return f"{progress.finished:,}/{counted(progress.claimed, 'job')}, {counted(progress.running, 'thread')} running"


def _as_json(owner: UUID, report: Phase1Report, consolidated: ConsolidationReport | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "owner_session_id": str(owner),
        "claimed": report.claimed,
        "succeeded": report.succeeded,
        "nothing": report.nothing,
        "failed": report.failed,
        "lost": report.lost,
        "stopped": report.stopped,
        "items": [_record_of(result) for result in report.results],
    }
    if consolidated is not None:
        record["consolidation"] = {"items": [_consolidation_record_of(result) for result in consolidated.results]}
    return record


def _record_of(result: Phase1Result) -> dict[str, Any]:
    return {
        "thread_id": str(result.key.thread_id),
        "scope_kind": result.key.scope.kind,
        "scope_key": result.key.scope.key,
        "outcome": result.outcome.value,
        "attempt": result.attempt,
        "reason": result.reason,
        "retry_after_seconds": None if result.retry_after is None else int(result.retry_after.total_seconds()),
        "raw_memory_path": json_value(result.raw_memory_path),
        "summary_hash": result.summary_hash,
        "files_error": result.files_error,
    }


def _consolidation_record_of(result: ConsolidationResult) -> dict[str, Any]:
    return {
        "scope_kind": result.scope.kind,
        "scope_key": result.scope.key,
        "outcome": result.outcome.value,
        "memories": result.memories,
        "reason": result.reason,
    }


def _summary(report: Phase1Report, consolidated: ConsolidationReport | None) -> Iterator[str]:
    yield (
        f"{counted(report.claimed, 'job')}: {report.succeeded:,} remembered, "
        f"{report.nothing:,} with nothing to remember, {report.failed:,} failed, {report.lost:,} lost"
    )
    if consolidated is not None:
        counts = (f"{consolidated.count(outcome):,} {outcome.value.replace('_', ' ')}" for outcome in _outcomes())
        yield f"{counted(len(consolidated.results), 'dirty scope')}: {', '.join(counts)}"


def _outcomes() -> Iterator[Any]:
    from codex_state.memory import ConsolidationOutcome

    return iter(ConsolidationOutcome)


def _name_failures(report: Phase1Report, consolidated: ConsolidationReport | None) -> None:
    if report.stopped:
        note(one_line(f"the pass was stopped, and no job was failed: {report.stopped}"))
    told = [
        f"{result.outcome.value}: {result.key.thread_id} {result.key.scope.kind}: {result.reason}"
        for result in report.results
        if result.reason
    ]
    told += [
        f"{result.outcome.value.replace('_', ' ')}: {result.scope.kind} {result.scope.key}: {result.reason}"
        for result in (consolidated.results if consolidated else ())
        if result.reason
    ]
    told += sorted({result.files_error for result in report.results if result.files_error})
    for line in told[:_NAMED_FAILURES]:
        note(one_line(line))
    if len(told) > _NAMED_FAILURES:
        note(f"and {len(told) - _NAMED_FAILURES:,} more; --json names all")


def why_nothing(runtime: StateRuntime, options: Phase1Options) -> str:
    """The reasons as one line. A reading of its own, after the pass: nothing is decided by it."""
    from sqlalchemy import case, func, literal, or_, select, text

    from codex_state.database.sql import server_now
    from codex_state.models import (
        EXTRACTABLE_THREADS,
        LOCAL_HOME,
        SCOPE_CWD,
        SCOPE_USER,
        Phase1Job,
        Phase1Status,
        Thread,
    )
    from codex_state.models.base import table_of
    from codex_state.models.columns import normal_path
    from codex_state.repositories.base import seconds_of
    from codex_state.repositories.job_claims import is_job_of, key_of

    jobs, threads = table_of(Phase1Job), table_of(Thread)
    interesting = (
        text(EXTRACTABLE_THREADS),
        threads.c.source.in_(list(options.sources)),
        threads.c.home.in_([runtime.home, LOCAL_HOME]),
    )
    too_old: ColumnElement[bool] = seconds_of(threads.c.updated_at) < server_now() - literal(
        options.max_age // timedelta(seconds=1)
    )
    of_thread = or_(
        *(is_job_of(threads.c.id, kind, key_of(kind, normal_path(threads.c.cwd))) for kind in (SCOPE_CWD, SCOPE_USER))
    )
    obstacle = case(
        (jobs.c.status == Phase1Status.RUNNING, "held by others"),
        (jobs.c.status == Phase1Status.SUCCEEDED, "extracted already"),
        (jobs.c.retry_at.is_(None), "failed for good (codex-state jobs requeue)"),
        else_="waiting for a retry",
    )
    ages: Any = select(too_old.label("too_old"), func.count()).where(*interesting).group_by("too_old")
    # A label, because PostgreSQL wouldn't see that two expressions with parameters are the same.
    obstacles: Any = (
        select(obstacle.label("obstacle"), func.count().label("count"))
        .select_from(threads.join(jobs, of_thread))
        .where(*interesting, ~too_old)
        .group_by("obstacle")
        .order_by(func.count().desc(), "obstacle")
    )
    with runtime.read() as state:
        connection = state.session.connection()
        old = sum(count for is_old, count in connection.execute(ages) if is_old)
        reasons = [f"{counted(count, 'job')} {obstacle}" for obstacle, count in connection.execute(obstacles)]
    if old:
        reasons.append(f"{counted(old, 'thread')} older than {counted(options.max_age.days, 'day')} (--max-age)")
    return ", ".join(reasons) or "this home has no interactive thread that isn't archived and has memory enabled"
