"""What was remembered of threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    and_,
    bindparam,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.database.execute import atomically
from codex_state.database.sql import server_now
from codex_state.errors import ThreadNotFoundError
from codex_state.models import (
    SCOPE_CWD,
    HolderWrite,
    MemoryMode,
    MemoryScope,
    Phase1Lease,
    Phase1Status,
    Thread,
    ThreadMemory,
)
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, normal_path, text
from codex_state.repositories.base import Repository, later_than, select_entity
from codex_state.repositories.job_claims import JOBS, key_of
from codex_state.repositories.memory_scopes import MemoryScopeRepository

_memories = table_of(ThreadMemory)
_threads = table_of(Thread)
_jobs = JOBS.table
_insert = insert(_memories)

_thread_id = bindparam("of_thread", type_=UuidText())
_scope_kind = bindparam("of_kind", type_=text)
_scope_key = bindparam("of_key", type_=text)
_KEY = and_(
    _memories.c.thread_id == _thread_id,
    _memories.c.scope_kind == _scope_kind,
    _memories.c.scope_key == _scope_key,
)


def _upsert_from(source: Select[Any]) -> ReturningInsert[Any]:
    """Insert one memory for the row of ``source``, or nothing if it has none. A new text revives an invalidated row."""
    excluded = _insert.excluded
    return (
        _insert.from_select(
            ["thread_id", "scope_kind", "scope_key", "raw_memory", "memory_summary", "updated_at"], source
        )
        .on_conflict_do_update(
            index_elements=["thread_id", "scope_kind", "scope_key"],
            set_={
                "raw_memory": excluded.raw_memory,
                "memory_summary": excluded.memory_summary,
                "updated_at": later_than(_memories.c.updated_at, excluded.updated_at),
                "invalidated_at": null(),
                "invalid_reason": null(),
            },
        )
        .returning(*_memories.columns)
    )


def _new_memory(kind: ColumnElement[Any], key: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    return (
        kind,
        key,
        bindparam("new_raw_memory", type_=text),
        bindparam("new_memory_summary", type_=text),
        server_now(),
    )


_OF_THREAD = _threads.c.id == _thread_id


def _of_thread(kind: ColumnElement[Any], key: ColumnElement[Any]) -> Select[Any]:
    # On PostgreSQL a thread that is being deleted is waited for, and then missed, before the foreign key looks at it.
    return (
        select(_threads.c.id, *_new_memory(kind, key))
        .where(_OF_THREAD)
        .with_for_update(of=_threads, read=True, key_share=True)
    )


_UPSERT = _upsert_from(_of_thread(_scope_kind, _scope_key))
_UPSERT_CWD = _upsert_from(_of_thread(literal_column("'cwd'"), key_of(SCOPE_CWD, normal_path(_threads.c.cwd))))
_kept = select(_threads.c.id).where(_OF_THREAD).with_for_update(of=_threads, read=True, key_share=True).subquery("kept")
_UPSERT_IF_OWNER = _upsert_from(
    select(_jobs.c.thread_id, *_new_memory(_jobs.c.scope_kind, _jobs.c.scope_key))
    .select_from(_kept.join(_jobs, _jobs.c.thread_id == _kept.c.id))
    .where(
        _jobs.c.scope_kind == _scope_kind,
        _jobs.c.scope_key == _scope_key,
        _jobs.c.status == literal_column(f"'{Phase1Status.RUNNING.value}'"),
        _jobs.c.ownership_token == bindparam("token", type_=text),
    )
    # On PostgreSQL a take-over and this write must not pass each other; SQLite has one writer anyway. The thread comes
    # first, as for whoever deletes it: the other way round they could wait for each other. Only against its deletion:
    # a batch claim has locked its threads when it waits for a job that this transaction has locked.
    .with_for_update(of=_jobs, key_share=True)
)

_GET = (
    select_entity(ThreadMemory)
    .where(_memories.c.thread_id == _thread_id)
    .order_by(_memories.c.updated_at.desc(), _memories.c.scope_kind.desc(), _memories.c.scope_key.desc())
    .limit(1)
)
_mode_of_thread = select(_threads.c.memory_mode).where(_threads.c.id == _memories.c.thread_id).scalar_subquery()
_LAST_N = (
    select_entity(ThreadMemory)
    .where(
        _memories.c.scope_kind == _scope_kind,
        _memories.c.scope_key == _scope_key,
        _memories.c.invalidated_at.is_(None),
        # Of a thread that is to be remembered no more, nothing is handed out, whatever was.
        _mode_of_thread == literal_column(f"'{MemoryMode.ENABLED.value}'", text),
    )
    .order_by(_memories.c.updated_at.desc(), _memories.c.thread_id.desc())
    .limit(bindparam("row_limit", type_=BigInteger()))
)
_RECORD_USE = (
    update(_memories)
    .where(_KEY)
    .values(last_used_at=server_now(), used_count=_memories.c.used_count + 1)
    .returning(_memories.c.used_count)
)
_INVALIDATE = (
    update(_memories)
    .where(_KEY, _memories.c.invalidated_at.is_(None))
    .values(invalidated_at=server_now(), invalid_reason=bindparam("reason", type_=text))
    .returning(_memories.c.thread_id)
)
_THREAD_EXISTS = select(_threads.c.id).where(_OF_THREAD)


def _key_of(thread_id: UUID, scope: MemoryScope) -> dict[str, Any]:
    return {"of_thread": thread_id, "of_kind": scope.kind, "of_key": scope.key}


class ThreadMemoryRepository(Repository):
    """Reads and writes of the ``thread_memory`` table. ``updated_at`` strictly increases with every write of a row."""

    def get(self, thread_id: UUID) -> ThreadMemory | None:
        """The thread's newest memory of any scope, invalidated or not; ``None`` when it has none."""
        return self._entity(ThreadMemory, _GET, {"of_thread": thread_id})

    def upsert(self, thread_id: UUID, raw_memory: str, memory_summary: str) -> ThreadMemory:
        """Store a memory for the scope of the thread's own working directory, whoever holds the job.

        Raises:
            ThreadNotFoundError: the thread has no row.
        """
        return self._stored(_UPSERT_CWD, {"of_thread": thread_id}, raw_memory, memory_summary)

    def upsert_for_scope(
        self, thread_id: UUID, scope: MemoryScope, raw_memory: str, memory_summary: str
    ) -> ThreadMemory:
        """Store a memory for an explicit scope, whoever holds the job.

        Raises:
            ThreadNotFoundError: the thread has no row.
        """
        return self._stored(_UPSERT, _key_of(thread_id, scope), raw_memory, memory_summary)

    def _stored(self, statement: Executable, key: dict[str, Any], raw_memory: str, memory_summary: str) -> ThreadMemory:
        memory = self._write(statement, key, raw_memory, memory_summary)
        if memory is None:
            raise ThreadNotFoundError(key["of_thread"])
        return memory

    def upsert_if_owner(self, lease: Phase1Lease, raw_memory: str, memory_summary: str) -> HolderWrite:
        """Store a memory as the holder of the extraction job; a lost lease changes nothing (law L2).

        As with every memory that is stored, its scope is dirty then: the next consolidation takes it up.

        Raises:
            ThreadNotFoundError: the thread has no row.
        """
        thread_id = lease.key.thread_id
        key = _key_of(thread_id, lease.key.scope) | {"token": lease.token}
        if self._write(_UPSERT_IF_OWNER, key, raw_memory, memory_summary) is not None:
            return HolderWrite.APPLIED
        if self._one(_THREAD_EXISTS, {"of_thread": thread_id}) is None:
            raise ThreadNotFoundError(thread_id)
        return HolderWrite.LEASE_LOST

    def _write(
        self, statement: Executable, key: dict[str, Any], raw_memory: str, memory_summary: str
    ) -> ThreadMemory | None:
        texts = {"new_raw_memory": raw_memory, "new_memory_summary": memory_summary}
        with atomically(self._connection):
            memory = self._entity(ThreadMemory, statement, key | texts)
            if memory is not None:
                self._scopes.mark_dirty(MemoryScope(memory.scope_kind, memory.scope_key))
        return memory

    @property
    def _scopes(self) -> MemoryScopeRepository:
        return MemoryScopeRepository(self._session)

    def last_n_for_cwd(self, cwd: Path, n: int) -> Sequence[ThreadMemory]:
        """The ``n`` newest valid memories of exactly this working directory, newest first."""
        return self.last_n_for_scope(MemoryScope.cwd(cwd), n)

    def last_n_for_scope(self, scope: MemoryScope, n: int) -> Sequence[ThreadMemory]:
        """The ``n`` newest valid memories of exactly this scope, newest first; equal times by thread id, descending."""
        if n <= 0:
            return []
        return self._entities(ThreadMemory, _LAST_N, {"of_kind": scope.kind, "of_key": scope.key, "row_limit": n})

    def record_use(self, thread_id: UUID, scope: MemoryScope) -> bool:
        """Count one use of a memory, now. Tells whether there is such a memory."""
        return self._one(_RECORD_USE, _key_of(thread_id, scope)) is not None

    def invalidate(self, thread_id: UUID, scope: MemoryScope, reason: str) -> bool:
        """Take a memory out of listings, with a reason. Tells whether it was valid until now.

        Its scope is dirty then: what was derived from it is made anew without it. A new text for the same thread and
        scope makes it valid again.
        """
        with atomically(self._connection):
            row = self._one(_INVALIDATE, _key_of(thread_id, scope) | {"reason": reason})
            if row is not None:
                self._scopes.mark_dirty(scope)
        return row is not None
