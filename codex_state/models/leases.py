"""Leases: what a claim gives, and what a later write of its holder answers.

A lease is a value: who holds what, under which token, and since when it may be trusted. Every write of the holder takes
it and is guarded by its token, so a holder that was paused while another took over can change nothing (law L2). All
kinds of work have the same: a job, a lock and a backfill differ in their keys, and in what else a claim finds out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar
from uuid import UUID

from codex_state.errors import InvalidInputError, LeaseLost
from codex_state.models.columns import normal_spelling, path_to_text

SCOPE_CWD = "cwd"
SCOPE_USER = "user"

CRASHES_ALLOWED = 3
"""How often a job's work may end with its worker before the job fails for good."""


@dataclass(frozen=True, slots=True)
class MemoryScope:
    """What a memory is about: a working directory, or the user in general. Keys match exactly, never by prefix."""

    kind: str
    key: str

    @classmethod
    def cwd(cls, path: Path) -> Self:
        """The memories of one working directory, in whatever way its path is spelled; links are not followed."""
        return cls(SCOPE_CWD, normal_spelling(path_to_text(path)))

    @classmethod
    def user(cls) -> Self:
        """The memories that hold wherever the user works."""
        return cls(SCOPE_USER, SCOPE_USER)


@dataclass(frozen=True, slots=True)
class Phase1Key:
    """Names one extraction job."""

    thread_id: UUID
    scope: MemoryScope

    def __post_init__(self) -> None:
        if not isinstance(self.scope, MemoryScope):
            raise InvalidInputError(f"not a scope: {self.scope!r}; give MemoryScope.cwd(path) or MemoryScope.user()")


KeyT = TypeVar("KeyT")


@dataclass(frozen=True, kw_only=True)
class Lease(Generic[KeyT]):
    """The right to do one piece of work, until somebody else may take over."""

    kind: ClassVar[str]
    """The attribute of ``State`` whose repository keeps leases of this class."""

    key: KeyT
    """Which work."""
    owner: UUID | str
    """Who holds it, for people to see. The token, not the owner, is what guards."""
    token: str
    """New with every grant. It is the ``ownership_token`` of the row for as long as the lease is held."""
    granted_at: datetime
    """When it was granted, by the database's clock."""
    duration: timedelta
    """For how long its holder may be silent, from the claim or the last renewal on."""
    attempt: int = 1
    """Where the work is a job, it grows with every claim of its key: a fencing number for outside resources."""
    requested_at: float = field(default=float("-inf"), compare=False)
    """The ``trust_clock`` from before the claim was sent: from here on its holder counts how long to trust it."""

    def __hash__(self) -> int:
        # Of a random token: the other fields tell no two leases apart.
        return hash(self.token)


@dataclass(frozen=True, kw_only=True)
class Phase1Lease(Lease[Phase1Key]):
    """The right to extract one thread's memory for one scope."""

    kind: ClassVar[str] = "phase1_jobs"
    __hash__ = Lease.__hash__

    source_updated_at: datetime
    """Which version of the thread is extracted."""
    failures: int = 0
    """How many earlier attempts for this version of the thread have failed."""
    crashes: int = 0
    """How many earlier attempts ended with their worker."""


@dataclass(frozen=True, kw_only=True)
class LockLease(Lease[Path]):
    """The right to consolidate one memory root."""

    kind: ClassVar[str] = "consolidation_locks"
    __hash__ = Lease.__hash__


@dataclass(frozen=True, kw_only=True)
class NamedLease(Lease[str]):
    """The right to do what a service has given a name."""

    kind: ClassVar[str] = "named_locks"
    __hash__ = Lease.__hash__


@dataclass(frozen=True, kw_only=True)
class BackfillLease(Lease[str]):
    """The right to build one home's index. Its key is the home."""

    kind: ClassVar[str] = "backfill"
    __hash__ = Lease.__hash__

    last_watermark: str | None = None
    """Where the work stood when it was claimed."""


@dataclass(frozen=True, slots=True)
class Product:
    """What an extraction produced; both are ``None`` when there was nothing to remember."""

    raw_memory_path: Path | None = None
    summary_hash: str | None = None


LeaseT_co = TypeVar("LeaseT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Claimed(Generic[LeaseT_co]):
    """The claim was granted."""

    lease: LeaseT_co


class SkipReason(StrEnum):
    """Why a claim was not granted."""

    RUNNING = "running"
    """Another holds it and that lease isn't over."""
    UP_TO_DATE = "up_to_date"
    """It was done already, for this version of the source or a newer one."""
    TERMINAL_FAILURE = "terminal_failure"
    """It failed for good. Only an explicit requeue brings it back."""
    RETRY_LATER = "retry_later"
    """It failed and has a retry time that hasn't come."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The claim was not granted; ``reason`` explains, by a read made after the refusal."""

    reason: SkipReason


class HolderWrite(StrEnum):
    """What became of a holder's write. ``LEASE_LOST`` is false in a condition."""

    APPLIED = "applied"
    LEASE_LOST = "lease_lost"
    """The token is no longer the current one, or the work is finished: no row was changed. Stop working."""

    def __bool__(self) -> bool:
        return self is HolderWrite.APPLIED

    def required(self) -> None:
        """Return when the write was applied, for callers who prefer exceptions: one rolls the transaction back.

        Raises:
            LeaseLost: it was not.
        """
        if not self:
            raise LeaseLost("the lease is lost: another took over, or the work is finished; nothing was written")


class Requeue(StrEnum):
    """What became of an operator's wish to have a job tried again."""

    REQUEUED = "requeued"
    RUNNING = "running"
    """Another works on it, and that lease isn't over."""
    NOT_FAILED = "not_failed"
    """It is done."""
    NOT_FOUND = "not_found"
