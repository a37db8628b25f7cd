"""The checker of histories against histories whose verdict is known, by Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from histories import (
    MILLISECOND,
    SECOND,
    Plan,
    clock_reads,
    has_legal_order,
    run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_state.models import Requeue, SkipReason
from codex_state.testing.lease_model import GRANTED
from tests.history import APPLIED, LOST, Answer, Call, Kind, find_violation
from tests.history.calls import LEASE_TIMES

pytestmark = pytest.mark.proof  # of the chaos's own judge

PATIENT = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

kinds = st.sampled_from([Kind.JOB, Kind.LOCK, Kind.BACKFILL])
owners = st.sampled_from(["one", "two"])
leases = st.sampled_from([0, 1, 2, 60])
watermarks = st.sampled_from(["a", "b", "c"])

VERBS: dict[Kind, dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    Kind.JOB: {
        "claim": {"owner": owners, "source": st.integers(0, 2), "lease": leases},
        "renew": {},
        "succeed": {"path": st.none(), "summary": st.just("summary")},
        "fail": {"reason": st.just("why"), "retry_after": st.sampled_from([None, 0, 1, 60])},
        "release": {"reason": st.just("why")},
        "requeue": {},
        "write_memory_if_owner": {"raw": st.sampled_from(["r", "s"]), "summary": st.just("summary")},
        "write_memory": {"raw": st.sampled_from(["r", "s"]), "summary": st.just("summary")},
        "read": {},
        "read_memory": {},
    },
    Kind.LOCK: {"claim": {"owner": owners, "lease": leases}, "renew": {}, "release": {}, "read": {}},
    Kind.BACKFILL: {
        "claim": {"owner": owners, "lease": leases, "again": st.booleans()},
        "take_over": {"owner": owners, "lease": leases, "from_the_start": st.booleans()},
        "renew": {},
        "checkpoint": {"watermark": watermarks},
        "complete": {"watermark": st.none() | watermarks},
        "release": {},
        "read": {},
    },
}


@st.composite
def verbs(draw: st.DrawFn, kind: Kind) -> tuple[str, dict[str, Any]]:
    verb = draw(st.sampled_from(["claim", "claim", *VERBS[kind]]))
    return verb, draw(st.fixed_dictionaries(VERBS[kind][verb]))


@st.composite
def overlapping_plans(draw: st.DrawFn, kind: Kind) -> list[Plan]:
    """Calls that begin, are decided and end whenever they like, of workers that may die."""
    plans, moment = [], 0
    lengths = st.sampled_from([0, 1, 10, 400, 1500]).map(lambda length: length * MILLISECOND)
    for _ in range(draw(st.integers(1, 25))):
        verb, arguments = draw(verbs(kind))
        start = moment = moment + draw(st.sampled_from([0, 1, 5, 300, 2000])) * MILLISECOND
        told = start + draw(lengths)
        decided = told + draw(lengths)
        looked = decided + draw(lengths)
        died = draw(st.integers(0, 9)) == 0
        plans.append(
            Plan(
                verb,
                arguments,
                draw(st.integers(0, 3)),
                start,
                told,
                decided,
                looked,
                end=looked + draw(lengths),
                died=died,
                happened=not died or draw(st.booleans()),
            )
        )
    return plans


@st.composite
def plans_in_turn(draw: st.DrawFn, kind: Kind) -> list[Plan]:
    """Calls one after the other, each well within a second of the database's clock."""
    plans = []
    moment = 200 * MILLISECOND
    for _ in range(draw(st.integers(1, 15))):
        verb, arguments = draw(verbs(kind))
        end = moment + MILLISECOND
        plans.append(Plan(verb, arguments, draw(st.integers(0, 3)), moment, moment, moment, moment, end))
        # Fifteen of the shortest steps stay below a second.
        moment += draw(st.sampled_from([0, 0, 1, 2])) * SECOND + 10 * MILLISECOND
    return plans


@settings(PATIENT, max_examples=150)
@given(st.data(), kinds)
def test_what_the_model_answers_is_legal_however_calls_overlap(data: st.DataObject, kind: Kind) -> None:
    calls = run(kind, data.draw(overlapping_plans(kind)))
    assert find_violation(calls) is None
    assert find_violation(calls, from_empty=False) is None


@settings(PATIENT, max_examples=100)
@given(st.data(), kinds, st.integers(0, 25))
def test_a_run_whose_beginning_was_not_recorded_is_legal_when_nothing_is_assumed(
    data: st.DataObject, kind: Kind, missed: int
) -> None:
    calls = sorted(run(kind, data.draw(overlapping_plans(kind))), key=lambda call: call.start)
    recorded = calls[missed:]
    # What was not over when the record begins would be a change by a call that isn't on record.
    if recorded and all(call.end is not None and call.end < recorded[0].start for call in calls[:missed]):
        assert find_violation(recorded, from_empty=False) is None


def _other_answers(call: Call) -> list[Answer]:
    """Answers that a call could have given, but didn't."""
    answer = call.answer
    assert answer is not None
    others = [
        replace(answer, **{name: value + change})
        for name in ("seconds", "attempt", "failures")
        if (value := getattr(answer, name)) is not None
        for change in (-1, 1)
    ]
    if call.kind is Kind.BACKFILL and answer.outcome == GRANTED:
        others += [replace(answer, watermark=each) for each in (None, "a", "b", "c") if each != answer.watermark]
    match call.verb:
        case "claim":
            reasons = {
                Kind.JOB: list(SkipReason),
                Kind.LOCK: [SkipReason.RUNNING],
                Kind.BACKFILL: [SkipReason.RUNNING, SkipReason.UP_TO_DATE],
            }[call.kind]
            others += [Answer(reason) for reason in reasons if reason != answer.outcome]
        case "requeue":
            others += [Answer(outcome) for outcome in Requeue if outcome != answer.outcome]
        case "read" | "read_memory":
            others += [replace(answer, row=None)] if answer.row is not None else []
            others += [
                replace(answer, row={**answer.row, name: other})
                for name in answer.row or ()
                for other in ((7, 12_345) if name in LEASE_TIMES else ("somebody else", 7))
                if answer.row is not None and answer.row[name] != other
            ]
        case "take_over" | "write_memory":
            pass
        case _ if answer.outcome == APPLIED:
            others.append(Answer(LOST))
        case "renew" if call.kind is not Kind.BACKFILL:
            others.append(Answer(APPLIED, seconds=100 + call.start // SECOND))
        case "write_memory_if_owner":
            others.append(Answer(APPLIED, seconds=100 + call.start // SECOND))
        case _:
            others.append(Answer(APPLIED))
    return others


@settings(PATIENT, max_examples=150)
@given(st.data(), kinds)
def test_a_single_wrong_answer_is_found_where_calls_do_not_overlap(data: st.DataObject, kind: Kind) -> None:
    """Then there is one order, in which the model has one answer to each call."""
    calls = run(kind, data.draw(plans_in_turn(kind)))
    reads = clock_reads(calls[-1].start // SECOND + 1)
    assert find_violation([*calls, *reads]) is None
    number = data.draw(st.integers(0, len(calls) - 1))
    others = _other_answers(calls[number])
    if not others:
        return
    calls[number] = replace(calls[number], answer=data.draw(st.sampled_from(others)))
    violation = find_violation([*calls, *reads])
    assert violation is not None
    assert calls[number].start <= violation.calls[-1].start


@st.composite
def small_histories(draw: st.DrawFn, kind: Kind) -> Sequence[Call]:
    """A few calls that overlap within seconds of the database's clock, one of which may be answered wrongly."""
    plans = []
    for _ in range(draw(st.integers(2, 5))):
        verb, arguments = draw(verbs(kind))
        start = draw(st.integers(0, 1)) * SECOND + draw(st.integers(200, 500)) * MILLISECOND
        decided = start + draw(st.integers(0, 100)) * MILLISECOND
        looked = decided + draw(st.integers(0, 100)) * MILLISECOND
        end = looked + draw(st.integers(0, 100)) * MILLISECOND
        died = draw(st.integers(0, 5)) == 0
        plans.append(Plan(verb, arguments, draw(st.integers(0, 3)), start, start, decided, looked, end, died))
    calls = run(kind, plans)
    for number in draw(st.lists(st.integers(0, len(calls) - 1), max_size=2)):
        if calls[number].answer is not None and (others := _other_answers(calls[number])):
            calls[number] = replace(calls[number], answer=draw(st.sampled_from(others)))
    return calls


@settings(PATIENT, max_examples=200)
@given(st.data(), kinds)
def test_the_checker_agrees_with_trying_every_order(data: st.DataObject, kind: Kind) -> None:
    calls = data.draw(small_histories(kind))
    violation = find_violation([*calls, *clock_reads(2)])
    assert (violation is None) is has_legal_order(kind, calls)
