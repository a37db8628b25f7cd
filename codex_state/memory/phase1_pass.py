"""One pass of extraction: what it claims, runs, reports and gives back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from uuid import UUID

from codex_state.errors import DatabaseError, ThreadNotFoundError
from codex_state.memory import files, phase1_writes
from codex_state.memory.calling import Callee
from codex_state.memory.crew import Crew
from codex_state.memory.extraction import ExtractedMemory
from codex_state.memory.heartbeat import KeptLease, LeaseKeeper, trust_clock
from codex_state.memory.options import Phase1Options
from codex_state.memory.phase1_extraction import INTERRUPTED, Extraction, Surroundings, lost
from codex_state.memory.reports import Phase1Progress, Phase1Report, Phase1Result, Phase1Skipped
from codex_state.models import LOCAL_HOME, Claimed, Phase1Key, Phase1Lease, Skipped, Thread
from codex_state.runtime import State, StateRuntime

_log = logging.getLogger("codex_state")


class Pass:
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
        self._runtime = runtime
        self._owner = owner
        self._options = options
        self._progress = progress
        self._keeper = LeaseKeeper(runtime)
        self._around = Surroundings(runtime, extract, options, self._keeper, self._done, self._begun)
        self._claimed: list[KeptLease[Phase1Lease]] = []
        self._results: dict[Phase1Key, Phase1Result] = {}
        self._skipped: list[Phase1Skipped] = []
        self._crew: Crew | None = None
        self._interrupted = False
        self._lock = threading.RLock()

    def run(self, keys: Iterable[Phase1Key] | None) -> Phase1Report:
        """Claim, extract, store. See ``run_phase1``."""
        with self._keeper:
            try:
                if keys is None:
                    self._claim_candidates()
                else:
                    self._claim_keys(list(keys))
                self._report_progress()
                self._extract_all()
            finally:
                self._give_back()
        if self._options.write_files:
            files.render_dirty(self._runtime)
        results = (self._results.get(kept.lease.key) for kept in self._claimed)
        return Phase1Report(tuple(result for result in results if result is not None), tuple(self._skipped))

    def interrupt(self) -> None:
        """Stop, from another thread."""
        with self._lock:
            self._interrupted = True
            crew = self._crew
        if crew is not None:
            crew.interrupt()

    def _done(self, result: Phase1Result) -> None:
        """Note the outcome of one job."""
        with self._lock:
            self._results[result.key] = result
            self._report_progress(result)

    def _begun(self) -> None:
        with self._lock:
            self._report_progress()

    def _claim_candidates(self) -> None:
        options = self._options

        def claim(state: State) -> tuple[float, list[Phase1Lease]]:
            requested_at = trust_clock()
            return requested_at, state.phase1_jobs.claim_candidates(
                owner=self._owner,
                lease=options.lease,
                limit=options.limit,
                max_age=options.max_age,
                sources=options.sources,
                scope_kinds=options.scope_kinds,
                exclude=options.exclude,
                max_running=options.max_running,
                home=None if options.all_homes else {self._runtime.home, LOCAL_HOME},
            )

        requested_at, leases = self._runtime.run(claim)
        for lease in leases:
            self._claimed.append(self._keeper.keep(lease, requested_at=requested_at))

    def _claim_keys(self, keys: Sequence[Phase1Key]) -> None:
        threads = self._runtime.run_read(
            lambda state: {key.thread_id: state.threads.get(key.thread_id) for key in keys}
        )
        for thread_id, thread in threads.items():
            if thread is None:
                raise ThreadNotFoundError(thread_id)
        for key in dict.fromkeys(keys):
            thread = threads[key.thread_id]
            assert thread is not None
            requested_at, claim = self._runtime.run(partial(self._try_claim, key=key, thread=thread))
            if isinstance(claim, Skipped):
                self._skipped.append(Phase1Skipped(key, claim.reason))
            else:
                self._claimed.append(self._keeper.keep(claim.lease, requested_at=requested_at))

    def _try_claim(self, state: State, key: Phase1Key, thread: Thread) -> tuple[float, Claimed[Phase1Lease] | Skipped]:
        requested_at = trust_clock()
        return requested_at, state.phase1_jobs.try_claim(
            key, owner=self._owner, source_updated_at=thread.updated_at, lease=self._options.lease
        )

    def _extract_all(self) -> None:
        of_thread: dict[UUID, list[KeptLease[Phase1Lease]]] = {}
        for kept in self._claimed:
            of_thread.setdefault(kept.lease.key.thread_id, []).append(kept)
        threads = self._runtime.run_read(
            lambda state: {thread_id: state.threads.get(thread_id) for thread_id in of_thread}
        )
        tasks = []
        for thread_id, leases in of_thread.items():
            thread = threads[thread_id]
            if thread is None:  # deleted since the claim, and its jobs with it
                for kept in leases:
                    self._done(lost(kept.lease, "the thread was deleted"))
            else:
                tasks.append(Extraction(self._around, thread, leases))
        with self._lock:
            if self._interrupted:
                return
            self._crew = Crew(tasks, self._options.concurrency)
        self._crew.run()

    def _report_progress(self, last: Phase1Result | None = None) -> None:
        if self._progress is not None:
            running = 0 if self._crew is None else self._crew.running
            self._progress(Phase1Progress(len(self._claimed), len(self._results), running, last))

    def _give_back(self) -> None:
        """Let others claim at once what this pass won't finish."""
        unfinished = [kept for kept in self._claimed if kept.lease.key not in self._results]
        for kept in unfinished:
            self._keeper.forget(kept)
            try:
                phase1_writes.give_back(self._runtime, kept.lease, INTERRUPTED)
            except DatabaseError as error:
                # Then they end by themselves, after the lease.
                _log.warning("%d interrupted jobs could not be given back: %s", len(unfinished), error)
                return
