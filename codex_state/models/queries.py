"""What is asked of a listing or of statistics, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import PlainSerializer, PlainValidator

from codex_state.errors import InvalidInputError, did_you_mean, required
from codex_state.models.columns import (
    a_whole_number,
    normal_spelling,
    path_to_text,
    refuse_other_than_several,
    to_epoch_seconds,
)
from codex_state.models.log import level_of
from codex_state.models.thread import Thread


class SortKey(StrEnum):
    """By which time threads are listed, newest first; equal times are ordered by id."""

    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last row of a page: time and id, so rows of the same second on a page's border are never lost."""

    ts: datetime
    id: UUID

    def cursor(self) -> str:
        """The anchor as an opaque text for programs and URLs: ``<RFC 3339 time>|<id>``."""
        return f"{self.ts.isoformat().replace('+00:00', 'Z')}|{self.id}"

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Read a cursor back.

        Raises:
            InvalidInputError: it isn't a text that ``cursor()`` made.
        """
        time, _, identifier = cursor.partition("|")
        try:
            ts, thread_id = datetime.fromisoformat(time), UUID(identifier)
        except ValueError as error:
            raise InvalidInputError(f"malformed cursor {cursor!r}: {error}") from error
        if ts.tzinfo is None:
            raise InvalidInputError(f"malformed cursor {cursor!r}: its time has no zone")
        return cls(ts, thread_id)


def _sort_key(key: str) -> SortKey:
    try:
        return SortKey(key)
    except ValueError:
        keys = [known.value for known in SortKey]
        raise InvalidInputError(f"no sort key: {key!r}; there are {', '.join(keys)}{did_you_mean(key, keys)}") from None


def _refuse_other_than_moment(name: str, moment: object) -> None:
    if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise InvalidInputError(f"{name}: not a time with a zone: {moment!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadQuery:
    """Which threads are wanted, and which page of them. Values of one filter are alternatives; an empty one is off."""

    sort_key: SortKey = SortKey.UPDATED_AT
    archived: bool = False
    """Only archived threads, or only the others."""
    sources: Sequence[str] | Set[str] = ()
    """As rows have them; ``subagent`` is that of any sub-agent."""
    providers: Sequence[str] | Set[str] = ()
    """Of these model providers."""
    since: datetime | None = None
    """Not before this time, by the sort key."""
    until: datetime | None = None
    """Not after this second."""
    home: str | None = None
    """Of this home; ``None`` means of any."""
    cwd: Path | str | None = None
    """In this directory or below, in this spelling or as its links lead when the query is run; one that isn't absolute
    on this machine isn't looked up."""
    branch: str | None = None
    """On this branch of git."""
    repository: str | None = None
    """Part of the URL of git's remote, in any case; beyond ASCII small, capital or title letters. So the next three."""
    model: str | None = None
    """Part of the model's name."""
    name: str | None = None
    """Part of the name that a user gave."""
    text: str | None = None
    """Part of what lists show of it: its name, title, first message or preview."""
    children: bool = True
    """Also threads that another one spawned."""
    all: bool = False
    """Also threads that aren't shown: with nothing to show but their id, or whose rollout is gone."""
    limit: int = 50
    """How many threads a page holds at most; 0 gives an empty page."""
    anchor: Anchor | None = None
    """The previous page's ``next_anchor``; ``None`` for the first page."""

    def __post_init__(self) -> None:
        """Refuse what would silently list something else.

        Raises:
            InvalidInputError: a value is of the wrong kind, or no sort key.
        """
        object.__setattr__(self, "sort_key", _sort_key(self.sort_key))
        refuse_other_than_several("sources", self.sources, str)
        refuse_other_than_several("providers", self.providers, str)
        for name in ("since", "until"):
            _refuse_other_than_moment(name, getattr(self, name))
        if self.cwd is not None:
            object.__setattr__(self, "cwd", normal_spelling(path_to_text(Path(self.cwd))))
        a_whole_number(self.limit, "limit")
        if self.anchor is not None and not isinstance(self.anchor, Anchor):
            raise InvalidInputError(f"anchor: not an Anchor: {self.anchor!r}; Anchor.parse reads a cursor")

    def by_index(self) -> ThreadQuery:
        """The query without the filters that no index serves: a page looks at so many of its rows and no more.

        Sources and providers have an index by the time of the last change. So have directories, whose number is only
        known to the database: the repository looks it up.
        """
        by_update = self.sort_key is SortKey.UPDATED_AT
        return replace(
            self,
            sources=self.sources if by_update and SUBAGENT not in self.sources else (),
            providers=self.providers if by_update else (),
            children=True,
            cwd=None,
            branch=None,
            repository=None,
            model=None,
            name=None,
            text=None,
        )


SUBAGENT = "subagent"
"""The word for the sources of all sub-agents, in a query."""


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that no version of this package could have written, so that nothing can be made of it."""

    key: str
    """Its key, as it is stored."""
    reason: str


@dataclass(frozen=True, slots=True)
class ThreadsPage:
    """One page of threads."""

    items: list[Thread]
    next_anchor: Anchor | None
    """Where the next page starts; ``None`` on the last page. A page may be short and not be the last: see ``list``."""
    num_scanned_rows: int
    """Rows read for this page, with the one that showed there is more."""
    unreadable: tuple[UnreadableRow, ...] = ()
    """Rows that belong between these and can't be read."""


@dataclass(frozen=True, slots=True)
class UnshownThreads:
    """How many threads a listing leaves out that ``ThreadQuery.all`` would list. Counting ends at a bound."""

    empty: int
    """Those with neither a name nor a message."""
    gone: int
    """Those whose rollout is gone."""
    complete: bool
    """Whether these are all; otherwise there are more."""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which log lines are wanted. Every filter is off by default; filters of one kind are alternatives."""

    level: str | int | None = None
    """Exact, in any case: ``WARN`` and Python's ``WARNING`` and ``logging.WARNING`` are the same."""
    from_ts: int | datetime | None = None
    """Whole epoch seconds, inclusive, or the second of an aware time."""
    to_ts: int | datetime | None = None
    """Likewise, also inclusive."""
    module_like: tuple[str, ...] = ()
    """Parts of the module path; ``%`` and ``_`` are wildcards, ASCII case is ignored."""
    file_like: tuple[str, ...] = ()
    thread_ids: tuple[str | UUID, ...] = ()
    include_threadless: bool = False
    """With or without ``thread_ids``: lines that belong to no thread."""
    search: str | None = None
    """A part of the message, case-sensitive, without wildcards."""
    after_id: int | None = None
    """Only lines written after this one."""
    limit: int | None = field(default=None)
    descending: bool = False

    def __post_init__(self) -> None:
        """Refuse what would silently look for something else.

        Raises:
            InvalidInputError: a value is of the wrong kind, or one text where several are asked for.
        """
        if self.level is not None:
            object.__setattr__(self, "level", level_of(self.level))
        for name in ("from_ts", "to_ts"):
            if isinstance(moment := getattr(self, name), datetime):
                object.__setattr__(self, name, to_epoch_seconds(moment))
        for name in ("from_ts", "to_ts", "after_id", "limit"):
            if (number := getattr(self, name)) is not None:
                a_whole_number(number, name)
        refuse_other_than_several("module_like", self.module_like, str)
        refuse_other_than_several("file_like", self.file_like, str)
        refuse_other_than_several("thread_ids", self.thread_ids, str, UUID)
        object.__setattr__(self, "thread_ids", tuple(map(str, self.thread_ids)))
        if self.search is not None:
            required(self.search, str)


# Statistics: what threads took, added up.


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


def _zone_of(given: object) -> tzinfo:
    if isinstance(given, tzinfo):
        return given
    try:
        return ZoneInfo(required(given, str))
    except (KeyError, OSError, ValueError) as error:
        raise InvalidInputError(f"not a time zone: {given!r}") from error


Zone = Annotated[
    tzinfo,
    PlainValidator(_zone_of, json_schema_input_type=str),
    PlainSerializer(str, return_type=str, when_used="json"),
]
"""A time zone. Where pydantic validates it, its name will do."""


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
    """In this directory or below, as in ``ThreadQuery``."""
    sources: Sequence[str] | Set[str] = ()
    """As rows have them; ``subagent`` is that of any sub-agent."""
    providers: Sequence[str] | Set[str] = ()
    models: Sequence[str] | Set[str] = ()
    branches: Sequence[str] | Set[str] = ()
    home: str | None = None
    """Of this home; ``None`` means of any."""
    archived: bool | None = None
    """Only archived threads, or only the others; ``None`` for both."""
    children: bool = True
    """Also threads that another one spawned."""
    zone: Zone | None = UTC
    """A ``tzinfo``, whose midnights part the days; ``None`` for this machine's zone."""
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
            refuse_other_than_several(name, getattr(self, name), str)
        for name in ("since", "until"):
            _refuse_other_than_moment(name, getattr(self, name))


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
