"""The verdict on outages: which errors callers may see, and whether every worker got over them by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.chaos.conductor import Run

_UNKNOWN = {"UnknownCommitOutcomeError"}
_MAY_BE_SEEN: Mapping[str, set[str]] = {
    # What goes through run and run_read: they wait for the server, and repeat what surely wasn't kept.
    "read": set(),
    "touch": _UNKNOWN,
    "store give back": _UNKNOWN,
    "pass": _UNKNOWN,
    # These ask what became of their commit.
    "store memory": set(),
    "store nothing": set(),
    "store failure": set(),
}
_OF_A_SINGLE_CALL = _UNKNOWN | {"ConnectionLostError", "ServerUnavailableError"}


def may_be_seen(error: Mapping[str, Any]) -> bool:
    """Whether a caller may see this error when servers go away."""
    return error["kind"] in _MAY_BE_SEEN.get(error["operation"], _OF_A_SINGLE_CALL)


def not_recovered(run: Run, journal: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The workers that were there at the end and got no answer after the last outage."""
    if not run.outages:
        return
    ended = max(outage.end for outage in run.outages)
    answers = _answers(run, journal)
    for name in run.last:
        if max(answers.get(name, [0])) < ended:
            yield f"{name} got no answer after the last outage"


def figures_of_outages(run: Run, journal: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How often the server or the pooler was away, what callers saw of it, and how soon they got answers again."""
    errors = Counter(entry["kind"] for entry in journal if entry["what"] == "error")
    waits = sorted(_waits(run, journal))
    longest = max(outage.end - outage.start for outage in run.outages)
    answered = f"median {waits[len(waits) // 2] / 1e6:.0f} ms, longest {waits[-1] / 1e6:.0f} ms" if waits else "-"
    return {
        f"{run.failing} killed": f"{len(run.outages)} times, away for {longest / 1e9:.1f} s at most",
        "errors by class": ", ".join(f"{count} {kind}" for kind, count in errors.most_common()) or "none",
        "first answer after an outage": answered,
    }


def _answers(run: Run, journal: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """When each worker got answers."""
    answers: dict[str, list[int]] = {}
    for call in run.calls:
        if call.end is not None:
            answers.setdefault(call.worker, []).append(call.end)
    for entry in journal:
        if "end" in entry:
            answers.setdefault(entry["worker"], []).append(entry["end"])
    return {worker: sorted(ends) for worker, ends in answers.items()}


def _waits(run: Run, journal: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """How long each worker that was there before and after an outage waited for its first answer.

    One that was paused waits for that.
    """
    paused = [(pause.worker, pause.start, pause.end) for pause in run.pauses]
    answers = _answers(run, journal)
    answers.pop("conductor", None)  # it looks at the beginning and at the end only
    for worker, ends in answers.items():
        for outage in run.outages:
            first = next((end for end in ends if end > outage.end), None)
            if first is None or ends[0] > outage.start:
                continue
            if not any(who == worker and start < first and end > outage.start for who, start, end in paused):
                yield first - outage.end
