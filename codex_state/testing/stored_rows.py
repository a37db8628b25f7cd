"""What a store holds, in the words of the lease model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Select
from sqlmodel import Session

from codex_state.database.execute import execute
from codex_state.models import (
    BackfillState,
    BackfillStatus,
    ConsolidationLock,
    MemoryScope,
    MemoryScopeDirty,
    Phase1Job,
    Phase1Key,
    StateModel,
    Thread,
    ThreadMemory,
)
from codex_state.models.columns import path_to_text, to_epoch_seconds
from codex_state.processes import Owner
from codex_state.repositories.base import EntityT, select_entity
from codex_state.testing.lease_model import Backfill, Job, Lock, Mark, Memory

_SELECT: dict[type[StateModel], Select[Any]] = {
    model: select_entity(model)
    for model in (Thread, Phase1Job, ThreadMemory, MemoryScopeDirty, ConsolidationLock, BackfillState)
}


@dataclass(slots=True)
class StoredRows:
    """All rows that leases are about. A backfill that is pending and was never claimed counts as none."""

    threads: set[UUID] = field(default_factory=set)
    jobs: dict[Phase1Key, Job] = field(default_factory=dict)
    memories: dict[Phase1Key, Memory] = field(default_factory=dict)
    marks: dict[MemoryScope, Mark] = field(default_factory=dict)
    locks: dict[Path, Lock] = field(default_factory=dict)
    backfill: Backfill | None = None


def read_rows(session: Session, tokens: Mapping[str, str]) -> StoredRows:
    """Every row of a store.

    Args:
        session: where to read.
        tokens: what the model calls each token that the store gave.
    """
    connection = session.connection()

    def all_of(model: type[EntityT]) -> Sequence[EntityT]:
        return execute(connection, _SELECT[model], {}, model.snapshot)

    rows = StoredRows(threads={thread.id for thread in all_of(Thread)})
    for job in all_of(Phase1Job):
        rows.jobs[_key_of(job)] = _job_of(job, tokens)
    for memory in all_of(ThreadMemory):
        rows.memories[_key_of(memory)] = _memory_of(memory)
    for mark in all_of(MemoryScopeDirty):
        rows.marks[MemoryScope(mark.scope_kind, mark.scope_key)] = Mark(mark.dirty, to_epoch_seconds(mark.updated_at))
    for lock in all_of(ConsolidationLock):
        rows.locks[lock.cwd] = Lock(
            str(lock.working_thread_id),
            tokens[lock.ownership_token],
            to_epoch_seconds(lock.updated_at),
            _owner_of(lock),
            lock.lease_seconds,
        )
    for state in all_of(BackfillState):
        if state.status is not BackfillStatus.PENDING or state.claimed_at is not None:
            rows.backfill = _backfill_of(state, tokens)
    return rows


def _key_of(row: Any) -> Phase1Key:
    return Phase1Key(row.thread_id, MemoryScope(row.scope_kind, row.scope_key))


def _owner_of(row: Phase1Job | ConsolidationLock | BackfillState) -> Owner:
    assert row.owner_name is not None
    return Owner(row.owner_name, row.owner_process)


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else to_epoch_seconds(moment)


def _job_of(job: Phase1Job, tokens: Mapping[str, str]) -> Job:
    assert job.started_at is not None
    return Job(
        status=job.status.value,
        owner=str(job.owner_session_id),
        token=None if job.ownership_token is None else tokens[job.ownership_token],
        started_at=to_epoch_seconds(job.started_at),
        source=to_epoch_seconds(job.source_updated_at),
        attempt=job.attempt,
        failures=job.failures,
        crashes=job.crashes,
        begun_at=_seconds(job.begun_at),
        finished_at=_seconds(job.finished_at),
        failure_reason=job.failure_reason,
        raw_memory_path=None if job.raw_memory_path is None else path_to_text(job.raw_memory_path),
        summary_hash=job.summary_hash,
        retry_at=_seconds(job.retry_at),
        by=_owner_of(job),
        lease_seconds=job.lease_seconds,
    )


def _memory_of(memory: ThreadMemory) -> Memory:
    return Memory(
        raw_memory=memory.raw_memory,
        memory_summary=memory.memory_summary,
        updated_at=to_epoch_seconds(memory.updated_at),
        last_used_at=_seconds(memory.last_used_at),
        used_count=memory.used_count,
        invalidated_at=_seconds(memory.invalidated_at),
        invalid_reason=memory.invalid_reason,
    )


def _backfill_of(state: BackfillState, tokens: Mapping[str, str]) -> Backfill:
    return Backfill(
        status=state.status.value,
        updated_at=to_epoch_seconds(state.updated_at),
        token=None if state.ownership_token is None else tokens[state.ownership_token],
        claimed_at=_seconds(state.claimed_at),
        watermark=state.last_watermark,
        last_success_at=_seconds(state.last_success_at),
        by=_owner_of(state),
        lease_seconds=state.lease_seconds,
    )
