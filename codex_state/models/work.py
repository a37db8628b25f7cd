"""What people are told of work: who holds what, how jobs stand, how fast they are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from codex_state.errors import InvalidInputError
from codex_state.models.leases import Phase1Key
from codex_state.models.memory import Phase1Job


class JobState(StrEnum):
    """How a job stands, in the words that are shown and filtered by. A row's ``status`` has fewer."""

    CLAIMED = "claimed"
    """Somebody holds it, and has not begun."""
    WORKING = "working"
    """Somebody holds it and has begun: ending with its worker now would count as a crash."""
    OVER = "over"
    """Its lease is over and nobody took it over: its worker left it behind."""
    CLAIMABLE = "claimable"
    """It was given back, requeued, or its retry time has come."""
    RETRY_LATER = "retry_later"
    """It failed, and its retry time lies ahead."""
    FAILED = "failed"
    """It failed for good."""
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs are wanted. Values of one filter are alternatives; an empty one is off."""

    states: Sequence[JobState] | Set[JobState] = ()
    thread_id: UUID | None = None
    scope_kind: str | None = None
    scope_key: str | None = None
    reason: str | None = None
    """A part of why it failed."""
    holder: str | None = None
    """The session that holds it or held it last, or a part of the name of its host and process."""
    since: datetime | None = None
    """Only jobs that were granted, renewed or finished then or later."""
    until: datetime | None = None
    """Only those of then or earlier."""
    after: Phase1Key | None = None
    """In the order of keys, and only those after this one. ``None``: those first that ended or were renewed last."""
    by_key: bool = False
    """In the order of keys from the first on."""
    limit: int = 50
    lease: timedelta = timedelta(hours=1)
    """How long a lease is whose row doesn't say so, as those of older versions."""

    def __post_init__(self) -> None:
        """Refuse what isn't a state.

        Raises:
            InvalidInputError: one of ``states`` is none.
        """
        if isinstance(self.states, str) or not set(self.states) <= set(JobState):
            raise InvalidInputError(f"states: {self.states!r}; give a list of {', '.join(JobState)}")


@dataclass(frozen=True, slots=True)
class ToldJob:
    """A job, and how it stands."""

    job: Phase1Job
    state: JobState
    lease_ends_at: datetime | None
    """When the lease is over of one that is held, or was left behind."""
    now: datetime
    """By the database's clock."""


class WorkKind(StrEnum):
    """What can be held."""

    JOB = "job"
    CONSOLIDATION = "consolidation"
    LOCK = "lock"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease that somebody holds, or left behind."""

    kind: WorkKind
    key: str
    """The thread and scope, the memory root, the lock's name, or the home."""
    owner: str
    """The session or label that the holder gave; empty when it gave none."""
    owner_name: str | None
    """Its host and process."""
    since: datetime | None
    """When a job's work began, or a backfill was claimed; ``None`` where that isn't noted."""
    renewed_at: datetime | None
    """When it was claimed or last renewed."""
    ends_at: datetime | None
    """When it is over by the time that its row was granted; ``None`` if the row doesn't say."""
    now: datetime
    """By the database's clock, which all of these are by."""
    state: JobState | None = None
    """How a job stands."""
    crashes: int = 0
    is_dead: bool = False
    """Whether the process surely has ended; known only on its own host."""

    @property
    def is_over(self) -> bool:
        """Whether anybody may take it over."""
        return self.is_dead or (self.ends_at is not None and self.ends_at <= self.now)


@dataclass(frozen=True, slots=True)
class WorkOverview:
    """How the extraction jobs of a database stand."""

    now: datetime
    """By the database's clock."""
    jobs: Mapping[JobState, int]
    pending: int
    """Jobs of interactive threads that nobody has claimed yet, for the version that they have now. Counted up to a
    bound."""
    pending_is_complete: bool
    """Whether all were counted."""
    oldest_pending: datetime | None
    """The last change of the thread that has waited longest for its first claim."""
    crashes: int
    """How often work that isn't done ended with its worker."""
    done_lately: int
    """How many succeeded within ``window``."""
    failed_lately: int
    """How many failed or were given back within it."""
    window: timedelta
    reasons: list[tuple[str, int]]
    """Why jobs failed, those for good and those that will be retried: the most frequent reasons."""

    @property
    def rate(self) -> float:
        """Jobs done in a second."""
        return self.done_lately / max(self.window.total_seconds(), 1.0)

    @property
    def left(self) -> int:
        """How many have yet to be done, as far as is known."""
        open_states = (
            JobState.CLAIMED, JobState.WORKING, JobState.OVER, JobState.CLAIMABLE, JobState.RETRY_LATER,
        )  # fmt: skip
        return self.pending + sum(self.jobs[state] for state in open_states)

    @property
    def time_left(self) -> timedelta | None:
        """How long that takes at this rate; ``None`` when nothing was done lately."""
        if not self.left:
            return timedelta(0)
        return timedelta(seconds=round(self.left / self.rate)) if self.rate else None
