"""Which scopes have memories that their consolidation hasn't seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    event,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapper, Session, UOWTransaction, object_session
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.database.execute import execute
from codex_state.database.sql import server_now
from codex_state.models import (
    ConsolidationLock,
    LockLease,
    MemoryScope,
    MemoryScopeDirty,
    StateModel,
    Thread,
    ThreadMemory,
)
from codex_state.models.base import table_of
from codex_state.models.columns import EpochSeconds, PathText, UuidText, text
from codex_state.repositories.base import Repository, given_rows, later_than, parameters_of, select_entity

_scopes = table_of(MemoryScopeDirty)
_locks = table_of(ConsolidationLock)
_memories = table_of(ThreadMemory)
_threads = table_of(Thread)
_insert = insert(_scopes)

_KEY = and_(
    _scopes.c.scope_kind == bindparam("of_kind", type_=text), _scopes.c.scope_key == bindparam("of_key", type_=text)
)

_ONE: ColumnElement[int] = literal_column("1")


def mark_dirty(scopes: Select[*tuple[Any, ...]]) -> ReturningInsert[Any]:
    """Mark the scopes of a query of ``scope_kind`` and ``scope_key``, each one once and with a WHERE."""
    return (
        _insert.from_select(
            ["scope_kind", "scope_key", "dirty", "updated_at"], scopes.add_columns(_ONE.label("dirty"), server_now())
        )
        .on_conflict_do_update(
            index_elements=["scope_kind", "scope_key"],
            set_={"dirty": _ONE, "updated_at": later_than(_scopes.c.updated_at, _insert.excluded.updated_at)},
        )
        .returning(_scopes.c.updated_at)
    )


_named = select(
    bindparam("of_kind", type_=text).label("scope_kind"), bindparam("of_key", type_=text).label("scope_key")
)
_MARK_DIRTY = mark_dirty(_named.where(literal_column("1") == _ONE))
_SCOPES_OF_THREAD = select(_memories.c.scope_kind, _memories.c.scope_key).where(
    _memories.c.thread_id == bindparam("of_thread", type_=UuidText())
)
_MARK_SCOPES_OF_THREAD = mark_dirty(_SCOPES_OF_THREAD)
_MARK_CLEAN = (
    update(_scopes)
    .where(
        _KEY,
        _scopes.c.dirty == literal_column("1"),
        _scopes.c.updated_at == bindparam("seen_updated_at", type_=EpochSeconds()),
    )
    .values(dirty=literal_column("0"))
    .returning(_scopes.c.updated_at)
)
_MARK_CLEAN_IF_LOCKED = _MARK_CLEAN.where(
    bindparam("token", type_=text).in_(
        select(_locks.c.ownership_token)
        .where(
            _locks.c.cwd == bindparam("of_cwd", type_=PathText()),
            _locks.c.ownership_token == bindparam("token", type_=text),
        )
        # On PostgreSQL a take-over and this write must not pass each other; SQLite has one writer anyway.
        .with_for_update()
    )
)
_LIST_DIRTY = (
    select_entity(MemoryScopeDirty)
    .where(_scopes.c.dirty == literal_column("1"))
    .order_by(_scopes.c.updated_at, _scopes.c.scope_kind, _scopes.c.scope_key)
    .limit(bindparam("row_limit", type_=BigInteger()))
)
_GET = select_entity(MemoryScopeDirty).where(_KEY)

_now_said = given_rows(thread_id=UuidText(), memory_mode=text)
_MARK_SCOPES_OF_CHANGED = mark_dirty(
    select(_memories.c.scope_kind, _memories.c.scope_key)
    .distinct()
    .select_from(
        _now_said.join(_threads, _threads.c.id == _now_said.c.thread_id).join(
            _memories, _memories.c.thread_id == _threads.c.id
        )
    )
    .where(_threads.c.memory_mode != _now_said.c.memory_mode)
)


# What a service changes by an ORM session of its own is to be forgotten, or remembered, as well: marked when its flush
# ends, in an order that all share, so that two sessions don't wait for each other.

_NOTED = "codex_state_scopes_to_mark"


@event.listens_for(Thread, "before_delete")
def _note_scopes_of(_mapper: Mapper[Thread], connection: Connection, thread: Thread) -> None:
    found = execute(connection, _SCOPES_OF_THREAD, {"of_thread": thread.id})
    _note(thread, *((row.scope_kind, row.scope_key) for row in found))


@event.listens_for(Thread, "before_update")
def _note_scopes_of_another_mode(mapper: Mapper[Thread], connection: Connection, thread: Thread) -> None:
    if _has_changed(thread, "memory_mode"):
        _note_scopes_of(mapper, connection, thread)


@event.listens_for(ThreadMemory, "before_insert")
@event.listens_for(ThreadMemory, "before_delete")
def _note_scope_of(_mapper: Mapper[ThreadMemory], _connection: Connection, memory: ThreadMemory) -> None:
    _note(memory, (memory.scope_kind, memory.scope_key))


@event.listens_for(ThreadMemory, "before_update")
def _note_scopes_of_another_text(mapper: Mapper[ThreadMemory], connection: Connection, memory: ThreadMemory) -> None:
    if _has_changed(memory, "raw_memory", "memory_summary", "invalidated_at", "scope_kind", "scope_key"):
        _note_scope_of(mapper, connection, memory)
        before = (inspect(memory, raiseerr=True).attrs[name].history for name in ("scope_kind", "scope_key"))
        kind, key = ((history.deleted or history.unchanged or history.added)[0] for history in before)
        _note(memory, (kind, key))


def _note(entity: StateModel, *scopes: tuple[str, str]) -> None:
    session = object_session(entity)
    assert session is not None  # it flushes just now
    noted: set[tuple[str, str]] = session.info.setdefault(_NOTED, set())
    if scopes and not noted:
        event.listen(session, "after_flush", _mark_noted, once=True)
    noted.update(scopes)


def _mark_noted(session: Session, _context: UOWTransaction) -> None:
    connection = session.connection(bind_arguments={"mapper": inspect(MemoryScopeDirty)})
    for kind, key in sorted(session.info.pop(_NOTED, ())):
        execute(connection, _MARK_DIRTY, {"of_kind": kind, "of_key": key})


def _has_changed(entity: StateModel, *names: str) -> bool:
    attributes = inspect(entity, raiseerr=True).attrs
    return any(attributes[name].history.has_changes() for name in names)


class MemoryScopeRepository(Repository):
    """Reads and writes of the ``memory_scope_dirty`` table."""

    def mark_dirty(self, scope: MemoryScope) -> datetime:
        """Note that the scope has something new. Returns the mark's time, which strictly increases per scope."""
        row = self._one(_MARK_DIRTY, {"of_kind": scope.kind, "of_key": scope.key})
        assert row is not None
        marked_at: datetime = row.updated_at
        return marked_at

    def mark_dirty_of(self, thread_id: UUID) -> None:
        """Note that what the thread's memories gave their scopes has changed, or goes with them."""
        self._all(_MARK_SCOPES_OF_THREAD, {"of_thread": thread_id})

    def mark_dirty_of_changed(self, modes: Iterable[tuple[str, str]]) -> None:
        """The same for threads whose memory mode is another than is said of them now: their ids with their modes."""
        self._all(_MARK_SCOPES_OF_CHANGED, parameters_of(modes))

    def mark_clean(self, scope: MemoryScope, *, seen: datetime, lock: LockLease | None = None) -> bool:
        """Note that everything up to the mark ``seen`` is consolidated.

        Args:
            scope: the scope.
            seen: the mark's ``updated_at`` as it was *before* the memories were read.
            lock: the lock under which they were consolidated; once it is lost, nothing is changed (law L2).

        Returns:
            Whether the scope is clean now; false when something became dirty since, it wasn't dirty, or the lock is
            lost.
        """
        parameters: dict[str, Any] = {"of_kind": scope.kind, "of_key": scope.key, "seen_updated_at": seen}
        if lock is None:
            return self._one(_MARK_CLEAN, parameters) is not None
        parameters |= {"of_cwd": lock.key, "token": lock.token}
        return self._one(_MARK_CLEAN_IF_LOCKED, parameters) is not None

    def get(self, scope: MemoryScope) -> MemoryScopeDirty | None:
        """The scope's mark, or ``None`` when it was never dirty."""
        return self._entity(MemoryScopeDirty, _GET, {"of_kind": scope.kind, "of_key": scope.key})

    def list_dirty(self, *, limit: int = 1000) -> Sequence[MemoryScopeDirty]:
        """The dirty scopes, those that wait longest first."""
        return self._entities(MemoryScopeDirty, _LIST_DIRTY, {"row_limit": max(limit, 0)})
