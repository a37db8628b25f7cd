"""The search for a legal order.

It is Wing and Gong's depth-first search with Lowe's memoisation: a step may come next when no other that is still to
come was over before it began, and a situation (which steps are done, and the rows) that was tried before is not tried
again. Two things keep it narrow: a token fits in one place only, and a step that is legal and changes nothing can come
first without loss, so nothing else is tried then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from codex_state.errors import StateError
from tests.history.rules import UNKNOWN, Effect, State, token_of


class UndecidedHistoryError(StateError):
    """The search was given up before a legal order was found or ruled out."""


@dataclass(frozen=True, slots=True)
class Step:
    """An atomic part of a call."""

    start: int
    end: float
    effect: Effect
    follows: bool = False
    """Whether it comes after the step before it, which is of the same call."""
    alike: Hashable = None
    """Of uncertain steps that ask the same, the one that began first stands for all."""
    token: str | None = None
    """The token that the row must carry for it to be made, if it needs one."""
    changes: bool = False
    """Whether it is a change, also where a row of which nothing is known shows none."""
    before: Callable[[float], Effect] | None = None
    """What it does when it is made before a moment, if its call lasted longer: by then the clock showed less."""

    def effect_before(self, moment: float) -> Effect:
        """What it does when it is made before a moment."""
        return self.effect if self.before is None or self.end <= moment else self.before(moment)


class _Situation(NamedTuple):
    """Where a search stands."""

    first: int
    """Required steps below this one are done."""
    done: int
    """Which of those from there on are done, as bits."""
    used: int
    """Which uncertain steps happened, as bits."""
    since: int
    """When the latest step so far began: what may be repeated must not have ended before. 0 if nothing may."""
    state: State


class Search:
    """One search.

    Args:
        required: the steps that did happen, by their start, those of one call next to each other.
        uncertain: steps that happened once or never.
        repeatable: steps that may happen any number of times while their call lasts, by their start.
        limit: how many situations may be tried.
    """

    def __init__(
        self,
        required: Sequence[Step],
        uncertain: Sequence[Step] = (),
        repeatable: Sequence[Step] = (),
        *,
        limit: int,
    ) -> None:
        self._required, self._uncertain, self._repeatable = required, uncertain, repeatable
        self._limit = limit
        self._repeatable_starts = [step.start for step in repeatable]
        self._repeatable_ends = list(accumulate((step.end for step in repeatable), max))
        self.reached: float = -1
        """How far any order came: the end of the first call for which there was no place."""

    def finds_an_order(self, state: State) -> bool:
        """Whether there is a legal order that begins with these rows.

        Raises:
            UndecidedHistoryError: the limit was reached.
        """
        tried: set[_Situation] = set()
        # Not by recursion, which Python doesn't do thousands of levels deep.
        branches = [iter([_Situation(0, 0, 0, 0, state)])]
        while branches:
            situation = next(branches[-1], None)
            if situation is None:
                branches.pop()
            elif situation.first == len(self._required):
                return True
            elif situation not in tried:
                if len(tried) >= self._limit:
                    raise UndecidedHistoryError(
                        f"no legal order was found or ruled out within {self._limit} situations: too many calls "
                        f"overlap; raise the limit, or record with fewer workers on one key"
                    )
                tried.add(situation)
                branches.append(self._successors(situation))
        return False

    def _successors(self, situation: _Situation) -> Iterator[_Situation]:
        candidates, horizon = self._candidates(situation)
        self.reached = max(self.reached, horizon)
        changing: list[tuple[float, int, State]] = []
        for number in candidates:
            step = self._required[number]
            after = step.effect(situation.state)
            seen = not step.changes or situation.state[0] is not UNKNOWN
            if after == situation.state and seen and not self._shuts_out(situation, step):
                yield self._after(situation, number, after)
                return
            if after is not None:
                changing.append((step.end, number, after))
        # What ended first is most likely to have come first.
        for _end, number, after in sorted(changing, key=lambda each: each[:2]):
            yield self._after(situation, number, after)
        yield from self._repeated(situation, horizon)
        yield from self._guessed(situation, horizon)

    def _candidates(self, situation: _Situation) -> tuple[list[int], float]:
        """The steps that may come next, and the first end of those to come: none may begin after that."""
        found: list[int] = []
        horizon = float("inf")
        number, done = situation.first, situation.done
        while number < len(self._required):
            if done & 1:
                # Past all that are done at once: a call that lasts long may have thousands of them behind it.
                ones = (~done & (done + 1)).bit_length() - 1
                number, done = number + ones, done >> ones
                continue
            step = self._required[number]
            if step.start > horizon:
                break
            horizon = min(horizon, step.end)
            if not (step.follows and number > situation.first and not self._is_done(situation, number - 1)):
                found.append(number)
            number, done = number + 1, done >> 1
        return found, horizon

    @staticmethod
    def _is_done(situation: _Situation, number: int) -> bool:
        return number < situation.first or bool(situation.done >> (number - situation.first) & 1)

    def _after(self, situation: _Situation, number: int, state: State) -> _Situation:
        first, done = situation.first, situation.done | 1 << (number - situation.first)
        ones = (~done & (done + 1)).bit_length() - 1
        since = situation.since
        if self._repeatable:
            since = max(since, self._required[number].start)
        return _Situation(first + ones, done >> ones, self._still_used(situation.used, state), since, state)

    def _shuts_out(self, situation: _Situation, step: Step) -> bool:
        """Whether something that may be repeated now no longer may after this step."""
        for number in range(bisect_right(self._repeatable_starts, step.start) - 1, -1, -1):
            if self._repeatable_ends[number] < situation.since:
                return False
            if situation.since <= self._repeatable[number].end < step.start:
                return True
        return False

    def _repeated(self, situation: _Situation, horizon: float) -> Iterator[_Situation]:
        for number in range(bisect_right(self._repeatable_starts, horizon) - 1, -1, -1):
            if self._repeatable_ends[number] < situation.since:
                return
            step = self._repeatable[number]
            after = step.effect(situation.state) if step.end >= situation.since else None
            if after is not None and after != situation.state:
                yield situation._replace(
                    used=self._still_used(situation.used, after), since=max(situation.since, step.start), state=after
                )

    def _guessed(self, situation: _Situation, horizon: float) -> Iterator[_Situation]:
        tried: set[Hashable] = set()
        for number, step in enumerate(self._uncertain):
            if situation.used >> number & 1 or step.start > horizon or step.alike in tried:
                continue
            if step.alike is not None:
                tried.add(step.alike)
            after = step.effect_before(horizon)(situation.state)
            if after is not None and after != situation.state:
                yield situation._replace(used=self._still_used(situation.used | 1 << number, after), state=after)

    def _still_used(self, used: int, state: State) -> int:
        """Without the steps that can't be made any more, used or not, because their token is gone for good."""
        if not used:
            return used
        token = token_of(state)
        for number, step in enumerate(self._uncertain):
            if used >> number & 1 and step.token is not None and step.token != token:
                used &= ~(1 << number)
        return used
