"""Phase 2 of the memory pipeline: consolidate what each scope has gathered, one worker at a time for each.

Extraction marks scopes dirty. A pass takes the dirty ones, locks each by the root of its memories, hands its newest
memories to the caller's function while the lock is kept alive, and marks the scope clean: only if nothing became dirty
since the memories were read, and only while the lock is still held. Whatever goes wrong, the scope stays dirty, so a
consolidation may run more than once and is never forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

from codex_state.errors import DatabaseError, MemoryFilesError
from codex_state.memory import files
from codex_state.memory.async_bridge import Callee, in_thread, running_loop, underneath
from codex_state.memory.cancellation import StopReason, StopSignal
from codex_state.memory.leases import KeptLease, LeaseKeeper, holding
from codex_state.memory.options import ConsolidationOptions
from codex_state.memory.reports import ConsolidationOutcome, ConsolidationReport, ConsolidationResult, described
from codex_state.memory.worker_pool import WorkerPool
from codex_state.models import LockLease, MemoryScope, MemoryScopeDirty, Skipped, ThreadMemory
from codex_state.runtime import AsyncStateRuntime, State, StateRuntime

_log = logging.getLogger("codex_state")

Consolidate = Callable[[MemoryScope, Sequence[ThreadMemory]], Awaitable[None] | None]
"""The caller's function: make one text, or whatever it likes, of a scope's memories, newest first."""

DEFAULT_OPTIONS = ConsolidationOptions()


def consolidate_memories(
    runtime: StateRuntime,
    consolidate: Callable[[MemoryScope, Sequence[ThreadMemory]], None],
    *,
    owner: UUID,
    options: ConsolidationOptions = DEFAULT_OPTIONS,
    scopes: Sequence[MemoryScope] | None = None,
    progress: Callable[[ConsolidationResult], None] | None = None,
) -> ConsolidationReport:
    """Run one pass: consolidate every dirty scope that nobody else is consolidating.

    ``consolidate`` gets the scope and its newest valid memories (64 at most, newest first; none when all were
    invalidated), and is called from several threads at a time. The scope's files are up to date when it is called;
    their root is ``memory_root(runtime.codex_home, scope)``. It must be able to run again for the same memories, and
    calls ``fence`` in each transaction in which it writes rows of its own.

    When the pass is interrupted (KeyboardInterrupt), locks are released and the scopes stay dirty. So it is with a call
    that takes longer than ``options.timeout``: it is told and left behind, and the pass goes on without it.

    Args:
        runtime: an open state.
        consolidate: what to do with a scope's memories.
        owner: the session that does the work. The same owner gets its own locks again at any time.
        options: how the pass runs.
        scopes: only these scopes, if they are dirty.
        progress: called after each outcome, from any thread, one call at a time.

    Raises:
        InvalidInputError: ``consolidate`` is a coroutine function (await ``aconsolidate_memories``), or an option makes
            no sense.
        DatabaseError: the dirty scopes can't be listed.
    """
    return _Pass(runtime, Callee(consolidate, None), owner, options, progress).run(scopes)


async def aconsolidate_memories(
    runtime: AsyncStateRuntime | StateRuntime,
    consolidate: Consolidate,
    *,
    owner: UUID,
    options: ConsolidationOptions = DEFAULT_OPTIONS,
    scopes: Sequence[MemoryScope] | None = None,
    progress: Callable[[ConsolidationResult], None] | None = None,
) -> ConsolidationReport:
    """Run one pass under asyncio or trio: as ``consolidate_memories``, and ``consolidate`` may be a coroutine function.

    Each coroutine runs in a task of its own in this event loop, which is cancelled when its lock is lost or its time is
    over. When this is cancelled, those tasks are cancelled and awaited, and the locks released, before the cancellation
    goes on.
    """
    work = _Pass(underneath(runtime), Callee(consolidate, running_loop()), owner, options, progress)
    return await in_thread(partial(work.run, scopes), work.interrupt)


class _Pass:
    """One pass of consolidation."""

    def __init__(
        self,
        runtime: StateRuntime,
        consolidate: Callee[None],
        owner: UUID,
        options: ConsolidationOptions,
        progress: Callable[[ConsolidationResult], None] | None,
    ) -> None:
        """Prepare a pass. ``run`` runs it, once."""
        self.runtime = runtime
        self.consolidate = consolidate
        self.owner = owner
        self.options = options
        self.keeper = LeaseKeeper(runtime)
        self._progress = progress
        self._results: dict[MemoryScope, ConsolidationResult] = {}
        self._pool: WorkerPool | None = None
        self._interrupted = False
        self._lock = threading.RLock()

    def run(self, scopes: Sequence[MemoryScope] | None) -> ConsolidationReport:
        """Lock, consolidate, mark clean. See ``consolidate_memories``."""
        dirty = self.runtime.run_read(lambda state: _dirty(state, scopes, self.options.limit))
        tasks = [_Consolidation(self, scope) for scope in dirty]
        with self._lock:
            self._pool = WorkerPool(tasks, self.options.concurrency)
        if self._interrupted:
            self._pool.interrupt()
        with self.keeper:
            try:
                self._pool.run()
            finally:
                for task in tasks:
                    task.release()
        return ConsolidationReport(tuple(self._results[task.scope] for task in tasks if task.scope in self._results))

    def interrupt(self) -> None:
        """Stop, from another thread."""
        with self._lock:
            self._interrupted = True
            pool = self._pool
        if pool is not None:
            pool.interrupt()

    def report(self, result: ConsolidationResult) -> None:
        """Note the outcome of one scope."""
        with self._lock:
            self._results[result.scope] = result
            if self._progress is not None:
                self._progress(result)


class _Consolidation:
    """The consolidation of one scope: a task of a worker pool."""

    def __init__(self, around: _Pass, scope: MemoryScope) -> None:
        self.signal = StopSignal()
        self.overdue = StopSignal()
        self.overdue.on_stop(partial(self.signal.stop, StopReason.TIMED_OUT))
        self.scope = scope
        self._around = around
        self._kept: KeptLease[LockLease] | None = None
        self._mark: MemoryScopeDirty | None = None
        self._memories: Sequence[ThreadMemory] = ()

    @property
    def interruptible(self) -> bool:
        """Whether it runs as a task of an event loop."""
        return self._around.consolidate.interruptible

    def prepare(self) -> bool:
        """Lock the scope, read what it has, write its files."""
        try:
            if not self._claim():
                self._report(ConsolidationOutcome.SKIPPED, f"{self._holder()} consolidates it")
                return False
            if not self._read():
                self._release()
                self._report(ConsolidationOutcome.SKIPPED, "somebody else has just consolidated it")
                return False
            if self._around.options.write_files:
                files.render(self._around.runtime, self.scope)
        except MemoryFilesError as error:
            self._release()
            self._report(ConsolidationOutcome.FAILED, str(error))
            return False
        except DatabaseError as error:
            self._release()
            self._report(ConsolidationOutcome.LOST, described(error))
            return False
        return True

    def call(self) -> Callable[[], None]:
        """Run the caller's function."""
        timeout = self._around.options.timeout
        if timeout is not None:
            self._around.keeper.stop_after(self.overdue, timeout.total_seconds())
            self.signal.on_stop(self._let_go_when_timed_out)
        try:
            self.signal.check()
            assert self._kept is not None
            with holding([self._kept]):
                self._around.consolidate(self.signal, self.scope, self._memories)
        except Exception as error:  # noqa: BLE001 - whatever it is, the scope stays dirty and the report says why
            return partial(self._give_up, described(error))
        # Also after the signal: whether somebody took over, the database knows.
        return self._mark_clean

    def leave_behind(self) -> None:
        """Release the lock, and report that it took too long, or that the lock was lost before."""
        self._give_up("it took too long")

    def release(self) -> None:
        """Release the lock, if it is held. Failing that, it ends by itself."""
        try:
            self._release()
        except DatabaseError as error:
            _log.warning("the lock of %s %s could not be released: %s", self.scope.kind, self.scope.key, error)

    def _holder(self) -> str:
        """Who has the lock, for people."""
        root = files.memory_root(self._around.runtime.codex_home, self.scope)
        lock = self._around.runtime.run_read(lambda state: state.consolidation_locks.get(root))
        if lock is None or lock.owner_name is None:
            return "somebody else"
        return f"{lock.owner_name}, last seen {lock.updated_at:%H:%M:%S} UTC,"

    def _claim(self) -> bool:
        around = self._around
        root = files.memory_root(around.runtime.codex_home, self.scope)

        claim = around.runtime.run(
            lambda state: state.consolidation_locks.try_claim(root, owner=around.owner, lease=around.options.lease)
        )
        if isinstance(claim, Skipped):
            return False
        kept = self._kept = around.keeper.keep(claim.lease)
        kept.signal.on_stop(lambda: self.signal.stop(kept.signal.reason or StopReason.LATE))
        return True

    def _read(self) -> bool:
        # One snapshot: every memory that it doesn't show comes with a later mark.
        def read(state: State) -> bool:
            self._mark = state.memory_scopes.get(self.scope)
            if self._mark is None or not self._mark.dirty:
                return False
            self._memories = state.thread_memories.last_n_for_scope(self.scope, files.MEMORIES_PER_SCOPE)
            return True

        return self._around.runtime.run_read(read)

    def _let_go_when_timed_out(self) -> None:
        # A coroutine may swallow its cancellation, and the release may fail. The lock must end nevertheless.
        if self.signal.reason is StopReason.TIMED_OUT and self._kept is not None:
            self._around.keeper.forget(self._kept)

    def _mark_clean(self) -> None:
        assert self._kept is not None
        assert self._mark is not None
        lease, seen = self._kept.lease, self._mark.updated_at

        def write(state: State) -> ConsolidationOutcome:
            clean = state.memory_scopes.mark_clean(self.scope, seen=seen, lock=lease)
            held = state.consolidation_locks.release(lease)
            if clean:
                return ConsolidationOutcome.CLEAN
            return ConsolidationOutcome.DIRTY_AGAIN if held else ConsolidationOutcome.LOST

        try:
            outcome = self._around.runtime.run(write)
        except DatabaseError as error:
            self._report(ConsolidationOutcome.LOST, f"it could not be marked clean: {described(error)}")
            return
        finally:
            self._around.keeper.forget(self._kept)
        reason = "somebody else took the lock over" if outcome is ConsolidationOutcome.LOST else None
        self._report(outcome, reason)

    def _give_up(self, reason: str) -> None:
        self.release()
        match self.signal.reason:
            case None:
                self._report(ConsolidationOutcome.FAILED, reason)
            case StopReason.TIMED_OUT:
                assert self._around.options.timeout is not None
                self._report(
                    ConsolidationOutcome.FAILED, f"timed out after {self._around.options.timeout.total_seconds():g} s"
                )
            case StopReason.REFUSED:
                self._report(ConsolidationOutcome.LOST, "somebody else took the lock over")
            case StopReason.LATE:
                self._report(ConsolidationOutcome.LOST, "no renewal was confirmed in time")
            case StopReason.INTERRUPTED:
                self._report(ConsolidationOutcome.LOST, "the pass was interrupted")

    def _release(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._around.keeper.forget(kept)
            lease = kept.lease
            self._around.runtime.run(lambda state: state.consolidation_locks.release(lease))

    def _report(self, outcome: ConsolidationOutcome, reason: str | None = None) -> None:
        self._around.report(ConsolidationResult(self.scope, outcome, len(self._memories), reason))


def _dirty(state: State, scopes: Sequence[MemoryScope] | None, limit: int) -> list[MemoryScope]:
    if scopes is None:
        return [MemoryScope(mark.scope_kind, mark.scope_key) for mark in state.memory_scopes.list_dirty(limit=limit)]
    marks = ((scope, state.memory_scopes.get(scope)) for scope in dict.fromkeys(scopes))
    return [scope for scope, mark in marks if mark is not None and mark.dirty][:limit]
