"""``codex-state jobs``: the extraction jobs, and giving failed ones another chance."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codex_state.cli import exits
from codex_state.cli.opening import opened
from codex_state.cli.options import CodexHome, Json, Limit, ScopeKey, ScopeKind
from codex_state.cli.output import json_value, note, record_of, write_json
from codex_state.cli.parsing import thread_id_of
from codex_state.cli.scopes import database_time
from codex_state.cli.tables import Column, ago, left, write_table
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from codex_state.models import Phase1Job
    from codex_state.runtime import State

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
        int, typer.Option(metavar="SECONDS", min=0, help="The lease that the workers use, for what is left of it.")
    ] = 3600,
    limit: Limit = 50,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List jobs, the most recently started first: who holds them, what is left of the lease, why they failed.

    A running job counts as started anew with each renewal of its lease.
    """
    from codex_state.models import Phase1Status

    wanted = None if status is None else Phase1Status(status)
    with opened(context, codex_home) as runtime, runtime.read() as state:
        jobs = state.phase1_jobs.list(status=wanted, limit=limit)
        counts = state.phase1_jobs.count_by_status()
        now = database_time(state)
    duration = timedelta(seconds=lease)
    if as_json:
        ends = [_lease_end(job, duration) for job in jobs]
        items = [record_of(job) | {"lease_ends_at": json_value(end)} for job, end in zip(jobs, ends, strict=True)]
        write_json({"items": items})
        return
    held: Column[Phase1Job] = Column(
        "LEASE",
        lambda j: _lease_end(j, duration),
        lambda j: "-" if (end := _lease_end(j, duration)) is None else left(end, now),
        from_width=100,
    )
    holder: Column[Phase1Job] = Column("HOLDER", lambda j: j.owner_session_id, from_width=160, style="dim")
    write_table(_columns(held, holder), jobs)
    note(", ".join(f"{count} {state}" for state, count in counts.items()) if any(counts.values()) else "no jobs yet")


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
    """Let failed jobs be claimed again, at once.

    A job that is being worked on is left alone, with exit status 3.
    """
    if (thread is None) is not all_failed:
        raise InvalidInputError("give either a THREAD_ID or --all-failed")
    thread_id = None if thread is None else thread_id_of(thread)
    with opened(context, codex_home) as runtime:
        requeued, others = runtime.run(lambda state: _requeue(state, thread_id, scope_kind, scope_key))
    if as_json:
        write_json({"requeued": len(requeued), "items": [record_of(job) for job in requeued]})
    else:
        write_table(_columns(), requeued)
        note(f"{len(requeued)} requeued")
    if requeued or all_failed:
        return
    if any(job.status == "running" for job in others):
        note(f"the job of {thread_id} is running; somebody else holds it")
        raise typer.Exit(exits.HELD)
    note(
        f"{thread_id} has no failed job"
        + (", only succeeded ones" if others else " in that scope" if scope_kind else "")
    )
    raise typer.Exit(exits.FAILED)


def _requeue(
    state: State, thread_id: UUID | None, kind: str | None, key: str | None
) -> tuple[list[Phase1Job], Sequence[Phase1Job]]:
    """Requeue what matches and failed. Returns those jobs as they are now, and the thread's others."""
    from codex_state.models import MemoryScope, Phase1Key, Phase1Status, Requeue

    matching = _jobs(state, thread_id, kind, key)
    failed = [job for job in matching if job.status is Phase1Status.FAILED]
    keys = [Phase1Key(job.thread_id, MemoryScope(job.scope_kind, job.scope_key)) for job in failed]
    requeued = [key for key in keys if state.phase1_jobs.requeue(key) is Requeue.REQUEUED]
    now = [state.phase1_jobs.get(key) for key in requeued]
    return [job for job in now if job is not None], [job for job in matching if job not in failed]


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
    return None if job.started_at is None or job.status != "running" else job.started_at + lease


def _columns(*more: Column[Phase1Job]) -> list[Column[Phase1Job]]:
    return [
        Column("THREAD", lambda j: j.thread_id),
        Column("SCOPE", lambda j: j.scope_kind),
        Column("STATUS", lambda j: j.status.value, _status),
        Column("STARTED", lambda j: j.started_at, lambda j: ago(j.started_at), style="dim"),
        Column("TRY", lambda j: j.attempt, from_width=100, right=True),
        *more,
        Column(
            "KEY", lambda j: j.scope_key, lambda j: j.scope_key.rpartition("/")[2][:18], from_width=120, style="cyan"
        ),
        Column("REASON", lambda j: j.failure_reason, lambda j: j.failure_reason or "-", takes_the_rest=True),
    ]


def _status(job: Phase1Job) -> str:
    return "requeued" if job.status == "failed" and job.retry_at is not None else job.status.value
