"""What the holder of an extraction job writes: each outcome is one transaction, whole or not at all (law L5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from codex_state.errors import UnknownCommitOutcomeError
from codex_state.memory.extraction import ExtractedMemory
from codex_state.models import HolderWrite, Phase1Lease, Phase1Status
from codex_state.runtime import State, StateRuntime

NOTHING_TO_REMEMBER = "a later extraction found nothing to remember"
"""Why a memory of an older version of its thread is no longer valid."""

_UNKNOWN_COMMITS = 5
"""How many times a commit may go without an answer, and be asked after, before the caller hears of it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is finished."""

    marked_dirty_at: datetime | None
    """The mark of its scope; ``None`` when nothing in the scope changed."""


class _LeaseLost(Exception):  # noqa: N818 - never leaves this module: it rolls a transaction back
    """A guarded write was refused."""


def store_memory(
    runtime: StateRuntime, lease: Phase1Lease, memory: ExtractedMemory, raw_memory_path: Path
) -> Finished | None:
    """Store the memory, finish the job and mark its scope dirty. ``None`` when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """

    def write(state: State) -> Finished:
        # First, because it locks the job's row: whoever takes over waits, and finds the job finished.
        _require(state.phase1_jobs.renew(lease) is not None)
        stored = state.thread_memories.upsert_if_owner(lease, memory.raw_memory, memory.memory_summary)
        _require(stored is not HolderWrite.LEASE_LOST)
        _require(state.phase1_jobs.succeed(lease, raw_memory_path=raw_memory_path, summary_hash=memory.summary_hash))
        return Finished(state.memory_scopes.mark_dirty(lease.key.scope))

    return _finish(runtime, lease, Phase1Status.SUCCEEDED, write)


def store_nothing(runtime: StateRuntime, lease: Phase1Lease) -> Finished | None:
    """Finish the job without a memory. ``None`` when the lease is lost.

    The job is ``succeeded`` without a path and a hash, so this version of the thread isn't extracted again. A memory of
    an older version is invalidated, not deleted, and only then the scope is dirty.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """
    key = lease.key

    def write(state: State) -> Finished:
        # Invalidating is no holder's write by itself; in one transaction with this one it is.
        _require(state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None))
        if not state.thread_memories.invalidate(key.thread_id, key.scope, NOTHING_TO_REMEMBER):
            return Finished(None)
        return Finished(state.memory_scopes.mark_dirty(key.scope))

    return _finish(runtime, lease, Phase1Status.SUCCEEDED, write)


def store_failure(
    runtime: StateRuntime, lease: Phase1Lease, reason: str, retry_after: timedelta | None
) -> Finished | None:
    """Finish the job as failed. ``None`` when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """

    def write(state: State) -> Finished:
        _require(state.phase1_jobs.fail(lease, reason, retry_after=retry_after))
        return Finished(None)

    return _finish(runtime, lease, Phase1Status.FAILED, write)


def give_back(runtime: StateRuntime, lease: Phase1Lease, reason: str) -> None:
    """Let others claim an unfinished job at once. Does nothing when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached. The lease then ends by itself.
    """
    runtime.run(lambda state: state.phase1_jobs.release(lease, reason))


def _require(held: HolderWrite | bool) -> None:  # noqa: FBT001 - the condition itself
    if not held:
        raise _LeaseLost


def _finish(
    runtime: StateRuntime, lease: Phase1Lease, status: Phase1Status, write: Callable[[State], Finished]
) -> Finished | None:
    for _ in range(_UNKNOWN_COMMITS):
        try:
            return runtime.run(write)
        except _LeaseLost:
            return None
        except UnknownCommitOutcomeError as error:
            unknown = error
        if finished := runtime.run_read(partial(_look, lease, status)):
            return finished
    raise unknown


def _look(lease: Phase1Lease, status: Phase1Status, state: State) -> Finished | None:
    """The connection broke during the commit. The token stays in a finished job's row, so the row tells."""
    job = state.phase1_jobs.get(lease.key)
    if job is None or job.ownership_token != lease.ownership_token or job.status is not status:
        return None
    mark = state.memory_scopes.get(lease.key.scope)
    return Finished(None if mark is None else mark.updated_at)
