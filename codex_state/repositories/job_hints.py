"""Which threads a batch claim need not look at, so that its cost doesn't grow with what is done (law L10).

A thread is settled for a scope when its job there is finished, or in somebody's hands, for what the thread holds now:
then only the job's own row can make it claimable again, by a lease that ends or a retry that is due. Those jobs are
found by an index of theirs. All other threads are open, and an index holds them alone.

These are hints. A claim is decided by the job's row, whatever they say. One that is missing costs a look, and one that
no longer holds is taken back by the next batch claim before it looks. It can't see that a job was claimed for an older
version than the thread's: whoever claims so takes the hint back itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    cast,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from codex_state.database.sql import json_item, json_rows, server_now
from codex_state.models import SCOPE_CWD, SCOPE_USER, Thread
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, normal_path, text
from codex_state.repositories.base import seconds_of
from codex_state.repositories.job_claims import (
    FAILED,
    JOBS,
    RUNNING,
    VERSION,
    Search,
    has_scope,
    is_claimable,
    is_job_of,
    is_searched,
    key_of,
)
from codex_state.repositories.leases import are_the_dead

_jobs = JOBS.table
_threads = table_of(Thread)
_SETTLED_FOR = {SCOPE_CWD: _threads.c.cwd_settled_for, SCOPE_USER: _threads.c.user_settled_for}

_now = select(server_now()).scalar_subquery()

LOOK_BEYOND = 16
"""How many open threads are looked at, beside those that were just claimed, for some that others have settled."""

LOOK_AT_MANY = 256
"""The same once there were many, as after an older version."""


_NO_TIME = literal_column(str(-(1 << 62)), BigInteger())
"""From here on downwards no hint is a time."""

TAKE_BACK: ReturningUpdate[Any] = (
    update(_threads)
    .where(_threads.c.id == bindparam("of_thread_id", type_=UuidText()))
    .values(
        {
            hint.key: case((seconds_of(hint) <= _NO_TIME, seconds_of(hint) - 1), else_=_NO_TIME)
            for hint in _SETTLED_FOR.values()
        }
    )
    .returning(literal_column("1").label("marked"))
)
"""Have batch claims look at a thread, whatever is known of it.

The hint that it leaves is another one each time: ``settled_threads`` may know the job as it was before.
"""


@lru_cache(maxsize=8)
def reopen(kinds: tuple[str, ...], *, from_the_dead: bool = False) -> ReturningUpdate[Any]:
    """Take the hints back from threads of which a job of these kinds has become claimable by itself.

    It looks at every running job. Its parameters are ``new_lease_seconds``, as the claim's, and ``dead_processes`` for
    jobs of the dead as well.
    """
    by_themselves = [
        (_jobs.c.status == RUNNING, or_(JOBS.is_over, _jobs.c.started_at.is_(None))),
        (_jobs.c.status == FAILED, _jobs.c.retry_at.is_not(None), seconds_of(_jobs.c.retry_at) <= _now),
    ]
    if from_the_dead:
        by_themselves.append((_jobs.c.status == RUNNING, are_the_dead(_jobs.c.owner_process)))
    # One branch for each range of an index: by their scope there are too many.
    jobs = union_all(
        *(
            select(_jobs.c.thread_id, _jobs.c.scope_kind, _jobs.c.scope_key).where(*conditions)
            for conditions in by_themselves
        )
    ).subquery("claimable_jobs")
    hidden = (
        and_(
            jobs.c.scope_kind == literal_column(f"'{kind}'", text),
            jobs.c.scope_key == key_of(kind, normal_path(_threads.c.cwd)),
            _SETTLED_FOR[kind].is_not(None),
        )
        for kind in kinds
    )
    threads = (
        select(_threads.c.id)
        .join(jobs, jobs.c.thread_id == _threads.c.id)
        .where(or_(*hidden))
        # Whoever is writing a thread isn't waited for: the next batch claim looks again.
        .with_for_update(of=_threads, skip_locked=True, key_share=True)
    )
    return (
        update(_threads)
        .where(_threads.c.id.in_(threads))
        .values({_SETTLED_FOR[kind].key: null() for kind in kinds})
        .returning(literal_column("1").label("marked"))
    )


@lru_cache(maxsize=64)
def settle(search: Search, look_at: int, *, from_the_dead: bool = False) -> ReturningUpdate[Any]:
    """Give the hint to threads that are settled by now: claimed ones, and of the first ``look_at`` open ones.

    Its parameters are the search's, ``new_lease_seconds`` as the claim's, and ``claimed`` by ``claimed_threads``. A row
    comes back for each thread. Jobs of the dead, if they are meant, are settled for nobody.
    """
    kinds = search.scope_kinds
    settled = {kind: _is_settled(kind, from_the_dead=from_the_dead) for kind in kinds}
    return (
        update(_threads)
        .where(_threads.c.id.in_(settled_threads(search, look_at, from_the_dead=from_the_dead)))
        .values({_SETTLED_FOR[kind].key: _settled_for(kind, settled) for kind in kinds})
        .returning(literal_column("1").label("marked"))
    )


def claimed_threads(ids: Iterable[UUID]) -> dict[str, str]:
    """The parameter that names them."""
    return {"claimed": json.dumps([[str(thread_id)] for thread_id in ids])}


def settled_threads(search: Search, look_at: int, *, from_the_dead: bool = False) -> Select[tuple[UUID]]:
    """The threads that ``settle`` gives the hint to, locked."""
    hints = [_SETTLED_FOR[kind] for kind in search.scope_kinds]
    open_ones = (
        select(_threads.c.id, *hints, literal_column("0").label("is_claimed"))
        .where(*is_searched(search))
        .order_by(_threads.c.updated_at.desc(), _threads.c.id.desc())
        .limit(literal_column(str(look_at)))
        .subquery("open_ones")
    )
    # Threads that others are just claiming are open still, and may be so many that these are not among the first.
    row = json_rows(bindparam("claimed", type_=text)).table_valued("value", name="claimed").c.value
    claimed_ones = select(
        cast(json_item(row, literal_column("0")), UuidText()).label("id"),
        *(cast(null(), hint.type).label(hint.key) for hint in hints),
        literal_column("1"),
    )
    looked_at = union_all(select(open_ones), claimed_ones).subquery("looked_at")
    return (
        select(_threads.c.id)
        .join(looked_at, looked_at.c.id == _threads.c.id)
        .where(
            or_(
                *(
                    and_(_is_open_for(kind), _is_settled(kind, from_the_dead=from_the_dead))
                    for kind in search.scope_kinds
                )
            ),
            # PostgreSQL judges a thread that changes before it is locked here as it is by then, but its job as it was.
            # The claimed ones have been locked since they were claimed.
            or_(
                looked_at.c.is_claimed == literal_column("1"),
                and_(*(hint.is_not_distinct_from(looked_at.c[hint.key]) for hint in hints)),
            ),
        )
        # Only these are locked, so that nobody's claim passes over a thread that is open.
        .with_for_update(of=_threads, skip_locked=True, key_share=True)
    )


def _is_open_for(kind: str) -> ColumnElement[bool]:
    settled_for = _SETTLED_FOR[kind]
    return or_(settled_for.is_(None), settled_for != _threads.c.updated_at)


def _settled_for(kind: str, settled: Mapping[str, ColumnElement[bool]]) -> ColumnElement[Any]:
    if len(settled) == 1:
        return _threads.c.updated_at
    return case((settled[kind], _threads.c.updated_at), else_=_SETTLED_FOR[kind])


def _is_settled(kind: str, *, from_the_dead: bool) -> ColumnElement[bool]:
    """Whether the thread's job, if it has such a scope at all, can only become claimable by its own row."""
    job = (
        select(literal_column("1"))
        .where(
            is_job_of(_threads.c.id, kind, key_of(kind, normal_path(_threads.c.cwd))),
            or_(_jobs.c.status == FAILED, _jobs.c.source_updated_at >= _threads.c.updated_at),
            ~is_claimable(VERSION),
            *([~is_claimable(VERSION, from_the_dead=True)] if from_the_dead else []),
        )
        .correlate(_threads)
        .exists()
    )
    return or_(~has_scope(kind, _threads.c.cwd), job)
