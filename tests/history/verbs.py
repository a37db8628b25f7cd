"""The lease model's rule for each verb of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from codex_state.errors import InvalidInputError
from codex_state.models import HolderWrite, Requeue
from codex_state.processes import Owner
from codex_state.testing import lease_model as model
from tests.history.calls import Call, Kind

ClaimRule = Callable[[Any, int], tuple[Any, model.ClaimOutcome]]
"""A claim: from a row and the time to the row that follows and the outcome."""

WriteRule = Callable[[Any, int], tuple[Any, HolderWrite]]
"""A write: likewise. ``LEASE_LOST`` is any refusal."""

_Given = Mapping[str, Any]

_NAMELESS = "nobody knows "
_NO_OWNER = ""

_CLAIMS: Mapping[tuple[Kind, str], Callable[..., tuple[Any, model.ClaimOutcome]]] = {
    (Kind.JOB, "claim"): model.claim_job,
    (Kind.LOCK, "claim"): model.acquire_lock,
    (Kind.BACKFILL, "claim"): model.claim_backfill,
    (Kind.BACKFILL, "take_over"): lambda row, **given: (model.take_over_backfill(row, **given), model.GRANTED),
}

_WRITES: Mapping[tuple[Kind, str], Callable[[Any, _Given, int], tuple[Any, HolderWrite]]] = {
    (Kind.JOB, "renew"): lambda row, given, now: model.renew_job(row, given["token"], now, given["by"]),
    (Kind.JOB, "succeed"): lambda row, given, now: model.succeed_job(
        row, given["token"], given["path"], given["summary"], now
    ),
    (Kind.JOB, "fail"): lambda row, given, now: model.fail_job(
        row, given["token"], given["reason"], given["retry_after"], now
    ),
    (Kind.JOB, "release"): lambda row, given, now: model.release_job(row, given["token"], given["reason"], now),
    (Kind.JOB, "requeue"): lambda row, _given, now: _requeue(row, now),
    (Kind.LOCK, "renew"): lambda row, given, now: model.renew_lock(row, given["token"], now, given["by"]),
    (Kind.LOCK, "release"): lambda row, given, _now: model.release_lock(row, given["token"]),
    (Kind.BACKFILL, "renew"): lambda row, given, now: model.renew_backfill(row, given["token"], now, given["by"]),
    (Kind.BACKFILL, "checkpoint"): lambda row, given, now: model.checkpoint_backfill(
        row, given["token"], given["watermark"], now, given["by"]
    ),
    (Kind.BACKFILL, "complete"): lambda row, given, now: model.complete_backfill(
        row, given["token"], given["watermark"], now
    ),
    (Kind.BACKFILL, "release"): lambda row, given, now: model.release_backfill(row, given["token"], now),
}


def claim_rule(call: Call, dead: AbstractSet[str] = model.NOBODY) -> ClaimRule:
    """The rule of a claim that finds these workers dead, with the token that it got."""
    rule, given = _rule_of(call, _CLAIMS), dict(call.arguments)
    if call.answer is not None:
        given["token"] = call.answer.token or ""
    else:
        # All that ask the same may share a token: nobody heard of it. An owner only matters for a lock.
        if call.kind is not Kind.LOCK:
            given["owner"] = _NO_OWNER
        given["token"] = _NAMELESS + str(sorted(given.items()))
    # Of whom nobody heard, it matters only who died.
    given["by"] = model.ANYBODY if call.answer is None and call.worker not in dead else process_of(call)
    if call.kind is Kind.BACKFILL:
        del given["owner"]  # a name for people
    if call.verb == "claim":
        given["dead"] = dead
    return lambda row, now: rule(row, **given, now=now)


def write_rule(call: Call) -> WriteRule:
    """The rule of any other write of a lease's row."""
    rule = _rule_of(call, _WRITES)
    given = {**call.arguments, "by": process_of(call)}
    return lambda row, now: rule(row, given, now)


def process_of(call: Call) -> Owner:
    """The process that made a call. In a record a worker is one."""
    return Owner("", call.worker)


def is_nameless(row: Any) -> bool:
    """Whether a row was claimed by a call without an answer, so that its token and owner may be any."""
    token: str | None = getattr(row, "token", None)
    return token is not None and token.startswith(_NAMELESS)


def likeness(call: Call, dead: AbstractSet[str]) -> tuple[Any, ...]:
    """Equal for calls of which one can stand for the other when neither has an answer, and these workers died."""
    matters = {name: value for name, value in call.arguments.items() if name != "owner" or call.kind is Kind.LOCK}
    return (call.worker if call.worker in dead else None, call.key, call.verb, *sorted(matters.items()))


def _requeue(row: Any, now: int) -> tuple[Any, HolderWrite]:
    after, outcome = model.requeue_job(row, now)
    return after, HolderWrite.APPLIED if outcome is Requeue.REQUEUED else HolderWrite.LEASE_LOST


def _rule_of(call: Call, rules: Mapping[tuple[Kind, str], Any]) -> Any:
    try:
        return rules[call.kind, call.verb]
    except KeyError:
        raise InvalidInputError(
            f"a {call.kind} has no verb {call.verb!r}; the docstrings of Kind list those it has"
        ) from None
