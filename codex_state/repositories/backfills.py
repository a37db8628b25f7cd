"""How far each home's index has been built, and who builds it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.clock import server_now
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
from codex_state.repositories import owners
from codex_state.repositories.base import Repository, seconds_of, select_entity, table_of

_states = table_of(BackfillState)
_insert = insert(_states)

_PENDING, _RUNNING, _COMPLETE = (
    literal_column(f"'{status.value}'", text)
    for status in (BackfillStatus.PENDING, BackfillStatus.RUNNING, BackfillStatus.COMPLETE)
)
_KEY = and_(_states.c.id == literal_column("1"), _states.c.home == bindparam("of_home", type_=text))
_HELD = and_(_KEY, _states.c.status == _RUNNING, _states.c.ownership_token == bindparam("token", type_=text))


def _claim(where: ColumnElement[bool] | None, **reset: Any) -> ReturningInsert[Any]:
    taken_over = {
        column: _insert.excluded[column] for column in ("status", "updated_at", "ownership_token", "claimed_at")
    }
    return (
        _insert.values(
            id=literal_column("1"),
            home=bindparam("of_home", type_=text),
            status=_RUNNING,
            updated_at=server_now(),
            ownership_token=bindparam("new_token", type_=text),
            claimed_at=server_now(),
            **owners.NEW_OWNER,
        )
        .on_conflict_do_update(
            index_elements=["id", "home"],
            set_=taken_over | owners.excluded_owner(_insert) | reset,
            where=where,
        )
        .returning(_states.c.last_watermark, _states.c.claimed_at)
    )


_is_free = or_(
    _states.c.status != _RUNNING,
    seconds_of(_states.c.updated_at) <= server_now() - bindparam("new_lease_seconds", type_=BigInteger()),
)
_TRY_CLAIM = _claim(and_(_states.c.status != _COMPLETE, _is_free))
_TRY_CLAIM_AGAIN = _claim(_is_free, last_watermark=null())
_TRY_CLAIM_REFRESH = _claim(_is_free)
_is_of_the_dead = and_(_states.c.status == _RUNNING, owners.is_of_the_dead(_states.c.owner_process))
_CLAIM_FROM_THE_DEAD = _claim(_is_of_the_dead)
_CLAIM_FROM_THE_DEAD_AGAIN = _claim(_is_of_the_dead, last_watermark=null())
_TAKE_OVER = _claim(None)
_TAKE_OVER_FROM_THE_START = _claim(None, last_watermark=null())

_new_watermark = bindparam("new_watermark", type_=text)
_RENEW = (
    update(_states).where(_HELD).values(updated_at=server_now(), **owners.NEW_OWNER).returning(_states.c.last_watermark)
)
_CHECKPOINT = (
    update(_states)
    .where(_HELD)
    .values(
        # Never backwards (law L4), whatever order the work was done in.
        last_watermark=case(
            (_states.c.last_watermark > _new_watermark, _states.c.last_watermark), else_=_new_watermark
        ),
        updated_at=server_now(),
        **owners.NEW_OWNER,
    )
    .returning(_states.c.last_watermark)
)
_COMPLETE_IT = (
    update(_states)
    .where(_HELD)
    .values(
        status=_COMPLETE,
        last_watermark=func.coalesce(
            case((_states.c.last_watermark > _new_watermark, _states.c.last_watermark), else_=_new_watermark),
            _states.c.last_watermark,
        ),
        last_success_at=server_now(),
        updated_at=server_now(),
    )
    .returning(_states.c.last_watermark)
)
_RELEASE = (
    update(_states)
    .where(_HELD)
    .values(status=_PENDING, ownership_token=null(), updated_at=server_now())
    .returning(_states.c.last_watermark)
)
_GET = select_entity(BackfillState).where(_KEY)
_REFUSAL = select(_states.c.status, _states.c.owner_process).where(_KEY)
_LIST = select_entity(BackfillState).order_by(_states.c.home)


class BackfillRepository(Repository):
    """Claims and the writes of their holders, on the ``backfill_state`` table."""

    def get(self, home: str = LOCAL_HOME) -> BackfillState | None:
        """The state of the home's backfill; ``None`` when it never started and nothing noted it as pending."""
        return self._entity(BackfillState, _GET, {"of_home": home})

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
        """Claim the home's backfill, unless it is complete (``UP_TO_DATE``) or somebody works on it (``RUNNING``).

        A dead process of this host doesn't work on it any more.

        Args:
            home: which home.
            owner: what the worker says of itself, for people; its host and process are noted anyway.
            lease: how long the worker may be silent before another takes over, in whole seconds.
            again: claim a complete one as well, and forget the watermark, so that every rollout is handled again.
            refresh: claim a complete one as well, and keep the watermark.
        """
        parameters = self._claim_parameters(home, owner, lease)
        row = self._one(_TRY_CLAIM_AGAIN if again else _TRY_CLAIM_REFRESH if refresh else _TRY_CLAIM, parameters)
        if row is None:
            refusal = self._one(_REFUSAL, {"of_home": home})
            if refusal is not None and refusal.status is BackfillStatus.COMPLETE:
                return Skipped(SkipReason.UP_TO_DATE)
            if refusal is not None and (dead := owners.dead_parameters(self._connection, [refusal.owner_process])):
                row = self._one(_CLAIM_FROM_THE_DEAD_AGAIN if again else _CLAIM_FROM_THE_DEAD, parameters | dead)
            if row is None:
                return Skipped(SkipReason.RUNNING)
        return Claimed(_lease_of(row, parameters, owner, lease))

    def mark_running(
        self, home: str = LOCAL_HOME, *, owner: str = "", lease: timedelta, from_the_start: bool = False
    ) -> BackfillLease:
        """Take the home's backfill over by force, whoever works on it and even when it is complete.

        Args:
            home: which home.
            owner: what the worker says of itself, for people.
            lease: how long the worker may be silent before another takes over.
            from_the_start: forget the watermark, so that every rollout is handled again.
        """
        parameters = self._claim_parameters(home, owner, lease)
        row = self._one(_TAKE_OVER_FROM_THE_START if from_the_start else _TAKE_OVER, parameters)
        assert row is not None
        return _lease_of(row, parameters, owner, lease)

    def renew(self, lease: BackfillLease) -> HolderWrite:
        """Prolong the lease from now on, without progress."""
        return _outcome(self._one(_RENEW, _held(lease) | self._renewal_parameters(lease)))

    def checkpoint(self, lease: BackfillLease, watermark: str) -> HolderWrite:
        """Note that every rollout up to ``watermark`` is handled, and prolong the lease.

        Make it the last statement of the transaction that stored the batch: when it answers ``LEASE_LOST``, roll back.
        """
        parameters = self._renewal_parameters(lease) | {"new_watermark": watermark}
        return _outcome(self._one(_CHECKPOINT, _held(lease) | parameters))

    def complete(self, lease: BackfillLease, watermark: str | None = None) -> HolderWrite:
        """Note that every rollout is handled. Without a ``watermark`` the stored one stays."""
        return _outcome(self._one(_COMPLETE_IT, _held(lease) | {"new_watermark": watermark}))

    def release(self, lease: BackfillLease) -> HolderWrite:
        """Give the work back unfinished: anybody may go on at once, from the stored watermark."""
        return _outcome(self._one(_RELEASE, _held(lease)))

    def _claim_parameters(self, home: str, owner: str, lease: timedelta) -> dict[str, Any]:
        return {
            "of_home": home,
            "new_token": uuid4().hex,
            **owners.owner_parameters(self._connection, lease, owner),
        }

    def _renewal_parameters(self, lease: BackfillLease) -> dict[str, Any]:
        return owners.owner_parameters(self._connection, lease.duration, lease.owner)


def _lease_of(row: Row[Any], parameters: dict[str, Any], owner: str, duration: timedelta) -> BackfillLease:
    return BackfillLease(
        home=parameters["of_home"],
        ownership_token=parameters["new_token"],
        last_watermark=row.last_watermark,
        claimed_at=row.claimed_at,
        duration=duration,
        owner=owner,
    )


def _held(lease: BackfillLease) -> dict[str, Any]:
    return {"of_home": lease.home, "token": lease.ownership_token}


def _outcome(row: Row[Any] | None) -> HolderWrite:
    return HolderWrite.LEASE_LOST if row is None else HolderWrite.APPLIED
