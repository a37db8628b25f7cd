"""Extraction jobs: who may extract which thread's memory, as leases.

The rules of a claim stand with its statement, in ``job_claims``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    Executable,
    Row,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)

from codex_state.database.execute import atomically, by_index
from codex_state.database.sql import among, contains, json_item, json_rows, server_now, trust_clock, unindexed
from codex_state.errors import InvalidInputError, ThreadNotFoundError
from codex_state.models import (
    CRASHES_ALLOWED,
    Claimed,
    HolderWrite,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Product,
    Requeue,
    Skipped,
    SkipReason,
    Thread,
)
from codex_state.models.base import table_of
from codex_state.models.columns import EpochSeconds, PathText, UuidText, path_to_text, text, whole_seconds
from codex_state.repositories import job_claims, job_hints, leases
from codex_state.repositories.base import given_rows, parameters_of, select_entity
from codex_state.repositories.job_claims import (
    FAILED,
    IS_WORN_OUT,
    JOBS,
    RUNNING,
    SUCCEEDED,
    VERSION,
    Search,
    Version,
    claim_from,
    give_up,
    is_claimable,
    latest_first,
    left_behind,
    search_of,
)
from codex_state.repositories.leases import LeaseRepository

_jobs = JOBS.table
_threads = table_of(Thread)

_source = bindparam("new_source", type_=EpochSeconds())
# Of an older version than the thread's, or a newer one, nobody can tell.
_source_ns = case((_threads.c.updated_at == _source, VERSION.ns), else_=null())
_claimed = (
    # From the thread's row, so that a job without a thread is "no row came back" rather than a broken transaction.
    select(
        _threads.c.id,
        bindparam("of_scope_kind", type_=text),
        bindparam("of_scope_key", type_=text),
        RUNNING,
        bindparam("new_owner", type_=UuidText()),
        server_now(),
        _source,
        _source_ns,
        bindparam("new_token", type_=text),
        literal_column("1"),
        *leases.NEW_OWNER.values(),
    )
    .where(
        _threads.c.id == bindparam("of_thread_id", type_=UuidText()),
        or_(_threads.c.updated_at <= _source, bindparam("or_older", type_=BigInteger()) == literal_column("1")),
    )
    # On PostgreSQL a thread that is being deleted is waited for, and then missed, before the foreign key looks at it.
    .with_for_update(of=_threads, read=True, key_share=True)
)
_CLAIM = claim_from(_claimed)
_CLAIM_FROM_THE_DEAD = claim_from(_claimed, from_the_dead=True)
_GIVE_UP = give_up(all_jobs=False)
_GIVE_UP_FROM_THE_DEAD = give_up(all_jobs=False, from_the_dead=True)
_GIVE_UP_ALL = give_up(all_jobs=True)
_GIVE_UP_ALL_FROM_THE_DEAD = give_up(all_jobs=True, from_the_dead=True)

_REFUSAL = (
    select(
        case(
            (
                _jobs.c.status == FAILED,
                case(
                    (_jobs.c.retry_at.is_(None), SkipReason.TERMINAL_FAILURE.value),
                    else_=SkipReason.RETRY_LATER.value,
                ),
            ),
            (_jobs.c.status == SUCCEEDED, SkipReason.UP_TO_DATE.value),
            else_=SkipReason.RUNNING.value,
        ).label("reason"),
        case((_threads.c.updated_at > _source, 1), else_=0).label("is_older"),
        case((or_(_jobs.c.thread_id.is_(None), is_claimable(Version(_source, _source_ns))), 1), else_=0).label(
            "may_be_claimed"
        ),
        case((_jobs.c.status == RUNNING, _jobs.c.owner_process)).label("holder"),
        case((and_(_jobs.c.status == RUNNING, IS_WORN_OUT), 1), else_=0).label("is_worn_out"),
    )
    .select_from(_threads.outerjoin(_jobs, JOBS.is_key))
    .where(_threads.c.id == bindparam("of_thread_id", type_=UuidText()))
)

_RENEW = JOBS.renewal()
_BEGIN = JOBS.renewal(begun_at=server_now())
_SUCCEED = JOBS.write(
    status=SUCCEEDED,
    finished_at=server_now(),
    failure_reason=null(),
    raw_memory_path=bindparam("new_raw_memory_path", type_=PathText()),
    summary_hash=bindparam("new_summary_hash", type_=text),
)
_row = json_rows(bindparam("finished", type_=text)).table_valued("value", name="finished").c.value
_finished = select(
    cast(json_item(_row, literal_column("0")), UuidText()).label("thread_id"),
    *(
        json_item(_row, literal_column(str(index))).label(name)
        for index, name in enumerate(("scope_kind", "scope_key", "token", "raw_memory_path", "summary_hash"), start=1)
    ),
).cte("finished_jobs")
SUCCEED_MANY = (
    update(_jobs)
    .where(
        _jobs.c.thread_id == _finished.c.thread_id,
        _jobs.c.scope_kind == _finished.c.scope_kind,
        _jobs.c.scope_key == _finished.c.scope_key,
        # SQLite would otherwise look through all running jobs, for each of them through all that are finished.
        unindexed(_jobs.c.status) == RUNNING,
        _jobs.c.ownership_token == _finished.c.token,
    )
    .values(
        status=SUCCEEDED,
        finished_at=server_now(),
        failure_reason=null(),
        raw_memory_path=_finished.c.raw_memory_path,
        summary_hash=_finished.c.summary_hash,
    )
    .returning(_jobs.c.ownership_token)
)
_failed = {
    "status": FAILED,
    "finished_at": server_now(),
    "failure_reason": bindparam("new_failure_reason", type_=text),
}
_retry_seconds = bindparam("retry_seconds", type_=BigInteger())
_FAIL = JOBS.write(
    **_failed,
    retry_at=server_now() + _retry_seconds,  # NULL when there is no retry: the failure is terminal
    failures=_jobs.c.failures + 1,
)
_RELEASE = JOBS.write(**_failed, retry_at=server_now())
_anew = {"retry_at": server_now(), "failures": literal_column("0"), "crashes": literal_column("0")}
_REQUEUE = update(_jobs).where(JOBS.is_key, _jobs.c.status == FAILED).values(_anew).returning(_jobs.c.attempt)
_left_behind = {**_failed, **_anew, "ownership_token": null()}
_REQUEUE_OVER = update(_jobs).where(JOBS.is_key, left_behind()).values(_left_behind).returning(_jobs.c.attempt)
_REQUEUE_FROM_THE_DEAD = (
    update(_jobs).where(JOBS.is_key, JOBS.is_of_the_dead).values(_left_behind).returning(_jobs.c.attempt)
)
_found = given_rows(thread_id=UuidText())
_MISSED_THEIR_FILE = (
    update(_jobs)
    .where(
        among(_jobs.c.thread_id, select(_found.c.thread_id)),
        unindexed(_jobs.c.status) == FAILED,
        _jobs.c.retry_at.is_(None),
        contains(_jobs.c.failure_reason, literal_column(f"'{FileNotFoundError.__name__}'", text)),
    )
    .values(retry_at=server_now())
    .returning(_jobs.c.attempt)
)
_GET = select_entity(Phase1Job).where(JOBS.is_key)

_limit = bindparam("row_limit", type_=BigInteger())
_LIST = select_entity(Phase1Job).order_by(*latest_first(running=None)).limit(_limit)
_LIST_BY_STATUS = {
    status: select_entity(Phase1Job)
    .where(_jobs.c.status == bindparam("of_status", type_=text))
    .order_by(*latest_first(running=status is Phase1Status.RUNNING))
    .limit(_limit)
    for status in Phase1Status
}
_COUNT = select(_jobs.c.status, func.count().label("jobs")).group_by(_jobs.c.status)

_MOST_ROUNDS = 64
"""One batch claim marks at most so many windows of settled threads: it may find many after an older version."""


class Phase1JobRepository(LeaseRepository[Phase1Key, Phase1Lease]):
    """Claims and the writes of their holders, on the ``memory_phase1_jobs`` table."""

    _leases = JOBS
    _renewal = _RENEW

    def try_claim(
        self,
        key: Phase1Key,
        *,
        owner: UUID,
        source_updated_at: datetime,
        lease: timedelta,
        crashes_allowed: int = CRASHES_ALLOWED,
    ) -> Claimed[Phase1Lease] | Skipped:
        """Claim one job, or learn why not.

        Args:
            key: which thread and scope.
            owner: the session that will do the work, for people to see. The token, not the owner, is what guards.
            source_updated_at: which version of the thread will be extracted.
            lease: how long the holder may be silent before another takes over, in whole seconds. Zero or less takes
                over a running job at once, as everybody does when its process has died on this host. Seconds are
                whole, so a lease may end up to one second early: trust ``lease`` minus one second minus a margin,
                counted from *before* this call.
            crashes_allowed: how often the job's work may end with its worker. Instead of being granted once more, it
                then fails for good.

        Raises:
            ThreadNotFoundError: the thread has no row.
        """
        requested_at, token = trust_clock(), uuid4().hex
        parameters = self._request(key, owner, token, lease) | {
            "new_owner": owner,
            "new_source": source_updated_at,
            "crashes_allowed": crashes_allowed,
        }
        row = self._one(_CLAIM, parameters | {"or_older": 0})
        if row is None:
            refusal = self._refusal(key, parameters)
            dead = leases.dead_parameters(self._connection, [refusal.holder])
            if refusal.is_worn_out and self._give_up(parameters | dead, key_only=True):
                return Skipped(SkipReason.TERMINAL_FAILURE)
            if not (dead or (refusal.is_older and refusal.may_be_claimed)):
                return Skipped(SkipReason(refusal.reason))
            claim, parameters = _CLAIM_FROM_THE_DEAD if dead else _CLAIM, parameters | dead
            if refusal.is_older:
                row = self._claim_older_version(claim, parameters)
            else:
                row = self._one(claim, parameters | {"or_older": 0})
            if row is None:
                return Skipped(SkipReason(self._refusal(key, parameters).reason))
        return Claimed(lease_of(row, owner, lease, requested_at))

    def _give_up(self, parameters: Mapping[str, Any], *, key_only: bool = False) -> bool:
        """Make failed for good what another claim would have crash too often. Tells whether there was such a job."""
        allowed = parameters["crashes_allowed"]
        reason = f"its worker ended while it worked on it ({allowed} of {allowed} crashes allowed)"
        statements = (_GIVE_UP, _GIVE_UP_FROM_THE_DEAD) if key_only else (_GIVE_UP_ALL, _GIVE_UP_ALL_FROM_THE_DEAD)
        given_up = self._all(statements[0], {**parameters, "crash_reason": reason})
        if not given_up and "dead_processes" in parameters:
            given_up = self._all(statements[1], {**parameters, "crash_reason": reason})
        return bool(given_up)

    def _claim_older_version(self, claim: Executable, parameters: dict[str, Any]) -> Row[Any] | None:
        """Claim a version that the thread has left behind since the caller read it.

        Batch claims may take the thread for settled for the version it has now. Nothing in the job's row would bring
        it back once the older version is done, so they look at it again from the moment of this claim.
        """
        with atomically(self._connection):
            self._one(job_hints.TAKE_BACK, parameters)
            return self._one(claim, parameters | {"or_older": 1})

    def _refusal(self, key: Phase1Key, parameters: Mapping[str, Any]) -> Any:
        refusal = self._one(_REFUSAL, parameters)
        if refusal is None:
            raise ThreadNotFoundError(key.thread_id)
        return refusal

    def claim_candidates(
        self,
        *,
        owner: UUID,
        lease: timedelta,
        max_threads: int = 64,
        limit: int | None = None,
        max_age: timedelta = timedelta(days=30),
        sources: Collection[str] = ("cli", "vscode"),
        scope_kinds: Collection[str] = ("cwd", "user"),
        exclude: UUID | None = None,
        max_running: int | None = None,
        home: str | Collection[str] | None = None,
        crashes_allowed: int = CRASHES_ALLOWED,
    ) -> list[Phase1Lease]:
        """Claim the jobs of the most recently updated threads that have something to extract, in one transaction.

        A thread is a candidate when it isn't archived, its source is interactive, its memory mode is ``enabled`` and
        one of its jobs can be claimed. On PostgreSQL nobody is waited for: threads that another worker is claiming, and
        jobs whose holder is just finishing them, are left to them. SQLite has one writer at a time.

        Args:
            owner: the session that will do the work.
            lease: how long the holder may be silent before another takes over, in whole seconds.
            max_threads: how many threads at most; each gives up to one lease for each kind of scope.
            limit: how many leases at most; ``None`` for as many as the threads give. Whoever does one piece of work at
                a time asks for one.
            max_age: threads not updated for longer than this are left alone.
            sources: which sources count as interactive.
            scope_kinds: ``cwd``, ``user`` or both. A thread without a known directory, or with one of more than 2,000
                bytes, has no ``cwd`` scope.
            exclude: the caller's own thread.
            max_running: how many live leases there may be at once, over all workers; stale ones don't count, so they
                can always be taken over. ``None`` for no bound.
            home: only threads of this home, or of one of these; ``None`` means all.
            crashes_allowed: how often a job's work may end with its worker before it fails for good. Whatever has, of
                any thread, is made failed before the claim.

        Returns:
            The leases, most recently updated thread first.
        """
        search, parameters = search_of(
            scope_kinds=scope_kinds, max_age_seconds=whole_seconds(max_age), sources=sources, home=home
        )
        most = max_threads if limit is None else min(max_threads, limit)
        if most < 1 or not (search.scope_kinds and search.sources) or search.homes == 0:
            return []
        requested_at, connection = trust_clock(), self._connection
        parameters |= {**leases.owner_parameters(connection, lease), "crashes_allowed": crashes_allowed}

        def claim(max_threads: int, limit: int | None, dead: Mapping[str, str]) -> list[Phase1Lease]:
            with_dead = {**parameters, **dead}
            self._give_up(with_dead)
            self._all(job_hints.reopen(search.scope_kinds, from_the_dead=bool(dead)), with_dead)
            if max_running is not None:
                job_claims.count_alone(connection)
            statement, of_claim = job_claims.statement_of(
                search,
                owner=owner,
                max_threads=max_threads,
                limit=limit,
                exclude=exclude,
                max_running=max_running,
                from_the_dead=bool(dead),
            )
            rows = self._all(statement, {**with_dead, **of_claim})
            claimed = [lease_of(row, owner, lease, requested_at) for row in rows]
            self._mark_settled_threads(search, claimed, with_dead)
            return claimed

        # In one transaction: SQLite's other writers would empty this one's cache between the statements.
        with atomically(connection), by_index(connection):
            claimed = claim(max_threads, limit, {})
            threads = max_threads - len({lease.key.thread_id for lease in claimed})
            missing = None if limit is None else limit - len(claimed)
            if threads and missing != 0 and (dead := self._dead_holders()):
                claimed += claim(threads, missing, dead)
        # RETURNING has no order.
        claimed.sort(key=lambda lease: (lease.source_updated_at, lease.key.thread_id), reverse=True)
        return claimed

    def _dead_holders(self) -> dict[str, str]:
        """The dead processes of this host that hold jobs, as a parameter."""
        here = leases.host_parameters(self._connection)
        holders = [row.process for row in self._all(job_claims.HOLDERS_HERE, here)] if here else []
        return leases.dead_parameters(self._connection, holders)

    def _mark_settled_threads(
        self, search: Search, claimed: Sequence[Phase1Lease], parameters: Mapping[str, Any]
    ) -> None:
        """Let the next batch claim pass over what was just claimed, and over what others have settled."""
        look_at, from_the_dead = job_hints.LOOK_BEYOND, "dead_processes" in parameters
        threads = {lease.key.thread_id for lease in claimed}
        for _ in range(_MOST_ROUNDS):
            settle = job_hints.settle(search, look_at, from_the_dead=from_the_dead)
            settled = len(self._all(settle, {**parameters, **job_hints.claimed_threads(threads)}))
            if settled - len(threads) < look_at // 2:
                return
            look_at, threads = job_hints.LOOK_AT_MANY, set()

    def begin(self, lease: Phase1Lease) -> HolderWrite:
        """Note that the work begins, and prolong the lease. From now on, ending with its worker counts as a crash."""
        return self._prolong(_BEGIN, lease)

    def succeed(self, lease: Phase1Lease, *, raw_memory_path: Path | None, summary_hash: str | None) -> HolderWrite:
        """Finish the job, naming what it produced; both are ``None`` when there was nothing to remember."""
        return self._write(_SUCCEED, lease, new_raw_memory_path=raw_memory_path, new_summary_hash=summary_hash)

    def succeed_many(self, products: Mapping[Phase1Lease, Product]) -> dict[Phase1Lease, HolderWrite]:
        """``succeed`` for many jobs in one statement, each guarded by its own lease's token (laws L1, L2).

        Lost leases change nothing and keep none of the others from finishing. On PostgreSQL, 64 finishes cost one
        round trip instead of 64.

        Raises:
            InvalidInputError: a path or hash holds a NUL, which JSON functions don't pass on.
        """
        if not products:
            return {}
        finished = json.dumps(list(map(_finished_row, products.keys(), products.values())), ensure_ascii=False)
        applied = {row.ownership_token for row in self._all(SUCCEED_MANY, {"finished": finished})}
        return {lease: HolderWrite.APPLIED if lease.token in applied else HolderWrite.LEASE_LOST for lease in products}

    def fail(self, lease: Phase1Lease, reason: str, *, retry_after: timedelta | None = None) -> HolderWrite:
        """Finish the job as failed.

        Args:
            lease: the holder's lease.
            reason: what went wrong, for people.
            retry_after: when it may be claimed again; ``None`` makes the failure terminal, also for newer sources.
        """
        retry_seconds = None if retry_after is None else whole_seconds(retry_after)
        return self._write(_FAIL, lease, new_failure_reason=reason, retry_seconds=retry_seconds)

    def release(self, lease: Phase1Lease, reason: str = "released") -> HolderWrite:
        """Give the job back unfinished. It can be claimed again at once, and no failure is counted.

        Args:
            lease: the holder's lease.
            reason: why it isn't finished, for people.
        """
        return self._write(_RELEASE, lease, new_failure_reason=reason)

    def requeue(self, key: Phase1Key, *, lease: timedelta = timedelta(hours=1)) -> Requeue:
        """Let a job be claimed again, now, and forget its failures and crashes: an operator's decision.

        A failed job is requeued, and so is a running one that its worker has left behind: its lease is over, or its
        process on this host is dead. Whoever held it has lost it.

        Args:
            key: which job.
            lease: for how long a running job counts as held whose row doesn't say so.
        """
        of_job = self._of(key)
        if self._one(_REQUEUE, of_job) is not None:
            return Requeue.REQUEUED
        job = self.get(key)
        if job is None:
            return Requeue.NOT_FOUND
        if job.status is not Phase1Status.RUNNING:
            return Requeue.NOT_FAILED
        holder = job.owner_name or "its worker"
        parameters = of_job | {
            "new_failure_reason": f"{holder} left it behind",
            "new_lease_seconds": max(whole_seconds(lease), 1),
        }
        left_behind = self._one(_REQUEUE_OVER, parameters)
        if left_behind is None and (dead := leases.dead_parameters(self._connection, [job.owner_process])):
            left_behind = self._one(_REQUEUE_FROM_THE_DEAD, parameters | dead)
        return Requeue.RUNNING if left_behind is None else Requeue.REQUEUED

    def reopen_found(self, thread_ids: Collection[str]) -> int:
        """Let jobs be claimed again that failed for good because the rollout wasn't where its thread's row said.

        Args:
            thread_ids: threads whose rollouts were found and read just now, as they are stored; some hundreds at most.

        Returns:
            How many jobs were reopened.
        """
        given = parameters_of((thread_id,) for thread_id in thread_ids)
        return len(self._all(_MISSED_THEIR_FILE, given)) if thread_ids else 0

    def get(self, key: Phase1Key) -> Phase1Job | None:
        """The job, or ``None`` when it was never claimed."""
        return self._entity(Phase1Job, _GET, self._of(key))

    def list(self, *, status: Phase1Status | None = None, limit: int = 100) -> Sequence[Phase1Job]:
        """Jobs, the latest first: by when they were finished, and running ones by when they were last renewed."""
        if status is None:
            return self._entities(Phase1Job, _LIST, {"row_limit": max(limit, 0)})
        return self._entities(
            Phase1Job, _LIST_BY_STATUS[status], {"of_status": status.value, "row_limit": max(limit, 0)}
        )

    def count_by_status(self) -> dict[Phase1Status, int]:
        """How many jobs there are in each state."""
        counts = {Phase1Status(row.status): row.jobs for row in self._all(_COUNT)}
        return {status: counts.get(status, 0) for status in Phase1Status}

    @staticmethod
    def _of(key: Phase1Key) -> dict[str, Any]:
        return {"of_thread_id": key.thread_id, "of_scope_kind": key.scope.kind, "of_scope_key": key.scope.key}


def lease_of(row: Row[Any], owner: UUID, duration: timedelta, requested_at: float) -> Phase1Lease:
    """The lease that a claim's returned row grants."""
    return Phase1Lease(
        key=Phase1Key(row.thread_id, MemoryScope(row.scope_kind, row.scope_key)),
        owner=owner,
        token=row.ownership_token,
        granted_at=row.started_at,
        duration=duration,
        attempt=row.attempt,
        requested_at=requested_at,
        source_updated_at=row.source_updated_at,
        failures=row.failures,
        crashes=row.crashes,
    )


def _finished_row(lease: Phase1Lease, product: Product) -> list[str | None]:
    path = None if product.raw_memory_path is None else path_to_text(product.raw_memory_path)
    scope = lease.key.scope
    row = [str(lease.key.thread_id), scope.kind, scope.key, lease.token, path, product.summary_hash]
    if any(value is not None and "\x00" in value for value in row):
        raise InvalidInputError(f"a NUL character in what the job of thread {row[0]} produced")
    return row
