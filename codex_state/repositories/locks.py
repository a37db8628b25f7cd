"""Locks: one consolidation of a memory root at a time, and one of whatever a service gives a name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Executable, bindparam, delete, or_

from codex_state.database.sql import trust_clock
from codex_state.models import (
    Claimed,
    ConsolidationLock,
    HolderWrite,
    LockLease,
    NamedLease,
    NamedLock,
    Skipped,
    SkipReason,
)
from codex_state.models.columns import UuidText, text
from codex_state.repositories.base import select_entity
from codex_state.repositories.leases import KeyT, LeaseRepository, LeaseT, LeaseTable

_CONSOLIDATIONS = LeaseTable(ConsolidationLock, renewed_at="updated_at")
_NAMED = LeaseTable(NamedLock, renewed_at="renewed_at")


def _claim(locks: LeaseTable, where: ColumnElement[bool], **given: ColumnElement[Any]) -> Executable:
    return locks.claim(where, given, returning=[locks.renewed_at])


def _release(locks: LeaseTable) -> Executable:
    return delete(locks.table).where(locks.is_held).returning(locks.table.c.ownership_token)


_consolidator = bindparam("new_owner", type_=UuidText())
_is_its_own = _CONSOLIDATIONS.table.c.working_thread_id == _CONSOLIDATIONS.insert.excluded.working_thread_id
CLAIM_CONSOLIDATION = _claim(
    _CONSOLIDATIONS, or_(_is_its_own, _CONSOLIDATIONS.is_over), working_thread_id=_consolidator
)
CLAIM_CONSOLIDATION_FROM_THE_DEAD = _claim(
    _CONSOLIDATIONS, _CONSOLIDATIONS.is_of_the_dead, working_thread_id=_consolidator
)
RENEW_CONSOLIDATION = _CONSOLIDATIONS.renewal()
RELEASE_CONSOLIDATION = _release(_CONSOLIDATIONS)

_named_owner = bindparam("new_owner", type_=text)
CLAIM_NAME = _claim(_NAMED, _NAMED.is_over, owner=_named_owner)
CLAIM_NAME_FROM_THE_DEAD = _claim(_NAMED, _NAMED.is_of_the_dead, owner=_named_owner)
RENEW_NAME = _NAMED.renewal()
RELEASE_NAME = _release(_NAMED)


class _LockRepository(LeaseRepository[KeyT, LeaseT]):
    """Claims and the writes of their holders, on a table whose rows are there for as long as they are held."""

    _lease: ClassVar[type[Any]]
    _claims: ClassVar[tuple[Executable, Executable]]
    _releasing: ClassVar[Executable]

    def _take(self, key: KeyT, owner: UUID | str, lease: timedelta) -> Claimed[LeaseT] | Skipped:
        requested_at, token = trust_clock(), uuid4().hex
        row = self._granted(*self._claims, self._request(key, owner, token, lease) | {"new_owner": owner})
        if row is None:
            return Skipped(SkipReason.RUNNING)
        (granted_at,) = row
        return Claimed(
            self._lease(
                key=key, owner=owner, token=token, granted_at=granted_at, duration=lease, requested_at=requested_at
            )
        )

    def release(self, lease: LeaseT, reason: str = "released") -> HolderWrite:  # noqa: ARG002 - there is no place for it
        """Give the lock back. A lease that was taken over changes nothing."""
        return self._write(self._releasing, lease)


class ConsolidationLockRepository(_LockRepository[Path, LockLease]):
    """Locks on memory roots, in the ``memory_consolidation_locks`` table."""

    _leases = _CONSOLIDATIONS
    _lease = LockLease
    _claims = (CLAIM_CONSOLIDATION, CLAIM_CONSOLIDATION_FROM_THE_DEAD)
    _renewal, _releasing = RENEW_CONSOLIDATION, RELEASE_CONSOLIDATION
    _get = select_entity(ConsolidationLock).where(_leases.is_key)
    _list = select_entity(ConsolidationLock).order_by(_leases.renewed_at.desc(), _leases.table.c.cwd)

    def try_claim(self, root: Path, *, owner: UUID, lease: timedelta) -> Claimed[LockLease] | Skipped:
        """Take the lock when it is free, over, the owner's own, or a dead process's; its earlier lease is then void.

        Args:
            root: the memory root to be locked.
            owner: who consolidates. The same owner gets the lock again at any time, with a fresh token.
            lease: how long the holder may be silent before another takes over, in whole seconds. Zero or less takes
                over at once.
        """
        return self._take(root, owner, lease)

    def get(self, root: Path) -> ConsolidationLock | None:
        """The lock, or ``None`` when nobody holds it."""
        return self._entity(ConsolidationLock, self._get, self._of(root))

    def list(self) -> Sequence[ConsolidationLock]:
        """Every lock that is held or was left behind, the most recently renewed first."""
        return self._entities(ConsolidationLock, self._list)

    @staticmethod
    def _of(key: Path) -> dict[str, Any]:
        return {"of_cwd": key}


class NamedLockRepository(_LockRepository[str, NamedLease]):
    """Locks under any name, in the ``codex_state_locks`` table: "let one of us do this"."""

    _leases = _NAMED
    _lease = NamedLease
    _claims = (CLAIM_NAME, CLAIM_NAME_FROM_THE_DEAD)
    _renewal, _releasing = RENEW_NAME, RELEASE_NAME
    _get = select_entity(NamedLock).where(_leases.is_key)
    _list = select_entity(NamedLock).order_by(_leases.table.c.name)

    def try_claim(self, name: str, *, owner: str = "", lease: timedelta) -> Claimed[NamedLease] | Skipped:
        """Take the lock when it is free, over, or a dead process's.

        Args:
            name: what is to be done by one at a time.
            owner: what the holder says of itself, for people; its host and process are noted anyway. Unlike the owner
                of a consolidation it gets no lock that is held already, not even its own.
            lease: how long the holder may be silent before another takes over, in whole seconds. Zero or less takes
                over at once.
        """
        return self._take(name, owner, lease)

    def get(self, name: str) -> NamedLock | None:
        """The lock, or ``None`` when nobody holds it."""
        return self._entity(NamedLock, self._get, self._of(name))

    def list(self) -> Sequence[NamedLock]:
        """Every lock that is held or was left behind, by name."""
        return self._entities(NamedLock, self._list)

    @staticmethod
    def _of(key: str) -> dict[str, Any]:
        return {"of_name": key}
