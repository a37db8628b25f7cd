"""Phase 1 of the memory pipeline: extract what is to be remembered of recent threads, each once.

One call is a whole start-up pass: claim, extract with bounded concurrency while every lease is kept alive, store each
outcome through the fence: one transaction each, whole or not at all (law L5). Any number of workers may run passes at
the same time; what one has claimed, the others leave to it, and what a crashed one leaves behind, they take over.

A job whose work ended with its worker before is extracted alone, after all others, so that it can't take them along
once more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

from codex_state.errors import (
    DatabaseError,
    InvalidInputError,
    InvalidRowError,
    LeaseLost,
    MemoryFilesError,
    ThreadNotFoundError,
    UnknownCommitOutcomeError,
    WorkStoppedError,
)
from codex_state.memory import files
from codex_state.memory.async_bridge import Callee, in_thread, running_loop, underneath
from codex_state.memory.cancellation import StopReason, StopSignal
from codex_state.memory.leases import KeptLease, LeaseKeeper, holding
from codex_state.memory.options import Phase1Options
from codex_state.memory.reports import (
    ExtractedMemory,
    Phase1Outcome,
    Phase1Progress,
    Phase1Report,
    Phase1Result,
    Phase1Skipped,
    described,
)
from codex_state.memory.worker_pool import WorkerPool
from codex_state.models import LOCAL_HOME, Claimed, Phase1Key, Phase1Lease, Phase1Status, Skipped, Thread
from codex_state.rollout.files import may_be_file
from codex_state.rollout.lookup import with_its_rollout
from codex_state.runtime import AsyncStateRuntime, State, StateRuntime

_log = logging.getLogger("codex_state")

Extract = Callable[[Thread], ExtractedMemory | Awaitable[ExtractedMemory | None] | None]
"""The caller's function: what is to be remembered of a thread, or ``None``."""

DEFAULT_OPTIONS = Phase1Options()


def run_phase1(
    runtime: StateRuntime,
    extract: Callable[[Thread], ExtractedMemory | None],
    *,
    owner: UUID,
    options: Phase1Options = DEFAULT_OPTIONS,
    keys: Iterable[Phase1Key] | None = None,
    progress: Callable[[Phase1Progress], None] | None = None,
) -> Phase1Report:
    """Run one pass: claim the threads that have something to extract, extract them, store what was found.

    ``extract`` is called once for each thread, from several threads at a time, and its result is stored for each scope
    that was claimed. It returns ``None`` when there is nothing to remember. Whatever it raises makes the job failed,
    with the error as the reason. One that takes long should ask ``current_work()`` now and then whether it must stop.

    When the first three extractions all fail with the same error, it is taken for the extractor's own or for that of
    what it depends on: the pass stops, no job is made failed, and the report says why.

    When the pass is interrupted (KeyboardInterrupt), its unfinished jobs are given back and can be claimed at once.
    Calls of ``extract`` that still run are told and left behind; what they return is thrown away. So it is with a call
    that takes longer than ``options.timeout``: its job is made failed, and the pass goes on without it.

    Args:
        runtime: an open state.
        extract: what to remember of a thread.
        owner: the session that does the work, for people to see.
        options: how the pass runs.
        keys: exactly these jobs instead of the most recent candidates; those that aren't granted are reported.
        progress: called after the claim, when an extraction begins and after each outcome, from any thread, one call
            at a time.

    Raises:
        InvalidInputError: ``extract`` is a coroutine function (await ``arun_phase1``), or an option makes no sense.
        ThreadNotFoundError: one of ``keys`` is of a thread that isn't there. Nothing is claimed.
        DatabaseError: the claim failed. What was claimed before is given back.
    """
    return _Pass(runtime, Callee(extract, None), owner, options, progress).run(keys)


async def arun_phase1(
    runtime: AsyncStateRuntime | StateRuntime,
    extract: Extract,
    *,
    owner: UUID,
    options: Phase1Options = DEFAULT_OPTIONS,
    keys: Iterable[Phase1Key] | None = None,
    progress: Callable[[Phase1Progress], None] | None = None,
) -> Phase1Report:
    """Run one pass under asyncio or trio: as ``run_phase1``, and ``extract`` may be a coroutine function.

    Coroutines run in this event loop, each in a task of its own, which is cancelled when its leases are lost or its
    time is over. A plain function is called from other threads. The database's work never runs in the event loop.

    When this is cancelled, the tasks of ``extract`` are cancelled and awaited, and the unfinished jobs are given back,
    before the cancellation goes on.
    """
    work = _Pass(underneath(runtime), Callee(extract, running_loop()), owner, options, progress)
    return await in_thread(partial(work.run, keys), work.interrupt)


class _Pass:
    """One pass of extraction."""

    def __init__(
        self,
        runtime: StateRuntime,
        extract: Callee[ExtractedMemory | None],
        owner: UUID,
        options: Phase1Options,
        progress: Callable[[Phase1Progress], None] | None,
    ) -> None:
        """Prepare a pass. ``run`` runs it, once."""
        self._owner = owner
        self._progress = progress
        self.runtime = runtime
        self.extract = extract
        self.options = options
        self.keeper = LeaseKeeper(runtime)
        self.first_failures = _FirstFailures(self.interrupt)
        self._claimed: list[KeptLease[Phase1Lease]] = []
        self._results: dict[Phase1Key, Phase1Result] = {}
        self._skipped: list[Phase1Skipped] = []
        self._pool: WorkerPool | None = None
        self._interrupted = False
        self._lock = threading.RLock()

    def run(self, keys: Iterable[Phase1Key] | None) -> Phase1Report:
        """Claim, extract, store. See ``run_phase1``."""
        with self.keeper:
            try:
                if keys is None:
                    self._claim_candidates()
                else:
                    self._claim_keys(list(keys))
                self._report_progress()
                self._extract_all()
            finally:
                self._give_back()
        if self.options.write_files:
            files.render_dirty(self.runtime)
        results = (self._results.get(kept.lease.key) for kept in self._claimed)
        return Phase1Report(
            tuple(result for result in results if result is not None), tuple(self._skipped), self.first_failures.stopped
        )

    def interrupt(self) -> None:
        """Stop, from another thread."""
        with self._lock:
            self._interrupted = True
            pool = self._pool
        if pool is not None:
            pool.interrupt()

    def done(self, result: Phase1Result) -> None:
        """Note the outcome of one job."""
        with self._lock:
            self._results[result.key] = result
            self._report_progress(result)

    def begun(self) -> None:
        """Tell that an extraction begins."""
        with self._lock:
            self._report_progress()

    def _claim_candidates(self) -> None:
        options = self.options

        def claim(state: State) -> list[Phase1Lease]:
            return state.phase1_jobs.claim_candidates(
                owner=self._owner,
                lease=options.lease,
                max_threads=options.limit,
                max_age=options.max_age,
                sources=options.sources,
                scope_kinds=options.scope_kinds,
                exclude=options.exclude,
                max_running=options.max_running,
                home=None if options.all_homes else {self.runtime.home, LOCAL_HOME},
                crashes_allowed=options.crashes_allowed,
            )

        self._claimed.extend(map(self.keeper.keep, self.runtime.run(claim)))

    def _claim_keys(self, keys: Sequence[Phase1Key]) -> None:
        threads = self.runtime.run_read(lambda state: {key.thread_id: state.threads.get(key.thread_id) for key in keys})
        for thread_id, thread in threads.items():
            if thread is None:
                raise ThreadNotFoundError(thread_id)
        for key in dict.fromkeys(keys):
            thread = threads[key.thread_id]
            assert thread is not None
            claim = self.runtime.run(partial(self._try_claim, key=key, thread=thread))
            if isinstance(claim, Skipped):
                self._skipped.append(Phase1Skipped(key, claim.reason))
            else:
                self._claimed.append(self.keeper.keep(claim.lease))

    def _try_claim(self, state: State, key: Phase1Key, thread: Thread) -> Claimed[Phase1Lease] | Skipped:
        return state.phase1_jobs.try_claim(
            key,
            owner=self._owner,
            source_updated_at=thread.updated_at,
            lease=self.options.lease,
            crashes_allowed=self.options.crashes_allowed,
        )

    def _extract_all(self) -> None:
        of_thread: dict[UUID, list[KeptLease[Phase1Lease]]] = {}
        for kept in self._claimed:
            of_thread.setdefault(kept.lease.key.thread_id, []).append(kept)
        threads = self.runtime.run_read(lambda state: {each: _thread_or_why_none(state, each) for each in of_thread})
        tasks: list[_Extraction] = []
        suspects: list[_Extraction] = []
        for thread_id, leases in of_thread.items():
            thread = threads[thread_id]
            if isinstance(thread, str):
                for kept in leases:
                    self.done(_lost(kept.lease, thread))
            else:
                # What ended with its worker may do so again, and must not take innocent ones along.
                suspected = any(kept.lease.crashes for kept in leases)
                (suspects if suspected else tasks).append(_Extraction(self, thread, leases))
        for extractions, concurrency in ((tasks, self.options.concurrency), (suspects, 1)):
            with self._lock:
                if self._interrupted:
                    return
                self._pool = WorkerPool(extractions, concurrency)
            self._pool.run()
        self.first_failures.store()

    def _report_progress(self, last: Phase1Result | None = None) -> None:
        if self._progress is not None:
            running = 0 if self._pool is None else self._pool.running
            self._progress(Phase1Progress(len(self._claimed), len(self._results), running, last))

    def _give_back(self) -> None:
        """Let others claim at once what this pass won't finish."""
        unfinished = [kept for kept in self._claimed if kept.lease.key not in self._results]
        for kept in unfinished:
            self.keeper.forget(kept)
            try:
                _give_back(self.runtime, kept.lease, self.first_failures.stopped or INTERRUPTED)
            except DatabaseError as error:
                # Then they end by themselves, after the lease.
                _log.warning("%d interrupted jobs could not be given back: %s", len(unfinished), error)
                return


INTERRUPTED = "the pass was interrupted"
ROLLOUT_GONE = "the rollout is gone, or was moved meanwhile"

_REASONS = {
    StopReason.REFUSED: "somebody else took over",
    StopReason.LATE: "no renewal was confirmed in time",
    StopReason.INTERRUPTED: INTERRUPTED,
}


_ALIKE = 3
"""How many failures at a pass's beginning are held back: if they all say the same, it isn't for the threads."""


class _FirstFailures:
    """The failures of a pass, which are held back until it has shown that extractions may end otherwise."""

    def __init__(self, stop: Callable[[], None]) -> None:
        """``stop`` ends the pass."""
        self.stopped: str | None = None
        """Why the pass was stopped."""
        self._stop = stop
        self._held: list[_Failure] | None = []
        self._lock = threading.Lock()

    def add(self, reason: str, store: Callable[[str], None], give_back: Callable[[str], None]) -> None:
        """Note a failure: store it now, or keep it back, or give the job back because all failed alike."""
        with self._lock:
            failures = [_Failure(reason, store, give_back)]
            if self._held is not None and all(failure.reason == reason for failure in self._held):
                self._held += failures
                if len(self._held) < _ALIKE:
                    return
                self.stopped = f"the first {_ALIKE} extractions all failed alike: {reason}"
                failures, self._held = self._held, None
            stopped = self.stopped
        if stopped is None:
            self.store()
            store(reason)
        else:
            self._stop()
            for failure in failures:
                failure.give_back(stopped)

    def store(self) -> None:
        """Store what was kept back: not everything fails, or nothing more comes."""
        with self._lock:
            failures, self._held = self._held or [], None
        for failure in failures:
            failure.store(failure.reason)


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    store: Callable[[str], None]
    give_back: Callable[[str], None]


class _Extraction:
    """The extraction of one thread, for all scopes that were claimed for it: a task of a worker pool."""

    def __init__(self, around: _Pass, thread: Thread, leases: Sequence[KeptLease[Phase1Lease]]) -> None:
        self.signal = StopSignal()
        self.overdue = StopSignal()
        self.overdue.on_stop(partial(self.signal.stop, StopReason.TIMED_OUT))
        self._around = around
        self._thread = thread
        self._leases = leases
        for kept in leases:
            kept.signal.on_stop(partial(self._lose, kept))

    @property
    def interruptible(self) -> bool:
        """Whether it runs as a task of an event loop."""
        return self._around.extract.interruptible

    def prepare(self) -> bool:
        """Note that it begins: from now on, ending with this process counts as a crash."""
        self._around.begun()
        try:
            begun = self._around.runtime.run(
                lambda state: [state.phase1_jobs.begin(kept.lease) for kept in self._leases]
            )
        except DatabaseError as error:
            reason = f"its beginning could not be noted: {described(error)}"
            for kept in self._leases:
                self._settle(kept, partial(_lost, kept.lease, reason))
            return False
        for kept, held in zip(self._leases, begun, strict=True):
            if not held:
                kept.signal.stop(StopReason.REFUSED)
        return True

    def call(self) -> Callable[[], None]:
        """Run the caller's extractor, unless it is too late already."""
        if self.signal.stopped:
            return self._store_no_result
        timeout = self._around.options.timeout
        if timeout is not None:
            self._around.keeper.stop_after(self.overdue, timeout.total_seconds())
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

    def leave_behind(self) -> None:
        """Store that it took too long, or that its leases were lost before."""
        self._store_no_result()

    def _lose(self, kept: KeptLease[Phase1Lease]) -> None:
        """One scope is lost. The work goes on as long as it is for another."""
        if all(other.signal.stopped for other in self._leases):
            self.signal.stop(kept.signal.reason or StopReason.LATE)

    def _let_go_when_timed_out(self) -> None:
        # A coroutine may swallow its cancellation, and storing the failure may fail. The leases must end nevertheless.
        if self.signal.reason is StopReason.TIMED_OUT:
            for kept in self._leases:
                self._around.keeper.forget(kept)

    def _store_result(self, extracted: ExtractedMemory | None) -> None:
        self._around.first_failures.store()
        for kept in self._leases:
            self._settle(kept, partial(self._result, kept, extracted))

    def _store_error(self, error: Exception) -> None:
        # What a function raises after it was told to stop is about that. A fence tells so when only one scope is lost.
        fenced = isinstance(error, WorkStoppedError) and any(kept.signal.stopped for kept in self._leases)
        if self.signal.stopped or fenced:
            self._store_no_result()
        else:
            self._around.first_failures.add(described(error), self._store_failure, self._give_back)

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
            result = _lost(kept.lease, _REASONS[StopReason.REFUSED])
        else:
            try:
                result = outcome()
            except DatabaseError as error:
                result = _lost(kept.lease, f"the outcome could not be stored: {described(error)}")
        self._around.keeper.forget(kept)
        self._around.done(result)

    def _result(self, kept: KeptLease[Phase1Lease], extracted: ExtractedMemory | None) -> Phase1Result:
        lease, runtime = kept.lease, self._around.runtime
        if extracted is None:
            finished = _store_nothing(runtime, lease)
            if finished is None:
                return _lost(lease, _REASONS[StopReason.REFUSED])
            return Phase1Result(
                lease.key, Phase1Outcome.NOTHING, lease.attempt, files_error=self._write_files(lease, finished)
            )
        path = files.raw_memory_path(files.memory_root(runtime.codex_home, lease.key.scope), lease.key.thread_id)
        finished = _store_memory(runtime, lease, extracted, path)
        if finished is None:
            return _lost(lease, _REASONS[StopReason.REFUSED])
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
        retry_after = self._around.options.retry_after(lease.failures + 1)
        if _store_failed(self._around.runtime, lease, reason, retry_after) is None:
            return _lost(lease, _REASONS[StopReason.REFUSED])
        return Phase1Result(lease.key, Phase1Outcome.FAILED, lease.attempt, reason, retry_after)

    def _given_back(self, kept: KeptLease[Phase1Lease], reason: str | None) -> Phase1Result:
        reason = reason or _REASONS[kept.signal.reason or self.signal.reason or StopReason.INTERRUPTED]
        _give_back(self._around.runtime, kept.lease, reason)
        return _lost(kept.lease, reason)

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


def _thread_or_why_none(state: State, thread_id: UUID) -> Thread | str:
    """A row that can't be read costs itself. One that is gone was deleted since the claim, and its jobs with it."""
    try:
        return state.threads.get(thread_id) or "the thread was deleted"
    except InvalidRowError as error:
        return described(error)


def _is_there(thread: Thread) -> bool:
    return thread.rollout_path is not None and may_be_file(thread.rollout_path)


def _checked(extracted: object) -> ExtractedMemory | None:
    if extracted is None or isinstance(extracted, ExtractedMemory):
        return extracted
    raise InvalidInputError(f"the extractor returned a {type(extracted).__name__}, not an ExtractedMemory")


def _lost(lease: Phase1Lease, reason: str) -> Phase1Result:
    """The result of a job that this worker couldn't finish."""
    return Phase1Result(lease.key, Phase1Outcome.LOST, lease.attempt, reason)


NOTHING_TO_REMEMBER = "a later extraction found nothing to remember"
"""Why a memory of an older version of its thread is no longer valid."""

_UNKNOWN_COMMITS = 5
"""How many times a commit may go without an answer, and be asked after, before the caller hears of it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is finished."""

    marked_dirty_at: datetime | None
    """The mark of its scope; ``None`` when nothing in the scope changed."""


def _store_memory(
    runtime: StateRuntime, lease: Phase1Lease, memory: ExtractedMemory, raw_memory_path: Path
) -> Finished | None:
    """Store the memory, which makes its scope dirty, and finish the job. ``None`` when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """

    def write(state: State) -> Finished:
        # First, because it locks the job's row: whoever takes over waits, and finds the job finished.
        state.phase1_jobs.renew(lease).required()
        state.thread_memories.upsert_if_owner(lease, memory.raw_memory, memory.memory_summary).required()
        state.phase1_jobs.succeed(lease, raw_memory_path=raw_memory_path, summary_hash=memory.summary_hash).required()
        return Finished(_marked_at(state, lease))

    return _finish(runtime, lease, Phase1Status.SUCCEEDED, write)


def _store_nothing(runtime: StateRuntime, lease: Phase1Lease) -> Finished | None:
    """Finish the job without a memory. ``None`` when the lease is lost.

    The job is ``succeeded`` without a path and a hash, so this version of the thread isn't extracted again. A memory of
    an older version is invalidated, not deleted, and only then the scope is dirty.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """
    key = lease.key

    def write(state: State) -> Finished:
        # Invalidating is no holder's write by itself; in one transaction with this one it is.
        state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None).required()
        changed = state.thread_memories.invalidate(key.thread_id, key.scope, NOTHING_TO_REMEMBER)
        return Finished(_marked_at(state, lease) if changed else None)

    return _finish(runtime, lease, Phase1Status.SUCCEEDED, write)


def _store_failed(
    runtime: StateRuntime, lease: Phase1Lease, reason: str, retry_after: timedelta | None
) -> Finished | None:
    """Finish the job as failed. ``None`` when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached or refused; nothing was stored.
    """

    def write(state: State) -> Finished:
        state.phase1_jobs.fail(lease, reason, retry_after=retry_after).required()
        return Finished(None)

    return _finish(runtime, lease, Phase1Status.FAILED, write)


def _give_back(runtime: StateRuntime, lease: Phase1Lease, reason: str) -> None:
    """Let others claim an unfinished job at once. Does nothing when the lease is lost.

    Raises:
        DatabaseError: the database couldn't be reached. The lease then ends by itself.
    """
    runtime.run(lambda state: state.phase1_jobs.release(lease, reason))


def _finish(
    runtime: StateRuntime, lease: Phase1Lease, status: Phase1Status, write: Callable[[State], Finished]
) -> Finished | None:
    for _ in range(_UNKNOWN_COMMITS):
        try:
            return runtime.run(write)
        except LeaseLost:
            return None
        except UnknownCommitOutcomeError as error:
            unknown = error
        if finished := runtime.run_read(partial(_look, lease, status)):
            return finished
    raise unknown


def _look(lease: Phase1Lease, status: Phase1Status, state: State) -> Finished | None:
    """The connection broke during the commit. The token stays in a finished job's row, so the row tells."""
    job = state.phase1_jobs.get(lease.key)
    if job is None or job.ownership_token != lease.token or job.status is not status:
        return None
    return Finished(_marked_at(state, lease))


def _marked_at(state: State, lease: Phase1Lease) -> datetime | None:
    mark = state.memory_scopes.get(lease.key.scope)
    return None if mark is None else mark.updated_at
