"""The claims of extraction jobs as SQL: their rules, and the two claims, of one job and of a batch.

The rules of a claim, by the state of the job:

======================================================  =============================================
no row                                                  granted
failed, without a retry time                            ``TERMINAL_FAILURE``, even for a newer source
failed, with a retry time in the future / reached       ``RETRY_LATER`` / granted
succeeded, for this source or a newer one               ``UP_TO_DATE``
succeeded, for an older source                          granted
succeeded, for another version within that second       granted
running, within the time that its row was granted       ``RUNNING``, whatever the source
running, for longer than that                           granted: the holder is taken over
running, by a dead process of the claimer's host        granted: the same, at once
======================================================  =============================================

A grant is one statement whose guard is this table (law L1). It resets the results of earlier attempts, counts the
attempt and installs a fresh token, after which no write of an earlier holder matches any more (law L2). For a newer
source, earlier failures no longer count. The last row is for claims that were refused before: see ``leases``.

A job that is taken over after its work had begun has crashed once. Before a claim would have it crash once more than is
allowed, it gives the job up: ``give_up`` makes it failed for good, and then the second row of the table holds. A claim
for zero seconds, which takes over whatever runs, neither counts nor gives up.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy import text as sql_text
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from codex_state.database.sql import byte_length, fresh_token, server_now
from codex_state.errors import InvalidInputError
from codex_state.models import SCOPE_CWD, SCOPE_USER, Phase1Job, Phase1Status, Thread, open_threads
from codex_state.models.base import table_of
from codex_state.models.columns import LAST_SECOND, UuidText, normal_path, text
from codex_state.repositories import leases
from codex_state.repositories.base import seconds_of
from codex_state.repositories.leases import CLAIMED_FOR, LeaseTable

JOBS = LeaseTable(Phase1Job, renewed_at="started_at", running=Phase1Status.RUNNING.value)
_jobs = JOBS.table
_threads = table_of(Thread)
_insert = JOBS.insert

RUNNING, SUCCEEDED, FAILED = (literal_column(f"'{status.value}'", text) for status in Phase1Status)

_ONE: ColumnElement[int] = literal_column("1")
_key = (_jobs.c.thread_id, _jobs.c.scope_kind, _jobs.c.scope_key)
_MAX_KEY_BYTES = 2000


# A thread's scopes, and the jobs that it may have: one for each


def key_of(kind: str, cwd: ColumnElement[Any]) -> ColumnElement[Any]:
    """The key of a thread's scope of one kind, where ``cwd`` is its directory's normal spelling: ``normal_path``."""
    return cwd if kind == SCOPE_CWD else literal_column(f"'{SCOPE_USER}'", text)


def has_scope(kind: str, cwd: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a thread has a scope of one kind."""
    if kind != SCOPE_CWD:
        return literal_column("1") == _ONE
    # A directory that isn't known has no scope, nor has one whose path PostgreSQL couldn't hold in a key.
    return and_(cwd != literal_column("''", text), byte_length(cwd) <= literal_column(str(_MAX_KEY_BYTES)))


def is_job_of(thread_id: ColumnElement[Any], kind: str, key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a job is the thread's for this scope."""
    return and_(
        _jobs.c.thread_id == thread_id,
        _jobs.c.scope_kind == literal_column(f"'{kind}'", text),
        _jobs.c.scope_key == key,
    )


# The rules


class Version(NamedTuple):
    """Which version of a thread is to be extracted."""

    updated_at: ColumnElement[Any]
    ns: ColumnElement[Any]
    """Which of those within its second; NULL when it isn't known."""


VERSION = Version(_threads.c.updated_at, func.nullif(_threads.c.updated_ns, literal_column("0")))
"""The one that a thread has now."""

_is_over = or_(_jobs.c.started_at.is_(None), JOBS.is_over)
_waits = literal_column("0") < CLAIMED_FOR
_crashes_once_more = and_(_jobs.c.begun_at.is_not(None), _waits)
IS_WORN_OUT = and_(_crashes_once_more, _jobs.c.crashes + 1 >= bindparam("crashes_allowed", type_=BigInteger()))
"""Whether a running job that could be taken over has crashed as often as is allowed."""


def left_behind() -> ColumnElement[bool]:
    """Whether a running job's lease is over. ``new_lease_seconds`` is for rows that don't name theirs."""
    return and_(_jobs.c.status == RUNNING, _is_over)


def claimable(source: Version, *, from_the_dead: bool = False) -> ColumnElement[bool]:
    """Whether an existing job may be claimed for this version of the source: the table above as SQL.

    ``from_the_dead`` is its last row alone.
    """
    if from_the_dead:
        return and_(JOBS.is_of_the_dead, ~IS_WORN_OUT)
    # Where either isn't known, the comparison isn't true.
    is_another = and_(_jobs.c.source_updated_at == source.updated_at, _jobs.c.source_ns != source.ns)
    return or_(
        and_(_jobs.c.status == FAILED, seconds_of(_jobs.c.retry_at) <= server_now()),
        and_(_jobs.c.status == SUCCEEDED, or_(_jobs.c.source_updated_at < source.updated_at, is_another)),
        and_(left_behind(), ~IS_WORN_OUT),
    )


def is_claimable(source: Version, *, from_the_dead: bool = False) -> ColumnElement[bool]:
    """``claimable`` as a plain yes or no: a comparison with NULL (no retry time) counts as no, under NOT as well."""
    claim = claimable(source, from_the_dead=from_the_dead)
    return func.coalesce(case((claim, 1), else_=0), 0) == _ONE


CLAIMED_COLUMNS = [
    "thread_id",
    "scope_kind",
    "scope_key",
    "status",
    "owner_session_id",
    "started_at",
    "source_updated_at",
    "source_ns",
    "ownership_token",
    "attempt",
    *leases.OWNER_COLUMNS,
]
"""The columns that a claim inserts, in order."""

RETURNED_BY_A_CLAIM = (
    _jobs.c.thread_id,
    _jobs.c.scope_kind,
    _jobs.c.scope_key,
    _jobs.c.ownership_token,
    _jobs.c.attempt,
    _jobs.c.failures,
    _jobs.c.crashes,
    _jobs.c.source_updated_at,
    _jobs.c.started_at,
)

_taken_over = {
    "status": _insert.excluded.status,
    "owner_session_id": _insert.excluded.owner_session_id,
    "started_at": _insert.excluded.started_at,
    "begun_at": null(),
    "finished_at": null(),
    "failure_reason": null(),
    "source_updated_at": _insert.excluded.source_updated_at,
    "source_ns": _insert.excluded.source_ns,
    "raw_memory_path": null(),
    "summary_hash": null(),
    "ownership_token": _insert.excluded.ownership_token,
    "attempt": _jobs.c.attempt + 1,
    "retry_at": null(),
    "failures": case((_jobs.c.source_updated_at < _insert.excluded.source_updated_at, 0), else_=_jobs.c.failures),
    # What ended its worker may do so in a newer version as well; only work that came to its end tells otherwise.
    "crashes": case(
        (_jobs.c.status == SUCCEEDED, 0),
        (and_(_jobs.c.status == RUNNING, _crashes_once_more), _jobs.c.crashes + 1),
        else_=_jobs.c.crashes,
    ),
    **leases.excluded_owner(_insert),
}


def claim_from(source: Select[Any], *, from_the_dead: bool = False) -> ReturningInsert[Any]:
    """The claim of every row of ``source``, a query of ``CLAIMED_COLUMNS``."""
    return (
        _insert.from_select(CLAIMED_COLUMNS, source)
        .on_conflict_do_update(
            index_elements=["thread_id", "scope_kind", "scope_key"],
            set_=_taken_over,
            where=claimable(
                Version(_insert.excluded.source_updated_at, _insert.excluded.source_ns), from_the_dead=from_the_dead
            ),
        )
        .returning(*RETURNED_BY_A_CLAIM)
    )


def give_up(*, all_jobs: bool, from_the_dead: bool = False) -> ReturningUpdate[Any]:
    """Make jobs failed for good that another claim would have crash too often: the named one, or all there are."""
    crashed = and_(JOBS.is_of_the_dead if from_the_dead else left_behind(), IS_WORN_OUT)
    if all_jobs:
        # Whoever is writing one isn't waited for: the next batch claim looks again.
        crashed = tuple_(*_key).in_(select(*_key).where(crashed).with_for_update(skip_locked=True, key_share=True))
    else:
        crashed = and_(JOBS.is_key, crashed)
    return (
        update(_jobs)
        .where(crashed)
        .values(
            status=FAILED,
            finished_at=server_now(),
            failure_reason=bindparam("crash_reason", type_=text),
            ownership_token=null(),
            retry_at=null(),
            crashes=_jobs.c.crashes + 1,
        )
        .returning(_jobs.c.crashes)
    )


# Which threads a batch claim looks at: its claim and its hints ask the same


class Search(NamedTuple):
    """Everything about a search that changes its SQL; the rest are parameters."""

    scope_kinds: tuple[str, ...]
    sources: int
    """How many sources a thread may have."""
    homes: int | None
    """How many homes a thread may have; ``None`` for any home."""


def search_of(
    *, scope_kinds: Collection[str], max_age_seconds: int, sources: Collection[str], home: str | Collection[str] | None
) -> tuple[Search, dict[str, Any]]:
    """A search and its parameters.

    Raises:
        InvalidInputError: a scope kind that isn't ``cwd`` or ``user``.
    """
    if unknown := sorted(set(scope_kinds) - {SCOPE_CWD, SCOPE_USER}):
        raise InvalidInputError(f"unknown scope kinds {unknown}; known: {SCOPE_CWD}, {SCOPE_USER}")
    sources = sorted(set(sources))
    parameters: dict[str, Any] = {"max_age_seconds": max_age_seconds} | _numbered("source", sources)
    homes = None if home is None else sorted({home} if isinstance(home, str) else set(home))
    if homes is not None:
        parameters |= _numbered("home", homes)
    kinds = tuple(sorted(set(scope_kinds)))
    return Search(kinds, len(sources), None if homes is None else len(homes)), parameters


def is_searched(search: Search) -> list[ColumnElement[bool]]:
    """The conditions on a thread."""
    conditions: list[Any] = [
        sql_text(open_threads(search.scope_kinds)),
        _threads.c.source.in_(_parameters("source", search.sources)),
        seconds_of(_threads.c.updated_at) >= seconds_ago("max_age_seconds"),
        # A row that can't be read must not keep all others from being extracted.
        seconds_of(_threads.c.updated_at) <= literal_column(str(LAST_SECOND), BigInteger()),
    ]
    if search.homes is not None:
        conditions.append(_threads.c.home.in_(_parameters("home", search.homes)))
    return conditions


def latest_first(*, running: bool | None) -> tuple[ColumnElement[Any], ...]:
    """An order of jobs: by when they were finished, and running ones by when they were last renewed.

    What is finished has an index in that order. Renewals change no index: running jobs are few, and sorted.

    Args:
        running: whether those that are to be ordered are running; ``None`` if some may be.
    """
    finished, renewed = seconds_of(_jobs.c.finished_at), seconds_of(_jobs.c.started_at)
    never: ColumnElement[int] = literal_column("0")  # databases don't agree where NULL comes
    moment: ColumnElement[Any] = _jobs.c.finished_at
    if running is not False:
        moment = func.coalesce(renewed, never) if running else func.coalesce(finished, renewed, never)
    return moment.desc(), _jobs.c.thread_id, _jobs.c.scope_kind, _jobs.c.scope_key


def seconds_ago(parameter: str) -> ScalarSelect[int]:
    """So many seconds before now: told once for the whole statement, so that PostgreSQL seeks it in an index.

    No guard compares with it: one that waited for a row's lock has to know what time it is by then.
    """
    return select(server_now() - bindparam(parameter, type_=BigInteger())).scalar_subquery()


def _numbered(name: str, values: Collection[str]) -> dict[str, str]:
    # A parameter each rather than one list: then the statement's text depends on how many there are, and no more.
    return {f"of_{name}_{number}": value for number, value in enumerate(values)}


def _parameters(name: str, count: int) -> list[ColumnElement[str]]:
    return [bindparam(f"of_{name}_{number}", type_=text) for number in range(count)]


# The batch claim: candidates are chosen and claimed in one statement

_LOCK_THE_CAP = select(func.pg_advisory_xact_lock(literal_column("5070246951133876512")))


_running_here = and_(_jobs.c.status == RUNNING, _jobs.c.owner_process < bindparam("to_process", type_=text))
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
    max_threads: int
    limit: int | None
    excluding: bool
    capped: bool
    from_the_dead: bool


def statement_of(
    search: Search,
    *,
    owner: UUID,
    max_threads: int,
    limit: int | None,
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
    shape = _Shape(search, max_threads, limit, exclude is not None, max_running is not None, from_the_dead)
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
            RUNNING,
            bindparam("new_owner", type_=UuidText()),
            server_now(),
            wanted.c.updated_at,
            wanted.c.ns,
            fresh_token(),
            _ONE,
            *leases.NEW_OWNER.values(),
        )
        # Without a WHERE, SQLite would read ON CONFLICT as the ON of a join.
        .where(literal_column("1") == _ONE)
        .order_by(wanted.c.updated_at.desc(), wanted.c.id.desc(), wanted.c.scope_kind)
    )
    if (limit := _limit(shape.limit, shape)) is not None:
        claims = claims.limit(limit)
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
        .where(
            has_scope(kind, candidates.c.cwd),
            claimable(Version(candidates.c.updated_at, candidates.c.ns), from_the_dead=from_the_dead),
        )
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
        candidates.c.ns,
    )


def _candidates(shape: _Shape) -> Select[Any]:
    limit = _limit(shape.max_threads if shape.limit is None else min(shape.max_threads, shape.limit), shape)
    can_be_claimed = (_can_be_claimed(kind, from_the_dead=shape.from_the_dead) for kind in shape.search.scope_kinds)
    statement = (
        select(_threads.c.id, normal_path(_threads.c.cwd).label("cwd"), _threads.c.updated_at, VERSION.ns.label("ns"))
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


def _limit(most: int | None, shape: _Shape) -> ColumnElement[int] | None:
    """``most``, or what the cap leaves if that is less; ``None`` without either."""
    # In the statement's text: PostgreSQL's plan for any limit would read all jobs.
    limit = None if most is None else literal_column(str(most), BigInteger())
    if not shape.capped:
        return limit
    room = _room(from_the_dead=shape.from_the_dead)
    return room if limit is None else case((room < limit, room), else_=limit)


def _can_be_claimed(kind: str, *, from_the_dead: bool) -> ColumnElement[bool]:
    key = key_of(kind, normal_path(_threads.c.cwd))
    job = is_job_of(_threads.c.id, kind, key)
    may_be_claimed = is_claimable(VERSION, from_the_dead=from_the_dead)
    blocking = select(_ONE).where(job, ~may_be_claimed).exists()
    return and_(has_scope(kind, _threads.c.cwd), ~blocking)


def _room(*, from_the_dead: bool) -> ColumnElement[int]:
    """How many more leases the cap allows.

    Stale ones don't count, nor do those of the dead, so a cap full of them never blocks their take-over.
    """
    live = select(func.count()).select_from(_jobs).where(_jobs.c.status == RUNNING, ~_is_over)
    if from_the_dead:
        is_dead = and_(_jobs.c.owner_process.is_not(None), leases.is_of_the_dead(_jobs.c.owner_process))
        live = live.where(~is_dead)
    room = bindparam("max_running", type_=BigInteger()) - live.scalar_subquery()
    return case((room < literal_column("0"), literal_column("0")), else_=room)
