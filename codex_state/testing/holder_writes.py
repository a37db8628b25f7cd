"""Every write that the holder of a lease makes (law L2).

A holder that was paused while another took over can change nothing, on any path. That holds for as long as every one
of these writes is guarded by the lease's token, so they are listed here, and the proof is generated from the list: a
real process is stopped past its lease for each of them. A repository method that takes a lease and isn't listed fails
a test by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlmodel import Session

from codex_state.models import BackfillLease, HolderWrite, LockLease, MemoryScope, NamedLease, Phase1Lease, Product
from codex_state.repositories.backfills import BackfillRepository
from codex_state.repositories.base import Repository
from codex_state.repositories.jobs import Phase1JobRepository
from codex_state.repositories.leases import LeaseRepository
from codex_state.repositories.locks import ConsolidationLockRepository, NamedLockRepository
from codex_state.repositories.memory_scopes import MemoryScopeRepository
from codex_state.repositories.thread_memories import ThreadMemoryRepository

LeaseT = TypeVar("LeaseT", Phase1Lease, LockLease, NamedLease, BackfillLease)

_SCOPE = MemoryScope.user()
_WATERMARK = "sessions/2026/02/10/rollout"


def _nothing(_session: Session) -> None:
    """The lease alone decides."""


@dataclass(frozen=True, slots=True)
class RegisteredWrite(Generic[LeaseT]):
    """One verb of one repository that takes a lease."""

    repository: type[Repository]
    verb: str
    lease: type[LeaseT]
    """What its caller holds."""
    call: Callable[[Session, LeaseT], object]
    """Calls the verb with a lease and some values; committing is up to whoever opened the session."""
    refused: object
    """What it answers when the lease is lost. Then no row has changed."""
    finishes: bool = False
    """Whether it ends the work, after which the lease is good for nothing."""
    arrange: Callable[[Session], object] = _nothing
    """Makes the rows, before anybody holds anything, without which the verb would be refused whatever the lease."""

    @property
    def name(self) -> str:
        """What it is called: class and method."""
        return f"{self.repository.__name__}.{self.verb}"


def _on(
    repository: type[Repository],
    lease: type[LeaseT],
    verb: str,
    *arguments: object,
    finishes: bool = False,
    **options: object,
) -> RegisteredWrite[LeaseT]:
    """A verb that is called with the lease and these arguments, and answers a ``HolderWrite``."""

    def call(session: Session, held: LeaseT) -> object:
        return getattr(repository(session), verb)(held, *arguments, **options)

    return RegisteredWrite(repository, verb, lease, call, refused=HolderWrite.LEASE_LOST, finishes=finishes)


def _on_any(repository: type[LeaseRepository[Any, Any]], lease: type[LeaseT]) -> Iterator[RegisteredWrite[LeaseT]]:
    """The verbs that all kinds of leases have."""
    yield _on(repository, lease, "renew")
    yield _on(repository, lease, "begin")
    yield _on(repository, lease, "release", "interrupted", finishes=True)


def _succeed_one(session: Session, lease: Phase1Lease) -> HolderWrite:
    return Phase1JobRepository(session).succeed_many({lease: Product(Path("/raw.md"), "hash")})[lease]


def _mark_clean(session: Session, lease: LockLease) -> bool:
    scopes = MemoryScopeRepository(session)
    mark = scopes.get(_SCOPE)
    assert mark is not None
    return scopes.mark_clean(_SCOPE, seen=mark.updated_at, lock=lease)


HOLDER_WRITES: tuple[RegisteredWrite[Any], ...] = (
    *_on_any(Phase1JobRepository, Phase1Lease),
    _on(
        Phase1JobRepository,
        Phase1Lease,
        "succeed",
        raw_memory_path=Path("/raw.md"),
        summary_hash="hash",
        finishes=True,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "succeed_many",
        Phase1Lease,
        _succeed_one,
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    _on(Phase1JobRepository, Phase1Lease, "fail", "failed", retry_after=timedelta(0), finishes=True),
    _on(ThreadMemoryRepository, Phase1Lease, "upsert_if_owner", "raw memory", "summary"),
    *_on_any(ConsolidationLockRepository, LockLease),
    RegisteredWrite(
        MemoryScopeRepository,
        "mark_clean",
        LockLease,
        _mark_clean,
        refused=False,
        arrange=lambda session: MemoryScopeRepository(session).mark_dirty(_SCOPE),
    ),
    *_on_any(NamedLockRepository, NamedLease),
    *_on_any(BackfillRepository, BackfillLease),
    _on(BackfillRepository, BackfillLease, "checkpoint", _WATERMARK),
    _on(BackfillRepository, BackfillLease, "complete", _WATERMARK, finishes=True),
)
"""Every holder write there is."""
