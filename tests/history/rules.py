"""What each recorded call does to the rows of its key, by the rules of the lease model.

The model's rules want to know what time it is; of a recorded call only a window is known. So a row is kept together
with how much later its lease's time may be (``Loose``). Each rule is then asked at the ends of what is possible, which
is enough because a later clock and an earlier lease only ever turn a refusal into a grant.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from codex_state.models import HolderWrite, Requeue, SkipReason
from codex_state.testing import lease_model as model
from tests.history.calls import ANY_KEY, APPLIED, LEASE_TIMES, LOST, Answer, Call, Kind
from tests.history.seconds import Window
from tests.history.verbs import (
    ClaimRule,
    WriteRule,
    claim_rule,
    is_nameless,
    process_of,
    write_rule,
)

Row = model.Job | model.Memory | model.Lock | model.Backfill | None


@dataclass(frozen=True, slots=True)
class Loose:
    """A row whose lease's time may be up to ``later`` seconds later than it says."""

    row: Row
    later: int = 0


UNKNOWN = Loose(None, -1)
"""A row of which nothing is known. Every answer is possible, and only a grant or a memory tells more."""

NO_ROW = Loose(None)

State = tuple[Loose, Loose]
"""The rows of a key: of a job and its memory, or of a lock or backfill and nothing."""

EMPTY: State = (NO_ROW, NO_ROW)
ANYTHING: State = (UNKNOWN, UNKNOWN)

Effect = Callable[[State], State | None]
"""The rows after a call; ``None`` when with these rows it would not have answered as it did."""

_TIMES = LEASE_TIMES | {"finished_at", "claimed_at", "last_success_at"}
"""Of these only the one that decides over a lease is kept track of, and compared with what a read finds."""


def effects_of(call: Call, window: Window, held: Loose, dead: AbstractSet[str] = model.NOBODY) -> list[Effect]:
    """What a call does, in one or two steps of which each is atomic.

    A claim or requeue that is refused asks a second time, for the reason; meanwhile the row may have changed.

    Args:
        call: the call.
        window: what the database's clock may have shown during it.
        held: the row that its being made tells of, if it needs a lease: see ``row_while_held``.
        dead: the workers that may have been found dead by a claim. It need not have looked.
    """
    if call.key == ANY_KEY:
        return [lambda state: (UNKNOWN, state[1])]
    match call.verb:
        case "read" | "read_memory":
            return [partial(_read, call=call)]
        case "write_memory" | "write_memory_if_owner":
            return [partial(_write_memory, call=call, window=window, held=held)]
        case "claim" | "take_over":
            return _claim(call, window, dead)
    return _write(call, window, held)


def row_while_held(grant: Call | None, always: Window) -> Loose:
    """The row for as long as a grant's token is good: as it was granted, and possibly renewed.

    Args:
        grant: the claim, if it is on record.
        always: what the database's clock may have shown at all.
    """
    # A backfill's row has its watermark, too, which moves while it is held.
    if grant is None or grant.kind is Kind.BACKFILL:
        return UNKNOWN
    row = _row_of_grant(grant).row
    return Loose(_moved(row, always.first - _time_of(row)), always.last - always.first)


def changes(call: Call) -> bool:
    """Whether a call may have changed a row."""
    if call.verb in {"read", "read_memory"}:
        return False
    return call.answer is None or call.answer.outcome in {model.GRANTED, APPLIED, Requeue.REQUEUED}


def token_of(state: State) -> str | None:
    """Whose token the row of a lease carries."""
    return getattr(state[0].row, "token", None)


# Claims


def _claim(call: Call, window: Window, dead: AbstractSet[str]) -> list[Effect]:
    claim, answer = claim_rule(call, dead), call.answer
    if answer is None:
        return [_on_lease(partial(_granted_unheard, claim=claim, window=window))]
    if not call.granted:
        return [
            _on_lease(partial(_refused, claim=claim_rule(call), window=window)),
            _on_lease(partial(_shows, seen=_reason_seen, expected=answer.outcome)),
        ]
    on_known = _on_lease(partial(_granted, claim=claim, window=window, answer=answer))
    on_unknown = _row_of_grant(call)
    return [lambda state: (on_unknown, state[1]) if state[0] is UNKNOWN else on_known(state)]


def _granted(lease: Loose, *, claim: ClaimRule, window: Window, answer: Answer) -> Loose | None:
    row, outcome = claim(lease.row, window.last)
    assert answer.seconds is not None
    if outcome != model.GRANTED or not window.first <= answer.seconds <= window.last:
        return None
    match row:
        case model.Job(attempt=attempt, failures=failures) if (attempt, failures) != (answer.attempt, answer.failures):
            return None
        case model.Backfill(watermark=watermark) if watermark != answer.watermark:
            return None
    return _canonical(_moved(row, answer.seconds - window.last))


def _granted_unheard(lease: Loose, *, claim: ClaimRule, window: Window) -> Loose | None:
    row, outcome = claim(lease.row, window.last)
    width = window.last - window.first
    return _canonical(_moved(row, -width), width) if outcome == model.GRANTED else None


def _row_of_grant(call: Call) -> Loose:
    answer, given = call.answer, call.arguments
    assert answer is not None
    token, seconds, owner, by = answer.token or "", answer.seconds or 0, given["owner"], process_of(call)
    lease = given["lease"] or None
    match call.kind:
        case Kind.JOB:
            failures = answer.failures or 0
            attempt = answer.attempt or 0
            return Loose(
                model.Job(
                    model.RUNNING, owner, token, seconds, given["source"], attempt, failures, by=by, lease_seconds=lease
                )
            )
        case Kind.LOCK:
            return Loose(model.Lock(owner, token, seconds, by, lease))
    return Loose(model.Backfill(model.RUNNING, seconds, token, None, answer.watermark, by=by, lease_seconds=lease))


def _refused(lease: Loose, *, claim: ClaimRule, window: Window) -> Loose | None:
    def refuses(seconds: int) -> bool:
        return claim(_moved(lease.row, seconds), window.first)[1] != model.GRANTED

    if not refuses(lease.later):
        return None
    # A lease that was not over is not older than that.
    least = bisect_left(range(lease.later), x=True, key=refuses)
    return Loose(_moved(lease.row, least), lease.later - least) if least else lease


def _reason_seen(row: Row) -> str:
    """What a refused claim gives as the reason, by a second look at the row."""
    match row:
        case model.Job(status=model.FAILED, retry_at=None):
            return SkipReason.TERMINAL_FAILURE
        case model.Job(status=model.FAILED):
            return SkipReason.RETRY_LATER
        case model.Job(status=model.SUCCEEDED) | model.Backfill(status=model.COMPLETE):
            return SkipReason.UP_TO_DATE
    return SkipReason.RUNNING


# Other writes


def _write(call: Call, window: Window, held: Loose) -> list[Effect]:
    write = write_rule(call)
    if call.verb == "requeue":
        return _requeue(call, write, window)
    if changes(call):
        seconds = None if call.answer is None else call.answer.seconds
        told = UNKNOWN if call.answer is None else held
        return [_on_lease(partial(_written, write=write, window=window, seconds=seconds), told)]
    refused = _on_lease(partial(_refused_write, write=write, window=window))
    return [refused]


def _requeue(call: Call, write: WriteRule, window: Window) -> list[Effect]:
    if changes(call):
        return [_on_lease(partial(_requeued, write=write, window=window))]
    refused = _on_lease(partial(_refused_write, write=write, window=window))
    if call.answer is None:
        return [refused]
    return [refused, _on_lease(partial(_shows, seen=_why_not_requeued, expected=call.answer.outcome))]


def _requeued(part: Loose, *, write: WriteRule, window: Window) -> Loose | None:
    """A job that failed, or whose lease may have been over by then."""
    row, outcome = write(part.row, window.last)
    width = window.last - window.first
    return _canonical(_moved(row, -width), width) if outcome else None


def _written(part: Loose, *, write: WriteRule, window: Window, seconds: int | None) -> Loose | None:
    """The row after a write that was made, whose time is ``seconds`` if the answer told it."""
    earliest, outcome = write(part.row, window.first)
    if not outcome:
        return None
    latest = write(_moved(part.row, part.later), window.last)[0]
    least, most = _time_of(earliest), _time_of(latest)
    if seconds is None:
        return _canonical(earliest, most - least)
    return _canonical(_moved(earliest, seconds - least)) if least <= seconds <= most else None


def _refused_write(part: Loose, *, write: WriteRule, window: Window) -> Loose | None:
    return None if write(_moved(part.row, part.later), window.first)[1] else part


def _why_not_requeued(row: Row) -> str:
    if row is None:
        return Requeue.NOT_FOUND
    return Requeue.RUNNING if isinstance(row, model.Job) and row.status == model.RUNNING else Requeue.NOT_FAILED


def _write_memory(state: State, *, call: Call, window: Window, held: Loose) -> State | None:
    lease, memory = state
    refused = call.answer is not None and call.answer.outcome == LOST
    if call.verb == "write_memory_if_owner" and lease is not UNKNOWN:
        outcome = model.change_held_job(lease.row, call.arguments["token"])[1]  # type: ignore[arg-type]
        if bool(outcome) is refused:
            return None
    if refused:
        return state
    if lease is UNKNOWN and call.answer is not None:
        lease = held
    raw, summary = call.arguments["raw"], call.arguments["summary"]
    seconds = None if call.answer is None else call.answer.seconds
    if memory is UNKNOWN:
        return lease, UNKNOWN if seconds is None else Loose(model.Memory(raw, summary, seconds))

    def write(row: Any, now: int) -> tuple[Any, HolderWrite]:
        return model.write_memory(row, raw, summary, now), HolderWrite.APPLIED

    after = _written(memory, write=write, window=window, seconds=seconds)
    return None if after is None else (lease, after)


# Looks


def _shows(part: Loose, *, seen: Callable[[Row], str], expected: str) -> Loose | None:
    return part if seen(part.row) == expected else None


def _read(state: State, *, call: Call) -> State | None:
    lease, memory = state
    part = memory if call.verb == "read_memory" else lease
    if call.answer is None or part is UNKNOWN:
        return state
    after = _matching(part, call.answer.row)
    if after is None:
        return None
    return (lease, after) if part is memory else (after, memory)


def _matching(part: Loose, found: Mapping[str, Any] | None) -> Loose | None:
    """The row if it is what a read found; its lease's time is known from then on."""
    if part.row is None or found is None:
        return part if part.row is None and found is None else None
    passed_over = _TIMES | {"token", "owner"} if is_nameless(part.row) else _TIMES
    if any(getattr(part.row, column) != value for column, value in found.items() if column not in passed_over):
        return None
    name = _name_of_time(part.row)
    if name is None or name not in found:
        return part
    later = found[name] - _time_of(part.row)
    return Loose(_moved(part.row, later)) if 0 <= later <= part.later else None


# Rows and the times in them


def _on_lease(change: Callable[[Loose], Loose | None], told: Loose = UNKNOWN) -> Effect:
    """A change of the leased row. Where nothing is known, only what it tells by being made is."""

    def effect(state: State) -> State | None:
        lease, memory = state
        if lease is UNKNOWN:
            lease = told
        if lease is UNKNOWN:
            return state
        after = change(lease)
        return None if after is None else (after, memory)

    return effect


def _name_of_time(row: Row) -> str | None:
    """The time that decides over a row's lease, if one does in the row's state."""
    match row:
        case model.Job(status=model.RUNNING):
            return "started_at"
        case model.Job(status=model.FAILED, retry_at=int()):
            return "retry_at"
        case model.Lock() | model.Memory() | model.Backfill(status=model.RUNNING):
            return "updated_at"
    return None


def _time_of(row: Row) -> int:
    name = _name_of_time(row)
    return 0 if name is None else getattr(row, name)


def _moved(row: Any, seconds: int) -> Any:
    """The row with its time that much later."""
    name = _name_of_time(row)
    if name is None or seconds == 0:
        return row
    return replace(row, **{name: getattr(row, name) + seconds})


def _canonical(row: Any, later: int = 0) -> Loose:
    """Without the times that decide nothing, so that equal situations are equal."""
    match row:
        case model.Job(status=model.FAILED | model.SUCCEEDED):
            row = replace(row, started_at=0, finished_at=None)
        case model.Backfill():
            updated_at = row.updated_at if row.status == model.RUNNING else 0
            row = replace(row, updated_at=updated_at, claimed_at=None, last_success_at=None)
    return Loose(row, later)
