"""The check of a recorded run, and the smallest part of it that shows what is wrong."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial

from tests.history.calls import ANY_KEY, Call, Kind
from tests.history.rules import (
    ANYTHING,
    EMPTY,
    Effect,
    State,
    changes,
    effects_of,
    row_while_held,
)
from tests.history.search import Search, Step, UndecidedHistoryError
from tests.history.seconds import Clock, Window
from tests.history.table import table_of
from tests.history.verbs import likeness

LIMIT = 1_000_000
NO_STEPS = timedelta(0)
_NOT_ONE_CLOCK = "times that one steady clock can't have told (record a clock that is moved by hand)"


@dataclass(frozen=True, slots=True)
class Violation:
    """Calls whose answers no legal order explains. As a string it is a table."""

    what: str
    """What is wrong, in a few words."""
    calls: tuple[Call, ...]
    """As few as show it, by their start. No order of them is legal, whatever became of all the others."""
    windows: tuple[Window, ...]
    """What the database's clock may have shown during each of them."""
    origins: tuple[Call, ...]
    """The claims that gave the tokens which are used in them."""
    recorded: int
    """How many calls there were on the key."""

    def __str__(self) -> str:
        """The calls as a table."""
        heading = f"{self.what}: {len(self.calls)} of {self.recorded} calls, which no legal order explains"
        return table_of(heading, self.calls, self.windows, self.origins)


class IllegalHistoryError(AssertionError):
    """A recorded run has no legal order."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


def assert_legal(
    calls: Iterable[Call], *, from_empty: bool = True, steps: timedelta = NO_STEPS, limit: int = LIMIT
) -> None:
    """Fail when a recorded run has no legal order.

    Takes what ``find_violation`` takes.

    Raises:
        IllegalHistoryError: its text is the smallest bad history, as a table.
        UndecidedHistoryError: the search was given up.
    """
    violation = find_violation(calls, from_empty=from_empty, steps=steps, limit=limit)
    if violation is not None:
        raise IllegalHistoryError(violation)


def find_violation(
    calls: Iterable[Call], *, from_empty: bool = True, steps: timedelta = NO_STEPS, limit: int = LIMIT
) -> Violation | None:
    """The smallest bad history of a recorded run; ``None`` when every key has a legal order.

    Args:
        calls: the whole run.
        from_empty: whether there were no rows before it; otherwise nothing is assumed of those that were.
        steps: by how much the database's clock may have been corrected in all while the run was recorded. A clock
            that is moved by hand is recorded instead, see ``Recorder.set_clock``.
        limit: how many situations may be tried for each key.

    Raises:
        UndecidedHistoryError: the search was given up.
    """
    calls = sorted(calls, key=lambda call: call.start)
    clock = Clock(calls, steps)
    deaths = [call for call in calls if call.kind is Kind.WORKER]
    if (pair := clock.contradiction()) is not None:
        return Violation(_NOT_ONE_CLOCK, pair, (Window(0, -1),) * 2, (), len(calls))
    for (kind, key), of_key in _by_key(calls).items():
        history = _History(of_key, clock, deaths, EMPTY if from_empty else ANYTHING, limit)
        violation = history.violation(f"{kind} {key}")
        if violation is not None:
            return violation
    return None


def _by_key(calls: Sequence[Call]) -> dict[tuple[Kind, str], list[Call]]:
    """The calls on each key, together with those of which nobody knows what they changed."""
    calls = [call for call in calls if call.kind not in {Kind.CLOCK, Kind.WORKER}]
    keys = dict.fromkeys((call.kind, call.key) for call in calls if call.key != ANY_KEY)
    found: dict[tuple[Kind, str], list[Call]] = {key: [] for key in keys}
    for call in calls:
        if call.key != ANY_KEY:
            found[call.kind, call.key].append(call)
        elif call.answer is None:
            for kind, key in keys:
                if kind is call.kind:
                    found[kind, key].append(call)
    return found


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A call and what it may have done."""

    call: Call
    window: Window
    steps: tuple[Step, ...]
    changes: bool

    @classmethod
    def of(cls, call: Call, clock: Clock, deaths: Sequence[Call], grants: Mapping[str | None, Call]) -> _Recorded:
        window = clock.window_of(call)
        end = float("inf") if call.end is None else call.end
        token = call.arguments.get("token")
        held = row_while_held(grants.get(token), clock.always)
        # Whoever was dying may have been found dead.
        dead = frozenset(death.key for death in deaths if death.start < end)
        alike = likeness(call, dead) if call.answer is None else None

        @cache
        def effects_within(window: Window) -> list[Effect]:
            return effects_of(call, window, held, dead)

        def before(moment: float, number: int) -> Effect:
            return effects_within(clock.window_of(replace(call, end=int(moment))))[number]

        steps = tuple(
            Step(
                call.start,
                end,
                effect,
                follows=number > 0,
                alike=alike,
                token=token,
                changes=changes(call),
                before=partial(before, number=number),
            )
            for number, effect in enumerate(effects_within(window))
        )
        return cls(call, window, steps, changes(call))

    @property
    def end(self) -> float:
        return self.steps[0].end


class _History:
    """The calls on one key."""

    def __init__(
        self, calls: Sequence[Call], clock: Clock, deaths: Sequence[Call], initially: State, limit: int
    ) -> None:
        self._grants = _by_token(calls)
        self._all = [_Recorded.of(call, clock, deaths, self._grants) for call in calls]
        self._initially = initially
        self._limit = limit

    def violation(self, name: str) -> Violation | None:
        """The smallest part without a legal order."""
        answered = [each for each in self._all if each.call.answer is not None]
        search = Search(_steps(answered), _steps(self._unanswered()), limit=self._limit)
        if search.finds_an_order(self._initially):
            return None
        # Up to the first answer that doesn't fit. What wasn't over by then may have happened.
        required = [each for each in answered if each.end <= search.reached]
        pending = [each for each in self._all if each.call.start <= search.reached < each.end and each.changes]
        shown = self._smallest(required, pending, search.reached)
        return Violation(
            name,
            tuple(each.call for each in shown),
            tuple(each.window for each in shown),
            self._origins([each.call for each in shown]),
            len(self._all),
        )

    def _smallest(
        self, required: Sequence[_Recorded], pending: Sequence[_Recorded], reached: float
    ) -> Sequence[_Recorded]:
        def is_bad(kept: Sequence[_Recorded]) -> bool:
            return self._is_bad(kept, required, pending)

        # Mostly what changed nothing doesn't matter, but for the one that doesn't fit.
        candidates: Sequence[_Recorded] = [each for each in required if each.changes or each.end == reached]
        if not is_bad(candidates):
            candidates = required
        # Mostly what happened long before doesn't matter.
        latest = bisect_left(range(len(candidates)), x=True, key=lambda cut: not is_bad(candidates[cut:])) - 1
        candidates = candidates[max(latest, 0) :]
        shown = smallest(candidates, is_bad)
        # A trial that was given up counts as not bad, which may have misled the choice.
        return shown if is_bad(shown) else required

    def _unanswered(self) -> list[_Recorded]:
        return [each for each in self._all if each.call.answer is None and each.changes]

    def _is_bad(self, kept: Sequence[_Recorded], required: Sequence[_Recorded], pending: Sequence[_Recorded]) -> bool:
        """Whether some calls have no legal order whatever became of the others.

        Of the others, those that were over before may have left any rows, and the rest may happen at any time while
        they last, also more than once. That allows more than what can have been, so it never makes a legal order
        look bad.
        """
        if not kept:
            return False
        shown = {id(each) for each in kept}
        left_out = [each for each in required if id(each) not in shown and each.changes]
        beginning = min(each.call.start for each in kept)
        meanwhile = [each for each in left_out if each.end >= beginning]
        initially = self._initially if len(meanwhile) == len(left_out) else ANYTHING
        search = Search(_steps(kept), _steps(pending), _steps(meanwhile), limit=2000 + 10 * len(kept))
        try:
            return not search.finds_an_order(initially)
        except UndecidedHistoryError:
            return False

    def _origins(self, shown: Sequence[Call]) -> tuple[Call, ...]:
        tokens = dict.fromkeys(call.arguments.get("token") for call in shown)
        claims = (self._grants[token] for token in tokens if token in self._grants)
        return tuple(sorted((claim for claim in claims if claim not in shown), key=lambda claim: claim.start))


def _by_token(calls: Iterable[Call]) -> dict[str | None, Call]:
    """The claim that gave each token, unless several did."""
    found: dict[str | None, Call] = {}
    twice: set[str | None] = {None}
    for call in calls:
        if call.granted and call.answer is not None:
            if call.answer.token in found:
                twice.add(call.answer.token)
            found[call.answer.token] = call
    return {token: call for token, call in found.items() if token not in twice}


def _steps(recorded: Iterable[_Recorded]) -> list[Step]:
    return [step for each in recorded for step in each.steps]


def smallest(calls: Sequence[_Recorded], is_bad: Callable[[Sequence[_Recorded]], bool]) -> Sequence[_Recorded]:
    """As few of the calls as are still bad, preferring grants and later ones; none of them can be left out.

    Junker's QuickXplain: it needs about ``2 k log(n / k)`` trials for ``k`` of ``n`` calls.
    """

    def needed(fixed: list[_Recorded], choice: list[_Recorded], *, grown: bool) -> list[_Recorded]:
        if grown and is_bad(_by_start(fixed)):
            return []
        if len(choice) == 1:
            return choice
        later, earlier = choice[: len(choice) // 2], choice[len(choice) // 2 :]
        of_earlier = needed(fixed + later, earlier, grown=True)
        of_later = needed(fixed + of_earlier, later, grown=bool(of_earlier))
        return of_later + of_earlier

    preferred = sorted(calls, key=lambda each: (not each.call.granted, -each.call.start))
    return _by_start(needed([], preferred, grown=False))


def _by_start(recorded: Iterable[_Recorded]) -> list[_Recorded]:
    return sorted(recorded, key=lambda each: each.call.start)
