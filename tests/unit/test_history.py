"""The checker of histories against bad ones that were written down by hand: what it shows, and how it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import call, clock_reads

from codex_state.models import SkipReason
from codex_state.testing.lease_model import GRANTED
from tests.history import APPLIED, LOST, READ, Answer, Call, IllegalHistoryError, Kind, assert_legal

HOUR = 3600


def claim(worker: str, start: float, token: str, *, at: int, attempt: int = 1, lease: int = HOUR) -> Call:
    answer = Answer(GRANTED, seconds=at, token=token, attempt=attempt, failures=0)
    return call(worker, Kind.JOB, "claim", start, start + 1, answer, owner=worker, source=1, lease=lease)


def finish(worker: str, start: float, token: str, outcome: str) -> Call:
    return call(worker, Kind.JOB, "succeed", start, start + 1, Answer(outcome), token=token, path=None, summary="s")


def renew(worker: str, start: float, token: str, *, at: int) -> Call:
    return call(worker, Kind.JOB, "renew", start, start + 1, Answer(APPLIED, seconds=at), token=token)


def refused(worker: str, start: float) -> Call:
    return call(
        worker, Kind.JOB, "claim", start, start + 1, Answer(SkipReason.RUNNING), owner=worker, source=1, lease=HOUR
    )


def lock(worker: str, start: float, token: str, *, at: int) -> Call:
    answer = Answer(GRANTED, seconds=at, token=token)
    return call(worker, Kind.LOCK, "claim", start, start + 1, answer, owner=worker, lease=HOUR)


FIRST = claim("one", 100, "token one", at=100)
BRIEF = claim("one", 100, "token one", at=100, lease=1)
SECOND = claim("two", 200, "token two", at=100, attempt=2)
AFTER_LEASE = claim("two", 2200, "token two", at=102, attempt=2, lease=1)
ZOMBIE = finish("one", 2300, "token one", APPLIED)
FINISHED = finish("one", 200, "token one", APPLIED)
STILL_RUNNING = refused("two", 300)
TOO_EARLY = claim("two", 1200, "token two", at=101, attempt=2, lease=2)
SKIPPED_A_NUMBER = claim("two", 2200, "token two", at=102, attempt=3, lease=1)
LOCKED, LOCKED_AGAIN = lock("one", 100, "token one", at=100), lock("two", 200, "token two", at=100)
REFUSED_HOLDER = finish("one", 200, "token one", LOST)
FOUND_NOTHING = call("two", Kind.JOB, "read", 300, 301, Answer(READ))

BAD = {
    "a job is granted twice": ([FIRST, SECOND], [FIRST, SECOND]),
    "a lock is granted twice": ([LOCKED, LOCKED_AGAIN], [LOCKED, LOCKED_AGAIN]),
    "a zombie's write is applied": ([BRIEF, AFTER_LEASE, ZOMBIE], [AFTER_LEASE, ZOMBIE]),
    "a finish is lost": ([FIRST, FINISHED, STILL_RUNNING], [FINISHED, STILL_RUNNING]),
    "the holder is refused": ([FIRST, REFUSED_HOLDER], [FIRST, REFUSED_HOLDER]),
    "a lease ends too early": ([FIRST, TOO_EARLY], [FIRST, TOO_EARLY]),
    "an attempt is counted twice": ([BRIEF, SKIPPED_A_NUMBER], [BRIEF, SKIPPED_A_NUMBER]),
    "a row is gone": ([FIRST, FOUND_NOTHING], [FIRST, FOUND_NOTHING]),
}
"""Histories, and the smallest part of each that no legal order explains."""


TABLE = """\
job the key: 2 of 3 calls, which no legal order explains
from ms   to ms     worker  clock  call                                           answer
where its tokens come from:
0.000     1.000     one            claim(owner=one, source=1, lease=1)            granted token on, at 100, attempt 1
the calls:
2100.000  2101.000  two     102    claim(owner=two, source=1, lease=1)            granted token tw, at 102, attempt 2
2200.000  2201.000  one     102    succeed(token=token on, path=None, summary=s)  applied"""


def told_of(calls: list[Call]) -> IllegalHistoryError:
    with pytest.raises(IllegalHistoryError) as caught:
        assert_legal([*calls, *clock_reads(4)])
    return caught.value


@pytest.mark.parametrize(("calls", "smallest"), BAD.values(), ids=BAD)
def test_the_smallest_bad_history_is_shown(calls: list[Call], smallest: list[Call]) -> None:
    assert list(told_of(calls).violation.calls) == smallest


def test_what_has_nothing_to_do_with_it_is_left_out() -> None:
    renewals = [renew("one", 110 + number, "token one", at=100) for number in range(0, 60, 3)]
    refusals = [refused("three", 111 + number) for number in range(0, 60, 3)]
    shown = told_of([FIRST, *renewals, *refusals, SECOND]).violation
    assert len(shown.calls) == 2
    assert shown.calls[-1] == SECOND
    assert shown.recorded == 42


def test_a_clock_that_goes_back_is_told() -> None:
    earlier, later = renew("one", 200, "token one", at=160), renew("one", 300, "token one", at=100)
    with pytest.raises(IllegalHistoryError, match="times that one steady clock can't have told") as caught:
        assert_legal([FIRST, earlier, later])
    assert earlier in caught.value.violation.calls


@pytest.mark.parametrize(
    "calls",
    [
        [FIRST, FINISHED],
        [BRIEF, AFTER_LEASE, finish("one", 2300, "token one", LOST), finish("two", 2400, "token two", APPLIED)],
        [FIRST, call("two", Kind.JOB, "claim", 200, None, None, owner="two", source=1, lease=0), REFUSED_HOLDER],
    ],
    ids=["finished once", "taken over", "taken over by a worker that died"],
)
def test_a_legal_history_passes(calls: list[Call]) -> None:
    assert_legal([*calls, *clock_reads(4)])


def test_it_reads_as_a_table_of_who_was_answered_what_and_where_tokens_come_from() -> None:
    assert str(told_of([BRIEF, AFTER_LEASE, ZOMBIE])) == TABLE


def death(worker: str, start: float) -> Call:
    return replace(call("conductor", Kind.WORKER, "die", start, start + 1, Answer(APPLIED)), key=worker)


RENEWED_BY_TWO = call("two", Kind.JOB, "renew", 150, 151, Answer(APPLIED, seconds=100), token="token one")
TAKEN_BY_THREE = claim("three", 300, "token three", at=100, attempt=2)


@pytest.mark.parametrize(
    ("calls", "is_legal"),
    [
        ([FIRST, death("one", 150), SECOND], True),
        ([LOCKED, death("one", 150), LOCKED_AGAIN], True),
        ([FIRST, death("one", 200.5), SECOND], True),
        ([FIRST, death("one", 150), refused("two", 200)], True),
        ([FIRST, death("one", 300), SECOND], False),
        ([FIRST, death("two", 150), TAKEN_BY_THREE], False),
        ([FIRST, RENEWED_BY_TWO, death("one", 200), TAKEN_BY_THREE], False),
        ([FIRST, RENEWED_BY_TWO, death("two", 200), TAKEN_BY_THREE], True),
        ([replace(FIRST, end=None, answer=None), death("one", 150), SECOND], True),
    ],
    ids=[
        "a job of the dead",
        "a lock of the dead",
        "while it is being killed",
        "not found dead",
        "before its death",
        "another's death",
        "renewed by a living one",
        "renewed by a dead one",
        "a grant that the dead didn't hear of",
    ],
)
def test_a_dead_worker_may_be_taken_over_at_once_and_no_other(calls: list[Call], is_legal: bool) -> None:
    calls = [*calls, *clock_reads(4)]
    if is_legal:
        assert_legal(calls)
    else:
        with pytest.raises(IllegalHistoryError):
            assert_legal(calls)
