"""What the database's clock may have shown during each call.

Only some answers tell the time, and in whole seconds. But a clock that isn't moved by hand runs as fast as the clock of
the record, so each answer that tells the time says something about how far the two are apart, and all of them
together say it to within the length of a call. From that, every call gets the seconds that the database's clock may
have shown while it lasted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tests.history.calls import LEASE_TIMES, Call, Kind

_TELLS_THE_TIME = {
    (Kind.JOB, "claim"),
    (Kind.JOB, "renew"),
    (Kind.LOCK, "claim"),
    (Kind.LOCK, "renew"),
    (Kind.BACKFILL, "claim"),
    (Kind.BACKFILL, "take_over"),
    (Kind.CLOCK, "read"),
}
"""The calls whose answer is the clock's time. A memory's isn't: it may be later, to be later than the one before."""

_SECOND = 1_000_000_000
_DRIFT_PER_MILLION = 500
"""How differently two clocks may run: what the kernel allows a clock to be slewed by."""
_LEAST_DRIFT = 1_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """The seconds that the database's clock may have shown during a call, both ends included."""

    first: int
    last: int


class Clock:
    """What the calls of a run tell about the database's clock.

    Args:
        calls: all of the run, whatever they are about. When one of them set the clock, it is one that only moves when
            it is set.
        steps: by how much a clock that isn't moved by hand may have been corrected, in all.
    """

    def __init__(self, calls: Sequence[Call], steps: timedelta) -> None:
        self._sets = [call for call in calls if call.kind is Kind.CLOCK and call.verb == "set"]
        self._told = [] if self._sets else [call for call in calls if _tells_the_time(call)]
        if self._told:
            moments = [moment for call in calls for moment in (call.start, call.end) if moment is not None]
            drift = (max(moments) - min(moments)) * _DRIFT_PER_MILLION // 1_000_000
            tolerance = _LEAST_DRIFT + drift + steps // timedelta(microseconds=1) * 1000
            self._least_ahead = max(map(_least_ahead, self._told)) - tolerance
            self._most_ahead = min(map(_most_ahead, self._told)) + tolerance
        known = [call.answer.seconds for call in calls if call.answer is not None and call.answer.seconds is not None]
        known += [call.arguments["seconds"] for call in self._sets]
        known += [seconds for call in calls for seconds in _found_times(call)]
        known += [seconds for call in calls for seconds in self._shown(call)]
        # Wide enough for every time that is compared with a known one, and for the comparison to go either way.
        margin = 2 + max((_longest_duration(call) for call in calls), default=0)
        self.always = Window(min(known, default=0) - margin, max(known, default=0) + margin)
        """What the clock may have shown at all, and some more."""

    def window_of(self, call: Call) -> Window:
        """What the clock may have shown during a call."""
        if self._sets:
            return self._window_between_sets(call)
        shown = self._shown(call)
        if not shown:
            return self.always
        return Window(shown[0], self.always.last if call.end is None else shown[-1])

    def contradiction(self) -> tuple[Call, Call] | None:
        """Two calls that were told times which one steady clock can't have shown; ``None`` if there are none."""
        if not self._told or self._least_ahead <= self._most_ahead:
            return None
        one, other = max(self._told, key=_least_ahead), min(self._told, key=_most_ahead)
        return (one, other) if one.start <= other.start else (other, one)

    def _shown(self, call: Call) -> list[int]:
        """The first and the last second of a call, as far as it is known."""
        if not self._told:
            return []
        first = (call.start + self._least_ahead) // _SECOND
        return [first] if call.end is None else [first, (call.end + self._most_ahead) // _SECOND]

    def _window_between_sets(self, call: Call) -> Window:
        since = max((each.start for each in self._sets if each.end is not None and each.end < call.start), default=None)
        possible = [
            each.arguments["seconds"]
            for each in self._sets
            if (call.end is None or each.start <= call.end) and (since is None or each.end is None or each.end >= since)
        ]
        if since is None:
            possible += [self.always.first, self.always.last]
        return Window(min(possible), max(possible))


def _tells_the_time(call: Call) -> bool:
    told = call.answer is not None and call.answer.seconds is not None
    return told and (call.kind, call.verb) in _TELLS_THE_TIME


def _least_ahead(call: Call) -> int:
    """By how many nanoseconds at least the database's clock is ahead: it showed this second before the end."""
    assert call.answer is not None
    assert call.answer.seconds is not None
    assert call.end is not None
    return call.answer.seconds * _SECOND - call.end


def _most_ahead(call: Call) -> int:
    """By how many nanoseconds at most: it didn't show the next second at the start."""
    assert call.answer is not None
    assert call.answer.seconds is not None
    return (call.answer.seconds + 1) * _SECOND - call.start


def _found_times(call: Call) -> list[int]:
    found = None if call.answer is None else call.answer.row
    return [] if found is None else [found[name] for name in LEASE_TIMES & found.keys() if found[name] is not None]


def _longest_duration(call: Call) -> int:
    return max(call.arguments.get("lease") or 0, call.arguments.get("retry_after") or 0)
