"""Building the index from the rollouts: resumable, fenced, and fast.

Rollouts are handled in the order of their watermarks, in batches. A batch's rows and its checkpoint are one
transaction under the lease (law L5), so a crash repeats at most one batch, and a worker that was paused while another
took over loses its whole batch instead of writing old rows over new ones. A rollout that can't be used is counted and
named, and stops nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from typing import TypeVar
from uuid import UUID

from codex_state import telemetry
from codex_state.errors import IntegrityViolationError, InvalidInputError, StateError, UnknownCommitOutcomeError
from codex_state.models import BackfillLease, BackfillStatus, Claimed, DynamicTool, SkipReason, Thread
from codex_state.rollout.extractors import Extractor, InProcess, InWorkers, worker_count
from codex_state.rollout.files import RolloutFile, WalkProblem, walk_rollouts
from codex_state.rollout.fold import Extraction
from codex_state.rollout.metadata import normalized_cwd_text, thread_of, tools_of
from codex_state.rollout.progress import BackfillOutcome, BackfillProgress, BackfillReport, OnProgress
from codex_state.rollout.selection import Selection, every_rollout, those_that_changed, those_without_a_row
from codex_state.rollout.worker import Extracted, Result
from codex_state.runtime import State, StateRuntime

_log = logging.getLogger("codex_state")

ResultT = TypeVar("ResultT")

_UNKNOWN_OUTCOMES = 3
"""How many answers to one commit may be lost before somebody has to look at it."""

_RELEASE_PATIENCE = timedelta(seconds=2)
"""Whoever interrupts a backfill doesn't want to wait for a server that is away; the lease runs out anyway."""


class _LeaseLostError(Exception):
    """Rolls the batch back; never leaves this module."""


def backfill(
    runtime: StateRuntime,
    *,
    on_progress: OnProgress | None = None,
    refresh: bool = False,
    again: bool = False,
    retry_failed: bool = False,
    workers: int | None = None,
) -> BackfillReport:
    """Build the index of the runtime's home from its rollouts, or go on building it.

    What an earlier run (of this process or another) has handled isn't handled again, and a complete index is left
    alone unless one of the options below says otherwise: whoever writes rollouts keeps it up to date by
    ``apply_rollout_items``. Interrupting is safe at any moment: the next run goes on after the last committed batch.

    Args:
        runtime: an open state. Its settings give the home, the lease and the batch size.
        on_progress: called after each batch.
        refresh: go through all rollouts and handle those whose row isn't up to date: written, added, moved or restored
            by someone who left the index alone, or failed before.
        again: handle every rollout again, also when the index is complete.
        retry_failed: go through all rollouts again, but handle only those that have no row.
        workers: child processes that decode; 0 for none; ``None`` to decide by the amount of work and the cores.

    Raises:
        DatabaseError: the database failed. Batches before that stay.
        ConfigurationError: the default provider can't be read.
    """
    started = time.monotonic()
    lease_time = runtime.settings.backfill_lease
    with runtime.autocommit() as state:
        found = state.backfill.get(runtime.home)
        claim = state.backfill.try_claim(runtime.home, lease=lease_time, again=again or retry_failed, refresh=refresh)
    if not isinstance(claim, Claimed):
        complete = claim.reason is SkipReason.UP_TO_DATE
        outcome = BackfillOutcome.COMPLETE if complete else BackfillOutcome.RUNNING
        watermark = None if found is None else found.last_watermark
        return BackfillReport(outcome, watermark=watermark, seconds=time.monotonic() - started)
    run = _Run(runtime, claim.lease, on_progress, retry_failed=retry_failed)
    try:
        if retry_failed:
            run.select = those_without_a_row(runtime)
        elif refresh and not again:
            run.after = None
            complete = found is not None and found.status is BackfillStatus.COMPLETE
            run.select = those_that_changed(runtime, first_time=not complete)
        run.all_batches(workers)
    except _LeaseLostError:
        _log.warning("another worker took the backfill over; this one's last batch was refused")
        run.report.status = BackfillOutcome.LEASE_LOST
    except BaseException:
        # Interrupted or failed: without this the next run would have to wait for the lease to run out.
        with suppress(StateError):
            _run_fenced(runtime, lambda state: state.backfill.release(claim.lease), retry_for=_RELEASE_PATIENCE)
        raise
    report = run.report
    report.seconds = time.monotonic() - started
    _count(report)
    return report


def _run_fenced(
    runtime: StateRuntime, work: Callable[[State], ResultT], *, retry_for: timedelta | None = None
) -> ResultT:
    """Run a unit of writes that are fenced by the lease, again when nobody can say whether it was kept.

    It is the caller's knowledge that repeating is safe: whoever still has the lease writes the same rows once more.
    """
    for _ in range(_UNKNOWN_OUTCOMES - 1):
        try:
            return runtime.run(work, retry_for=retry_for)
        except UnknownCommitOutcomeError as error:
            _log.info("written once more, under the same lease: %s", error)
    return runtime.run(work, retry_for=retry_for)


def _count(report: BackfillReport) -> None:
    telemetry.count(telemetry.DB_BACKFILL, report.upserted, status="upserted")
    telemetry.count(telemetry.DB_BACKFILL, report.failed, status="failed")
    if report.parse_errors:
        telemetry.count(telemetry.DB_ERROR, report.parse_errors, stage="backfill_sessions")
    status = "success" if not report.failed else "partial_failure" if report.upserted else "failed"
    telemetry.record_milliseconds(telemetry.DB_BACKFILL_DURATION, report.seconds * 1000, status=status)


class _Run:
    """One worker's run under one lease."""

    def __init__(
        self, runtime: StateRuntime, lease: BackfillLease, on_progress: OnProgress | None, *, retry_failed: bool
    ) -> None:
        self._runtime = runtime
        self._lease = lease
        self._on_progress = on_progress
        self._retry_failed = retry_failed
        self.select: Selection = every_rollout()
        """Which of the rollouts that are met are handled."""
        self.after = lease.last_watermark
        """Which rollouts aren't even looked at: those up to this watermark."""
        self._started = time.monotonic()
        self._renewed = self._started
        self._bytes_done = 0
        # For this run only: links may change while a service lives.
        self._normalized = lru_cache(maxsize=4096)(normalized_cwd_text)
        self.report = BackfillReport(BackfillOutcome.COMPLETE, watermark=lease.last_watermark)

    def all_batches(self, workers: int | None) -> None:
        """Handle every rollout after the lease's watermark, then note that the index is complete."""
        settings = self._runtime.settings
        files_total, bytes_total = self._measure()
        if workers is None:
            workers = worker_count(bytes_total)
        with closing(self._extractor(workers)) as extractor:
            results = extractor.results(self._files(report=True), self._renew_in_time)
            while batch := list(islice(results, settings.backfill_batch_size)):
                self._commit(batch)
                if self._on_progress is not None:
                    self._on_progress(self._progress(files_total, bytes_total))
        _run_fenced(self._runtime, self._complete)

    def _complete(self, state: State) -> None:
        if state.backfill.complete(self._lease, self.report.watermark):
            return
        found = state.backfill.get(self._lease.home)
        own = found is not None and found.ownership_token == self._lease.ownership_token
        # An earlier attempt may have been kept without its answer coming back.
        if found is None or not own or found.status is not BackfillStatus.COMPLETE:
            raise _LeaseLostError

    def _extractor(self, workers: int) -> Extractor:
        provider = self._runtime.default_provider
        if workers == 0:
            return InProcess(provider)
        return InWorkers(provider, workers, poll_seconds=self._renewal_interval)

    def _files(self, *, report: bool) -> Iterator[RolloutFile]:
        problems = self._note_problem if report else None
        return self.select(walk_rollouts(self._runtime.codex_home, after=self.after, on_problem=problems))

    def _measure(self) -> tuple[int, int]:
        """How many files and bytes there are to do. A file that vanishes meanwhile counts as empty."""
        files = size = 0
        for file in self._files(report=False):
            files += 1
            size += _size_of(file)
        return files, size

    def _note_problem(self, problem: WalkProblem) -> None:
        _log.info("not looked into: %s: %s", problem.path, problem.error)
        self.report.add_failure(problem.path, problem.error)

    @property
    def _renewal_interval(self) -> float:
        return self._lease.duration.total_seconds() / 3

    def _renew_in_time(self) -> None:
        """Keep the lease while a batch takes long."""
        if time.monotonic() - self._renewed < self._renewal_interval:
            return
        if not _run_fenced(self._runtime, lambda state: state.backfill.renew(self._lease)):
            raise _LeaseLostError
        self._renewed = time.monotonic()

    def _commit(self, batch: list[tuple[RolloutFile, Result]]) -> None:
        """Store a batch and its checkpoint in one transaction (law L5)."""
        extracted = [(file, result.extraction) for file, result in batch if isinstance(result, Extracted)]
        if self._retry_failed:
            extracted = self._without_elsewhere(extracted)
        try:
            refused = _run_fenced(self._runtime, lambda state: self._store(state, extracted, batch[-1][0].watermark))
        except (InvalidInputError, IntegrityViolationError):
            # One row can't be stored. The rest of the batch is worth more than the speed of writing it at once.
            refused = _run_fenced(
                self._runtime, lambda state: self._store_singly(state, extracted, batch[-1][0].watermark)
            )
        self._renewed = time.monotonic()
        self._account(batch, {file.path for file, _ in extracted}, refused)

    def _without_elsewhere(
        self, extracted: list[tuple[RolloutFile, Extraction]]
    ) -> list[tuple[RolloutFile, Extraction]]:
        """Without the rollouts whose thread has its row from another file.

        They didn't fail: a later rollout of the same thread replaced theirs, and they must not replace it now.
        """
        with self._runtime.read() as state:
            rows = state.threads.rollouts_of({UUID(extraction.draft.id) for _, extraction in extracted})
        here = {thread_id: path for thread_id, (path, _, home) in rows.items() if home == self._runtime.home}
        return [
            (file, extraction)
            for file, extraction in extracted
            if (elsewhere := here.get(UUID(extraction.draft.id))) is None or not elsewhere.is_file()
        ]

    def _store(self, state: State, extracted: list[tuple[RolloutFile, Extraction]], watermark: str) -> dict[str, str]:
        state.threads.upsert_from_rollouts([self._thread_of(file, extraction) for file, extraction in extracted])
        state.dynamic_tools.persist(_tools_of(state, (extraction for _, extraction in extracted), self._runtime.home))
        self._checkpoint(state, watermark)
        return {}

    def _store_singly(
        self, state: State, extracted: list[tuple[RolloutFile, Extraction]], watermark: str
    ) -> dict[str, str]:
        refused = {}
        for file, extraction in extracted:
            try:
                with state.session.begin_nested():
                    state.threads.upsert_from_rollouts([self._thread_of(file, extraction)])
                    state.dynamic_tools.persist(_tools_of(state, [extraction], self._runtime.home))
            except (InvalidInputError, IntegrityViolationError) as error:
                refused[file.path] = str(error)
        self._checkpoint(state, watermark)
        return refused

    def _thread_of(self, file: RolloutFile, extraction: Extraction) -> Thread:
        draft = extraction.draft
        draft.cwd = self._normalized(draft.cwd)
        if file.archived and draft.archived_at is None:
            draft.archived_at = draft.updated_at
        return thread_of(draft, self._runtime.home)

    def _checkpoint(self, state: State, watermark: str) -> None:
        if not state.backfill.checkpoint(self._lease, watermark):
            raise _LeaseLostError

    def _account(
        self, batch: list[tuple[RolloutFile, Result]], wanted: Container[str], refused: dict[str, str]
    ) -> None:
        report = self.report
        for file, result in batch:
            report.scanned += 1
            self._bytes_done += _size_of(file)
            error = refused.get(file.path) if isinstance(result, Extracted) else result.error
            if error is not None:
                _log.info("not indexed: %s", error)
                report.add_failure(file.path, error)
            elif isinstance(result, Extracted) and file.path in wanted:
                report.upserted += 1
                report.parse_errors += result.extraction.parse_errors
        report.watermark = max(report.watermark or "", batch[-1][0].watermark)

    def _progress(self, files_total: int, bytes_total: int) -> BackfillProgress:
        return BackfillProgress(
            files_done=self.report.scanned,
            files_total=max(files_total, self.report.scanned),
            bytes_done=self._bytes_done,
            bytes_total=max(bytes_total, self._bytes_done),
            failed=self.report.failed,
            seconds=time.monotonic() - self._started,
        )


def _size_of(file: RolloutFile) -> int:
    try:
        return os.stat(file.path).st_size  # noqa: PTH116 - a Path for each of a hundred thousand files adds up
    except OSError:
        return 0


def _tools_of(state: State, extractions: Iterable[Extraction], home: str) -> Iterator[DynamicTool]:
    tools = [(UUID(extraction.tools_thread_id), extraction.tools) for extraction in extractions if extraction.tools]
    rows = state.threads.rollouts_of({owner for owner, _ in tools})
    for owner, drafts in tools:
        # The head may be another thread's, which may have no row; and the thread may be another home's.
        if owner in rows and rows[owner][2] == home:
            yield from tools_of(owner, drafts)
