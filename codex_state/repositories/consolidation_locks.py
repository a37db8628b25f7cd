"""Locks on memory roots: one consolidation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.clock import server_now
from codex_state.models import Claimed, ConsolidationLock, HolderWrite, LockLease, Skipped, SkipReason
from codex_state.models.columns import PathText, UuidText, text
from codex_state.repositories import owners
from codex_state.repositories.base import Repository, seconds_of, select_entity, table_of

_locks = table_of(ConsolidationLock)
_insert = insert(_locks)

_KEY = _locks.c.cwd == bindparam("of_cwd", type_=PathText())
_HELD = and_(_KEY, _locks.c.ownership_token == bindparam("token", type_=text))

_is_free = or_(
    _locks.c.working_thread_id == _insert.excluded.working_thread_id,
    seconds_of(_locks.c.updated_at) <= server_now() - bindparam("new_lease_seconds", type_=BigInteger()),
)


def _acquire(where: ColumnElement[bool]) -> ReturningInsert[Any]:
    return (
        _insert.values(
            cwd=bindparam("of_cwd", type_=PathText()),
            working_thread_id=bindparam("new_owner", type_=UuidText()),
            updated_at=server_now(),
            ownership_token=bindparam("new_token", type_=text),
            **owners.NEW_OWNER,
        )
        .on_conflict_do_update(
            index_elements=["cwd"],
            set_={
                "working_thread_id": _insert.excluded.working_thread_id,
                "updated_at": _insert.excluded.updated_at,
                "ownership_token": _insert.excluded.ownership_token,
                **owners.excluded_owner(_insert),
            },
            where=where,
        )
        .returning(_locks.c.updated_at)
    )


_ACQUIRE = _acquire(_is_free)
_ACQUIRE_FROM_THE_DEAD = _acquire(owners.is_of_the_dead(_locks.c.owner_process))
_HOLDER = select(_locks.c.owner_process).where(_KEY)
_RENEW = update(_locks).where(_HELD).values(updated_at=server_now(), **owners.NEW_OWNER).returning(_locks.c.updated_at)
_RELEASE = delete(_locks).where(_HELD).returning(_locks.c.cwd)
_GET = select_entity(ConsolidationLock).where(_KEY)
_LIST = select_entity(ConsolidationLock).order_by(_locks.c.updated_at.desc(), _locks.c.cwd)


class ConsolidationLockRepository(Repository):
    """Claims and the writes of their holders, on the ``memory_consolidation_locks`` table."""

    def try_acquire(self, cwd: Path, *, owner: UUID, lease: timedelta) -> Claimed[LockLease] | Skipped:
        """Take the lock when it is free, stale, the owner's own, or a dead process's; its earlier lease is then void.

        Args:
            cwd: the memory root to be locked.
            owner: who consolidates. The same owner gets the lock again at any time, with a fresh token.
            lease: how long the holder may be silent before another takes over, in whole seconds. Zero or less takes
                over at once.
        """
        token = uuid4().hex
        parameters = {
            "of_cwd": cwd,
            "new_owner": owner,
            "new_token": token,
            **owners.owner_parameters(self._connection, lease),
        }
        row = self._one(_ACQUIRE, parameters)
        if row is None and (dead := self._dead_holder(cwd)):
            row = self._one(_ACQUIRE_FROM_THE_DEAD, parameters | dead)
        if row is None:
            return Skipped(SkipReason.RUNNING)
        return Claimed(LockLease(cwd, owner, token, row.updated_at, lease))

    def _dead_holder(self, cwd: Path) -> dict[str, str]:
        holder = self._one(_HOLDER, {"of_cwd": cwd})
        return {} if holder is None else owners.dead_parameters(self._connection, [holder.owner_process])

    def renew(self, lease: LockLease) -> LockLease | None:
        """Prolong the lease from now on. ``None`` means that it is lost: stop working."""
        row = self._one(_RENEW, _held(lease) | owners.owner_parameters(self._connection, lease.duration))
        return None if row is None else lease.renewed(row.updated_at)

    def release(self, lease: LockLease) -> HolderWrite:
        """Give the lock back. A lease that somebody took over changes nothing."""
        return HolderWrite.LEASE_LOST if self._one(_RELEASE, _held(lease)) is None else HolderWrite.APPLIED

    def get(self, cwd: Path) -> ConsolidationLock | None:
        """The lock, or ``None`` when nobody holds it."""
        return self._entity(ConsolidationLock, _GET, {"of_cwd": cwd})

    def list(self) -> Sequence[ConsolidationLock]:
        """Every lock that is held or was left behind, the most recently renewed first."""
        return self._entities(ConsolidationLock, _LIST)


def _held(lease: LockLease) -> dict[str, Any]:
    return {"of_cwd": lease.cwd, "token": lease.ownership_token}
