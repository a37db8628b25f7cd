"""The repositories with a recorder in between: each call is made as it is, and written down."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from codex_state.models import (
    LOCAL_HOME,
    BackfillLease,
    BackfillState,
    BackfillStatus,
    Claimed,
    ConsolidationLock,
    HolderWrite,
    LockLease,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Requeue,
    Skipped,
    ThreadMemory,
)
from codex_state.models.columns import path_to_text, to_epoch_seconds, whole_seconds
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    Phase1JobRepository,
    ThreadMemoryRepository,
)
from codex_state.runtime import State
from codex_state.testing.lease_model import GRANTED
from tests.history.calls import APPLIED, READ, Answer, Kind
from tests.history.recorder import Recorder


class RecordedState:
    """The repositories of a state that leases are about.

    Its calls must commit by themselves: take the state from ``autocommit()``. For a longer transaction use
    ``Recorder.call`` around all of it.
    """

    def __init__(self, state: State, recorder: Recorder) -> None:
        self.phase1_jobs = RecordedPhase1Jobs(state.phase1_jobs, recorder)
        self.thread_memories = RecordedThreadMemories(state.thread_memories, recorder)
        self.consolidation_locks = RecordedConsolidationLocks(state.consolidation_locks, recorder)
        self.backfill = RecordedBackfills(state.backfill, recorder)


class RecordedPhase1Jobs:
    """``Phase1JobRepository``, recorded."""

    def __init__(self, jobs: Phase1JobRepository, recorder: Recorder) -> None:
        self._jobs, self._recorder = jobs, recorder

    def try_claim(
        self, key: Phase1Key, *, owner: UUID, source_updated_at: datetime, lease: timedelta
    ) -> Claimed[Phase1Lease] | Skipped:
        """Claim one job."""
        arguments = _claim_of_job(owner, source_updated_at, lease)
        with self._recorder.call(Kind.JOB, job_key(key), "claim", **arguments) as call:
            claim = self._jobs.try_claim(key, owner=owner, source_updated_at=source_updated_at, lease=lease)
            call.answered(_grant_of_job(claim.lease) if isinstance(claim, Claimed) else Answer(claim.reason))
        return claim

    def claim_candidates(self, *, owner: UUID, lease: timedelta, **options: Any) -> list[Phase1Lease]:
        """Claim a batch."""
        with self._recorder.calls(Kind.JOB, "claim") as calls:
            leases = self._jobs.claim_candidates(owner=owner, lease=lease, **options)
            for granted in leases:
                arguments = _claim_of_job(owner, granted.source_updated_at, lease)
                calls.append((job_key(granted.key), arguments, _grant_of_job(granted)))
        return leases

    def renew(self, lease: Phase1Lease) -> HolderWrite:
        """Prolong a lease."""
        with self._recorder.call(Kind.JOB, job_key(lease.key), "renew", token=lease.token) as call:
            renewed = self._jobs.renew(lease)
            call.answered(Answer(renewed))
        return renewed

    def succeed(self, lease: Phase1Lease, *, raw_memory_path: Path | None, summary_hash: str | None) -> HolderWrite:
        """Finish a job."""
        path = None if raw_memory_path is None else path_to_text(raw_memory_path)
        with self._recorder.call(
            Kind.JOB, job_key(lease.key), "succeed", token=lease.token, path=path, summary=summary_hash
        ) as call:
            outcome = self._jobs.succeed(lease, raw_memory_path=raw_memory_path, summary_hash=summary_hash)
            call.answered(Answer(outcome))
        return outcome

    def fail(self, lease: Phase1Lease, reason: str, *, retry_after: timedelta | None = None) -> HolderWrite:
        """Finish a job as failed."""
        seconds = None if retry_after is None else whole_seconds(retry_after)
        with self._recorder.call(
            Kind.JOB, job_key(lease.key), "fail", token=lease.token, reason=reason, retry_after=seconds
        ) as call:
            outcome = self._jobs.fail(lease, reason, retry_after=retry_after)
            call.answered(Answer(outcome))
        return outcome

    def release(self, lease: Phase1Lease, reason: str) -> HolderWrite:
        """Give a job back."""
        with self._recorder.call(Kind.JOB, job_key(lease.key), "release", token=lease.token, reason=reason) as call:
            outcome = self._jobs.release(lease, reason)
            call.answered(Answer(outcome))
        return outcome

    def requeue(self, key: Phase1Key) -> Requeue:
        """Let a failed job be claimed again."""
        with self._recorder.call(Kind.JOB, job_key(key), "requeue") as call:
            outcome = self._jobs.requeue(key)
            call.answered(Answer(outcome))
        return outcome

    def get(self, key: Phase1Key) -> Phase1Job | None:
        """Look at a job."""
        with self._recorder.call(Kind.JOB, job_key(key), "read") as call:
            job = self._jobs.get(key)
            call.answered(Answer(READ, row=None if job is None else _found_job(job)))
        return job


class RecordedThreadMemories:
    """The writes of ``ThreadMemoryRepository``, recorded."""

    def __init__(self, memories: ThreadMemoryRepository, recorder: Recorder) -> None:
        self._memories, self._recorder = memories, recorder

    def upsert_if_owner(self, lease: Phase1Lease, raw_memory: str, memory_summary: str) -> HolderWrite:
        """Store a memory as the holder of its job."""
        with self._recorder.call(
            Kind.JOB,
            job_key(lease.key),
            "write_memory_if_owner",
            token=lease.token,
            raw=raw_memory,
            summary=memory_summary,
        ) as call:
            outcome = self._memories.upsert_if_owner(lease, raw_memory, memory_summary)
            call.answered(Answer(outcome))
        return outcome

    def upsert_for_scope(
        self, thread_id: UUID, scope: MemoryScope, raw_memory: str, memory_summary: str
    ) -> ThreadMemory:
        """Store a memory whoever holds its job."""
        key = job_key(Phase1Key(thread_id, scope))
        with self._recorder.call(Kind.JOB, key, "write_memory", raw=raw_memory, summary=memory_summary) as call:
            memory = self._memories.upsert_for_scope(thread_id, scope, raw_memory, memory_summary)
            call.answered(_written(memory))
        return memory


class RecordedConsolidationLocks:
    """``ConsolidationLockRepository``, recorded."""

    def __init__(self, locks: ConsolidationLockRepository, recorder: Recorder) -> None:
        self._locks, self._recorder = locks, recorder

    def try_claim(self, cwd: Path, *, owner: UUID, lease: timedelta) -> Claimed[LockLease] | Skipped:
        """Take a lock."""
        with self._recorder.call(
            Kind.LOCK, path_to_text(cwd), "claim", owner=str(owner), lease=whole_seconds(lease)
        ) as call:
            claim = self._locks.try_claim(cwd, owner=owner, lease=lease)
            match claim:
                case Claimed(granted):
                    seconds = to_epoch_seconds(granted.granted_at)
                    call.answered(Answer(GRANTED, seconds=seconds, token=granted.token))
                case Skipped(reason):
                    call.answered(Answer(reason))
        return claim

    def renew(self, lease: LockLease) -> HolderWrite:
        """Prolong a lease."""
        with self._recorder.call(Kind.LOCK, path_to_text(lease.key), "renew", token=lease.token) as call:
            renewed = self._locks.renew(lease)
            call.answered(Answer(renewed))
        return renewed

    def release(self, lease: LockLease) -> HolderWrite:
        """Give a lock back."""
        with self._recorder.call(Kind.LOCK, path_to_text(lease.key), "release", token=lease.token) as call:
            outcome = self._locks.release(lease)
            call.answered(Answer(outcome))
        return outcome

    def get(self, cwd: Path) -> ConsolidationLock | None:
        """Look at a lock."""
        with self._recorder.call(Kind.LOCK, path_to_text(cwd), "read") as call:
            lock = self._locks.get(cwd)
            call.answered(Answer(READ, row=None if lock is None else _found_lock(lock)))
        return lock


class RecordedBackfills:
    """``BackfillRepository``, recorded."""

    def __init__(self, backfills: BackfillRepository, recorder: Recorder) -> None:
        self._backfills, self._recorder = backfills, recorder

    def try_claim(
        self, home: str = LOCAL_HOME, *, owner: str, lease: timedelta, again: bool = False
    ) -> Claimed[BackfillLease] | Skipped:
        """Claim a home's backfill."""
        with self._recorder.call(
            Kind.BACKFILL, home, "claim", owner=owner, lease=whole_seconds(lease), again=again
        ) as call:
            claim = self._backfills.try_claim(home, owner=owner, lease=lease, again=again)
            call.answered(_grant_of_backfill(claim.lease) if isinstance(claim, Claimed) else Answer(claim.reason))
        return claim

    def take_over(
        self, home: str = LOCAL_HOME, *, owner: str, lease: timedelta, from_the_start: bool = False
    ) -> BackfillLease:
        """Take a home's backfill over."""
        with self._recorder.call(
            Kind.BACKFILL, home, "take_over", owner=owner, lease=whole_seconds(lease), from_the_start=from_the_start
        ) as call:
            granted = self._backfills.take_over(home, owner=owner, lease=lease, from_the_start=from_the_start)
            call.answered(_grant_of_backfill(granted))
        return granted

    def renew(self, lease: BackfillLease) -> HolderWrite:
        """Prolong a lease."""
        with self._call(lease, "renew") as call:
            outcome = self._backfills.renew(lease)
            call.answered(Answer(outcome))
        return outcome

    def checkpoint(self, lease: BackfillLease, watermark: str) -> HolderWrite:
        """Note progress."""
        with self._call(lease, "checkpoint", watermark=watermark) as call:
            outcome = self._backfills.checkpoint(lease, watermark)
            call.answered(Answer(outcome))
        return outcome

    def complete(self, lease: BackfillLease, watermark: str | None = None) -> HolderWrite:
        """Note that all is done."""
        with self._call(lease, "complete", watermark=watermark) as call:
            outcome = self._backfills.complete(lease, watermark)
            call.answered(Answer(outcome))
        return outcome

    def release(self, lease: BackfillLease) -> HolderWrite:
        """Give a backfill back."""
        with self._call(lease, "release") as call:
            outcome = self._backfills.release(lease)
            call.answered(Answer(outcome))
        return outcome

    def get(self, home: str = LOCAL_HOME) -> BackfillState | None:
        """Look at a backfill."""
        with self._recorder.call(Kind.BACKFILL, home, "read") as call:
            found = self._backfills.get(home)
            call.answered(Answer(READ, row=None if found is None else _found_backfill(found)))
        return found

    def _call(self, lease: BackfillLease, verb: str, **arguments: Any) -> Any:
        return self._recorder.call(Kind.BACKFILL, lease.key, verb, token=lease.token, **arguments)


def job_key(key: Phase1Key) -> str:
    """What a job is called in a record."""
    return f"{key.thread_id} {key.scope.kind} {key.scope.key}"


def _claim_of_job(owner: UUID, source: datetime, lease: timedelta) -> dict[str, Any]:
    return {"owner": str(owner), "source": to_epoch_seconds(source), "lease": whole_seconds(lease)}


def _grant_of_job(lease: Phase1Lease) -> Answer:
    return Answer(
        GRANTED,
        seconds=to_epoch_seconds(lease.granted_at),
        token=lease.token,
        attempt=lease.attempt,
        failures=lease.failures,
    )


def _grant_of_backfill(lease: BackfillLease) -> Answer:
    return Answer(
        GRANTED,
        seconds=to_epoch_seconds(lease.granted_at),
        token=lease.token,
        watermark=lease.last_watermark,
    )


def _written(memory: ThreadMemory) -> Answer:
    return Answer(APPLIED, seconds=to_epoch_seconds(memory.updated_at))


def _found_job(job: Phase1Job) -> dict[str, Any]:
    found: dict[str, Any] = {
        "status": job.status.value,
        "owner": str(job.owner_session_id),
        "token": job.ownership_token,
        "source": to_epoch_seconds(job.source_updated_at),
        "attempt": job.attempt,
        "failures": job.failures,
        "failure_reason": job.failure_reason,
        "raw_memory_path": None if job.raw_memory_path is None else path_to_text(job.raw_memory_path),
        "summary_hash": job.summary_hash,
    }
    if job.status is Phase1Status.RUNNING and job.started_at is not None:
        found["started_at"] = to_epoch_seconds(job.started_at)
    if job.retry_at is not None:
        found["retry_at"] = to_epoch_seconds(job.retry_at)
    return found


def _found_lock(lock: ConsolidationLock) -> dict[str, Any]:
    return {
        "owner": str(lock.working_thread_id),
        "token": lock.ownership_token,
        "updated_at": to_epoch_seconds(lock.updated_at),
    }


def _found_backfill(state: BackfillState) -> dict[str, Any] | None:
    """A backfill that was only noted as pending counts as no row, as in the lease model."""
    if state.status is BackfillStatus.PENDING and state.claimed_at is None:
        return None
    return {
        "status": state.status.value,
        "token": state.ownership_token,
        "watermark": state.last_watermark,
        "updated_at": to_epoch_seconds(state.updated_at),
    }
