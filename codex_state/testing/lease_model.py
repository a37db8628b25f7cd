"""The rules of leases in plain Python, without a database: what every store must agree with.

Each rule is a function from a row (or ``None``) to the row that follows and the outcome. Rows are immutable values
and times are whole seconds, so the same rules serve a state machine that runs them beside real stores, and a checker
that looks for a legal order of a recorded history.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from codex_state.models import CRASHES_ALLOWED, HolderWrite, MemoryScope, Requeue, SkipReason
from codex_state.processes import Owner

GRANTED = "granted"
"""What a claim answers when it is granted; otherwise it answers a ``SkipReason``."""

ClaimOutcome = SkipReason | str

ANYBODY = Owner("", None)
"""A process that nobody can judge."""

NOBODY: AbstractSet[str] = frozenset()
"""No process."""

RUNNING, SUCCEEDED, FAILED = "running", "succeeded", "failed"
PENDING, COMPLETE = "pending", "complete"


@dataclass(frozen=True, slots=True)
class Job:
    """An extraction job's row."""

    status: str
    owner: str
    token: str | None
    started_at: int
    source: int
    attempt: int = 1
    failures: int = 0
    crashes: int = 0
    begun_at: int | None = None
    finished_at: int | None = None
    failure_reason: str | None = None
    raw_memory_path: str | None = None
    summary_hash: str | None = None
    retry_at: int | None = None
    by: Owner = ANYBODY
    """The process that claimed it or last renewed it."""
    lease_seconds: int | None = None


def _named(lease: int) -> int | None:
    """What a row is granted: a claim for no time takes over and names none."""
    return lease if lease > 0 else None


def _is_held(row: Job | Lock | Backfill, since: int, *, lease: int, now: int, dead: AbstractSet[str]) -> bool:
    """Whether a lease isn't over, and its holder isn't one of the dead."""
    seconds = 0 if lease <= 0 else lease if row.lease_seconds is None else row.lease_seconds
    return row.by.process not in dead and since > now - seconds


def refusal_of(job: Job, source: int, lease: int, now: int, dead: AbstractSet[str] = NOBODY) -> SkipReason | None:
    """Why a claim of an existing job is refused; ``None`` when it isn't.

    ``dead`` are the processes of the claimer's host that it finds dead.
    """
    if job.status == FAILED:
        if job.retry_at is None:
            return SkipReason.TERMINAL_FAILURE
        return SkipReason.RETRY_LATER if job.retry_at > now else None
    if job.status == SUCCEEDED:
        return SkipReason.UP_TO_DATE if job.source >= source else None
    return SkipReason.RUNNING if _is_held(job, job.started_at, lease=lease, now=now, dead=dead) else None


def claim_job(
    job: Job | None,
    *,
    owner: str,
    token: str,
    source: int,
    lease: int,
    now: int,
    crashes_allowed: int = CRASHES_ALLOWED,
    by: Owner = ANYBODY,
    dead: AbstractSet[str] = NOBODY,
) -> tuple[Job | None, ClaimOutcome]:
    """A claim: a new row, a take-over, a refusal that changes nothing, or one that gives up what crashed too often."""
    granted = Job(RUNNING, owner, token, now, source, by=by, lease_seconds=_named(lease))
    if job is None:
        return granted, GRANTED
    refusal = refusal_of(job, source, lease, now, dead)
    if refusal is not None:
        return job, refusal
    crashes = 0 if job.status == SUCCEEDED else job.crashes
    if job.status == RUNNING and job.begun_at is not None and lease > 0:
        crashes += 1
        if crashes >= crashes_allowed:
            reason = f"its worker ended while it worked on it ({crashes_allowed} of {crashes_allowed} crashes allowed)"
            given_up = replace(
                job,
                status=FAILED,
                token=None,
                finished_at=now,
                failure_reason=reason,
                retry_at=None,
                crashes=crashes,
            )
            return given_up, SkipReason.TERMINAL_FAILURE
    # What failed was an older version of the thread.
    failures = 0 if job.source < source else job.failures
    return replace(granted, attempt=job.attempt + 1, failures=failures, crashes=crashes), GRANTED


def _holds(job: Job | None, token: str) -> bool:
    return job is not None and job.status == RUNNING and job.token == token


def change_held_job(job: Job | None, token: str, **changes: object) -> tuple[Job | None, HolderWrite]:
    """A write of a job's holder: applied while the token is the current one and the job runs, else refused."""
    if job is None or not _holds(job, token):
        return job, HolderWrite.LEASE_LOST
    return replace(job, **changes), HolderWrite.APPLIED  # type: ignore[arg-type]


def renew_job(job: Job | None, token: str, now: int, by: Owner = ANYBODY) -> tuple[Job | None, HolderWrite]:
    """Prolong the lease."""
    return change_held_job(job, token, started_at=now, by=by)


def begin_job(job: Job | None, token: str, now: int, by: Owner = ANYBODY) -> tuple[Job | None, HolderWrite]:
    """Note that the work begins, and prolong the lease."""
    return change_held_job(job, token, started_at=now, begun_at=now, by=by)


def succeed_job(job: Job | None, token: str, path: str, summary: str, now: int) -> tuple[Job | None, HolderWrite]:
    """Finish the job."""
    return change_held_job(
        job,
        token,
        status=SUCCEEDED,
        finished_at=now,
        failure_reason=None,
        raw_memory_path=path,
        summary_hash=summary,
    )


def fail_job(
    job: Job | None, token: str, reason: str, retry_after: int | None, now: int
) -> tuple[Job | None, HolderWrite]:
    """Finish the job as failed, for good or until a retry time."""
    return change_held_job(
        job,
        token,
        status=FAILED,
        finished_at=now,
        failure_reason=reason,
        retry_at=None if retry_after is None else now + retry_after,
        failures=0 if job is None else job.failures + 1,
    )


def release_job(job: Job | None, token: str, reason: str, now: int) -> tuple[Job | None, HolderWrite]:
    """Give the job back unfinished."""
    return change_held_job(job, token, status=FAILED, finished_at=now, failure_reason=reason, retry_at=now)


def requeue_job(
    job: Job | None, now: int, lease: int = 3600, dead: AbstractSet[str] = NOBODY
) -> tuple[Job | None, Requeue]:
    """An operator's wish to have a job tried again that failed or was left behind."""
    if job is None:
        return None, Requeue.NOT_FOUND
    if job.status == SUCCEEDED:
        return job, Requeue.NOT_FAILED
    requeued = replace(job, status=FAILED, retry_at=now, failures=0, crashes=0)
    if job.status == RUNNING:
        if _is_held(job, job.started_at, lease=lease, now=now, dead=dead):
            return job, Requeue.RUNNING
        reason = f"{job.by.name} left it behind"
        requeued = replace(requeued, token=None, finished_at=now, failure_reason=reason)
    return requeued, Requeue.REQUEUED


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory's row."""

    raw_memory: str
    memory_summary: str
    updated_at: int
    last_used_at: int | None = None
    used_count: int = 0
    invalidated_at: int | None = None
    invalid_reason: str | None = None


def write_memory(memory: Memory | None, raw_memory: str, memory_summary: str, now: int) -> Memory:
    """Store a text. Its time strictly increases, and a new text makes an invalidated memory valid."""
    if memory is None:
        return Memory(raw_memory, memory_summary, now)
    return replace(
        memory,
        raw_memory=raw_memory,
        memory_summary=memory_summary,
        updated_at=max(now, memory.updated_at + 1),
        invalidated_at=None,
        invalid_reason=None,
    )


def write_memory_if_owner(
    memory: Memory | None, job: Job | None, token: str, *, raw_memory: str, memory_summary: str, now: int
) -> tuple[Memory | None, HolderWrite]:
    """Store a text as the holder of the memory's job."""
    if not _holds(job, token):
        return memory, HolderWrite.LEASE_LOST
    return write_memory(memory, raw_memory, memory_summary, now), HolderWrite.APPLIED


@dataclass(frozen=True, slots=True)
class Mark:
    """A scope's dirty mark."""

    dirty: bool
    updated_at: int


def mark_dirty(mark: Mark | None, now: int) -> Mark:
    """Note something new; the mark's time strictly increases."""
    return Mark(dirty=True, updated_at=now if mark is None else max(now, mark.updated_at + 1))


def mark_all_dirty(marks: dict[MemoryScope, Mark], scopes: Iterable[MemoryScope], now: int) -> None:
    """Something in these scopes is new, or is gone."""
    for scope in scopes:
        marks[scope] = mark_dirty(marks.get(scope), now)


def mark_clean(mark: Mark | None, seen: int, *, still_locked: bool = True) -> tuple[Mark | None, bool]:
    """Note that all up to ``seen`` is consolidated."""
    if mark is None or not mark.dirty or mark.updated_at != seen or not still_locked:
        return mark, False
    return replace(mark, dirty=False), True


@dataclass(frozen=True, slots=True)
class Lock:
    """A consolidation lock's row."""

    owner: str
    token: str
    updated_at: int
    by: Owner = ANYBODY
    lease_seconds: int | None = None


def acquire_lock(
    lock: Lock | None,
    *,
    owner: str,
    token: str,
    lease: int,
    now: int,
    by: Owner = ANYBODY,
    dead: AbstractSet[str] = NOBODY,
) -> tuple[Lock, ClaimOutcome]:
    """Take a lock that is free, stale, the owner's own, or that of a dead process."""
    if lock is not None and lock.owner != owner and _is_held(lock, lock.updated_at, lease=lease, now=now, dead=dead):
        return lock, SkipReason.RUNNING
    return Lock(owner, token, now, by, _named(lease)), GRANTED


def renew_lock(lock: Lock | None, token: str, now: int, by: Owner = ANYBODY) -> tuple[Lock | None, HolderWrite]:
    """Prolong the lease."""
    if lock is None or lock.token != token:
        return lock, HolderWrite.LEASE_LOST
    return replace(lock, updated_at=now, by=by), HolderWrite.APPLIED


def release_lock(lock: Lock | None, token: str) -> tuple[Lock | None, HolderWrite]:
    """Give the lock back."""
    if lock is None or lock.token != token:
        return lock, HolderWrite.LEASE_LOST
    return None, HolderWrite.APPLIED


@dataclass(frozen=True, slots=True)
class Backfill:
    """A home's backfill row."""

    status: str
    updated_at: int
    token: str | None
    claimed_at: int | None
    watermark: str | None = None
    last_success_at: int | None = None
    by: Owner = ANYBODY
    lease_seconds: int | None = None


def claim_backfill(
    row: Backfill | None,
    *,
    token: str,
    lease: int,
    now: int,
    again: bool = False,
    by: Owner = ANYBODY,
    dead: AbstractSet[str] = NOBODY,
) -> tuple[Backfill | None, ClaimOutcome]:
    """Claim a backfill that isn't complete (or ``again``) and that nobody works on."""
    if row is not None and row.status == COMPLETE and not again:
        return row, SkipReason.UP_TO_DATE
    if row is not None and row.status == RUNNING and _is_held(row, row.updated_at, lease=lease, now=now, dead=dead):
        return row, SkipReason.RUNNING
    return take_over_backfill(row, token=token, lease=lease, now=now, from_the_start=again, by=by), GRANTED


def take_over_backfill(
    row: Backfill | None, *, token: str, lease: int, now: int, from_the_start: bool = False, by: Owner = ANYBODY
) -> Backfill:
    """Take a backfill over by force."""
    granted = Backfill(RUNNING, now, token, now, by=by, lease_seconds=_named(lease))
    if row is None:
        return granted
    watermark = None if from_the_start else row.watermark
    return replace(granted, watermark=watermark, last_success_at=row.last_success_at)


def renew_backfill(
    row: Backfill | None, token: str, now: int, by: Owner = ANYBODY
) -> tuple[Backfill | None, HolderWrite]:
    """Prolong the lease."""
    return change_held_backfill(row, token, now, by=by)


def change_held_backfill(
    row: Backfill | None, held: str, now: int, **changes: object
) -> tuple[Backfill | None, HolderWrite]:
    """A write of the worker: applied while its token is the current one and the backfill runs, else refused."""
    if row is None or row.status != RUNNING or row.token != held:
        return row, HolderWrite.LEASE_LOST
    return replace(row, updated_at=now, **changes), HolderWrite.APPLIED  # type: ignore[arg-type]


def checkpoint_backfill(
    row: Backfill | None, token: str, watermark: str, now: int, by: Owner = ANYBODY
) -> tuple[Backfill | None, HolderWrite]:
    """Note progress and prolong the lease; the watermark never goes back."""
    stored = None if row is None else row.watermark
    return change_held_backfill(row, token, now, watermark=_later(stored, watermark), by=by)


def complete_backfill(
    row: Backfill | None, token: str, watermark: str | None, now: int
) -> tuple[Backfill | None, HolderWrite]:
    """Note that all is done."""
    stored = None if row is None else row.watermark
    return change_held_backfill(
        row, token, now, status=COMPLETE, watermark=_later(stored, watermark), last_success_at=now
    )


def release_backfill(row: Backfill | None, token: str, now: int) -> tuple[Backfill | None, HolderWrite]:
    """Give the backfill back unfinished."""
    return change_held_backfill(row, token, now, status=PENDING, token=None)


def _later(stored: str | None, given: str | None) -> str | None:
    """The later of two watermarks, in the order of their UTF-8 bytes."""
    if stored is None or given is None:
        return stored if given is None else given
    return max(stored, given, key=str.encode)
