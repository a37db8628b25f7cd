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


_PHASE1 = (
    RegisteredWrite(
        Phase1JobRepository,
        "renew",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).renew(lease),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "begin",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).begin(lease),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "succeed",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).succeed(
            lease, raw_memory_path=Path("/raw.md"), summary_hash="hash"
        ),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "succeed_many",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).succeed_many({lease: Product(Path("/raw.md"), "hash")})[
            lease
        ],
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "fail",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).fail(lease, "failed", retry_after=timedelta(0)),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        Phase1JobRepository,
        "release",
        Phase1Lease,
        lambda session, lease: Phase1JobRepository(session).release(lease, "interrupted"),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        ThreadMemoryRepository,
        "upsert_if_owner",
        Phase1Lease,
        lambda session, lease: ThreadMemoryRepository(session).upsert_if_owner(lease, "raw memory", "summary"),
        refused=HolderWrite.LEASE_LOST,
    ),
)


def _mark_clean(session: Session, lease: LockLease) -> bool:
    scopes = MemoryScopeRepository(session)
    mark = scopes.get(_SCOPE)
    assert mark is not None
    return scopes.mark_clean(_SCOPE, seen=mark.updated_at, lock=lease)


_LOCKS = (
    RegisteredWrite(
        ConsolidationLockRepository,
        "renew",
        LockLease,
        lambda session, lease: ConsolidationLockRepository(session).renew(lease),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        ConsolidationLockRepository,
        "release",
        LockLease,
        lambda session, lease: ConsolidationLockRepository(session).release(lease),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        MemoryScopeRepository,
        "mark_clean",
        LockLease,
        _mark_clean,
        refused=False,
        arrange=lambda session: MemoryScopeRepository(session).mark_dirty(_SCOPE),
    ),
)

_NAMED = (
    RegisteredWrite(
        NamedLockRepository,
        "renew",
        NamedLease,
        lambda session, lease: NamedLockRepository(session).renew(lease),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        NamedLockRepository,
        "release",
        NamedLease,
        lambda session, lease: NamedLockRepository(session).release(lease),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
)

_BACKFILL = (
    RegisteredWrite(
        BackfillRepository,
        "renew",
        BackfillLease,
        lambda session, lease: BackfillRepository(session).renew(lease),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        BackfillRepository,
        "checkpoint",
        BackfillLease,
        lambda session, lease: BackfillRepository(session).checkpoint(lease, _WATERMARK),
        refused=HolderWrite.LEASE_LOST,
    ),
    RegisteredWrite(
        BackfillRepository,
        "complete",
        BackfillLease,
        lambda session, lease: BackfillRepository(session).complete(lease, _WATERMARK),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
    RegisteredWrite(
        BackfillRepository,
        "release",
        BackfillLease,
        lambda session, lease: BackfillRepository(session).release(lease),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    ),
)


def _shared(repository: type[LeaseRepository[Any, Any]], lease: type[Any]) -> Iterator[RegisteredWrite[Any]]:
    """The verbs that all kinds of leases have under the same names."""
    if repository is not Phase1JobRepository:  # which has a statement of its own
        yield RegisteredWrite(
            repository,
            "begin",
            lease,
            lambda session, held: repository(session).begin(held),
            refused=HolderWrite.LEASE_LOST,
        )
    yield RegisteredWrite(
        repository,
        "give_back",
        lease,
        lambda session, held: repository(session).give_back(held, "interrupted"),
        refused=HolderWrite.LEASE_LOST,
        finishes=True,
    )


HOLDER_WRITES: tuple[RegisteredWrite[Any], ...] = (
    *_PHASE1,
    *_LOCKS,
    *_NAMED,
    *_BACKFILL,
    *_shared(Phase1JobRepository, Phase1Lease),
    *_shared(ConsolidationLockRepository, LockLease),
    *_shared(NamedLockRepository, NamedLease),
    *_shared(BackfillRepository, BackfillLease),
)
"""Every holder write there is."""
