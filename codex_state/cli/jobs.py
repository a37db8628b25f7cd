"""``codex-state jobs``: the extraction jobs, and giving failed ones another chance."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codex_state.cli import exits
from codex_state.cli.context import CodexHome, Json, Limit, ScopeKey, ScopeKind, opened
from codex_state.cli.memories import database_time
from codex_state.cli.output import (
    Column,
    json_value,
    note,
    record_of,
    rfc3339,
    short_key,
    since,
    until,
    write_json,
    write_table,
)
from codex_state.cli.parsing import thread_id_of
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from codex_state.models import Phase1Job
    from codex_state.runtime import State

_WAITING, _CLAIMABLE, _OVER = "waiting", "claimable", "over"
_STATES_OF = {"running": {"running", _OVER}, "succeeded": {"succeeded"}, "failed": {"failed", _WAITING, _CLAIMABLE}}
"""What the stored states are told as: of the failed jobs, some may be claimed again later, and some now; of the running
ones, some were left behind."""

_HALF_AN_ID = 19
_ROOM_FOR_BOTH = 160

app = typer.Typer(no_args_is_help=True, help="The jobs that extract memories.")


@app.command("list")
def list_jobs(
    context: typer.Context,
    *,
    status: Annotated[
        Literal["running", "succeeded", "failed"] | None,
        typer.Option(help="Only jobs in this state.", show_default=False),
    ] = None,
    lease: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=0, help="The lease of jobs of older versions, which don't name theirs."),
    ] = 3600,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List jobs, the most recently started first: who holds them, what is left of the lease, why they failed.

    A running job counts as started anew with each renewal of its lease; it is over when nobody renewed it for as long
    as it was granted, and then its worker left it behind. A failed one is waiting while its retry time
    lies ahead, and claimable when that has come, as it has for jobs that were given back or requeued.
    """
    from codex_state.models import Phase1Status

    wanted = None if status is None else Phase1Status(status)
    with opened(context, codex_home, needs_home=False) as runtime, runtime.read() as state:
        jobs = state.phase1_jobs.list(status=wanted, limit=limit)
        now = database_time(state)
        counts = _counts(state, now, lease)
    duration = timedelta(seconds=lease)
    if as_json:
        ends = [_lease_end(job, duration) for job in jobs]
        items = [record_of(job) | {"lease_ends_at": json_value(end)} for job, end in zip(jobs, ends, strict=True)]
        write_json({"items": items})
        return
    write_table(_columns(now, duration), jobs)
    total = sum(count for state, count in counts.items() if status is None or state in _STATES_OF[status])
    told = [f"{count:,} {state}" for state, count in counts.items() if count or state in _STATES_OF]
    if total > len(jobs):
        told[0] = f"{len(jobs):,} of {total:,} shown (--limit): {told[0]}"
    note(", ".join(told) if any(counts.values()) else "no jobs yet")


@app.command()
def requeue(
    context: typer.Context,
    *,
    thread: Annotated[
        str | None, typer.Argument(metavar="THREAD_ID", help="Whose failed jobs.", show_default=False)
    ] = None,
    scope_kind: ScopeKind = None,
    scope_key: ScopeKey = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="Every failed job, of every thread.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Let jobs be claimed again, at once, that failed or were left behind, and forget their failures and crashes.

    A running job was left behind when its lease is over, or its process on this host is dead. Jobs that can be claimed
    already are counted apart. One that is being worked on is left alone, with exit status 3.
    """
    if (thread is None) is not all_failed:
        raise InvalidInputError("give either a THREAD_ID or --all-failed")
    thread_id = None if thread is None else thread_id_of(thread)
    with opened(context, codex_home, needs_home=False) as runtime:
        requeued, claimable, others = runtime.run(lambda state: _requeue(state, thread_id, scope_kind, scope_key))
        with runtime.read() as state:
            now = database_time(state)
    if as_json:
        items = [record_of(job) for job in requeued]
        write_json({"requeued": len(requeued), "already_claimable": claimable, "items": items})
    else:
        write_table(_columns(now, timedelta(0)), requeued)
        note(f"{len(requeued)} requeued" + (f", {claimable} could be claimed already" if claimable else ""))
    if requeued or claimable or all_failed:
        return
    running = next((job for job in others if job.status == "running"), None)
    if running is not None:
        seen = "" if running.started_at is None else f", last seen {rfc3339(running.started_at)}"
        note(f"the job of {thread_id} is running; {running.owner_name or 'somebody'} holds it{seen}")
        raise typer.Exit(exits.HELD)
    note(
        f"{thread_id} has no failed job"
        + (", only succeeded ones" if others else " in that scope" if scope_kind else "")
    )
    raise typer.Exit(exits.FAILED)


def _requeue(
    state: State, thread_id: UUID | None, kind: str | None, key: str | None
) -> tuple[list[Phase1Job], int, Sequence[Phase1Job]]:
    """Requeue what matches and failed or was left behind.

    Returns:
        What couldn't be claimed before, as it is now; how many jobs could; and the thread's others.
    """
    from codex_state.models import MemoryScope, Phase1Key, Requeue

    matching = _jobs(state, thread_id, kind, key)
    now = database_time(state)
    requeued: list[Phase1Job] = []
    others: list[Phase1Job] = []
    claimable = 0
    for job in matching:
        job_key = Phase1Key(job.thread_id, MemoryScope(job.scope_kind, job.scope_key))
        # Also what is claimable: its failures are forgotten.
        if state.phase1_jobs.requeue(job_key) is not Requeue.REQUEUED:
            others.append(job)
        elif _state_of(job, now) == _CLAIMABLE:
            claimable += 1
        elif (as_it_is := state.phase1_jobs.get(job_key)) is not None:
            requeued.append(as_it_is)
    return requeued, claimable, others


def _jobs(state: State, thread_id: UUID | None, kind: str | None, key: str | None) -> Sequence[Phase1Job]:
    from sqlmodel import col, select

    from codex_state.models import Phase1Job, Phase1Status

    statement = select(Phase1Job).order_by(
        col(Phase1Job.thread_id), col(Phase1Job.scope_kind), col(Phase1Job.scope_key)
    )
    if thread_id is None:
        statement = statement.where(Phase1Job.status == Phase1Status.FAILED)
    else:
        statement = statement.where(Phase1Job.thread_id == thread_id)
    if kind is not None:
        statement = statement.where(Phase1Job.scope_kind == kind)
    if key is not None:
        statement = statement.where(Phase1Job.scope_key == key)
    return state.session.exec(statement).all()


def _lease_end(job: Phase1Job, lease: timedelta) -> datetime | None:
    """When the lease of a running job is over, by the time that its row was granted."""
    if job.started_at is None or job.status != "running":
        return None
    return job.started_at + (lease if job.lease_seconds is None else timedelta(seconds=job.lease_seconds))


def _columns(now: datetime, lease: timedelta) -> list[Column[Phase1Job]]:
    """What a job is, its state, who holds it and what is left, or why it failed: the narrowest terminals show that."""

    def ends(job: Phase1Job) -> datetime | None:
        if _state_of(job, now) == _WAITING:
            return job.retry_at
        return _lease_end(job, lease)

    def holder_or_reason(job: Phase1Job) -> str:
        if job.status != "running":
            return job.failure_reason or "-"
        return " at ".join(str(each) for each in (job.owner_session_id, job.owner_name) if each is not None) or "-"

    return [
        Column("THREAD", lambda j: j.thread_id, folded_to=_HALF_AN_ID),
        Column("SCOPE", lambda j: j.scope_kind),
        Column("STATUS", lambda j: j.status.value, lambda j: _state_of(j, now, lease)),
        Column("SINCE", lambda j: j.started_at, lambda j: since(j.started_at, now), from_width=80, style="dim"),
        Column("TRY", lambda j: j.attempt, from_width=80, right=True),
        Column("LEFT", ends, lambda j: "-" if (end := ends(j)) is None else until(end, now)),
        Column("HOLDER OR REASON", holder_or_reason, below_width=_ROOM_FOR_BOTH, takes_the_rest=True),
        Column("HOLDER", lambda j: j.owner_session_id, from_width=_ROOM_FOR_BOTH, style="dim"),
        Column(
            "PROCESS", lambda j: j.owner_name, lambda j: j.owner_name or "-", from_width=_ROOM_FOR_BOTH, style="dim"
        ),
        Column("KEY", lambda j: j.scope_key, lambda j: short_key(j.scope_key), from_width=200, style="cyan"),
        Column(
            "REASON",
            lambda j: j.failure_reason,
            lambda j: j.failure_reason or "-",
            from_width=_ROOM_FOR_BOTH,
            takes_the_rest=True,
        ),
    ]


def _state_of(job: Phase1Job, now: datetime, lease: timedelta = timedelta(0)) -> str:
    if job.status == "running":
        end = _lease_end(job, lease)
        return _OVER if end is None or end <= now else job.status.value
    if job.status != "failed" or job.retry_at is None:
        return job.status.value
    return _WAITING if job.retry_at > now else _CLAIMABLE


def _counts(state: State, now: datetime, lease: int) -> dict[str, int]:
    """How many jobs there are in each state that people are told of."""
    from sqlmodel import col, func, select

    from codex_state.models import Phase1Job, Phase1Status
    from codex_state.repositories.job_claims import left_behind

    counts = {status.value: count for status, count in state.phase1_jobs.count_by_status().items()}
    retried = select(func.count()).where(Phase1Job.status == Phase1Status.FAILED, col(Phase1Job.retry_at) > now)
    given_back = select(func.count()).where(Phase1Job.status == Phase1Status.FAILED, col(Phase1Job.retry_at) <= now)
    counts[_WAITING] = state.session.exec(retried).one()
    counts[_CLAIMABLE] = state.session.exec(given_back).one()
    counts["failed"] -= counts[_WAITING] + counts[_CLAIMABLE]
    over = select(func.count()).select_from(Phase1Job).where(left_behind())
    counts[_OVER] = state.session.execute(over, {"new_lease_seconds": max(lease, 1)}).scalar_one()
    counts["running"] -= counts[_OVER]
    return counts
