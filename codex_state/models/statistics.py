"""What threads took, added up: turns and tokens by day, month, directory, model, provider or branch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from pathlib import Path

from codex_state.errors import InvalidInputError, did_you_mean


class GroupBy(StrEnum):
    """What threads are added up by."""

    DAY = "day"
    """The day on which a thread was started; all it ever took counts there."""
    MONTH = "month"
    CWD = "cwd"
    MODEL = "model"
    """The model of its latest turn."""
    PROVIDER = "provider"
    BRANCH = "branch"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsQuery:
    """Which threads are added up, and by what. Values of one filter are alternatives; an empty one is off.

    Archived threads count, and so do those that no listing shows or whose rollout is gone: what they took was taken.
    """

    by: GroupBy = GroupBy.DAY
    since: datetime | None = None
    """Started at this moment or later."""
    until: datetime | None = None
    """Started in this second or before."""
    cwd: Path | None = None
    """In this directory or below."""
    sources: Collection[str] = ()
    """As rows have them; ``subagent`` is that of any sub-agent."""
    providers: Collection[str] = ()
    models: Collection[str] = ()
    branches: Collection[str] = ()
    home: str | None = None
    """Of this home; ``None`` means of any."""
    archived: bool | None = None
    """Only archived threads, or only the others; ``None`` for both."""
    children: bool = True
    """Also threads that another one spawned."""
    zone: tzinfo | None = UTC
    """Whose midnights part the days; ``None`` for this machine's zone."""
    limit: int = 50
    """How many groups at most: the latest days or months, or those with most tokens."""

    def __post_init__(self) -> None:
        """Refuse what would silently count something else.

        Raises:
            InvalidInputError: a value is of the wrong kind.
        """
        known = [each.value for each in GroupBy]
        if self.by not in known:
            raise InvalidInputError(
                f"can't add up by {self.by!r}; there are {', '.join(known)}{did_you_mean(self.by, known)}"
            )
        for name in ("sources", "providers", "models", "branches"):
            if isinstance(values := getattr(self, name), str):
                raise InvalidInputError(f"{name}: one text in place of several: {values!r}; give [{values!r}]")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise InvalidInputError(f"{name}: the time {moment} has no zone")


@dataclass(frozen=True, slots=True)
class ThreadStatistics:
    """What the threads of one group took themselves: what a fork took over counts for its parent."""

    key: str | None
    """As ``2026-01-31``, ``2026-01``, the directory, model, provider or branch; ``None`` where it isn't known."""
    threads: int
    turns: int
    tokens_input: int
    tokens_cached: int
    """Of the input."""
    tokens_output: int
    tokens_reasoning: int
    """Of the output."""
    tokens_total: int
    """By the rollouts' own totals. Old rollouts have no more than these."""
    uncounted: int = 0
    """Of how many threads only the total is known, since they were indexed before the others were counted."""


@dataclass(frozen=True, slots=True)
class StatisticsPage:
    """The groups of a query, and all its threads together."""

    items: list[ThreadStatistics]
    """The latest day or month first, or the group with most tokens."""
    total: ThreadStatistics
    """Of all groups, also of those beyond the limit."""
    more: bool
    """Whether there are more groups than the limit."""
