"""What an extractor gives back, made fit to be stored, and what a pass did, as values."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from codex_state.errors import InvalidInputError
from codex_state.models import MemoryScope, Phase1Key, SkipReason

RAW_MEMORY_BYTES = 300_000
"""A raw memory is at most this long, in bytes of UTF-8. The original's limit."""

SUMMARY_BYTES = 1_200
"""A summary is at most this long, in bytes of UTF-8. The original's limit."""

RAW_MEMORY_CUT = "\n\n[... raw memory truncated ...]"
SUMMARY_CUT = " [...]"

_REASON_BYTES = 2_000

_NUL = "\x00"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ExtractedMemory:
    r"""What is to be remembered of one thread.

    The texts are normalised: line ends are ``\n``, white space at both ends is gone, and so is what a database can't
    store (NUL; lone surrogates become U+FFFD). The summary is one line. A text over its limit keeps its beginning, cut
    at a character, with a mark at its end that says so. Without a summary, the raw memory's beginning is the summary.

    Secrets are not looked for: an extractor whose model may repeat them removes them first.

    Raises:
        InvalidInputError: a value isn't text, or the raw memory is empty. An extractor that finds nothing worth
            remembering returns ``None`` instead.
    """

    raw_memory: str
    """The full text, Markdown by custom, at most ``RAW_MEMORY_BYTES``."""
    memory_summary: str = ""
    """One line for lists, at most ``SUMMARY_BYTES``."""

    def __post_init__(self) -> None:
        if not isinstance(self.raw_memory, str) or not isinstance(self.memory_summary, str):
            raise InvalidInputError("an extracted memory consists of two texts")
        raw = _storable(self.raw_memory).strip()
        if not raw:
            raise InvalidInputError("the raw memory is empty; an extractor that finds nothing returns None")
        summary = " ".join(_storable(self.memory_summary).split()) or " ".join(raw.split())
        object.__setattr__(self, "raw_memory", truncated(raw, RAW_MEMORY_BYTES, RAW_MEMORY_CUT))
        object.__setattr__(self, "memory_summary", truncated(summary, SUMMARY_BYTES, SUMMARY_CUT))

    @property
    def summary_hash(self) -> str:
        """The SHA-256 of the summary, in lower-case hexadecimal."""
        return sha256(self.memory_summary.encode()).hexdigest()


def truncated(text: str, limit: int, mark: str) -> str:
    """``text`` when it has at most ``limit`` bytes of UTF-8, else as much of its beginning as fits before ``mark``."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    # A character that the cut falls into goes as a whole.
    return encoded[: limit - len(mark.encode())].decode(errors="ignore").rstrip() + mark


def described(error: BaseException) -> str:
    """An error as a reason to be stored."""
    return truncated(_storable(f"{type(error).__name__}: {error}".rstrip(": ")), _REASON_BYTES, SUMMARY_CUT)


def _storable(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_NUL, "")
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


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
