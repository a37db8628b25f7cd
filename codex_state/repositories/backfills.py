"""How far each home's index has been built, and who builds it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Executable, and_, bindparam, case, func, literal_column, null, or_, select

from codex_state.database.sql import server_now, trust_clock
from codex_state.models import (
    LOCAL_HOME,
    BackfillLease,
    BackfillState,
    BackfillStatus,
    Claimed,
    HolderWrite,
    Skipped,
    SkipReason,
)
from codex_state.models.columns import text
from codex_state.repositories.base import select_entity
from codex_state.repositories.leases import LeaseRepository, LeaseTable

_LEASES = LeaseTable(BackfillState, renewed_at="updated_at", running=BackfillStatus.RUNNING.value)
_states = _LEASES.table

_PENDING, _RUNNING, _COMPLETE = (
    literal_column(f"'{status.value}'", text)
    for status in (BackfillStatus.PENDING, BackfillStatus.RUNNING, BackfillStatus.COMPLETE)
)


def _claim(where: ColumnElement[bool] | None, **reset: Any) -> Executable:
    returning = [_states.c.last_watermark, _states.c.claimed_at]
    return _LEASES.claim(where, {"claimed_at": server_now()}, returning=returning, **reset)


_is_free = or_(_states.c.status != _RUNNING, _LEASES.is_over)
_TRY_CLAIM = _claim(and_(_states.c.status != _COMPLETE, _is_free))
_TRY_CLAIM_AGAIN = _claim(_is_free, last_watermark=null())
_TRY_CLAIM_REFRESH = _claim(_is_free)
_CLAIM_FROM_THE_DEAD = _claim(_LEASES.is_of_the_dead)
_CLAIM_FROM_THE_DEAD_AGAIN = _claim(_LEASES.is_of_the_dead, last_watermark=null())
_TAKE_OVER = _claim(None)
_TAKE_OVER_FROM_THE_START = _claim(None, last_watermark=null())

_new_watermark = bindparam("new_watermark", type_=text)
# Never backwards (law L4), whatever order the work was done in.
_latest = case((_states.c.last_watermark > _new_watermark, _states.c.last_watermark), else_=_new_watermark)
_RENEW = _LEASES.renewal()
_CHECKPOINT = _LEASES.renewal(last_watermark=_latest)
_COMPLETE_IT = _LEASES.write(
    status=_COMPLETE,
    last_watermark=func.coalesce(_latest, _states.c.last_watermark),
    last_success_at=server_now(),
    updated_at=server_now(),
)
_RELEASE = _LEASES.write(status=_PENDING, ownership_token=null(), updated_at=server_now())
_GET = select_entity(BackfillState).where(_LEASES.is_key)
_STATUS = select(_states.c.status).where(_LEASES.is_key)
_LIST = select_entity(BackfillState).order_by(_states.c.home)


class BackfillRepository(LeaseRepository[str, BackfillLease]):
    """Claims and the writes of their holders, on the ``backfill_state`` table."""

    _leases = _LEASES
    _renewal = _RENEW

    def get(self, home: str = LOCAL_HOME) -> BackfillState | None:
        """The state of the home's backfill; ``None`` when it never started and nothing noted it as pending."""
        return self._entity(BackfillState, _GET, self._of(home))

    def list(self) -> list[BackfillState]:
        """The state of every home that has one."""
        return self._entities(BackfillState, _LIST)

    def is_complete(self, home: str = LOCAL_HOME) -> bool:
        """Whether the home's rollouts have all been handled once."""
        state = self.get(home)
        return state is not None and state.status is BackfillStatus.COMPLETE

    def try_claim(
        self, home: str = LOCAL_HOME, *, owner: str = "", lease: timedelta, again: bool = False, refresh: bool = False
    ) -> Claimed[BackfillLease] | Skipped:
        """Claim the home's backfill, unless it is complete (``UP_TO_DATE``) or another works on it (``RUNNING``).

        A dead process of this host doesn't work on it any more.

        Args:
            home: which home.
            owner: what the worker says of itself, for people; its host and process are noted anyway.
            lease: how long the worker may be silent before another takes over, in whole seconds. Zero or less takes a
                running one over at once.
            again: claim a complete one as well, and forget the watermark, so that every rollout is handled again.
            refresh: claim a complete one as well, and keep the watermark.
        """
        if again:
            claim, from_the_dead = _TRY_CLAIM_AGAIN, _CLAIM_FROM_THE_DEAD_AGAIN
        else:
            claim, from_the_dead = _TRY_CLAIM_REFRESH if refresh else _TRY_CLAIM, _CLAIM_FROM_THE_DEAD
        granted = self._take(claim, from_the_dead, home, owner, lease)
        if granted is not None:
            return Claimed(granted)
        state = self._one(_STATUS, self._of(home))
        complete = state is not None and state.status is BackfillStatus.COMPLETE
        return Skipped(SkipReason.UP_TO_DATE if complete else SkipReason.RUNNING)

    def take_over(
        self, home: str = LOCAL_HOME, *, owner: str = "", lease: timedelta, from_the_start: bool = False
    ) -> BackfillLease:
        """Take the home's backfill over by force, whoever works on it and even when it is complete.

        Args:
            home: which home.
            owner: what the worker says of itself, for people.
            lease: how long the worker may be silent before another takes over.
            from_the_start: forget the watermark, so that every rollout is handled again.
        """
        claim = _TAKE_OVER_FROM_THE_START if from_the_start else _TAKE_OVER
        granted = self._take(claim, claim, home, owner, lease)
        assert granted is not None
        return granted

    def _take(
        self, claim: Executable, from_the_dead: Executable, home: str, owner: str, lease: timedelta
    ) -> BackfillLease | None:
        requested_at, token = trust_clock(), uuid4().hex
        row = self._granted(claim, from_the_dead, self._request(home, owner, token, lease))
        if row is None:
            return None
        return BackfillLease(
            key=home,
            owner=owner,
            token=token,
            granted_at=row.claimed_at,
            duration=lease,
            requested_at=requested_at,
            last_watermark=row.last_watermark,
        )

    def checkpoint(self, lease: BackfillLease, watermark: str) -> HolderWrite:
        """Note that every rollout up to ``watermark`` is handled, and prolong the lease.

        Make it the last statement of the transaction that stored the batch: when it answers ``LEASE_LOST``, roll back.
        """
        return self._prolong(_CHECKPOINT, lease, new_watermark=watermark)

    def complete(self, lease: BackfillLease, watermark: str | None = None) -> HolderWrite:
        """Note that every rollout is handled. Without a ``watermark`` the stored one stays."""
        return self._write(_COMPLETE_IT, lease, new_watermark=watermark)

    def release(self, lease: BackfillLease, reason: str = "released") -> HolderWrite:  # noqa: ARG002 - there is no place for it
        """Give the work back unfinished: anybody may go on at once, from the stored watermark."""
        return self._write(_RELEASE, lease)

    @staticmethod
    def _of(key: str) -> dict[str, Any]:
        # The table has one row for each home.
        return {"of_id": 1, "of_home": key}
