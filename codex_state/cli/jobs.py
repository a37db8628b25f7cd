"""``codex-state jobs``: the extraction jobs, and giving failed ones another chance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codex_state.cli import FAILED, HELD
from codex_state.cli.context import (
    CodexHome,
    Commands,
    Json,
    Limit,
    ScopeKey,
    ScopeKind,
    ThreadId,
    opened,
    seconds,
    short_ids,
    the_thread,
)
from codex_state.cli.filters import Since, Until, moment
from codex_state.cli.output import (
    Column,
    columns_of,
    json_value,
    note,
    record_of,
    rfc3339,
    short_key,
    since,
    some_more,
    until,
    write_details,
    write_json,
    write_table,
)
from codex_state.cli.parsing import thread_id_or_beginning
from codex_state.cli.watching import watch
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from codex_state.models import JobQuery, Phase1Job, ToldJob
    from codex_state.runtime import State, StateRuntime

_State = Literal["claimed", "working", "over", "claimable", "retry_later", "failed", "done", "running", "succeeded"]
_ROWS_STATUS = {"running": ("claimed", "working", "over"), "succeeded": ("done",)}
"""What the rows' own words for it mean."""

_ROOM_FOR_BOTH = 160
_AT_ONCE = 200
"""So many jobs are requeued in one transaction."""

app = typer.Typer(cls=Commands, no_args_is_help=True, help="The jobs that extract memories.")

Lease = Annotated[
    int,
    seconds("The lease of jobs of older versions, which don't name theirs."),
]
Reason = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Only jobs that failed with this in their reason.", show_default=False),
]
Holder = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Only jobs of this session, or with this in the name of their host and process.",
        show_default=False,
    ),
]


@app.command("list")
def list_jobs(
    context: typer.Context,
    *,
    status: Annotated[
        _State | None,
        typer.Option(
            metavar="STATE",
            help="Only jobs in this state: claimed, working, over, claimable, retry_later, failed or done.",
            show_default=False,
        ),
    ] = None,
    reason: Reason = None,
    holder: Holder = None,
    not_before: Since = None,
    not_after: Until = None,
    lease: Lease = 3600,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List jobs, those first that ended or were renewed last: who holds them, why they failed.

    A job that is held is claimed until its work begins, and then working; it is over when nobody renewed its lease for
    as long as it was granted, and then its worker left it behind. One that failed is to be tried again later while its
    retry time lies ahead, and claimable when that has come, as it has for jobs that were given back or requeued.
    """
    from codex_state.models import JobQuery, JobState

    query = JobQuery(
        states=[] if status is None else [JobState(state) for state in _ROWS_STATUS.get(status, (status,))],
        reason=reason,
        holder=holder,
        since=moment("--since", not_before),
        until=moment("--until", not_after, end_of_day=True),
        limit=limit + 1,
        lease=timedelta(seconds=lease),
    )
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        jobs, more = some_more(state.work.jobs(query), limit)
        counts = None if as_json else state.work.overview(lease=query.lease).jobs
        short = short_ids(state, (told.job.thread_id for told in jobs))
    if counts is None:
        write_json({"items": [_record(job) for job in jobs]})
        return
    write_table(_columns(short), jobs)
    told = [f"{count:,} {state.value}" for state, count in counts.items() if count]
    if more:
        note(f"the first {len(jobs):,} are shown (--limit)")
    note(", ".join(told) if told else "no jobs yet")


@app.command()
def show(
    context: typer.Context,
    *,
    thread: ThreadId,
    scope_kind: ScopeKind = None,
    scope_key: ScopeKey = None,
    lease: Lease = 3600,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Show all that is known of a thread's jobs.

    There is one for each scope of its memories.
    """
    told_id = thread_id_or_beginning(thread)
    with opened(context, codex_home, needs_home=False) as runtime:
        query = _query(the_thread(runtime, told_id), scope_kind, scope_key, lease=lease)
        with runtime.read() as state:
            jobs = state.work.jobs(query)
    if as_json:
        write_json({"items": [_record(job) for job in jobs]})
    else:
        for told in jobs:
            details = columns_of(told.job)
            write_details([("state", told.state.value), ("lease ends", told.lease_ends_at), *details])
    if not jobs:
        note(f"{query.thread_id} has no job{' in that scope' if scope_kind else ''} yet: nobody has claimed one")
        raise typer.Exit(FAILED)


@app.command()
def requeue(
    context: typer.Context,
    *,
    thread: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Of this thread: its UUID, or how it alone begins.", show_default=False),
    ] = None,
    scope_kind: ScopeKind = None,
    scope_key: ScopeKey = None,
    reason: Reason = None,
    holder: Holder = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="Every failed job, of every thread.")] = False,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Let jobs be claimed again that failed or were left behind.

    They can be claimed at once, and their failures and crashes are forgotten. A running job was left behind when its
    lease is over, or its process on this host is dead. Jobs that can be claimed already are counted apart. One that is
    being worked on is left alone, with exit status 3. All that match are requeued; --limit is how many are listed.
    """
    if sum((thread is not None, all_failed, reason is not None or holder is not None)) != 1:
        raise InvalidInputError("give a thread's ID, --reason or --holder, or --all-failed")
    told_id = None if thread is None else thread_id_or_beginning(thread)
    done = _Requeued()
    with opened(context, codex_home, needs_home=False) as runtime:
        thread_id = None if told_id is None else the_thread(runtime, told_id)
        query = _query(thread_id, scope_kind, scope_key, reason=reason, holder=holder, failed_only=all_failed)
        for jobs in _matching(runtime, query):
            done = runtime.run(partial(_requeue, jobs=jobs, done=done, limit=limit))
        with runtime.read() as state:
            short = short_ids(state, (told.job.thread_id for told in done.listed))
    if as_json:
        items = [record_of(told.job) for told in done.listed]
        write_json({"requeued": done.requeued, "already_claimable": done.claimable, "items": items})
    else:
        write_table(_columns(short), done.listed)
        claimable = f", {done.claimable} could be claimed already" if done.claimable else ""
        note(f"{done.requeued} requeued{claimable}")
    if done.requeued or done.claimable or all_failed:
        return
    if done.running is not None:
        seen = "" if done.running.started_at is None else f", last seen {rfc3339(done.running.started_at)}"
        held = f"the job of {done.running.thread_id}"
        note(f"{held} is running; {done.running.owner_name or 'somebody'} holds it{seen}")
        raise typer.Exit(HELD)
    what = f"{thread_id} has no failed job" if thread_id is not None else "no failed job matches"
    note(what + (", only succeeded ones" if done.others else " in that scope" if scope_kind else ""))
    raise typer.Exit(FAILED)


@dataclass
class _Requeued:
    """What became of the jobs that matched."""

    requeued: int = 0
    claimable: int = 0
    """These could be claimed already."""
    others: int = 0
    running: Phase1Job | None = None
    """One that is being worked on."""
    listed: list[ToldJob] = field(default_factory=list)


def _requeue(state: State, jobs: Sequence[ToldJob], done: _Requeued, limit: int) -> _Requeued:
    """Requeue those that failed or were left behind. Returns what was done with these added, however often it runs."""
    from codex_state.models import JobQuery, JobState, Requeue

    done = replace(done, listed=[*done.listed])
    for told in jobs:
        job, scope = told.job, told.job.scope
        outcome = state.phase1_jobs.requeue(job.key)
        # Also what is claimable is requeued: its failures are forgotten.
        if outcome is not Requeue.REQUEUED:
            done.others += 1
            if outcome is Requeue.RUNNING:
                done.running = done.running or job
        elif told.state is JobState.CLAIMABLE:
            done.claimable += 1
        else:
            done.requeued += 1
            if len(done.listed) < limit:
                itself = JobQuery(thread_id=job.thread_id, scope_kind=scope.kind, scope_key=scope.key)
                done.listed += state.work.jobs(itself)
    return done


def _matching(runtime: StateRuntime, query: JobQuery) -> Iterator[list[ToldJob]]:
    """The jobs that match, some at a time. What is requeued meanwhile stays where it is in this order."""
    while True:
        with runtime.read() as state:
            page = state.work.jobs(query)
        if page:
            yield page
        if len(page) < query.limit:
            return
        query = replace(query, after=page[-1].job.key)


def _query(
    thread_id: UUID | None,
    scope_kind: str | None,
    scope_key: str | None,
    *,
    reason: str | None = None,
    holder: str | None = None,
    failed_only: bool = False,
    lease: int = 3600,
) -> JobQuery:
    from codex_state.models import JobQuery, JobState

    failed = [JobState.FAILED, JobState.RETRY_LATER, JobState.CLAIMABLE] if failed_only else []
    return JobQuery(
        states=failed,
        thread_id=thread_id,
        scope_kind=scope_kind,
        scope_key=scope_key,
        reason=reason,
        holder=holder,
        by_key=True,
        limit=_AT_ONCE,
        lease=timedelta(seconds=lease),
    )


def _record(told: ToldJob) -> dict[str, Any]:
    return record_of(told.job) | {"state": told.state.value, "lease_ends_at": json_value(told.lease_ends_at)}


def _columns(short_id: Callable[[UUID], str]) -> list[Column[ToldJob]]:
    """What a job is, its state, who holds it and what is left, or why it failed: the narrowest terminals show that."""

    def ends(told: ToldJob) -> datetime | None:
        return told.job.retry_at if told.state == "retry_later" else told.lease_ends_at

    def left(told: ToldJob) -> str:
        end = ends(told)
        return "-" if end is None else until(end, told.now)

    def holder_or_reason(told: ToldJob) -> str:
        job = told.job
        if job.status != "running":
            return job.failure_reason or "-"
        return " at ".join(str(each) for each in (job.owner_session_id, job.owner_name) if each is not None) or "-"

    return [
        Column("THREAD", lambda t: t.job.thread_id, lambda t: short_id(t.job.thread_id)),
        Column("SCOPE", lambda t: t.job.scope_kind),
        Column("STATE", lambda t: t.state.value),
        Column(
            "SINCE", lambda t: t.job.started_at, lambda t: since(t.job.started_at, t.now), from_width=80, style="dim"
        ),
        Column("TRY", lambda t: t.job.attempt, from_width=80, right=True),
        Column("LEFT", ends, left),
        Column("HOLDER OR REASON", holder_or_reason, below_width=_ROOM_FOR_BOTH, takes_the_rest=True),
        Column("HOLDER", lambda t: t.job.owner_session_id, from_width=_ROOM_FOR_BOTH, style="dim"),
        Column(
            "PROCESS",
            lambda t: t.job.owner_name,
            lambda t: t.job.owner_name or "-",
            from_width=_ROOM_FOR_BOTH,
            style="dim",
        ),
        Column("KEY", lambda t: t.job.scope_key, lambda t: short_key(t.job.scope_key), from_width=200, style="cyan"),
        Column(
            "REASON",
            lambda t: t.job.failure_reason,
            lambda t: t.job.failure_reason or "-",
            from_width=_ROOM_FOR_BOTH,
            takes_the_rest=True,
        ),
    ]


app.command("watch")(watch)
