"""Histories for tests: written down by hand, and made by running the lease model on a clock of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from codex_state.models import HolderWrite, Requeue, SkipReason
from codex_state.testing import lease_model as model
from tests.history import APPLIED, LOST, READ, Answer, Call, Kind

MILLISECOND = 1_000_000
SECOND = 1_000_000_000
BEGINNING = 100
"""What the database's clock shows at the beginning of every history here."""

KEY = "the key"


def second_at(moment: int) -> int:
    """What the database's clock shows at a moment of the record, in nanoseconds."""
    return BEGINNING + moment // SECOND


def call(
    worker: str, kind: Kind, verb: str, start: float, end: float | None, answer: Answer | None, **arguments: Any
) -> Call:
    """A call on ``KEY``, with its times in milliseconds."""
    return Call(
        worker=worker,
        kind=kind,
        key=KEY,
        verb=verb,
        start=int(start * MILLISECOND),
        end=None if end is None else int(end * MILLISECOND),
        answer=answer,
        arguments=arguments,
    )


def clock_reads(seconds: int) -> list[Call]:
    """Looks at the database's clock shortly before and after each full second: the checker knows it exactly."""
    moments = [full * 1000 + part for full in range(seconds + 1) for part in (0.01, 999.9)]
    return [
        replace(
            call("clock", Kind.CLOCK, "read", at, at + 0.05, None),
            answer=Answer(READ, seconds=second_at(int(at * MILLISECOND))),
        )
        for at in moments
    ]


@dataclass(slots=True)
class Rows:
    """The rows of one key, by the lease model: an independent account of what each call may answer."""

    kind: Kind
    lease: Any = None
    memory: model.Memory | None = None

    def decide(self, verb: str, given: Mapping[str, Any], token: str, now: int, told: int) -> Answer | None:
        """Make a call. ``None`` when it is refused and looks for the reason next.

        Args:
            verb: what is asked.
            given: with which arguments.
            token: the token of a grant.
            now: the time by which it is decided.
            told: the time that is stored and answered, which on PostgreSQL is taken before waiting for the row.
        """
        match verb:
            case "claim" | "take_over":
                return self._claim(verb, given, token, now, told)
            case "requeue":
                self.lease, requeued = model.requeue_job(self.lease, now)
                return Answer(requeued) if requeued is Requeue.REQUEUED else None
            case "write_memory" | "write_memory_if_owner":
                return self._write_memory(verb, given, now)
            case "read":
                return Answer(READ, row=None if self.lease is None else _found(self.lease))
            case "read_memory":
                return Answer(READ, row=None if self.memory is None else _found(self.memory))
        self.lease, outcome = _write(self.kind, verb, self.lease, given, now)
        answers_time = verb == "renew" and self.kind is not Kind.BACKFILL
        return Answer(outcome, seconds=now if outcome and answers_time else None)

    def look(self, verb: str) -> Answer:
        """The reason of a refusal, by the row as it is now."""
        if verb == "requeue":
            if self.lease is None:
                return Answer(Requeue.NOT_FOUND)
            running = self.lease.status == model.RUNNING
            return Answer(Requeue.RUNNING if running else Requeue.NOT_FAILED)
        match self.lease:
            case model.Job(status=model.FAILED, retry_at=None):
                return Answer(SkipReason.TERMINAL_FAILURE)
            case model.Job(status=model.FAILED):
                return Answer(SkipReason.RETRY_LATER)
            case model.Job(status=model.SUCCEEDED) | model.Backfill(status=model.COMPLETE):
                return Answer(SkipReason.UP_TO_DATE)
        return Answer(SkipReason.RUNNING)

    def _claim(self, verb: str, given: Mapping[str, Any], token: str, now: int, told: int) -> Answer | None:
        if self.kind is Kind.BACKFILL:
            given = {name: value for name, value in given.items() if name != "owner"}
        if verb == "take_over":
            row: Any = model.take_over_backfill(self.lease, token=token, now=now, **given)
            outcome: Any = model.GRANTED
        else:
            rule: Any = {
                Kind.JOB: model.claim_job,
                Kind.LOCK: model.acquire_lock,
                Kind.BACKFILL: model.claim_backfill,
            }[self.kind]
            row, outcome = rule(self.lease, token=token, now=now, **given)
        if outcome != model.GRANTED:
            return None
        if self.kind is Kind.JOB:
            self.lease = replace(row, started_at=told)
            return Answer(outcome, seconds=told, token=token, attempt=row.attempt, failures=row.failures)
        self.lease = replace(row, updated_at=told)
        watermark = row.watermark if self.kind is Kind.BACKFILL else None
        return Answer(outcome, seconds=told, token=token, watermark=watermark)

    def _write_memory(self, verb: str, given: Mapping[str, Any], now: int) -> Answer:
        if verb == "write_memory":
            self.memory = model.write_memory(self.memory, given["raw"], given["summary"], now)
        else:
            self.memory, outcome = model.write_memory_if_owner(
                self.memory,
                self.lease,
                given["token"],
                raw_memory=given["raw"],
                memory_summary=given["summary"],
                now=now,
            )
            if not outcome:
                return Answer(LOST)
        assert self.memory is not None
        return Answer(APPLIED, seconds=self.memory.updated_at)


def _write(kind: Kind, verb: str, row: Any, given: Mapping[str, Any], now: int) -> tuple[Any, HolderWrite]:
    token = given["token"]
    match kind, verb:
        case Kind.JOB, "renew":
            return model.renew_job(row, token, now)
        case Kind.JOB, "succeed":
            return model.succeed_job(row, token, given["path"], given["summary"], now)
        case Kind.JOB, "fail":
            return model.fail_job(row, token, given["reason"], given["retry_after"], now)
        case Kind.JOB, "release":
            return model.release_job(row, token, given["reason"], now)
        case Kind.LOCK, "renew":
            return model.renew_lock(row, token, now)
        case Kind.LOCK, "release":
            return model.release_lock(row, token)
        case Kind.BACKFILL, "renew":
            return model.renew_backfill(row, token, now)
        case Kind.BACKFILL, "checkpoint":
            return model.checkpoint_backfill(row, token, given["watermark"], now)
        case Kind.BACKFILL, "complete":
            return model.complete_backfill(row, token, given["watermark"], now)
        case Kind.BACKFILL, "release":
            return model.release_backfill(row, token, now)
    raise AssertionError((kind, verb))


def _found(row: Any) -> dict[str, Any]:
    """What a read tells of a row: everything that doesn't depend on what it doesn't tell."""
    times = {
        "by",
        "lease_seconds",
        "started_at",
        "finished_at",
        "retry_at",
        "updated_at",
        "claimed_at",
        "last_success_at",
    }
    match row:
        case model.Job(status=model.RUNNING):
            times.discard("started_at")
        case model.Job(status=model.FAILED):
            times.discard("retry_at")
        case model.Lock() | model.Memory() | model.Backfill(status=model.RUNNING):
            times.discard("updated_at")
    return {name: getattr(row, name) for name in row.__dataclass_fields__ if name not in times}


@dataclass(frozen=True, slots=True)
class Plan:
    """One call to come."""

    verb: str
    arguments: Mapping[str, Any]
    """Without the token."""
    holder: int
    """Which of the grants so far it is made with, counted back from the last, if it is a holder's write."""
    start: int
    told: int
    """When the time is taken that it stores, in nanoseconds like all of these."""
    decided: int
    looked: int
    """When a refused one looks for the reason."""
    end: int
    died: bool = False
    """Whether its worker died before the answer came."""
    happened: bool = True
    """Whether it came to be made."""


UNHEARD = "unheard of"
"""The token of a grant of which nobody was told."""

HOLDERS_WRITES = {
    "renew",
    "succeed",
    "fail",
    "release",
    "checkpoint",
    "complete",
    "write_memory_if_owner",
}


def run(kind: Kind, plans: Sequence[Plan]) -> list[Call]:
    """The history of planned calls: they are decided one after the other, whenever they begin and end."""
    rows, tokens = Rows(kind), [f"token {number}" for number in range(len(plans))]
    granted: list[str] = []
    given: dict[int, dict[str, Any]] = {}
    answers: dict[int, Answer] = {}
    moments = [(plan.decided, 0, number) for number, plan in enumerate(plans)]
    moments += [(plan.looked, 1, number) for number, plan in enumerate(plans)]
    for moment, piece, number in sorted(moments):
        plan = plans[number]
        if piece == 1:
            if plan.happened and number not in answers:
                answers[number] = rows.look(plan.verb)
            continue
        given[number] = dict(plan.arguments)
        if plan.verb in HOLDERS_WRITES:
            given[number]["token"] = granted[-1 - plan.holder % len(granted)] if granted else "nobody's"
        if not plan.happened:
            continue
        answer = rows.decide(plan.verb, given[number], tokens[number], second_at(moment), second_at(plan.told))
        if answer is not None:
            answers[number] = answer
            if answer.outcome == model.GRANTED and not plan.died:
                granted.append(tokens[number])
    return [
        Call(
            worker=f"worker {number}",
            kind=kind,
            key=KEY,
            verb=plan.verb,
            start=plan.start,
            end=None if plan.died else plan.end,
            answer=None if plan.died else answers[number],
            arguments=given[number],
        )
        for number, plan in enumerate(plans)
    ]


def has_legal_order(kind: Kind, calls: Iterable[Call]) -> bool:
    """Whether some order of the calls is legal, by trying all of them.

    For few calls. Those that were answered lie within one second of the database's clock; the others may be decided at
    any time from their start on.
    """
    todo = [[(each, piece) for piece in ("decide", "look")] for each in calls]
    return _can_go_on(Rows(kind), todo)


def _can_go_on(rows: Rows, todo: list[list[tuple[Call, str]]]) -> bool:
    ends = [pieces[0][0].end for pieces in todo]
    answered = [end for end in ends if end is not None]
    if not answered:
        return True
    for number, ((each, piece), *later) in enumerate(todo):
        if any(end < each.start for end in answered):
            continue
        others = todo[:number] + todo[number + 1 :]
        if piece == "look":
            assert each.answer is not None
            if rows.look(each.verb) == each.answer and _can_go_on(replace(rows), others):
                return True
            continue
        token = UNHEARD if each.answer is None else each.answer.token or "none"
        for now, told in _moments_of(each, min(answered)):
            after = replace(rows)
            answer = after.decide(each.verb, each.arguments, token, now, told)
            if answer is None and each.answer is not None:
                refused = each.answer.outcome in {*SkipReason, Requeue.NOT_FAILED, Requeue.NOT_FOUND}
                if refused and _can_go_on(after, [*others, later]):
                    return True
            elif answer is not None and _may_be(answer, each.answer) and _can_go_on(after, others):
                return True
    return False


def _moments_of(each: Call, horizon: int) -> Iterator[tuple[int, int]]:
    """By which second a call may be decided, and which it may store, when another is over at ``horizon``."""
    first = second_at(each.start)
    last = first if each.answer is not None else second_at(horizon)
    for now in range(first, last + 1):
        for told in range(first, now + 1):
            yield now, told


def _may_be(expected: Answer, answer: Answer | None) -> bool:
    """Whether a call that should answer ``expected`` may have answered so."""
    if answer is None or answer == expected:
        return True
    if expected.row is None or answer.row is None or expected.row.get("token") != UNHEARD:
        return False
    # A claim whose answer nobody heard: a read is the first to tell the token, and whose it is.
    return _named(expected.row) == _named(answer.row)


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"token", "owner"}}
