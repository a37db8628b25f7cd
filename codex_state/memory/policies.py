"""How often and when a failed extraction is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from codex_state.errors import InvalidInputError


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
        if not self.attempts >= 1:
            raise InvalidInputError(f"attempts must be at least 1, the first one: {self.attempts}")
        if self.backoff < timedelta(0) or self.longest < timedelta(0):
            raise InvalidInputError("a retry policy's waits can't be negative")
        if not 1 <= self.factor < math.inf:  # NaN is neither
            raise InvalidInputError(f"a retry policy's factor must be a number of at least 1: {self.factor}")

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


NO_RETRIES = RetryPolicy()
"""A failure is terminal."""
