"""What a pass did, as values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from codex_state.models import MemoryScope, Phase1Key, SkipReason


class Phase1Outcome(StrEnum):
    """What became of one claimed job."""

    SUCCEEDED = "succeeded"
    """Its memory is stored, its scope is dirty."""
    NOTHING = "nothing"
    """The extractor found nothing to remember. The job is finished for this version of the thread."""
    FAILED = "failed"
    """The extractor raised, took too long, or gave back something that can't be stored."""
    LOST = "lost"
    """The lease was lost, or the database couldn't be reached. Nothing was stored; somebody else does it."""


@dataclass(frozen=True, slots=True)
class Phase1Result:
    """What became of one claimed job."""

    key: Phase1Key
    outcome: Phase1Outcome
    attempt: int
    reason: str | None = None
    """Why it failed or was lost."""
    retry_after: timedelta | None = None
    """When a failed job may be claimed again; ``None`` for never."""
    raw_memory_path: Path | None = None
    summary_hash: str | None = None
    """The SHA-256 of the summary."""
    files_error: str | None = None
    """Why the memory, which is safe in the database, could not be written as a file."""


@dataclass(frozen=True, slots=True)
class Phase1Skipped:
    """A job that was asked for by its key and not claimed."""

    key: Phase1Key
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Phase1Report:
    """What one pass of extraction did."""

    results: tuple[Phase1Result, ...] = ()
    """One for every claimed job, the most recently updated thread first."""
    skipped: tuple[Phase1Skipped, ...] = ()
    """Jobs asked for by key that weren't granted. Candidates that weren't granted are not listed."""
    stopped: str | None = None
    """Why the pass stopped early: its first extractions all failed alike. Its jobs can be claimed again at once."""

    @property
    def claimed(self) -> int:
        """How many jobs were claimed."""
        return len(self.results)

    @property
    def succeeded(self) -> int:
        """How many stored a memory."""
        return self.count(Phase1Outcome.SUCCEEDED)

    @property
    def nothing(self) -> int:
        """How many found nothing to remember."""
        return self.count(Phase1Outcome.NOTHING)

    @property
    def failed(self) -> int:
        """How many failed."""
        return self.count(Phase1Outcome.FAILED)

    @property
    def lost(self) -> int:
        """How many lost their lease."""
        return self.count(Phase1Outcome.LOST)

    @property
    def skipped_by_reason(self) -> dict[SkipReason, int]:
        """How many were not granted, and why."""
        return dict(Counter(job.reason for job in self.skipped))

    def count(self, outcome: Phase1Outcome) -> int:
        """How many jobs had this outcome."""
        return sum(result.outcome is outcome for result in self.results)


@dataclass(frozen=True, slots=True)
class Phase1Progress:
    """How far a pass of extraction is."""

    claimed: int
    """Jobs in this pass."""
    finished: int
    """Jobs with an outcome."""
    running: int
    """Threads being extracted."""
    last: Phase1Result | None = None
    """The outcome that this news is about; ``None`` after the claim and when an extraction begins."""


class ConsolidationOutcome(StrEnum):
    """What became of one dirty scope."""

    CLEAN = "clean"
    """It was consolidated, and nothing new came meanwhile."""
    DIRTY_AGAIN = "dirty_again"
    """It was consolidated, but something new came meanwhile: it waits for the next pass."""
    FAILED = "failed"
    """The caller's function raised or took too long. The scope stays dirty."""
    LOST = "lost"
    """The lock was lost, or the database couldn't be reached. The scope stays dirty, or somebody else cleaned it."""
    SKIPPED = "skipped"
    """Somebody else holds the lock, or has just consolidated it."""


@dataclass(frozen=True, slots=True)
class ConsolidationResult:
    """What became of one dirty scope."""

    scope: MemoryScope
    outcome: ConsolidationOutcome
    memories: int = 0
    """How many memories were handed to the caller's function."""
    reason: str | None = None
    """Why it failed, was lost or was skipped."""


@dataclass(frozen=True, slots=True)
class ConsolidationReport:
    """What one pass of consolidation did."""

    results: tuple[ConsolidationResult, ...] = ()
    """One for every scope that was dirty, the longest waiting first."""

    def count(self, outcome: ConsolidationOutcome) -> int:
        """How many scopes had this outcome."""
        return sum(result.outcome is outcome for result in self.results)
