"""The extraction of one thread, for all scopes that were claimed for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from codex_state.errors import DatabaseError, InvalidInputError, MemoryFilesError, WorkStoppedError
from codex_state.memory import files, phase1_writes
from codex_state.memory.calling import Callee
from codex_state.memory.extraction import ExtractedMemory, described
from codex_state.memory.heartbeat import KeptLease, LeaseKeeper, holding
from codex_state.memory.options import Phase1Options
from codex_state.memory.phase1_writes import Finished
from codex_state.memory.reports import Phase1Outcome, Phase1Result
from codex_state.memory.stopping import StopReason, StopSignal
from codex_state.models import Phase1Lease, Thread
from codex_state.rollout.lookup import with_its_rollout
from codex_state.runtime import StateRuntime

_log = logging.getLogger("codex_state")

INTERRUPTED = "the pass was interrupted"
ROLLOUT_GONE = "the rollout is gone, or was moved meanwhile"

_REASONS = {
    StopReason.REFUSED: "somebody else took over",
    StopReason.LATE: "no renewal was confirmed in time",
    StopReason.INTERRUPTED: INTERRUPTED,
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the extractions of one pass share."""

    runtime: StateRuntime
    extract: Callee[ExtractedMemory | None]
    options: Phase1Options
    keeper: LeaseKeeper
    report: Callable[[Phase1Result], None]
    begun: Callable[[], None]
    """Tells that an extraction begins."""


class Extraction:
    """The extraction of one thread: a task of a crew."""

    def __init__(self, around: Surroundings, thread: Thread, leases: Sequence[KeptLease[Phase1Lease]]) -> None:
        self.signal = StopSignal()
        self._around = around
        self._thread = thread
        self._leases = leases
        for kept in leases:
            kept.signal.on_stop(partial(self._lose, kept))

    @property
    def interruptible(self) -> bool:
        """Whether it runs as an asyncio task."""
        return self._around.extract.interruptible

    def prepare(self) -> bool:
        """Tell that it begins: the leases are there and kept since the claim."""
        self._around.begun()
        return True

    def call(self) -> Callable[[], None]:
        """Run the caller's extractor, unless it is too late already."""
        if self.signal.stopped:
            return self._store_no_result
        timeout = self._around.options.timeout
        if timeout is not None:
            self._around.keeper.stop_after(self.signal, timeout.total_seconds())
            self.signal.on_stop(self._let_go_when_timed_out)
        was_there = False
        try:
            thread = with_its_rollout(self._around.runtime, self._thread)
            if thread is None:
                return partial(self._give_back, ROLLOUT_GONE)
            was_there = _is_there(thread)
            with holding(self._leases):
                extracted = _checked(self._around.extract(self.signal, thread))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the job's outcome
            if isinstance(error, FileNotFoundError) and was_there and not _is_there(self._thread):
                # It was moved after it had been looked for. Whoever claims the job next finds it.
                return partial(self._give_back, ROLLOUT_GONE)
            return partial(self._store_error, error)
        # Also after the signal: a result that is there is only lost if somebody took over, and the database knows.
        return partial(self._store_result, extracted)

    def _lose(self, kept: KeptLease[Phase1Lease]) -> None:
        """One scope is lost. The work goes on as long as it is for another."""
        if all(other.signal.stopped for other in self._leases):
            self.signal.stop(kept.signal.reason or StopReason.LATE)

    def _let_go_when_timed_out(self) -> None:
        # An extractor in a thread may never return. Its leases must end nevertheless.
        if self.signal.reason is StopReason.TIMED_OUT:
            for kept in self._leases:
                self._around.keeper.forget(kept)

    def _store_result(self, extracted: ExtractedMemory | None) -> None:
        for kept in self._leases:
            self._settle(kept, partial(self._result, kept, extracted))

    def _store_error(self, error: Exception) -> None:
        # What a function raises after it was told to stop is about that. A fence tells so when only one scope is lost.
        fenced = isinstance(error, WorkStoppedError) and any(kept.signal.stopped for kept in self._leases)
        if self.signal.stopped or fenced:
            self._store_no_result()
        else:
            self._store_failure(described(error))

    def _store_failure(self, reason: str) -> None:
        for kept in self._leases:
            self._settle(kept, partial(self._failure, kept, reason))

    def _store_no_result(self) -> None:
        if self.signal.reason is StopReason.TIMED_OUT:
            assert self._around.options.timeout is not None
            self._store_failure(f"timed out after {self._around.options.timeout.total_seconds():g} s")
            return
        self._give_back(None)

    def _give_back(self, reason: str | None) -> None:
        for kept in self._leases:
            self._settle(kept, partial(self._given_back, kept, reason))

    def _settle(self, kept: KeptLease[Phase1Lease], outcome: Callable[[], Phase1Result]) -> None:
        if kept.signal.reason is StopReason.REFUSED:
            result = lost(kept.lease, _REASONS[StopReason.REFUSED])
        else:
            try:
                result = outcome()
            except DatabaseError as error:
                result = lost(kept.lease, f"the outcome could not be stored: {described(error)}")
        self._around.keeper.forget(kept)
        self._around.report(result)

    def _result(self, kept: KeptLease[Phase1Lease], extracted: ExtractedMemory | None) -> Phase1Result:
        lease, runtime = kept.lease, self._around.runtime
        if extracted is None:
            finished = phase1_writes.store_nothing(runtime, lease)
            if finished is None:
                return lost(lease, _REASONS[StopReason.REFUSED])
            return Phase1Result(
                lease.key, Phase1Outcome.NOTHING, lease.attempt, files_error=self._write_files(lease, finished)
            )
        path = files.raw_memory_path(files.memory_root(runtime.codex_home, lease.key.scope), lease.key.thread_id)
        finished = phase1_writes.store_memory(runtime, lease, extracted, path)
        if finished is None:
            return lost(lease, _REASONS[StopReason.REFUSED])
        return Phase1Result(
            lease.key,
            Phase1Outcome.SUCCEEDED,
            lease.attempt,
            raw_memory_path=path,
            summary_hash=extracted.summary_hash,
            files_error=self._write_files(lease, finished),
        )

    def _failure(self, kept: KeptLease[Phase1Lease], reason: str) -> Phase1Result:
        lease = kept.lease
        retry_after = self._around.options.retry.retry_after(lease.failures + 1)
        if phase1_writes.store_failure(self._around.runtime, lease, reason, retry_after) is None:
            return lost(lease, _REASONS[StopReason.REFUSED])
        return Phase1Result(lease.key, Phase1Outcome.FAILED, lease.attempt, reason, retry_after)

    def _given_back(self, kept: KeptLease[Phase1Lease], reason: str | None) -> Phase1Result:
        reason = reason or _REASONS[kept.signal.reason or self.signal.reason or StopReason.INTERRUPTED]
        phase1_writes.give_back(self._around.runtime, kept.lease, reason)
        return lost(kept.lease, reason)

    def _write_files(self, lease: Phase1Lease, finished: Finished) -> str | None:
        if not self._around.options.write_files or finished.marked_dirty_at is None:
            return None
        try:
            files.render(self._around.runtime, lease.key.scope, at_least=finished.marked_dirty_at)
        except (MemoryFilesError, DatabaseError) as error:
            # The memory is stored, and its scope is dirty: the consolidation writes the files again.
            _log.warning("%s", error)
            return str(error)
        return None


def _is_there(thread: Thread) -> bool:
    return thread.rollout_path is not None and thread.rollout_path.is_file()


def _checked(extracted: object) -> ExtractedMemory | None:
    if extracted is None or isinstance(extracted, ExtractedMemory):
        return extracted
    raise InvalidInputError(f"the extractor returned a {type(extracted).__name__}, not an ExtractedMemory")


def lost(lease: Phase1Lease, reason: str) -> Phase1Result:
    """The result of a job that this worker couldn't finish."""
    return Phase1Result(lease.key, Phase1Outcome.LOST, lease.attempt, reason)
