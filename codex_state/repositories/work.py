"""What people are told of work, by the database's clock: see ``models.work``. Nothing here claims or changes anything.

Each read is bounded: listings have limits, and of what waits no more than some thousands are counted. What is counted
of jobs looks at those that aren't done; those that are, are counted by an index.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
)

from codex_state.database.sql import contains, server_now
from codex_state.models import (
    CRASHES_ALLOWED,
    BackfillState,
    BackfillStatus,
    ConsolidationLock,
    Holding,
    JobQuery,
    JobState,
    NamedLock,
    Phase1Job,
    Thread,
    ToldJob,
    WorkKind,
    WorkOverview,
)
from codex_state.models.base import columns_of, table_of
from codex_state.models.columns import EpochSeconds, UuidText, duration_of, normal_path, text, whole_seconds
from codex_state.processes import processes_of
from codex_state.repositories.base import Repository, seconds_of
from codex_state.repositories.job_claims import (
    FAILED,
    JOBS,
    RUNNING,
    SUCCEEDED,
    VERSION,
    Search,
    has_scope,
    is_claimable,
    is_job_of,
    is_searched,
    key_of,
    latest_first,
    left_behind,
    search_of,
    seconds_ago,
)

_jobs = JOBS.table
_threads = table_of(Thread)
_consolidations = table_of(ConsolidationLock)
_locks = table_of(NamedLock)
_backfills = table_of(BackfillState)

_COUNTED_PENDING = 10_000
_REASONS = 10
_LONGEST_REASON = 200

_now = type_coerce(server_now(), EpochSeconds()).label("now")
_is_held = and_(_jobs.c.status == RUNNING, not_(left_behind()))
_will_be_retried = and_(_jobs.c.status == FAILED, _jobs.c.retry_at.is_not(None))
STATES: dict[JobState, ColumnElement[bool]] = {
    JobState.CLAIMED: and_(_is_held, _jobs.c.begun_at.is_(None)),
    JobState.WORKING: and_(_is_held, _jobs.c.begun_at.is_not(None)),
    JobState.OVER: left_behind(),
    JobState.CLAIMABLE: and_(_will_be_retried, seconds_of(_jobs.c.retry_at) <= server_now()),
    JobState.RETRY_LATER: and_(_will_be_retried, seconds_of(_jobs.c.retry_at) > server_now()),
    JobState.FAILED: and_(_jobs.c.status == FAILED, _jobs.c.retry_at.is_(None)),
    JobState.DONE: _jobs.c.status == SUCCEEDED,
}
"""Which jobs stand how: each is in one state. Filters and what is shown are these. ``new_lease_seconds`` is for rows
that don't name their lease."""

_RUNNING_STATES = frozenset({JobState.CLAIMED, JobState.WORKING, JobState.OVER})

_state = case(*((condition, literal_column(f"'{state}'", text)) for state, condition in STATES.items()))
_key = (_jobs.c.thread_id, _jobs.c.scope_kind, _jobs.c.scope_key)
_holder = bindparam("holder", type_=text)
_moved_at = func.coalesce(_jobs.c.finished_at, _jobs.c.started_at)
_FILTERS: dict[str, ColumnElement[bool]] = {
    "thread_id": _jobs.c.thread_id == bindparam("thread_id", type_=UuidText()),
    "scope_kind": _jobs.c.scope_kind == bindparam("scope_kind", type_=text),
    "scope_key": _jobs.c.scope_key == bindparam("scope_key", type_=text),
    "reason": contains(_jobs.c.failure_reason, bindparam("reason", type_=text)),
    "since": _moved_at >= bindparam("since", type_=EpochSeconds()),
    "until": _moved_at <= bindparam("until", type_=EpochSeconds()),
    "holder": or_(
        contains(_jobs.c.owner_name, _holder),
        _jobs.c.owner_session_id == bindparam("holder_session", type_=UuidText()),
    ),
}


@lru_cache(maxsize=256)
def _listing(states: tuple[JobState, ...], filters: tuple[str, ...], *, by_key: bool, after: bool) -> Select[Any]:
    statement: Select[Any] = select(*columns_of(Phase1Job), _state.label("told_state"), _now).where(
        *(_FILTERS[name] for name in filters)
    )
    if states:
        statement = statement.where(or_(*(STATES[state] for state in states)))
    if after:
        last = (bindparam(f"after_{column.key}", type_=column.type) for column in _key)
        statement = statement.where(tuple_(*_key) > tuple_(*last))
    are_running = {state in _RUNNING_STATES for state in states or JobState}
    order = _key if by_key else latest_first(running=are_running.pop() if len(are_running) == 1 else None)
    return statement.order_by(*order).limit(bindparam("row_limit", type_=BigInteger()))


_limit = bindparam("row_limit", type_=BigInteger())
_HELD_JOBS = (
    select(*columns_of(Phase1Job), _state.label("told_state"), _now)
    .where(_jobs.c.status == RUNNING)
    .order_by(*latest_first(running=True))
    .limit(_limit)
)
_HELD = {
    WorkKind.CONSOLIDATION: select(
        type_coerce(_consolidations.c.cwd, text).label("work"),
        _consolidations.c.working_thread_id.label("owner"),
        null().label("since"),
        _consolidations.c.updated_at.label("renewed_at"),
        *(_consolidations.c[name] for name in ("owner_name", "owner_process", "lease_seconds")),
        _now,
    )
    .order_by(_consolidations.c.updated_at.desc(), _consolidations.c.cwd)
    .limit(_limit),
    WorkKind.LOCK: select(
        _locks.c.name.label("work"),
        _locks.c.owner,
        null().label("since"),
        _locks.c.renewed_at,
        *(_locks.c[name] for name in ("owner_name", "owner_process", "lease_seconds")),
        _now,
    )
    .order_by(_locks.c.renewed_at.desc(), _locks.c.name)
    .limit(_limit),
    WorkKind.BACKFILL: select(
        _backfills.c.home.label("work"),
        literal_column("''", text).label("owner"),
        _backfills.c.claimed_at.label("since"),
        _backfills.c.updated_at.label("renewed_at"),
        *(_backfills.c[name] for name in ("owner_name", "owner_process", "lease_seconds")),
        _now,
    )
    .where(_backfills.c.status == literal_column(f"'{BackfillStatus.RUNNING}'", text))
    .order_by(_backfills.c.updated_at.desc(), _backfills.c.home)
    .limit(_limit),
}

_count = func.count().label("jobs")
_COUNTS = (
    select(_state.label("told_state"), _count, func.coalesce(func.sum(_jobs.c.crashes), 0).label("crashes"))
    .where(_jobs.c.status.in_([RUNNING, FAILED]))
    .group_by(literal_column("1"))
)
_DONE = select(_count, _now).where(STATES[JobState.DONE])
_reason = func.substr(_jobs.c.failure_reason, literal_column("1"), literal_column(str(_LONGEST_REASON)))
_WHY = (
    select(_reason.label("reason"), _count)
    .where(_jobs.c.status == FAILED, _jobs.c.failure_reason.is_not(None))
    .group_by(literal_column("1"))
    .order_by(_count.desc(), literal_column("1"))
    .limit(literal_column(str(_REASONS)))
)
_LATELY = (
    select(_jobs.c.status, _count)
    .where(
        _jobs.c.status.in_([SUCCEEDED, FAILED]),
        seconds_of(_jobs.c.finished_at) > seconds_ago("window_seconds"),
    )
    .group_by(_jobs.c.status)
)


@lru_cache(maxsize=16)
def _pending(search: Search) -> Executable:
    cwd = normal_path(type_coerce(_threads.c.cwd, text))
    waiting = []
    for kind in search.scope_kinds:
        joined = _threads.outerjoin(_jobs, is_job_of(_threads.c.id, kind, key_of(kind, cwd)))
        is_new = or_(_jobs.c.thread_id.is_(None), and_(_jobs.c.status == SUCCEEDED, is_claimable(VERSION)))
        waiting.append(
            select(
                select(_threads.c.updated_at)
                .select_from(joined)
                .where(*is_searched(search), has_scope(kind, cwd), is_new)
                .order_by(_threads.c.updated_at, _threads.c.id)
                .limit(literal_column(str(_COUNTED_PENDING)))
                .subquery()
            )
        )
    every = union_all(*waiting).subquery()
    return select(func.count().label("pending"), func.min(every.c.updated_at).label("oldest"))


class WorkRepository(Repository):
    """Reads of all tables of leases, for people who watch."""

    def jobs(self, query: JobQuery) -> list[ToldJob]:
        """Jobs with how they stand."""
        filters = [name for name in _FILTERS if getattr(query, name) is not None]
        parameters: dict[str, Any] = {name: getattr(query, name) for name in filters}
        if query.holder is not None:
            parameters["holder_session"] = _session_of(query.holder)
        if query.after is not None:
            scope = query.after.scope
            parameters |= {
                "after_thread_id": query.after.thread_id, "after_scope_kind": scope.kind, "after_scope_key": scope.key,
            }  # fmt: skip
        parameters |= {"row_limit": max(query.limit, 0)} | _lease(query.lease)
        states = tuple(state for state in JobState if state in query.states)
        by_key, after = query.by_key or query.after is not None, query.after is not None
        rows = self._all(_listing(states, tuple(filters), by_key=by_key, after=after), parameters)
        return [_told(row, query.lease) for row in rows]

    def holdings(self, *, limit: int = 1000, lease: timedelta = timedelta(hours=1)) -> list[Holding]:
        """Who holds which jobs, locks and backfills, also those that are over: the most recently renewed first.

        Args:
            limit: how many of each kind at most.
            lease: how long a job's lease is whose row doesn't say so.
        """
        is_dead = processes_of(self._connection.dialect).is_dead
        told = [_told(row, lease) for row in self._all(_HELD_JOBS, {"row_limit": limit} | _lease(lease))]
        held = [
            Holding(
                WorkKind.JOB,
                f"{each.job.thread_id} {each.job.scope_kind} {each.job.scope_key}",
                "" if each.job.owner_session_id is None else str(each.job.owner_session_id),
                each.job.owner_name,
                each.job.begun_at,
                each.job.started_at,
                each.lease_ends_at,
                each.now,
                each.state,
                each.job.crashes,
                each.job.owner_process is not None and is_dead(each.job.owner_process),
            )
            for each in told
        ]
        for kind, statement in _HELD.items():
            held += [
                Holding(
                    kind,
                    row.work,
                    str(row.owner),
                    row.owner_name,
                    row.since,
                    row.renewed_at,
                    None if row.lease_seconds is None else row.renewed_at + duration_of(row.lease_seconds),
                    row.now,
                    is_dead=row.owner_process is not None and is_dead(row.owner_process),
                )
                for row in self._all(statement, {"row_limit": limit})
            ]
        return held

    def overview(
        self,
        *,
        window: timedelta = timedelta(minutes=5),
        lease: timedelta = timedelta(hours=1),
        max_age: timedelta = timedelta(days=30),
        sources: Collection[str] = ("cli", "vscode"),
        home: str | None = None,
    ) -> WorkOverview:
        """How jobs stand, how fast they are done, and why they fail.

        Args:
            window: over which time jobs are counted as done lately.
            lease: how long a job's lease is whose row doesn't say so.
            max_age: threads that nothing happened in for longer aren't pending, as batch claims see it.
            sources: of which threads jobs are pending.
            home: of which home's; ``None`` for all. Jobs are of all homes anyway.
        """
        search, parameters = search_of(
            scope_kinds=("cwd", "user"), max_age_seconds=whole_seconds(max_age), sources=sources, home=home
        )
        parameters |= _lease(lease) | {"crashes_allowed": CRASHES_ALLOWED}
        (done,) = self._all(_DONE)
        rows = self._all(_COUNTS, _lease(lease))
        jobs = dict.fromkeys(JobState, 0) | {JobState(row.told_state): row.jobs for row in rows}
        jobs[JobState.DONE] = done.jobs
        (waiting,) = self._all(_pending(search), parameters)
        lately = {
            row.status: row.jobs
            for row in self._all(
                _LATELY,
                {"window_seconds": whole_seconds(window)},
            )
        }
        return WorkOverview(
            now=done.now,
            jobs=jobs,
            pending=waiting.pending,
            pending_is_complete=waiting.pending < _COUNTED_PENDING,
            oldest_pending=waiting.oldest,
            crashes=sum(int(row.crashes) for row in rows),
            done_lately=lately.get("succeeded", 0),
            failed_lately=lately.get("failed", 0),
            window=window,
            reasons=[(row.reason, row.jobs) for row in self._all(_WHY)],
        )


def _told(row: Any, lease: timedelta) -> ToldJob:
    *values, state, now = row
    job = Phase1Job.snapshot(values)
    ends_at: datetime | None = None
    if state in (JobState.CLAIMED, JobState.WORKING, JobState.OVER) and job.started_at is not None:
        ends_at = job.started_at + (lease if job.lease_seconds is None else duration_of(job.lease_seconds))
    return ToldJob(job, JobState(state), ends_at, now)


def _lease(lease: timedelta) -> dict[str, int]:
    # A claim for no time would take everything for over.
    return {"new_lease_seconds": max(whole_seconds(lease), 1)}


def _session_of(holder: str) -> UUID | None:
    try:
        return UUID(holder)
    except ValueError:
        return None
