"""The verdict on one run of the chaos: what broke a law, and the figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.conductor import Pause, Run
from tests.chaos.recovery import figures_of_outages, may_be_seen, not_recovered
from tests.chaos.replay import Replay, finished_twice
from tests.history import LOST, Call, Kind, UndecidedHistoryError, find_violation

_DONE: dict[tuple[Kind, str], set[str]] = {
    (Kind.JOB, "renew"): {"job renewed"},
    (Kind.JOB, "succeed"): {"job succeeded"},
    (Kind.JOB, "fail"): {"job failed"},
    (Kind.JOB, "release"): {"job failed"},
    (Kind.JOB, "write_memory_if_owner"): {"memory written"},
    (Kind.LOCK, "renew"): {"lock renewed"},
    (Kind.LOCK, "release"): {"lock released"},
    (Kind.BACKFILL, "renew"): {"backfill renewed"},
    (Kind.BACKFILL, "checkpoint"): {"backfill checkpointed", "backfill renewed"},
    (Kind.BACKFILL, "complete"): {"backfill complete"},
    (Kind.BACKFILL, "release"): {"backfill pending"},
}
"""What the database must have recorded under the token of a write that was answered as made: one of these."""

_STORED = {"store memory": "job succeeded", "store nothing": "job succeeded", "store failure": "job failed"}

_LEASES_OF_A_BATCH = 8


@dataclass
class Verdict:
    """What came of a run."""

    problems: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)


def judge(run: Run) -> Verdict:
    """Hold a run against the laws."""
    verdict = Verdict()
    journal = list(_journal_of(run))
    replay = Replay(run.ended).of(run.records)
    errors = [entry for entry in journal if entry["what"] == "error"]
    verdict.problems += run.failures
    verdict.problems += [
        f"a caller saw an error: {entry['operation']}: {entry['kind']}: {entry['error']}"
        for entry in errors
        if not (run.outages and may_be_seen(entry))
    ]
    verdict.problems += not_recovered(run, journal)
    verdict.problems += [] if run.integrity == "ok" else [f"integrity: {run.integrity}"]
    verdict.problems += replay.problems
    verdict.problems += finished_twice(run.records)
    verdict.problems += _answers_without_ground(run.calls, journal, replay)
    verdict.problems += _unheard(run, journal, replay)
    order = _legal_order(run, verdict)
    _count(verdict, run, journal, replay, errors=len(errors), order=order)
    return verdict


def _journal_of(run: Run) -> Iterator[dict[str, Any]]:
    for path in run.journals:
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield {"worker": path.stem} | json.loads(line)


# What workers were told, against what the database recorded


def _answers_without_ground(calls: Sequence[Call], journal: Sequence[dict[str, Any]], replay: Replay) -> Iterator[str]:
    for call in calls:
        token = call.arguments.get("token")
        if call.answer is None:
            continue
        if call.granted and call.answer.token not in replay.granted:
            yield f"a grant that the database doesn't know: {call}"
        if token is None:
            continue
        if call.answer.outcome == LOST:
            if token not in replay.void:
                yield f"refused, though nobody took over and it wasn't finished: {call}"
        elif not _DONE[call.kind, call.verb] & replay.written[token]:
            yield f"answered as made, but the database doesn't know: {call}"
    for entry in journal:
        if not set(entry.get("tokens", ())) <= replay.granted.keys():
            yield f"a grant that the database doesn't know: {entry}"
        if entry.get("answer") == "lost" and entry["token"] not in replay.void:
            yield f"refused, though nobody took over and it wasn't finished: {entry}"
        if entry.get("answer") == "applied" and _STORED[entry["what"]] not in replay.written[entry["token"]]:
            yield f"answered as stored, but the database doesn't know: {entry}"
        if entry.get("clean") and "scope cleaned" not in replay.written[entry["token"]]:
            yield f"answered as clean, but the database doesn't know: {entry}"


def _unheard(run: Run, journal: Sequence[dict[str, Any]], replay: Replay) -> Iterator[str]:
    """Only a worker that was killed, or that was cut off, doesn't hear of its grant."""
    heard = {call.answer.token for call in run.calls if call.granted and call.answer is not None}
    heard |= {token for entry in journal for token in entry.get("tokens", ())}
    unheard = replay.granted.keys() - heard
    cut_off = run.kills + len(run.outages) * len(run.last)
    if len(unheard) > cut_off * _LEASES_OF_A_BATCH:
        yield f"{len(unheard)} grants that nobody was told of, with {cut_off} workers killed or cut off"


def _legal_order(run: Run, verdict: Verdict) -> str:
    try:
        violation = find_violation(run.calls)
    except UndecidedHistoryError as error:
        return f"undecided: {error}"
    if violation is not None:
        verdict.problems.append(str(violation))
        return "NO"
    return "yes"


# Figures


def _count(
    verdict: Verdict, run: Run, journal: Sequence[dict[str, Any]], replay: Replay, *, errors: int, order: str
) -> None:
    counts = replay.counts
    refused = sum(call.answer is not None and call.answer.outcome == LOST for call in run.calls)
    refused += sum(entry.get("answer") == "lost" for entry in journal)
    timed = list(_timed(run.calls, journal))
    undisturbed, all_waits = _waits(run, timed)
    verdict.figures |= {
        "calls": f"{len(timed)} ({len(timed) / run.seconds:.0f}/s)",
        "claims granted": _of_each(counts, "claimed"),
        "of these stolen": _of_each(counts, "stolen"),
        "jobs finished": f"{counts['job succeeded']} succeeded, {counts['job failed']} failed or given back",
        "memories written": str(counts["memory written"]),
        "batches with checkpoint": str(counts["batch stored"]),
        "zombie writes refused": str(refused),
        "workers killed": str(run.kills),
        "workers paused": str(len(run.pauses)),
        "clock jumps": str(run.jumps) if run.manual else "none, the real clock",
        "changes replayed": str(len(run.records)),
        "double grants": str(sum("double grant" in problem for problem in verdict.problems)),
        "errors seen by callers": str(errors),
        "legal order of calls": order,
        "worst wait": f"{_milliseconds(undisturbed, 1.0)}, p99.9 {_milliseconds(undisturbed, 0.999)}",
        "worst wait behind a paused writer": _milliseconds(all_waits, 1.0),
        "integrity": run.integrity,
    }
    if run.outages:
        verdict.figures |= figures_of_outages(run, journal)


def _of_each(counts: Counter[str], what: str) -> str:
    return ", ".join(f"{counts[f'{kind} {what}']} {kind}s" for kind in ("job", "lock", "backfill"))


@dataclass(frozen=True, slots=True)
class _Timed:
    worker: str
    start: int
    end: int | None


def _timed(calls: Iterable[Call], journal: Iterable[dict[str, Any]]) -> Iterator[_Timed]:
    for call in calls:
        yield _Timed(call.worker, call.start, call.end)
    for entry in journal:
        if "start" in entry:
            yield _Timed(entry["worker"], entry["start"], entry["end"])


def _waits(run: Run, timed: Sequence[_Timed]) -> tuple[list[int], list[int]]:
    """How long calls took, in nanoseconds: those that nothing disturbed, and all but those that were paused themselves.

    A worker that is stopped in the middle of a call may hold a lock, on SQLite the only one. No one can help that, so
    its pause counts separately.
    """
    by_worker: dict[str, list[Pause]] = {}
    for pause in run.pauses:
        by_worker.setdefault(pause.worker, []).append(pause)
    within_a_call = sorted(
        {
            (pause.start, pause.end)
            for call in timed
            for pause in by_worker.get(call.worker, ())
            if call.start < pause.end and (call.end is None or call.end > pause.start)
        }
    )
    undisturbed, others = [], []
    for call in timed:
        if call.end is None or any(
            pause.start < call.end and call.start < pause.end for pause in by_worker.get(call.worker, ())
        ):
            continue
        others.append(call.end - call.start)
        if not any(start < call.end and call.start < end for start, end in within_a_call):
            undisturbed.append(call.end - call.start)
    return undisturbed, others


def _milliseconds(waits: list[int], share: float) -> str:
    if not waits:
        return "-"
    waits = sorted(waits)
    index = min(int(len(waits) * share), len(waits) - 1)
    return f"{waits[index] / 1e6:.1f} ms"
