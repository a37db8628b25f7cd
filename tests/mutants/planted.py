"""Bugs planted in the Python around the statements: more than one statement, a token that isn't fresh, two commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID

from sqlalchemy import Connection, select

from codex_state.database.sql import server_now
from codex_state.database.sqlite import StateConnection
from codex_state.models import (
    BackfillLease,
    Claimed,
    ConsolidationLock,
    HolderWrite,
    LockLease,
    NamedLease,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Skipped,
    SkipReason,
)
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    NamedLockRepository,
    Phase1JobRepository,
)
from codex_state.rollout import backfilling
from codex_state.runtime import State
from codex_state.testing.holder_writes import HOLDER_WRITES
from tests.mutants.statements import SqlMutant, sql_mutants


@dataclass(frozen=True)
class PlantedMutant:
    """One bug."""

    name: str
    plant: Callable[[ExitStack, Callable[[], None]], None]
    """Plants it for as long as the stack is open; the function notes that it was met."""

    @property
    def is_core(self) -> bool:
        return True

    @contextmanager
    def planted(self) -> Iterator[Callable[[], bool]]:
        """Plant the bug. Gives a function that tells whether it was ever met."""
        met = []
        with ExitStack() as held:
            self.plant(held, lambda: met.append(True))
            yield lambda: bool(met)


# Read, then write


def _deferred(connection: Connection) -> Iterator[None]:
    """A deferred transaction: it starts as a reader and becomes a writer later, unless one is open already."""
    if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        yield
        return
    connection.exec_driver_sql("BEGIN DEFERRED")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _by_itself(_connection: Connection) -> Iterator[None]:
    """No transaction: each statement commits by itself."""
    yield


_MODES = {
    "in a deferred transaction": contextmanager(_deferred),
    "in two statements": contextmanager(_by_itself),
}


def _now(repository: Any) -> int:
    now: int = repository._connection.execute(select(server_now())).scalar_one()
    return now


def _is_claimable(job: Phase1Job | None, source: datetime, lease: timedelta, now: int) -> bool:
    """The rules of a claim, rightly read; what is wrong is that others may write before the decision is stored."""
    if job is None:
        return True
    match job.status:
        case Phase1Status.FAILED:
            return job.retry_at is not None and job.retry_at.timestamp() <= now
        case Phase1Status.SUCCEEDED:
            return job.source_updated_at < source
        case Phase1Status.RUNNING:
            return job.started_at is None or _is_over(job, job.started_at, lease, now)


def _is_over(row: Any, renewed_at: datetime, lease: timedelta, now: int) -> bool:
    seconds = lease.total_seconds()
    return renewed_at.timestamp() <= now - (max(seconds, 0) if seconds <= 0 else row.lease_seconds or seconds)


def _careless_claim(mode: str, met: Callable[[], None]) -> Any:
    force = Phase1JobRepository.try_claim

    def try_claim(
        self: Phase1JobRepository,
        key: Phase1Key,
        *,
        owner: UUID,
        source_updated_at: datetime,
        lease: timedelta,
        **_: Any,
    ) -> Claimed[Phase1Lease] | Skipped:
        met()
        with _MODES[mode](self._connection):
            if not _is_claimable(self.get(key), source_updated_at, lease, _now(self)):
                return Skipped(SkipReason.RUNNING)
            self._connection.exec_driver_sql(
                "UPDATE memory_phase1_jobs SET status = 'running', started_at = NULL "
                "WHERE thread_id = ? AND scope_kind = ? AND scope_key = ?",
                (str(key.thread_id), key.scope.kind, key.scope.key),
            )
            return force(self, key, owner=owner, source_updated_at=source_updated_at, lease=timedelta(0))

    return try_claim


def _careless_acquire(mode: str, met: Callable[[], None]) -> Any:
    force = ConsolidationLockRepository.try_claim

    def try_claim(self: ConsolidationLockRepository, cwd: Any, *, owner: UUID, lease: timedelta) -> Any:
        met()
        with _MODES[mode](self._connection):
            lock: ConsolidationLock | None = self.get(cwd)
            held = lock is not None and not _is_over(lock, lock.updated_at, lease, _now(self))
            if held and lock is not None and lock.working_thread_id != owner:
                return Skipped(SkipReason.RUNNING)
            return force(self, cwd, owner=owner, lease=timedelta(0))

    return try_claim


def _careless_backfill_claim(mode: str, met: Callable[[], None]) -> Any:
    def try_claim(
        self: BackfillRepository, home: str = "local", *, owner: str = "", lease: timedelta, again: bool = False
    ) -> Any:
        met()
        with _MODES[mode](self._connection):
            found = self.get(home)
            if found is not None and found.status == "complete" and not again:
                return Skipped(SkipReason.UP_TO_DATE)
            running = found is not None and found.status == "running"
            if running and found is not None and not _is_over(found, found.updated_at, lease, _now(self)):
                return Skipped(SkipReason.RUNNING)
            return Claimed(self.take_over(home, owner=owner, lease=lease, from_the_start=again))

    return try_claim


def _current_token(repository: Any, lease: Any) -> str | None:
    """Whose token is stored for a lease's work while that runs."""
    match lease:
        case Phase1Lease(key=key):
            job = Phase1JobRepository(repository._session).get(key)
            return job.ownership_token if job is not None and job.status is Phase1Status.RUNNING else None
        case LockLease(key=root):
            lock = ConsolidationLockRepository(repository._session).get(root)
            return None if lock is None else lock.ownership_token
        case NamedLease(key=name):
            named = NamedLockRepository(repository._session).get(name)
            return None if named is None else named.ownership_token
        case BackfillLease(key=home):
            found = BackfillRepository(repository._session).get(home)
            return found.ownership_token if found is not None and found.status == "running" else None
    raise AssertionError(lease)


def _unguarded(name: str) -> Iterator[SqlMutant]:
    """The mutants that together take the guard off a holder's write."""
    guards = ("without [? IN",) if name.startswith("memory_scopes") else ("without [ownership", "without [status")
    for mutant in sql_mutants():
        if mutant.statement.name == name and mutant.change.startswith(guards):
            yield mutant


_SHARED_VERBS = (("begin", "renew"), ("renew", "renew"), ("release", "release"))
_STATEMENT_OF = {
    "Phase1JobRepository": "jobs",
    "ThreadMemoryRepository": "thread_memories",
    "MemoryScopeRepository": "memory_scopes",
    "ConsolidationLockRepository": "locks",
    "NamedLockRepository": "locks",
    "BackfillRepository": "backfills",
}
_NAME_OF = {
    "BackfillRepository.begin": "renew",
    **{f"ConsolidationLockRepository.{verb}": f"{as_}_consolidation" for verb, as_ in _SHARED_VERBS},
    **{f"NamedLockRepository.{verb}": f"{as_}_name" for verb, as_ in _SHARED_VERBS},
    "MemoryScopeRepository.mark_clean": "mark_clean_if_locked",
    "BackfillRepository.complete": "complete_it",
}


def _read_then_write(mode: str) -> Iterator[PlantedMutant]:
    for repository, verb, careless in (
        (Phase1JobRepository, "try_claim", _careless_claim),
        (ConsolidationLockRepository, "try_claim", _careless_acquire),
        (BackfillRepository, "try_claim", _careless_backfill_claim),
    ):
        yield PlantedMutant(
            f"{repository.__name__}.{verb} reads, then writes {mode}",
            lambda held, met, repository=repository, verb=verb, careless=careless: held.enter_context(
                patch.object(repository, verb, careless(mode, met))
            ),
        )
    for write in HOLDER_WRITES:
        yield PlantedMutant(f"{write.name} reads, then writes {mode}", _plant_careless_write(write, mode))


def _plant_careless_write(write: Any, mode: str) -> Callable[[ExitStack, Callable[[], None]], None]:
    unguarded = tuple(_unguarded(f"{_STATEMENT_OF[write.repository.__name__]}.{_NAME_OF.get(write.name, write.verb)}"))
    assert unguarded, write.name
    intact = getattr(write.repository, write.verb)

    def plant(held: ExitStack, met: Callable[[], None]) -> None:
        for mutant in unguarded:
            held.enter_context(mutant.planted())

        def careless(self: Any, *arguments: Any, **options: Any) -> Any:
            values = (*arguments, *options.values())
            many = next((value for value in values if isinstance(value, Mapping)), None)
            lease = next((value for value in (*values, *(many or ())) if isinstance(value, write.lease)), None)
            if lease is None:
                return intact(self, *arguments, **options)
            met()
            with _MODES[mode](self._connection):
                if _current_token(self, lease) != lease.token:
                    return write.refused if many is None else dict.fromkeys(many, write.refused)
                return intact(self, *arguments, **options)

        held.enter_context(patch.object(write.repository, write.verb, careless))

    return plant


# Tokens


def _same_token(module: str) -> PlantedMutant:
    def plant(held: ExitStack, met: Callable[[], None]) -> None:
        def same() -> UUID:
            met()
            return UUID(int=7)

        held.enter_context(patch(f"codex_state.repositories.{module}.uuid4", same))

    return PlantedMutant(f"{module} gives everybody the same token", plant)


# Transactions


def _plant_checkpoint_in_two(*, before: bool) -> Callable[[ExitStack, Callable[[], None]], None]:
    """Commit a batch and its checkpoint one after the other."""
    under_lease = backfilling._Run.under_lease

    def plant(held: ExitStack, met: Callable[[], None]) -> None:
        def in_two(self: Any, work: Callable[[State], object], *, watermark: str | None = None) -> None:
            if watermark is None:
                under_lease(self, work)
                return

            def checkpoint(state: State) -> None:
                if not state.backfill.checkpoint(self._lease, watermark):
                    raise backfilling._LeaseLostError

            first, second = (checkpoint, work) if before else (work, checkpoint)

            def unit(state: State) -> None:
                first(state)
                state.session.commit()
                met()
                second(state)

            backfilling._run_fenced(self._runtime, unit)

        held.enter_context(patch.object(backfilling._Run, "under_lease", in_two))

    return plant


def _plant_ignored_refusal(held: ExitStack, met: Callable[[], None]) -> None:
    checkpoint = BackfillRepository.checkpoint

    def ignored(self: BackfillRepository, lease: BackfillLease, watermark: str) -> HolderWrite:
        met()
        checkpoint(self, lease, watermark)
        return HolderWrite.APPLIED

    held.enter_context(patch.object(BackfillRepository, "checkpoint", ignored))


def _plant_deferred_writers(held: ExitStack, met: Callable[[], None]) -> None:
    def deferred(self: StateConnection) -> None:
        met()
        self.cursor().execute("BEGIN DEFERRED")

    held.enter_context(patch.object(StateConnection, "_begin_immediate", deferred))


def planted_mutants() -> tuple[PlantedMutant, ...]:
    """Every bug of this module."""
    return (
        *(mutant for mode in _MODES for mutant in _read_then_write(mode)),
        *(_same_token(module) for module in ("jobs", "locks", "backfills")),
        PlantedMutant("a writer's transaction starts as a reader's", _plant_deferred_writers),
        PlantedMutant("the checkpoint is committed after its batch", _plant_checkpoint_in_two(before=False)),
        PlantedMutant("the checkpoint is committed before its batch", _plant_checkpoint_in_two(before=True)),
        PlantedMutant("a refused checkpoint doesn't stop its batch", _plant_ignored_refusal),
    )
