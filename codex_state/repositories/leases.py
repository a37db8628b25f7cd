"""The leases of all tables as SQL: their guards, their grants, their renewals, and the take-over from the dead.

A table of leases has a key, a token, the time of the last renewal, and for how long the lease was granted. A lease is
over when the time that its own row names has passed, whatever lease the next claimer asks for. Rows of older versions
don't name it: then the claimer's counts. A claim for zero seconds or less takes over at once, and names none either.

A claim that is refused because another holds the work looks who that is. If it is a process of this host that is dead,
a claim is sent once more whose one reason to grant is that the row's process is this one. That it is dead can't change
meanwhile, and the row is judged by the statement: whoever claimed in between, or took the lease along into another
process and renewed it there, keeps it (law L1). A claim that is granted, or that is refused for another reason, is one
statement as ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Row,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from codex_state.database.sql import json_item, json_rows, server_now, unindexed
from codex_state.errors import InvalidInputError, required
from codex_state.models import HolderWrite, Lease, StateModel
from codex_state.models.base import table_of
from codex_state.models.columns import text, whole_seconds
from codex_state.processes import processes_of
from codex_state.repositories.base import Repository, seconds_of

_ZERO: ColumnElement[int] = literal_column("0")

CLAIMED_FOR = bindparam("new_lease_seconds", type_=BigInteger())
"""For how many seconds a claim or renewal is granted."""


OWNER_COLUMNS = ("owner_name", "owner_process", "lease_seconds")
"""The columns that a claim or renewal writes beside its token and its time."""

NEW_OWNER: dict[str, ColumnElement[Any]] = {
    "owner_name": bindparam("new_owner_name", type_=text),
    "owner_process": bindparam("new_owner_process", type_=text),
    # A claim for no time takes over, and leaves it to whoever claims next how long that lease is.
    "lease_seconds": func.nullif(CLAIMED_FOR, _ZERO),
}
"""What it writes there. Its parameters are ``owner_parameters``."""


class LeaseTable:
    """One table of leases, and what every statement on it shares."""

    def __init__(self, model: type[StateModel], *, renewed_at: str, running: str | None = None) -> None:
        """Describe a table.

        Args:
            model: its entity. Its primary key is the key of the work.
            renewed_at: the column of the claim's time or the last renewal's.
            running: the ``status`` of a row that is held; ``None`` where every row is.
        """
        self.table = table_of(model)
        self.renewed_at = self.table.c[renewed_at]
        self.insert: Insert = insert(self.table)
        self._key = list(self.table.primary_key)
        self.is_key = and_(*(column == bindparam(f"of_{column.key}", type_=column.type) for column in self._key))
        """Whether a row is of the work that the parameters ``of_…`` name."""
        self._running = None if running is None else literal_column(f"'{running}'", text)
        token = self.table.c.ownership_token == bindparam("token", type_=text)
        self.is_held = and_(self.is_key, *self._if_running(), token)
        """Whether a row is still the holder's whose lease has the parameter ``token`` (law L2)."""
        granted = func.coalesce(self.table.c.lease_seconds, CLAIMED_FOR)
        self.is_over = seconds_of(self.renewed_at) <= server_now() - case((CLAIMED_FOR > _ZERO, granted), else_=_ZERO)
        """Whether the time is over for which a row was granted (law L3)."""
        self.is_of_the_dead = and_(*self._if_running(), is_of_the_dead(self.table.c.owner_process))
        """Whether a row's process is one of the parameter ``dead_processes``."""
        self.prolonged: Mapping[str, ColumnElement[Any]] = {renewed_at: server_now(), **NEW_OWNER}
        """What a renewal writes."""

    def _if_running(self) -> list[ColumnElement[bool]]:
        return [] if self._running is None else [self.table.c.status == self._running]

    def claim(
        self,
        where: ColumnElement[bool] | None,
        given: Mapping[str, Any],
        *,
        returning: Sequence[ColumnElement[Any]],
        **reset: Any,
    ) -> ReturningInsert[Any]:
        """A claim of the work that the parameters ``of_…`` name.

        Args:
            where: which existing rows are taken over; ``None`` for any.
            given: columns that this table has beside those of every lease, and what a claim writes there.
            returning: what the lease needs of the row.
            reset: what a claim writes only when it takes over.
        """
        key = {column.key: bindparam(f"of_{column.key}", type_=column.type) for column in self._key}
        written = {"ownership_token": bindparam("new_token", type_=text), **self.prolonged, **given}
        if self._running is not None:
            written["status"] = self._running
        return (
            self.insert.values(key | written)
            .on_conflict_do_update(
                index_elements=list(key),
                set_={name: self.insert.excluded[name] for name in written} | reset,
                where=where,
            )
            .returning(*returning)
        )

    def renewal(self, **written: Any) -> ReturningUpdate[Any]:
        """A holder's write that prolongs the lease, and may write more."""
        return self.write(**self.prolonged, **written)

    def write(self, **written: Any) -> ReturningUpdate[Any]:
        """A holder's write."""
        return update(self.table).where(self.is_held).values(written).returning(literal_column("1").label("written"))

    @cached_property
    def holder(self) -> Select[Any]:
        """Reads the process that holds the work."""
        return select(self.table.c.owner_process).where(self.is_key, *self._if_running())


KeyT = TypeVar("KeyT")
LeaseT = TypeVar("LeaseT", bound="Lease[Any]")


class LeaseRepository(Repository, Generic[KeyT, LeaseT]):
    """Claims and the writes of their holders, on one table of leases."""

    _leases: ClassVar[LeaseTable]
    _renewal: ClassVar[Executable]

    def renew(self, lease: LeaseT) -> HolderWrite:
        """Prolong the lease from now on.

        A lease that is over but that nobody took is still the holder's and can be renewed.
        """
        return self._prolong(self._renewal, lease)

    def begin(self, lease: LeaseT) -> HolderWrite:
        """Note that the work begins, where that makes a difference, and prolong the lease."""
        return self.renew(lease)

    def release(self, lease: LeaseT, reason: str = "released") -> HolderWrite:
        """Give the work back unfinished: another can claim it at once. Work that is finished stays so.

        Args:
            lease: the holder's lease.
            reason: why it isn't finished, for people. Only jobs have a place for it.
        """
        raise NotImplementedError

    @staticmethod
    def _of(key: KeyT) -> dict[str, Any]:
        """The parameters that name the work."""
        raise NotImplementedError

    def _parameters_of(self, key: KeyT) -> dict[str, Any]:
        try:
            return self._of(key)
        except (AttributeError, TypeError):
            raise InvalidInputError(f"expected a key of this kind of lease, not {key!r}") from None

    def _request(self, key: KeyT, owner: UUID | str, token: str, lease: timedelta) -> dict[str, Any]:
        """The parameters of a claim."""
        label = owner if isinstance(owner, str) else ""
        return self._parameters_of(key) | {"new_token": token, **owner_parameters(self._connection, lease, label)}

    def _granted(self, claim: Executable, from_the_dead: Executable, parameters: dict[str, Any]) -> Row[Any] | None:
        """The row that a claim was granted, if need be in place of a dead process."""
        row: Row[Any] | None = self._one(claim, parameters)
        if row is not None:
            return row
        holder = self._one(self._leases.holder, parameters)
        dead = {} if holder is None else dead_parameters(self._connection, [holder.owner_process])
        taken_over: Row[Any] | None = self._one(from_the_dead, parameters | dead) if dead else None
        return taken_over

    def _prolong(self, statement: Executable, lease: LeaseT, **parameters: Any) -> HolderWrite:
        """Make a holder's write that prolongs the lease."""
        required(lease, Lease)
        connection, label = self._connection, lease.owner if isinstance(lease.owner, str) else ""
        return self._write(
            statement, lease, connection, **owner_parameters(connection, lease.duration, label), **parameters
        )

    def _write(
        self, statement: Executable, lease: LeaseT, on: Connection | None = None, **parameters: Any
    ) -> HolderWrite:
        """Make a holder's write. Whether a row came back is the answer (law L1)."""
        key = self._parameters_of(required(lease, Lease).key)
        row = self._one(statement, {**key, "token": lease.token, **parameters}, on)
        return HolderWrite.LEASE_LOST if row is None else HolderWrite.APPLIED


def excluded_owner(statement: Insert) -> dict[str, ColumnElement[Any]]:
    """What ``NEW_OWNER`` writes to a row that is there already."""
    return {column: statement.excluded[column] for column in OWNER_COLUMNS}


def owner_parameters(connection: Connection, lease: timedelta, known_as: str = "") -> dict[str, Any]:
    """The parameters that name this process, what it says of itself, and for how long it is granted a lease."""
    owner = processes_of(connection.dialect).this()
    return {
        "new_owner_name": owner.known_as(known_as),
        "new_owner_process": owner.process,
        "new_lease_seconds": whole_seconds(lease),
    }


def is_of_the_dead(owner_process: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a row's process is one of the parameter ``dead_processes``."""
    # SQLite would otherwise go through all rows of these processes to find the one that was asked for.
    return are_the_dead(unindexed(owner_process))


def are_the_dead(owner_process: ColumnElement[Any]) -> ColumnElement[bool]:
    """The same, to look for all their rows."""
    row = json_rows(bindparam("dead_processes", type_=text)).table_valued("value", name="dead").c.value
    return owner_process.in_(select(json_item(row, literal_column("0")).label("process")))


def dead_parameters(connection: Connection, processes: Iterable[str | None]) -> dict[str, str]:
    """The parameter that names those of these processes that are dead; empty if none is."""
    judge = processes_of(connection.dialect)
    dead = [[process] for process in processes if process is not None and judge.is_dead(process)]
    return {"dead_processes": json.dumps(dead)} if dead else {}


def host_parameters(connection: Connection) -> dict[str, str]:
    """The parameters between which the processes of this host are; empty where they can't be known."""
    host = processes_of(connection.dialect).host()
    return {} if host is None else {"from_process": f"{host}:", "to_process": f"{host};"}
