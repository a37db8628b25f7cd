"""How the passes of the memory pipeline run. The defaults are the original's."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from codex_state.errors import InvalidInputError, one_of
from codex_state.memory.leases import trust_window
from codex_state.models import CRASHES_ALLOWED, SCOPE_CWD, SCOPE_USER
from codex_state.models.columns import a_duration, a_whole_number, refuse_other_than_several

PHASE1_LEASE = timedelta(hours=1)
CONSOLIDATION_LEASE = timedelta(minutes=10)

THREADS_PER_PASS = 64
CONCURRENCY = 64
MAX_AGE = timedelta(days=30)
INTERACTIVE_SOURCES = ("cli", "vscode")
SCOPE_KINDS = (SCOPE_CWD, SCOPE_USER)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a job that failed may be claimed again.

    The default is the original's: a failure is terminal, also for newer versions of the thread, until an operator
    requeues the job.

    Raises:
        InvalidInputError: a value that makes no sense.
    """

    attempts: int = 1
    """How many attempts there are for one version of a thread, the first included."""
    backoff: timedelta = timedelta(hours=1)
    """How long the first failure keeps the job from being claimed again, in whole seconds."""
    factor: float = 2.0
    """By how much each further failure prolongs that."""
    longest: timedelta = timedelta(days=1)
    """The longest wait."""

    def __post_init__(self) -> None:
        if a_whole_number(self.attempts, "attempts") < 1:
            raise InvalidInputError(f"attempts must be at least 1, the first one: {self.attempts}")
        a_duration(self.backoff, "backoff")
        a_duration(self.longest, "longest")
        if self.backoff < timedelta(0) or self.longest < timedelta(0):
            raise InvalidInputError("a retry policy's waits can't be negative")
        if not (isinstance(self.factor, int | float) and 1 <= self.factor < math.inf):  # NaN is neither
            raise InvalidInputError(f"a retry policy's factor must be a number of at least 1: {self.factor!r}")

    def retry_after(self, failures: int) -> timedelta | None:
        """How long to wait after the ``failures``-th failure in a row; ``None`` when it is the last one.

        Args:
            failures: how many attempts for this version of the thread have failed, this one included.
        """
        if failures >= self.attempts:
            return None
        if not self.backoff:
            return self.backoff
        try:
            wait = self.backoff.total_seconds() * float(self.factor) ** (failures - 1)
        except OverflowError:
            return self.longest
        return timedelta(seconds=min(wait, self.longest.total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase1Options:
    """How a pass of extraction runs.

    Raises:
        InvalidInputError: a value that makes no sense, or a lease too short to be kept.
    """

    lease: timedelta = PHASE1_LEASE
    """How long a worker may be silent before another takes over, in whole seconds, at least two."""
    limit: int = THREADS_PER_PASS
    """How many threads one pass claims at most."""
    concurrency: int = CONCURRENCY
    """How many threads are extracted at the same time."""
    timeout: timedelta | None = PHASE1_LEASE
    """How long one extraction may take before it is stopped and counts as failed; ``None`` for no bound, and then an
    extractor that hangs keeps its jobs for as long as its process lives. A plain function can't be stopped: it is told,
    and its thread left behind."""
    retry: RetryPolicy | None = None
    """Whether a failure may be tried again, and when; ``None``, the original's way, makes each one terminal."""
    max_age: timedelta = MAX_AGE
    """Threads not updated for longer than this are left alone."""
    sources: Sequence[str] | Set[str] = INTERACTIVE_SOURCES
    """Which threads count as interactive."""
    scope_kinds: Sequence[str] | Set[str] = SCOPE_KINDS
    """For which scopes a thread's memory is stored: ``cwd``, ``user`` or both."""
    exclude: UUID | None = None
    """A thread to leave alone: the caller's own."""
    max_running: int | None = None
    """How many live leases there may be at once, over all workers; ``None`` for no bound."""
    all_homes: bool = False
    """Whether threads of every home are extracted. By default they are the runtime's own, whose rollouts are within
    reach, and those that name no home."""
    write_files: bool = True
    """Whether the scopes' memories are also written as files, under the runtime's home."""

    def __post_init__(self) -> None:
        _check(self.lease, self.timeout, self.concurrency, self.limit)
        a_duration(self.max_age, "max_age")
        if self.max_running is not None:
            a_whole_number(self.max_running, "max_running")
        refuse_other_than_several("sources", self.sources, str)
        refuse_other_than_several("scope_kinds", self.scope_kinds, str)
        for kind in self.scope_kinds:
            one_of(kind, SCOPE_KINDS, "scope kind")

    @property
    def crashes_allowed(self) -> int:
        """How often a job's work may end with its worker: as often as it may fail, where that is given."""
        return CRASHES_ALLOWED if self.retry is None else self.retry.attempts

    def retry_after(self, failures: int) -> timedelta | None:
        """How long to wait after the ``failures``-th failure in a row; ``None`` when it is the last one."""
        return None if self.retry is None else self.retry.retry_after(failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationOptions:
    """How a pass of consolidation runs.

    Raises:
        InvalidInputError: a value that makes no sense, or a lease too short to be kept.
    """

    lease: timedelta = CONSOLIDATION_LEASE
    """How long a worker may be silent before another takes its lock over, in whole seconds, at least two."""
    limit: int = 1000
    """How many scopes one pass handles at most."""
    concurrency: int = CONCURRENCY
    """How many scopes are consolidated at the same time."""
    timeout: timedelta | None = PHASE1_LEASE
    """How long one consolidation may take before it is stopped and counts as failed; ``None`` for no bound. A plain
    function is told, and its thread left behind."""
    write_files: bool = True
    """Whether a scope's memories are written as files before its consolidation, under the runtime's home."""

    def __post_init__(self) -> None:
        _check(self.lease, self.timeout, self.concurrency, self.limit)


def _check(lease: timedelta, timeout: timedelta | None, concurrency: int, limit: int) -> None:
    trust_window(a_duration(lease, "lease"))
    if timeout is not None:
        a_duration(timeout, "timeout")
    if a_whole_number(concurrency, "concurrency") < 1:
        raise InvalidInputError(f"concurrency must be at least 1: {concurrency}")
    if a_whole_number(limit, "limit") < 0:
        raise InvalidInputError(f"limit can't be negative: {limit}")
