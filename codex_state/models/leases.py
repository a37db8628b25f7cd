"""What a claim gives, and what a later write of its holder answers.

A lease is a value: who holds what, under which ownership token. Every write of the holder takes it and is guarded by
its token, so a holder that was paused while another took over can change nothing (law L2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Generic, Self, TypeVar
from uuid import UUID

from codex_state.models.columns import path_to_text
from codex_state.sql import normal_spelling

SCOPE_CWD = "cwd"
SCOPE_USER = "user"


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


@dataclass(frozen=True, slots=True)
class Phase1Lease:
    """The right to extract one thread's memory for one scope, until somebody else may take over."""

    key: Phase1Key
    owner: UUID
    ownership_token: str
    attempt: int
    """Grows with every claim of the key: give it to outside resources as a fencing number."""
    source_updated_at: datetime
    started_at: datetime
    """The database's time of the claim or of the last renewal."""
    duration: timedelta
    failures: int = 0
    """How many earlier attempts for this version of the thread have failed."""

    def __hash__(self) -> int:
        # Of a random token: the other fields tell no two leases apart.
        return hash(self.ownership_token)

    def renewed(self, started_at: datetime) -> Self:
        """The same lease after a renewal at ``started_at``."""
        return replace(self, started_at=started_at)


@dataclass(frozen=True, slots=True)
class Product:
    """What an extraction produced; both are ``None`` when there was nothing to remember."""

    raw_memory_path: Path | None = None
    summary_hash: str | None = None


@dataclass(frozen=True, slots=True)
class LockLease:
    """The right to consolidate one memory root."""

    cwd: Path
    owner: UUID
    ownership_token: str
    updated_at: datetime
    """The database's time of the claim or of the last renewal."""
    duration: timedelta

    def renewed(self, updated_at: datetime) -> Self:
        """The same lease after a renewal at ``updated_at``."""
        return replace(self, updated_at=updated_at)


@dataclass(frozen=True, slots=True)
class BackfillLease:
    """The right to build one home's index."""

    home: str
    ownership_token: str
    last_watermark: str | None
    """Where the work stood when it was claimed."""
    claimed_at: datetime
    duration: timedelta
    owner: str = ""
    """What its holder says of itself, for people."""


LeaseT_co = TypeVar("LeaseT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Claimed(Generic[LeaseT_co]):
    """The claim was granted."""

    lease: LeaseT_co


class SkipReason(StrEnum):
    """Why a claim was not granted."""

    RUNNING = "running"
    """Somebody holds it and their lease isn't over."""
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


class Requeue(StrEnum):
    """What became of an operator's wish to have a failed job tried again."""

    REQUEUED = "requeued"
    NOT_FAILED = "not_failed"
    NOT_FOUND = "not_found"
