"""The batch claim: candidates are chosen and claimed in one statement."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.clock import server_now
from codex_state.models import Phase1Job, Phase1Status, Thread
from codex_state.models.columns import UuidText, text
from codex_state.repositories import owners
from codex_state.repositories.base import seconds_of, table_of
from codex_state.repositories.phase1_claims import claim_from, claimable, is_claimable
from codex_state.repositories.phase1_scopes import has_scope, is_job_of, key_of
from codex_state.repositories.phase1_search import Search, is_searched
from codex_state.sql import fresh_token, normal_path

_jobs = table_of(Phase1Job)
_threads = table_of(Thread)
_LOCK_THE_CAP = select(func.pg_advisory_xact_lock(literal_column("5070246951133876512")))
_RUNNING = literal_column(f"'{Phase1Status.RUNNING.value}'", text)


_running_here = and_(_jobs.c.status == _RUNNING, _jobs.c.owner_process < bindparam("to_process", type_=text))
_first_holder = select(func.min(_jobs.c.owner_process).label("process")).where(
    _running_here, _jobs.c.owner_process >= bindparam("from_process", type_=text)
)
_holders = _first_holder.cte("holders", recursive=True)
_next_holder = select(func.min(_jobs.c.owner_process)).where(_running_here, _jobs.c.owner_process > _holders.c.process)
_holders = _holders.union_all(select(_next_holder.scalar_subquery()).where(_holders.c.process.is_not(None)))
HOLDERS_HERE = select(_holders.c.process).where(_holders.c.process.is_not(None))
"""The processes of this host that hold jobs: one seek in an index for each, however many jobs it holds."""


class _Shape(NamedTuple):
    """Everything about a batch claim that changes its SQL; the rest are parameters."""

    search: Search
    limit: int
    excluding: bool
    capped: bool
    from_the_dead: bool


def statement_of(
    search: Search,
    *,
    owner: UUID,
    limit: int,
    exclude: UUID | None,
    max_running: int | None,
    from_the_dead: bool,
) -> tuple[ReturningInsert[Any], dict[str, Any]]:
    """The batch claim and its parameters beside the search's, the owner's and, ``from_the_dead``, theirs."""
    parameters: dict[str, Any] = {"new_owner": owner}
    if exclude is not None:
        parameters["excluded_thread"] = exclude
    if max_running is not None:
        parameters["max_running"] = max_running
    shape = _Shape(search, limit, exclude is not None, max_running is not None, from_the_dead)
    return _claim(shape), parameters


def count_alone(connection: Connection) -> None:
    """Keep other capped claims away from counting the live leases until this transaction ends.

    PostgreSQL's workers would otherwise all count before any of them has committed; SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_THE_CAP)


@lru_cache(maxsize=64)
def _claim(shape: _Shape) -> ReturningInsert[Any]:
    candidates = _candidates(shape).cte("candidates")
    wanted = union_all(
        *(
            select(jobs)
            for kind in shape.search.scope_kinds
            for jobs in (
                _new_jobs(candidates, kind),
                _jobs_to_be_claimed_again(candidates, kind, from_the_dead=shape.from_the_dead),
            )
        )
    ).subquery("wanted")
    claims = (
        select(
            wanted.c.id,
            wanted.c.scope_kind,
            wanted.c.scope_key,
            _RUNNING,
            bindparam("new_owner", type_=UuidText()),
            server_now(),
            wanted.c.updated_at,
            fresh_token(),
            literal_column("1"),
            *owners.NEW_OWNER.values(),
        )
        # Without a WHERE, SQLite would read ON CONFLICT as the ON of a join.
        .where(literal_column("1") == literal_column("1"))
        .order_by(wanted.c.updated_at.desc(), wanted.c.id.desc(), wanted.c.scope_kind)
    )
    if shape.capped:
        claims = claims.limit(_room(from_the_dead=shape.from_the_dead))
    return claim_from(claims, from_the_dead=shape.from_the_dead)


def _new_jobs(candidates: CTE, kind: str) -> CTE:
    key = key_of(kind, candidates.c.cwd)
    return (
        select(*_of_a_job(candidates, kind))
        .select_from(candidates.outerjoin(_jobs, is_job_of(candidates.c.id, kind, key)))
        .where(has_scope(kind, candidates.c.cwd), _jobs.c.thread_id.is_(None))
        .cte(f"new_{kind}")
    )


def _jobs_to_be_claimed_again(candidates: CTE, kind: str, *, from_the_dead: bool) -> CTE:
    key = key_of(kind, candidates.c.cwd)
    return (
        select(*_of_a_job(candidates, kind))
        .select_from(candidates.join(_jobs, is_job_of(candidates.c.id, kind, key)))
        .where(has_scope(kind, candidates.c.cwd), claimable(candidates.c.updated_at, from_the_dead=from_the_dead))
        # A job that its holder is just writing isn't waited for either: that one may wait for another of these.
        .with_for_update(of=_jobs, skip_locked=True, key_share=True)
        .cte(f"again_{kind}")
    )


def _of_a_job(candidates: CTE, kind: str) -> tuple[ColumnElement[Any], ...]:
    return (
        candidates.c.id,
        literal_column(f"'{kind}'", text).label("scope_kind"),
        key_of(kind, candidates.c.cwd).label("scope_key"),
        candidates.c.updated_at,
    )


def _candidates(shape: _Shape) -> Select[Any]:
    # In the statement's text: PostgreSQL's plan for any limit would read all jobs.
    limit: ColumnElement[int] = literal_column(str(shape.limit), BigInteger())
    if shape.capped:
        room = _room(from_the_dead=shape.from_the_dead)
        limit = case((room < limit, room), else_=limit)
    can_be_claimed = (_can_be_claimed(kind, from_the_dead=shape.from_the_dead) for kind in shape.search.scope_kinds)
    statement = (
        select(_threads.c.id, normal_path(_threads.c.cwd).label("cwd"), _threads.c.updated_at)
        .where(*is_searched(shape.search), or_(*can_be_claimed))
        .order_by(_threads.c.updated_at.desc(), _threads.c.id.desc())
        .limit(limit)
        # Two workers that claim at once take different threads and don't wait for each other. The key stays shared, or
        # whoever inserts a row that refers to such a thread would wait for the end of this transaction.
        .with_for_update(of=_threads, skip_locked=True, key_share=True)
    )
    if shape.excluding:
        statement = statement.where(_threads.c.id != bindparam("excluded_thread", type_=UuidText()))
    return statement


def _can_be_claimed(kind: str, *, from_the_dead: bool) -> ColumnElement[bool]:
    key = key_of(kind, normal_path(_threads.c.cwd))
    job = is_job_of(_threads.c.id, kind, key)
    may_be_claimed = is_claimable(_threads.c.updated_at, from_the_dead=from_the_dead)
    blocking = select(literal_column("1")).where(job, ~may_be_claimed).exists()
    return and_(has_scope(kind, _threads.c.cwd), ~blocking)


def _room(*, from_the_dead: bool) -> ColumnElement[int]:
    """How many more leases the cap allows.

    Stale ones don't count, nor do those of the dead, so a cap full of them never blocks their take-over.
    """
    lease = bindparam("new_lease_seconds", type_=BigInteger())
    live = (
        select(func.count())
        .select_from(_jobs)
        .where(_jobs.c.status == _RUNNING, seconds_of(_jobs.c.started_at) > server_now() - lease)
    )
    if from_the_dead:
        is_dead = and_(_jobs.c.owner_process.is_not(None), owners.is_of_the_dead(_jobs.c.owner_process))
        live = live.where(~is_dead)
    room = bindparam("max_running", type_=BigInteger()) - live.scalar_subquery()
    return case((room < literal_column("0"), literal_column("0")), else_=room)
