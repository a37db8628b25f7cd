"""Extraction jobs: who may extract which thread's memory, as leases.

The rules of a claim stand with its statement, in ``phase1_claims``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
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
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)

from codex_state.clock import server_now
from codex_state.errors import ThreadNotFoundError
from codex_state.models import (
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
from codex_state.models.columns import EpochSeconds, PathText, UuidText, path_to_text, text
from codex_state.repositories import given_rows, owners, phase1_candidates, phase1_open_threads
from codex_state.repositories.base import Repository, select_entity, table_of, whole_seconds
from codex_state.repositories.phase1_claims import FAILED, RUNNING, SUCCEEDED, claim_from, is_claimable
from codex_state.repositories.phase1_finishing import SUCCEED_MANY, parameters_of
from codex_state.repositories.phase1_search import Search, search_of
from codex_state.repositories.prepared import atomically, by_index, planned_anew
from codex_state.sql import contains, is_any_of, unindexed

_jobs = table_of(Phase1Job)
_threads = table_of(Thread)

_KEY = and_(
    _jobs.c.thread_id == bindparam("of_thread", type_=UuidText()),
    _jobs.c.scope_kind == bindparam("of_kind", type_=text),
    _jobs.c.scope_key == bindparam("of_key", type_=text),
)
_HELD = and_(_KEY, _jobs.c.status == RUNNING, _jobs.c.ownership_token == bindparam("token", type_=text))

_source = bindparam("new_source", type_=EpochSeconds())
_claimed = (
    # From the thread's row, so that a job without a thread is "no row came back" rather than a broken transaction.
    select(
        _threads.c.id,
        bindparam("of_kind", type_=text),
        bindparam("of_key", type_=text),
        RUNNING,
        bindparam("new_owner", type_=UuidText()),
        server_now(),
        _source,
        bindparam("new_token", type_=text),
        literal_column("1"),
        *owners.NEW_OWNER.values(),
    )
    .where(
        _threads.c.id == bindparam("of_thread", type_=UuidText()),
        or_(_threads.c.updated_at <= _source, bindparam("or_older", type_=BigInteger()) == literal_column("1")),
    )
    # On PostgreSQL a thread that is being deleted is waited for, and then missed, before the foreign key looks at it.
    .with_for_update(of=_threads, read=True, key_share=True)
)
_CLAIM = claim_from(_claimed)
_CLAIM_FROM_THE_DEAD = claim_from(_claimed, from_the_dead=True)

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
        case((or_(_jobs.c.thread_id.is_(None), is_claimable(_source)), 1), else_=0).label("may_be_claimed"),
        case((_jobs.c.status == RUNNING, _jobs.c.owner_process)).label("holder"),
    )
    .select_from(_threads.outerjoin(_jobs, _KEY))
    .where(_threads.c.id == bindparam("of_thread", type_=UuidText()))
)

_RENEW = update(_jobs).where(_HELD).values(started_at=server_now(), **owners.NEW_OWNER).returning(_jobs.c.started_at)
_SUCCEED = (
    update(_jobs)
    .where(_HELD)
    .values(
        status=SUCCEEDED,
        finished_at=server_now(),
        failure_reason=null(),
        raw_memory_path=bindparam("new_raw_memory_path", type_=PathText()),
        summary_hash=bindparam("new_summary_hash", type_=text),
    )
    .returning(_jobs.c.attempt)
)
_retry_seconds = bindparam("retry_seconds", type_=BigInteger())
_FAIL = (
    update(_jobs)
    .where(_HELD)
    .values(
        status=FAILED,
        finished_at=server_now(),
        failure_reason=bindparam("new_failure_reason", type_=text),
        retry_at=server_now() + _retry_seconds,  # NULL when there is no retry: the failure is terminal
        failures=_jobs.c.failures + 1,
    )
    .returning(_jobs.c.attempt)
)
_RELEASE = (
    update(_jobs)
    .where(_HELD)
    .values(
        status=FAILED,
        finished_at=server_now(),
        failure_reason=bindparam("new_failure_reason", type_=text),
        retry_at=server_now(),
    )
    .returning(_jobs.c.attempt)
)
_REQUEUE = (
    update(_jobs)
    .where(_KEY, _jobs.c.status == FAILED)
    .values(retry_at=server_now(), failures=literal_column("0"))
    .returning(_jobs.c.attempt)
)
_found = given_rows.given_rows(thread_id=UuidText())
_MISSED_THEIR_FILE = (
    update(_jobs)
    .where(
        is_any_of(_jobs.c.thread_id, select(_found.c.thread_id).scalar_subquery()),
        unindexed(_jobs.c.status) == FAILED,
        _jobs.c.retry_at.is_(None),
        contains(_jobs.c.failure_reason, literal_column(f"'{FileNotFoundError.__name__}'", text)),
    )
    .values(retry_at=server_now())
    .returning(_jobs.c.attempt)
)
_GET = select_entity(Phase1Job).where(_KEY)

_order = (_jobs.c.started_at.desc(), _jobs.c.thread_id, _jobs.c.scope_kind, _jobs.c.scope_key)
_limit = bindparam("row_limit", type_=BigInteger())
_LIST = select_entity(Phase1Job).order_by(*_order).limit(_limit)
_LIST_BY_STATUS = (
    select_entity(Phase1Job).where(_jobs.c.status == bindparam("of_status", type_=text)).order_by(*_order).limit(_limit)
)
_COUNT = select(_jobs.c.status, func.count().label("jobs")).group_by(_jobs.c.status)

_MOST_ROUNDS = 64
"""One batch claim marks at most so many windows of settled threads: it may find many after an older version."""


class Phase1JobRepository(Repository):
    """Claims and the writes of their holders, on the ``memory_phase1_jobs`` table."""

    def try_claim(
        self, key: Phase1Key, *, owner: UUID, source_updated_at: datetime, lease: timedelta
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

        Raises:
            ThreadNotFoundError: the thread has no row.
        """
        token = uuid4().hex
        parameters = _key_of(key) | {
            "new_owner": owner,
            "new_source": source_updated_at,
            "new_token": token,
            **owners.owner_parameters(self._connection, lease),
        }
        row = self._one(_CLAIM, parameters | {"or_older": 0})
        if row is None:
            refusal = self._refusal(key, parameters)
            dead = owners.dead_parameters(self._connection, [refusal.holder])
            if not (dead or (refusal.is_older and refusal.may_be_claimed)):
                return Skipped(SkipReason(refusal.reason))
            claim, parameters = _CLAIM_FROM_THE_DEAD if dead else _CLAIM, parameters | dead
            if refusal.is_older:
                row = self._claim_older_version(claim, parameters)
            else:
                row = self._one(claim, parameters | {"or_older": 0})
            if row is None:
                return Skipped(SkipReason(self._refusal(key, parameters).reason))
        return Claimed(lease_of(row, owner, lease))

    def _claim_older_version(self, claim: Executable, parameters: dict[str, Any]) -> Row[Any] | None:
        """Claim a version that the thread has left behind since the caller read it.

        Batch claims may take the thread for settled for the version it has now. Nothing in the job's row would bring
        it back once the older version is done, so they look at it again from the moment of this claim.
        """
        with atomically(self._connection):
            self._one(phase1_open_threads.TAKE_BACK, parameters)
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
        limit: int = 64,
        max_age: timedelta = timedelta(days=30),
        sources: Collection[str] = ("cli", "vscode"),
        scope_kinds: Collection[str] = ("cwd", "user"),
        exclude: UUID | None = None,
        max_running: int | None = None,
        home: str | Collection[str] | None = None,
    ) -> list[Phase1Lease]:
        """Claim the jobs of the most recently updated threads that have something to extract, in one transaction.

        A thread is a candidate when it isn't archived, its source is interactive, its memory mode is ``enabled`` and
        one of its jobs can be claimed. On PostgreSQL nobody is waited for: threads that another worker is claiming, and
        jobs whose holder is just finishing them, are left to them. SQLite has one writer at a time.

        Args:
            owner: the session that will do the work.
            lease: how long the holder may be silent before another takes over, in whole seconds.
            limit: how many threads at most; each gives up to one lease per scope kind.
            max_age: threads not updated for longer than this are left alone.
            sources: which sources count as interactive.
            scope_kinds: ``cwd``, ``user`` or both. A thread without a known directory, or with one of more than 2,000
                bytes, has no ``cwd`` scope.
            exclude: the caller's own thread.
            max_running: how many live leases there may be at once, over all workers; stale ones don't count, so they
                can always be taken over. ``None`` for no bound.
            home: only threads of this home, or of one of these; ``None`` means all.

        Returns:
            The leases, most recently updated thread first.
        """
        search, parameters = search_of(
            scope_kinds=scope_kinds, max_age_seconds=whole_seconds(max_age), sources=sources, home=home
        )
        if limit < 1 or not (search.scope_kinds and search.sources) or search.homes == 0:
            return []
        connection = self._connection
        parameters |= owners.owner_parameters(connection, lease)
        claim = partial(
            self._claim_candidates, search, owner=owner, lease=lease, exclude=exclude, max_running=max_running
        )
        # In one transaction: SQLite's other writers would empty this one's cache between the statements.
        with planned_anew(connection), atomically(connection), by_index(connection):
            leases = claim(parameters, limit=limit)
            missing = limit - len({lease.key.thread_id for lease in leases})
            if missing and (dead := self._dead_holders()):
                leases += claim(parameters | dead, limit=missing)
        # RETURNING has no order.
        leases.sort(key=lambda lease: (lease.source_updated_at, lease.key.thread_id), reverse=True)
        return leases

    def _claim_candidates(
        self,
        search: Search,
        parameters: Mapping[str, Any],
        *,
        owner: UUID,
        lease: timedelta,
        limit: int,
        exclude: UUID | None,
        max_running: int | None,
    ) -> list[Phase1Lease]:
        from_the_dead = "dead_processes" in parameters
        self._all(phase1_open_threads.reopen(search.scope_kinds, from_the_dead=from_the_dead), parameters)
        if max_running is not None:
            phase1_candidates.count_alone(self._connection)
        statement, of_claim = phase1_candidates.statement_of(
            search, owner=owner, limit=limit, exclude=exclude, max_running=max_running, from_the_dead=from_the_dead
        )
        leases = [lease_of(row, owner, lease) for row in self._all(statement, {**parameters, **of_claim})]
        self._mark_settled_threads(search, leases, parameters)
        return leases

    def _dead_holders(self) -> dict[str, str]:
        """The dead processes of this host that hold jobs, as a parameter."""
        here = owners.host_parameters(self._connection)
        holders = [row.process for row in self._all(phase1_candidates.HOLDERS_HERE, here)] if here else []
        return owners.dead_parameters(self._connection, holders)

    def _mark_settled_threads(
        self, search: Search, claimed: Sequence[Phase1Lease], parameters: Mapping[str, Any]
    ) -> None:
        """Let the next batch claim pass over what was just claimed, and over what others have settled."""
        look_at, from_the_dead = phase1_open_threads.LOOK_BEYOND, "dead_processes" in parameters
        threads = {lease.key.thread_id for lease in claimed}
        for _ in range(_MOST_ROUNDS):
            settle = phase1_open_threads.settle(search, look_at, from_the_dead=from_the_dead)
            settled = len(self._all(settle, {**parameters, **phase1_open_threads.claimed_threads(threads)}))
            if settled - len(threads) < look_at // 2:
                return
            look_at, threads = phase1_open_threads.LOOK_AT_MANY, set()

    def renew(self, lease: Phase1Lease) -> Phase1Lease | None:
        """Prolong the lease from now on. ``None`` means that it is lost: stop working.

        A lease that is over but that nobody took is still the holder's and can be renewed.
        """
        row = self._one(_RENEW, _held(lease) | owners.owner_parameters(self._connection, lease.duration))
        return None if row is None else lease.renewed(row.started_at)

    def succeed(self, lease: Phase1Lease, *, raw_memory_path: Path | None, summary_hash: str | None) -> HolderWrite:
        """Finish the job, naming what it produced; both are ``None`` when there was nothing to remember."""
        parameters = _held(lease) | {"new_raw_memory_path": raw_memory_path, "new_summary_hash": summary_hash}
        return _outcome(self._one(_SUCCEED, parameters))

    def succeed_many(self, products: Mapping[Phase1Lease, Product]) -> dict[Phase1Lease, HolderWrite]:
        """``succeed`` for many jobs in one statement, each guarded by its own lease's token (laws L1, L2).

        Lost leases change nothing and keep none of the others from finishing. On PostgreSQL, 64 finishes cost one
        round trip instead of 64.

        Raises:
            InvalidInputError: a path or hash holds a NUL, which JSON functions don't pass on.
        """
        if not products:
            return {}
        rows = [_row_of_finished(lease, product) for lease, product in products.items()]
        applied = {row.ownership_token for row in self._all(SUCCEED_MANY, parameters_of(rows))}
        return {
            lease: HolderWrite.APPLIED if lease.ownership_token in applied else HolderWrite.LEASE_LOST
            for lease in products
        }

    def fail(self, lease: Phase1Lease, reason: str, *, retry_after: timedelta | None = None) -> HolderWrite:
        """Finish the job as failed.

        Args:
            lease: the holder's lease.
            reason: what went wrong, for people.
            retry_after: when it may be claimed again; ``None`` makes the failure terminal, also for newer sources.
        """
        parameters = _held(lease) | {
            "new_failure_reason": reason,
            "retry_seconds": None if retry_after is None else whole_seconds(retry_after),
        }
        return _outcome(self._one(_FAIL, parameters))

    def release(self, lease: Phase1Lease, reason: str) -> HolderWrite:
        """Give the job back unfinished. It can be claimed again at once, and no failure is counted.

        Args:
            lease: the holder's lease.
            reason: why it isn't finished, for people.
        """
        return _outcome(self._one(_RELEASE, _held(lease) | {"new_failure_reason": reason}))

    def requeue(self, key: Phase1Key) -> Requeue:
        """Let a failed job be claimed again, now, and forget its failures: an operator's decision, without a lease."""
        if self._one(_REQUEUE, _key_of(key)) is not None:
            return Requeue.REQUEUED
        return Requeue.NOT_FOUND if self.get(key) is None else Requeue.NOT_FAILED

    def reopen_found(self, thread_ids: Collection[str]) -> int:
        """Let jobs be claimed again that failed for good because the rollout wasn't where its thread's row said.

        Args:
            thread_ids: threads whose rollouts were found and read just now, as they are stored; some hundreds at most.

        Returns:
            How many jobs were reopened.
        """
        given = given_rows.parameters_of((thread_id,) for thread_id in thread_ids)
        return len(self._all(_MISSED_THEIR_FILE, given)) if thread_ids else 0

    def get(self, key: Phase1Key) -> Phase1Job | None:
        """The job, or ``None`` when it was never claimed."""
        return self._entity(Phase1Job, _GET, _key_of(key))

    def list(self, *, status: Phase1Status | None = None, limit: int = 100) -> Sequence[Phase1Job]:
        """Jobs, the most recently started first."""
        if status is None:
            return self._entities(Phase1Job, _LIST, {"row_limit": max(limit, 0)})
        return self._entities(Phase1Job, _LIST_BY_STATUS, {"of_status": status.value, "row_limit": max(limit, 0)})

    def count_by_status(self) -> dict[Phase1Status, int]:
        """How many jobs there are in each state."""
        counts = {Phase1Status(row.status): row.jobs for row in self._all(_COUNT)}
        return {status: counts.get(status, 0) for status in Phase1Status}


def lease_of(row: Row[Any], owner: UUID, duration: timedelta) -> Phase1Lease:
    """The lease that a claim's returned row grants."""
    return Phase1Lease(
        key=Phase1Key(row.thread_id, MemoryScope(row.scope_kind, row.scope_key)),
        owner=owner,
        ownership_token=row.ownership_token,
        attempt=row.attempt,
        failures=row.failures,
        source_updated_at=row.source_updated_at,
        started_at=row.started_at,
        duration=duration,
    )


def _key_of(key: Phase1Key) -> dict[str, Any]:
    return {"of_thread": key.thread_id, "of_kind": key.scope.kind, "of_key": key.scope.key}


def _held(lease: Phase1Lease) -> dict[str, Any]:
    return _key_of(lease.key) | {"token": lease.ownership_token}


def _row_of_finished(lease: Phase1Lease, product: Product) -> list[str | None]:
    path = None if product.raw_memory_path is None else path_to_text(product.raw_memory_path)
    scope = lease.key.scope
    return [str(lease.key.thread_id), scope.kind, scope.key, lease.ownership_token, path, product.summary_hash]


def _outcome(row: Row[Any] | None) -> HolderWrite:
    return HolderWrite.LEASE_LOST if row is None else HolderWrite.APPLIED
