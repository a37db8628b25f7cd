"""Which threads a batch claim need not look at, so that its cost doesn't grow with what is done (law L10).

A thread is settled for a scope when its job there is finished, or in somebody's hands, for what the thread holds now:
then only the job's own row can make it claimable again, by a lease that ends or a retry that is due. Those jobs are
found by an index of theirs. All other threads are open, and an index holds them alone.

These are hints. A claim is decided by the job's row, whatever they say. One that is missing costs a look, and one that
no longer holds is taken back before the next batch claim.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    case,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy import text as sql_text
from sqlalchemy.sql.dml import ReturningUpdate

from codex_state.clock import server_now
from codex_state.models import OPEN_THREADS, SCOPE_CWD, SCOPE_USER, Phase1Job, Thread
from codex_state.models.columns import text
from codex_state.repositories.base import seconds_of, table_of
from codex_state.repositories.phase1_claims import FAILED, RUNNING, is_claimable
from codex_state.repositories.phase1_scopes import has_scope, is_job_of, key_of
from codex_state.sql import unindexed

_jobs = table_of(Phase1Job)
_threads = table_of(Thread)
_SETTLED_FOR = {SCOPE_CWD: _threads.c.cwd_settled_for, SCOPE_USER: _threads.c.user_settled_for}

WINDOW = 256
"""How many open threads are looked at for some that are settled by now, the most recently updated first."""


def is_open(kinds: Collection[str]) -> ColumnElement[bool]:
    """Whether a batch claim for scopes of these kinds may find something in a thread."""
    conditions: list[Any] = [sql_text(OPEN_THREADS)]
    if len(kinds) < len(_SETTLED_FOR):
        conditions.append(or_(*(_is_open_for(kind) for kind in kinds)))
    return and_(*conditions)


@lru_cache(maxsize=2)
def reopen(kind: str) -> ReturningUpdate[Any]:
    """Take the hint back from threads whose job of this kind has become claimable by itself.

    Its parameter is ``lease_seconds``, as the claim's.
    """
    lease = bindparam("lease_seconds", type_=BigInteger())
    of_kind = unindexed(_jobs.c.scope_kind) == literal_column(f"'{kind}'", text)
    # One branch for each range of an index: by their scope there are too many.
    jobs = union_all(
        *(
            select(_jobs.c.thread_id, unindexed(_jobs.c.scope_key).label("scope_key")).where(of_kind, *conditions)
            for conditions in (
                (_jobs.c.status == RUNNING, seconds_of(_jobs.c.started_at) <= server_now() - lease),
                (_jobs.c.status == RUNNING, _jobs.c.started_at.is_(None)),
                (_jobs.c.status == FAILED, _jobs.c.retry_at.is_not(None), seconds_of(_jobs.c.retry_at) <= server_now()),
            )
        )
    ).subquery("claimable_jobs")
    threads = (
        select(_threads.c.id)
        .join(jobs, jobs.c.thread_id == _threads.c.id)
        .where(_SETTLED_FOR[kind].is_not(None), jobs.c.scope_key == key_of(kind, _threads.c.cwd))
        # Whoever is writing a thread isn't waited for: the next batch claim looks again.
        .with_for_update(of=_threads, skip_locked=True, key_share=True)
    )
    return (
        update(_threads)
        .where(_threads.c.id.in_(threads))
        .values({_SETTLED_FOR[kind].key: null()})
        .returning(_threads.c.id)
    )


@lru_cache(maxsize=8)
def settle(kinds: tuple[str, ...], *, of_homes: bool) -> ReturningUpdate[Any]:
    """Give the hint to the first open threads that are settled by now. Returns one row for each.

    Its parameters are the claim's ``lease_seconds``, ``max_age_seconds``, ``of_sources`` and ``of_homes``.
    """
    first = (
        select(_threads.c.id)
        .where(
            is_open(kinds),
            _threads.c.source.in_(bindparam("of_sources", expanding=True)),
            seconds_of(_threads.c.updated_at) >= server_now() - bindparam("max_age_seconds", type_=BigInteger()),
        )
        .order_by(_threads.c.updated_at.desc(), _threads.c.id.desc())
        .limit(literal_column(str(WINDOW)))
    )
    if of_homes:
        first = first.where(_threads.c.home.in_(bindparam("of_homes", expanding=True)))
    window = first.subquery("first_open")
    settled = (
        select(_threads.c.id)
        .join(window, window.c.id == _threads.c.id)
        .where(or_(*(and_(_is_open_for(kind), _is_settled(kind)) for kind in kinds)))
        # Only these are locked, so that nobody's claim passes over a thread that is open.
        .with_for_update(of=_threads, skip_locked=True, key_share=True)
    )
    return (
        update(_threads)
        .where(_threads.c.id.in_(settled))
        .values({_SETTLED_FOR[kind].key: _settled_for(kind) for kind in kinds})
        .returning(_threads.c.id)
    )


def _is_open_for(kind: str) -> ColumnElement[bool]:
    settled_for = _SETTLED_FOR[kind]
    return or_(settled_for.is_(None), settled_for != _threads.c.updated_at)


def _settled_for(kind: str) -> ColumnElement[Any]:
    return case((_is_settled(kind), _threads.c.updated_at), else_=_SETTLED_FOR[kind])


def _is_settled(kind: str) -> ColumnElement[bool]:
    """Whether the thread's job, if it has such a scope at all, can only become claimable by its own row."""
    job = (
        select(literal_column("1"))
        .where(
            is_job_of(_threads.c.id, kind, key_of(kind, _threads.c.cwd)),
            or_(_jobs.c.status == FAILED, _jobs.c.source_updated_at >= _threads.c.updated_at),
            ~is_claimable(_threads.c.updated_at),
        )
        .correlate(_threads)
        .exists()
    )
    return or_(~has_scope(kind, _threads.c.cwd), job)
