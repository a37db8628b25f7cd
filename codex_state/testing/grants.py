"""The three kinds of grants behind one face: how each is taken, taken over, finished, written as JSON and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from sqlmodel import Session

from codex_state.models import (
    BackfillLease,
    Claimed,
    LockLease,
    MemoryScope,
    NamedLease,
    Phase1Key,
    Phase1Lease,
    Skipped,
)
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    NamedLockRepository,
    Phase1JobRepository,
    ThreadRepository,
)
from codex_state.testing.samples import NOON, a_thread

Claim = Claimed[Phase1Lease] | Claimed[LockLease] | Claimed[NamedLease] | Claimed[BackfillLease] | Skipped

_NAMES = UUID("0195fd6c-6a00-7000-8000-00000000cafe")


def thread_id_of(name: str) -> UUID:
    """The thread whose job a name stands for."""
    return uuid5(_NAMES, name)


def owner_of(name: str) -> UUID:
    """An owner's id."""
    return uuid5(_NAMES, f"owner {name}")


@dataclass(frozen=True)
class Grant:
    """One kind of lease."""

    claim: Callable[[Session, str, str, timedelta], Claim]
    """Claims what a name stands for, for an owner."""
    finish: Callable[[Session, Any], object]
    """Finishes the work of a lease."""


def _claim_job(session: Session, name: str, owner: str, lease: timedelta) -> Claim:
    key = Phase1Key(thread_id_of(name), MemoryScope.user())
    return Phase1JobRepository(session).try_claim(key, owner=owner_of(owner), source_updated_at=NOON, lease=lease)


def _claim_lock(session: Session, name: str, owner: str, lease: timedelta) -> Claim:
    return ConsolidationLockRepository(session).try_claim(Path("/", name), owner=owner_of(owner), lease=lease)


def _claim_name(session: Session, name: str, owner: str, lease: timedelta) -> Claim:
    return NamedLockRepository(session).try_claim(name, owner=owner, lease=lease)


def _claim_backfill(session: Session, name: str, owner: str, lease: timedelta) -> Claim:
    return BackfillRepository(session).try_claim(name, owner=owner, lease=lease)


GRANTS: Mapping[type, Grant] = {
    Phase1Lease: Grant(
        _claim_job,
        lambda session, lease: Phase1JobRepository(session).succeed(lease, raw_memory_path=None, summary_hash=None),
    ),
    LockLease: Grant(_claim_lock, lambda session, lease: ConsolidationLockRepository(session).release(lease)),
    NamedLease: Grant(_claim_name, lambda session, lease: NamedLockRepository(session).release(lease)),
    BackfillLease: Grant(_claim_backfill, lambda session, lease: BackfillRepository(session).complete(lease)),
}


def add_thread(session: Session, name: str) -> None:
    """The row that a job of this name needs."""
    ThreadRepository(session).upsert(a_thread(id=thread_id_of(name)))


def take(session: Session, kind: type, name: str, owner: str, lease: timedelta) -> Any:
    """Claim what must be free, and answer the lease."""
    claim = GRANTS[kind].claim(session, name, owner, lease)
    assert isinstance(claim, Claimed), f"{owner} was refused: {claim}"
    return claim.lease


def source_of(version: int) -> datetime:
    """The time of a thread's update that stands for its ``version``."""
    return NOON + timedelta(seconds=version)
