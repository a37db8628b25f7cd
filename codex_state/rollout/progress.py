"""What a backfill tells while it goes, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

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

    def add_failure(self, path: str, error: str) -> None:
        """Count a failure, and name it while there is room."""
        self.failed += 1
        if len(self.failures) < MAX_NAMED_FAILURES:
            self.failures.append(BackfillFailure(path, error))

    def add_skipped(self, path: str, why: str) -> None:
        """Name something that was passed over, while there is room."""
        if len(self.skipped) < MAX_NAMED_FAILURES:
            self.skipped.append(BackfillFailure(path, why))
