"""How the passes of the memory pipeline run. The defaults are the original's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from codex_state.errors import InvalidInputError
from codex_state.memory.heartbeat import trust_window
from codex_state.memory.policies import NO_RETRIES, RetryPolicy
from codex_state.models import SCOPE_CWD, SCOPE_USER

PHASE1_LEASE = timedelta(hours=1)
CONSOLIDATION_LEASE = timedelta(minutes=10)

THREADS_PER_PASS = 64
CONCURRENCY = 64
MAX_AGE = timedelta(days=30)
INTERACTIVE_SOURCES = ("cli", "vscode")
SCOPE_KINDS = (SCOPE_CWD, SCOPE_USER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase1Options:
    """How a pass of extraction runs.

    Raises:
        InvalidInputError: a value that makes no sense, or a lease too short to be kept.
    """

    lease: timedelta = PHASE1_LEASE
    """How long a worker may be silent before another takes over, in whole seconds, at least two. All workers of one
    database must use the same."""
    limit: int = THREADS_PER_PASS
    """How many threads one pass claims at most."""
    concurrency: int = CONCURRENCY
    """How many threads are extracted at the same time."""
    timeout: timedelta | None = PHASE1_LEASE
    """How long one extraction may take before it is stopped and counts as failed; ``None`` for no bound, and then an
    extractor that hangs keeps its jobs for as long as its process lives."""
    retry: RetryPolicy = NO_RETRIES
    """Whether a failure may be tried again, and when."""
    max_age: timedelta = MAX_AGE
    """Threads not updated for longer than this are left alone."""
    sources: Collection[str] = INTERACTIVE_SOURCES
    """Which threads count as interactive."""
    scope_kinds: Collection[str] = SCOPE_KINDS
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
        trust_window(self.lease)
        if self.concurrency < 1:
            raise InvalidInputError(f"concurrency must be at least 1: {self.concurrency}")
        if self.limit < 0:
            raise InvalidInputError(f"limit can't be negative: {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationOptions:
    """How a pass of consolidation runs.

    Raises:
        InvalidInputError: a value that makes no sense, or a lease too short to be kept.
    """

    lease: timedelta = CONSOLIDATION_LEASE
    """How long a worker may be silent before another takes its lock over, in whole seconds, at least two. All workers
    of one database must use the same."""
    limit: int = 1000
    """How many scopes one pass handles at most."""
    concurrency: int = CONCURRENCY
    """How many scopes are consolidated at the same time."""
    timeout: timedelta | None = PHASE1_LEASE
    """How long one consolidation may take before it is stopped and counts as failed; ``None`` for no bound."""
    write_files: bool = True
    """Whether a scope's memories are written as files before its consolidation, under the runtime's home."""

    def __post_init__(self) -> None:
        trust_window(self.lease)
        if self.concurrency < 1:
            raise InvalidInputError(f"concurrency must be at least 1: {self.concurrency}")
        if self.limit < 0:
            raise InvalidInputError(f"limit can't be negative: {self.limit}")
