"""Building the index from the rollouts, and keeping it fresh: resumable, fenced, and fast.

Files that are new, changed or gone are handled in the order of their paths, in batches. A batch's rows, its part of the
inventory and its checkpoint are one transaction under the lease (law L5), so a crash repeats at most one batch, and a
worker that was paused while another took over loses its whole batch instead of writing old rows over new ones. What is
in the inventory as it is on disk isn't read again, so an interrupted run goes on where it stopped. A rollout that can't
be used is counted and named, and stops nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import TypeVar

from codex_state import telemetry
from codex_state.errors import (
    BackfillTimeoutError,
    IntegrityViolationError,
    InvalidInputError,
    StateError,
    UnknownCommitOutcomeError,
)
from codex_state.models import BackfillLease, BackfillState, BackfillStatus, Claimed, RolloutFileState, SkipReason
from codex_state.rollout.files import WalkProblem
from codex_state.rollout.index import Settled, Settling, default_provider_of, store, store_singly
from codex_state.rollout.inventory import Change, Comparison, UnseenPlace, follow_home, old_root_of
from codex_state.rollout.names import NameSources
from codex_state.rollout.pool import Pool, usable_cores
from codex_state.rollout.worker import DefaultProvider, Job, Result, extract_one, run_job
from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings

JOB_SIZE = 25
"""Rollouts per job: enough to make a hop between processes cheap, few enough to share the work evenly."""

_WORTH_WORKERS_BYTES = 48 * 1024 * 1024
"""Below so many bytes, starting processes costs more than it saves."""

_MAX_WORKERS = 8

WhileWaiting = Callable[[], None]
Extracting = tuple[Change, Result | None]
"""A change, and what its file says; nothing for one that is gone."""


def worker_count(total_bytes: int) -> int:
    """How many child processes pay for so many bytes; 0 for none."""
    cores = usable_cores()
    return 0 if total_bytes < _WORTH_WORKERS_BYTES or cores < 2 else min(cores, _MAX_WORKERS)


def in_process(
    changes: Iterable[Change], home: str, default_provider: DefaultProvider, while_waiting: WhileWaiting
) -> Generator[Extracting, None, None]:
    """The result for each change, in order, by this process alone. ``while_waiting`` is called every now and then."""
    for change in changes:
        result = None if change.found is None else extract_one(f"{home}/{change.path}", default_provider)
        while_waiting()
        yield change, result


def in_workers(
    changes: Iterable[Change],
    home: str,
    default_provider: DefaultProvider,
    while_waiting: WhileWaiting,
    *,
    workers: int,
    poll_seconds: float,
) -> Generator[Extracting, None, None]:
    """The same by so many child processes, with ``while_waiting`` called every ``poll_seconds`` at least."""
    source = iter(changes)
    pending: deque[tuple[list[Change], Future[list[Result]]]] = deque()
    with closing(Pool("codex_state.rollout.worker", run_job, list[Result], workers)) as pool:
        while True:
            # So much that the children go on while a batch is stored, and little beside what a batch holds.
            while len(pending) < workers * 8 and (batch := list(islice(source, JOB_SIZE))):
                paths = [f"{home}/{change.path}" for change in batch if change.found is not None]
                pending.append((batch, pool.submit(Job(paths, default_provider))))
            if not pending:
                return
            batch, future = pending.popleft()
            while_waiting()
            while not wait([future], poll_seconds).done:
                while_waiting()
            results = iter(future.result())
            for change in batch:
                yield change, None if change.found is None else next(results)


MAX_NAMED_FAILURES = 1000
"""How many failures a report names; all are counted (law L10)."""


class BackfillOutcome(StrEnum):
    """How a backfill ended."""

    COMPLETE = "complete"
    """Every rollout was handled, now or before; some may have failed."""
    RUNNING = "running"
    """Somebody else works on it, so nothing was done."""
    LEASE_LOST = "lease_lost"
    """Somebody took over on the way. What this worker had committed stays; its last batch was refused."""


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """Where a backfill stands after a batch."""

    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    failed: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """The average speed so far."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at that speed; ``None`` before there is one."""
        speed = self.bytes_per_second
        return (self.bytes_total - self.bytes_done) / speed if speed > 0 else None


OnProgress = Callable[[BackfillProgress], None]


@dataclass(frozen=True, slots=True)
class BackfillFailure:
    """A rollout (or a directory) that could not be indexed, and why."""

    path: str
    error: str


@dataclass(slots=True)
class BackfillReport:
    """What a backfill did."""

    status: BackfillOutcome
    scanned: int = 0
    upserted: int = 0
    failed: int = 0
    gone: int = 0
    """Files that aren't there any more."""
    parse_errors: int = 0
    """Lines of which something could not be read, in rollouts that could."""
    unknown_lines: int = 0
    """Lines of a kind that isn't known, or isn't read, which is no fault of theirs."""
    watermark: str | None = None
    seconds: float = 0.0
    failures: list[BackfillFailure] = field(default_factory=list)
    skipped: list[BackfillFailure] = field(default_factory=list)
    """Symbolic links that were passed over."""
    unseen: list[UnseenPlace] = field(default_factory=list)
    """Places among these where rollouts are known that may still be there."""

    def add_failure(self, path: str, error: str) -> None:
        """Count a failure, and name it while there is room."""
        self.failed += 1
        if len(self.failures) < MAX_NAMED_FAILURES:
            self.failures.append(BackfillFailure(path, error))

    def add_skipped(self, path: str, why: str) -> None:
        """Name something that was passed over, while there is room."""
        if len(self.skipped) < MAX_NAMED_FAILURES:
            self.skipped.append(BackfillFailure(path, why))


_log = logging.getLogger("codex_state")

ResultT = TypeVar("ResultT")

_UNKNOWN_OUTCOMES = 3
"""How many answers to one commit may be lost before somebody has to look at it."""

_RELEASE_PATIENCE = timedelta(seconds=2)
"""Whoever interrupts a backfill doesn't want to wait for a server that is away; the lease runs out anyway."""


_KEPT_CHANGES = 20_000


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
        refresh: look at all files and handle what is new, changed, moved or gone since they were indexed.
        again: read every rollout again, also when the index is complete and nothing has changed.
        retry_failed: read those again that failed, though they haven't changed.
        workers: child processes that decode; 0 for none; ``None`` to decide by the amount of work and the cores.

    Raises:
        DatabaseError: the database failed. Batches before that stay.
    """
    started = time.monotonic()
    with runtime.autocommit() as state:
        found = state.backfill.get(runtime.home)
        claim = state.backfill.try_claim(
            runtime.home, lease=runtime.settings.backfill_lease, again=again, refresh=refresh or retry_failed
        )
    if not isinstance(claim, Claimed):
        complete = claim.reason is SkipReason.UP_TO_DATE
        outcome = BackfillOutcome.COMPLETE if complete else BackfillOutcome.RUNNING
        watermark = None if found is None else found.last_watermark
        return BackfillReport(outcome, watermark=watermark, seconds=time.monotonic() - started)
    run = _Run(runtime, claim.lease, on_progress)
    try:
        if again or retry_failed:
            run.under_lease(lambda state: state.rollout_files.read_again(runtime.home, failed=not again))
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


def is_fresh(runtime: StateRuntime) -> bool:
    """Whether the index is complete and says what the home's files say. Looks at every file, and into none.

    A file that couldn't be read before and looks the same is as fresh as it gets.
    """
    return look(runtime) is not None


def look(runtime: StateRuntime) -> BackfillReport | None:
    """What can't be looked at just now, beside an index that ``is_fresh``; ``None`` when that isn't fresh."""
    with runtime.read() as state:
        if not state.backfill.is_complete(runtime.home):
            return None
    if old_root_of(runtime) is not None or NameSources(runtime).changed:
        return None
    report = BackfillReport(BackfillOutcome.COMPLETE)

    def note(problem: WalkProblem) -> None:
        if not problem.is_link:
            report.add_failure(problem.path, problem.error)

    comparison = Comparison(runtime, note)
    for change in comparison:
        if not change.is_retry:
            return None
        report.add_failure(change.path, (change.known and change.known.error) or "unknown")
    report.unseen = comparison.unseen
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

    def __init__(self, runtime: StateRuntime, lease: BackfillLease, on_progress: OnProgress | None) -> None:
        self._runtime = runtime
        self._lease = lease
        self._on_progress = on_progress
        self._settling = Settling(runtime)
        self._started = time.monotonic()
        self._renewed = self._started
        self._bytes_done = 0
        self.report = BackfillReport(BackfillOutcome.COMPLETE, watermark=lease.last_watermark)

    def all_batches(self, workers: int | None) -> None:
        """Handle every change, take the names that users gave, and note that the index is complete."""
        runtime = self._runtime
        if old_root_of(runtime) is not None:
            self.under_lease(lambda state: follow_home(state, runtime))
        names = NameSources(runtime)
        changes, files_total, bytes_total = self._changes()
        if workers is None:
            workers = worker_count(bytes_total)
        if files_total:
            work = changes, str(runtime.codex_home), default_provider_of(runtime), self._renew_in_time
            extracting = (
                in_workers(*work, workers=workers, poll_seconds=self._renewal_interval)
                if workers
                else in_process(*work)
            )
            with closing(extracting) as results:
                while batch := list(islice(results, runtime.settings.backfill_batch_size)):
                    self._commit(batch)
                    if self._on_progress is not None:
                        self._on_progress(self._progress(files_total, bytes_total))
        names.take(self.under_lease, self.report.add_failure, everything=bool(self.report.upserted))
        _run_fenced(runtime, self._complete)

    def under_lease(self, work: Callable[[State], object], *, watermark: str | None = None) -> None:
        """Run a unit of work that is kept only if the lease is still ours (law L2), and note how far it is done."""

        def unit(state: State) -> None:
            work(state)
            lease = self._lease
            if not (state.backfill.renew(lease) if watermark is None else state.backfill.checkpoint(lease, watermark)):
                raise _LeaseLostError

        _run_fenced(self._runtime, unit)
        self._renewed = time.monotonic()

    def _complete(self, state: State) -> None:
        if state.backfill.complete(self._lease, self.report.watermark):
            return
        found = state.backfill.get(self._lease.key)
        own = found is not None and found.ownership_token == self._lease.token
        # An earlier attempt may have been kept without its answer coming back.
        if found is None or not own or found.status is not BackfillStatus.COMPLETE:
            raise _LeaseLostError

    def _changes(self) -> tuple[Iterable[Change], int, int]:
        """The changes, how many there are, and the bytes to be read. What can't be looked into is noted on the way.

        As many as fit into a few megabytes are kept from the walk that counts them (law L10); more are met again.
        """
        files = size = 0
        kept: list[Change] = []
        comparison = Comparison(self._runtime, self._note_problem)
        for change in comparison:
            files += 1
            size += 0 if change.found is None else change.found.size
            if files <= _KEPT_CHANGES:
                kept.append(change)
        for failure in comparison.failures:
            self._note_failure(failure.path, failure.error or "unknown")
        self.report.unseen = comparison.unseen
        return kept if files <= _KEPT_CHANGES else Comparison(self._runtime), files, size

    def _note_failure(self, path: str, error: str) -> None:
        """The inventory knows files relative to the home; people want to know where they lie."""
        whole = f"{self._runtime.codex_home}/{path}"
        self.report.add_failure(whole, error.replace(path, whole))

    def _note_problem(self, problem: WalkProblem) -> None:
        _log.info("not looked into: %s: %s", problem.path, problem.error)
        if problem.is_link:
            self.report.add_skipped(problem.path, problem.error)
        else:
            self.report.add_failure(problem.path, problem.error)

    @property
    def _renewal_interval(self) -> float:
        return self._lease.duration.total_seconds() / 3

    def _renew_in_time(self) -> None:
        """Keep the lease while a batch takes long."""
        if time.monotonic() - self._renewed >= self._renewal_interval:
            self.under_lease(lambda _state: None)

    def _commit(self, batch: list[tuple[Change, Result | None]]) -> None:
        """Store a batch and its checkpoint in one transaction (law L5)."""
        settled = self._settling.settle(batch)
        home, watermark = self._runtime.home, batch[-1][0].path
        try:
            self.under_lease(lambda state: store(state, settled, home), watermark=watermark)
        except (InvalidInputError, IntegrityViolationError):
            # One row can't be stored. The rest of the batch is worth more than the speed of writing it at once.
            self.under_lease(lambda state: store_singly(state, settled, home), watermark=watermark)
        self._account(batch, settled)

    def _account(self, batch: list[tuple[Change, Result | None]], settled: Settled) -> None:
        report = self.report
        for change, _ in batch:
            if change.found is None:
                report.gone += 1
            else:
                report.scanned += 1
                self._bytes_done += change.found.size
        failed = {path: row["error"] for path, row in settled.files.items() if row["state"] == RolloutFileState.FAILED}
        for path, error in failed.items():
            _log.info("not indexed: %s: %s", path, error)
            self._note_failure(path, error)
        for extraction in settled.extractions:
            if settled.file_of[extraction.draft.id] not in failed:
                report.upserted += 1
                report.parse_errors += extraction.parse_errors
                report.unknown_lines += extraction.unknown_lines
        report.watermark = max(report.watermark or "", batch[-1][0].path)

    def _progress(self, files_total: int, bytes_total: int) -> BackfillProgress:
        done = self.report.scanned + self.report.gone
        return BackfillProgress(
            files_done=done,
            files_total=max(files_total, done),
            bytes_done=self._bytes_done,
            bytes_total=max(bytes_total, self._bytes_done),
            failed=self.report.failed,
            seconds=time.monotonic() - self._started,
        )


_POLL_SECONDS = 0.25


def open_state(settings: StateSettings | None = None, *, on_progress: OnProgress | None = None) -> StateRuntime:
    """Open the state, bring its index up to date with the home's files, and return it.

    The first process to come builds the index. The others wait for it as long as ``settings.backfill_wait`` says, take
    over when its lease runs out, and give up with an error that names it. Once an index is there nobody waits: while
    another process freshens it, it is used as it is. ``StateRuntime.open`` never looks at the files.

    Args:
        settings: where and how; read from the environment when not given.
        on_progress: called as the work goes, when this process does it.

    Raises:
        BackfillTimeoutError: another worker's first backfill didn't finish in time. It goes on.
        StateError: see ``StateRuntime.open``.
    """
    runtime = StateRuntime.open(settings)
    try:
        _complete_backfill(runtime, on_progress)
    except BaseException:
        runtime.close()
        raise
    return runtime


def freshen(runtime: StateRuntime, *, on_progress: OnProgress | None = None) -> BackfillReport | None:
    """Take in what is new, changed or gone in the home.

    Costs a look at every file's size and time when nothing is; then nothing is claimed or written.

    Returns:
        What was done, and what can't be read; ``None`` when there was nothing of either. ``RUNNING`` when another
        process does it now.
    """
    looked = look(runtime)
    if looked is None:
        return backfill(runtime, refresh=True, on_progress=on_progress)
    return looked if looked.failed or looked.unseen else None


def _complete_backfill(runtime: StateRuntime, on_progress: OnProgress | None) -> None:
    deadline = time.monotonic() + runtime.settings.backfill_wait.total_seconds()
    while True:
        report = freshen(runtime, on_progress=on_progress)
        if report is None or report.status is BackfillOutcome.COMPLETE:
            if report is not None and report.failed:
                _log.warning("%d rollouts could not be indexed; `codex-state backfill` names them", report.failed)
            return
        with runtime.read() as state:
            holder = state.backfill.get(runtime.home)
        if holder is not None and holder.last_success_at is not None:
            return
        if time.monotonic() >= deadline:
            raise BackfillTimeoutError(_who_holds_it(holder, runtime.settings.backfill_wait))
        time.sleep(_POLL_SECONDS)


def _who_holds_it(holder: BackfillState | None, waited: timedelta) -> str:
    waited_for = f"timed out waiting {waited.total_seconds():g} s for the backfill of the state database"
    if holder is None or holder.owner_name is None:
        return f"{waited_for}; run `codex-state backfill` to finish it"
    since = "" if holder.claimed_at is None else f" since {holder.claimed_at:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"{waited_for}: {holder.owner_name} works on it{since}, last seen {holder.updated_at:%H:%M:%S} UTC; "
        "wait for it, or run `codex-state backfill` to see it through"
    )
