"""What a recorded run consists of: calls, each with its time and, unless its worker died, its answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from codex_state.testing.lease_model import GRANTED

APPLIED = "applied"
"""The outcome of a holder's write that was made, and of every write that needs no lease."""

LOST = "lease_lost"
"""The outcome of a holder's write that was refused."""

READ = "read"
"""The outcome of a call that only tells something."""

ANY_KEY = "*"
"""The key of a call on several keys until its answer tells which. Unanswered, it may have changed all of them."""

LEASE_TIMES = frozenset({"started_at", "retry_at", "updated_at"})
"""The columns of which one, depending on the row, decides over its lease."""


class Kind(StrEnum):
    """What a call is about. Calls of different kinds or keys never share a row."""

    JOB = "job"
    """An extraction job and its memory. Verbs: ``claim(owner, source, lease)``, ``renew(token)``,
    ``succeed(token, path, summary)``, ``fail(token, reason, retry_after)``, ``release(token, reason)``, ``requeue()``,
    ``write_memory_if_owner(token, raw, summary)``, ``write_memory(raw, summary)``, ``read()``, ``read_memory()``."""
    LOCK = "lock"
    """A memory root's lock. Verbs: ``claim(owner, lease)``, ``renew(token)``, ``release(token)``, ``read()``."""
    BACKFILL = "backfill"
    """A home's backfill. Verbs: ``claim(owner, lease, again)``, ``take_over(owner, lease, from_the_start)``,
    ``renew(token)``, ``checkpoint(token, watermark)``, ``complete(token, watermark)``, ``release(token)``,
    ``read()``."""
    WORKER = "worker"
    """A worker of the record. Verb: ``die()``, after which its process is dead and others may have its leases."""
    CLOCK = "clock"
    """The database's clock. Verbs: ``read()``, and ``set(seconds)`` of one that is moved by hand."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call answered."""

    outcome: str
    """``GRANTED`` or the ``SkipReason`` of a claim, ``APPLIED`` or ``LOST`` of a holder's write, ``APPLIED`` or the
    ``Requeue`` of a requeue, ``READ``."""
    seconds: int | None = None
    """The time that came back, in whole epoch seconds: of a grant, a renewal, a memory or the clock."""
    token: str | None = None
    """The ownership token of a grant."""
    attempt: int | None = None
    """The fencing number of a job's grant."""
    failures: int | None = None
    """How many failures a job's grant told of."""
    watermark: str | None = None
    """Where a backfill's grant says that the work stands."""
    row: Mapping[str, Any] | None = None
    """What a read found, by the names of the lease model; ``None`` when there was no row."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one worker."""

    worker: str
    kind: Kind
    key: str
    """Which job, lock or backfill."""
    verb: str
    start: int
    """A moment before anything was sent, in nanoseconds of a monotonic clock that all workers share."""
    end: int | None = None
    """A moment after the answer was there. ``None``: the worker died or got an error, and what it asked for may or may
    not have happened, or may happen yet."""
    answer: Answer | None = None
    """``None`` exactly when ``end`` is."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Durations and times in whole seconds, everything else as text."""

    @property
    def granted(self) -> bool:
        """Whether it is a claim that was granted."""
        return self.answer is not None and self.answer.outcome == GRANTED


def read_calls(paths: Iterable[Path]) -> list[Call]:
    """The calls that ``Recorder``s wrote to files, merged, by their start.

    Args:
        paths: the files. A last line that its worker didn't live to finish is passed over.
    """
    begun: dict[str, dict[str, Any]] = {}
    ended: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_bytes().split(b"\n")[:-1]:
            event = json.loads(line)
            (begun if "start" in event else ended)[event["id"]] = event
    calls = [_call_of(event, ended.get(identity)) for identity, event in begun.items()]
    return sorted(calls, key=lambda call: call.start)


def _call_of(begun: dict[str, Any], ended: dict[str, Any] | None) -> Call:
    return Call(
        worker=begun["worker"],
        kind=Kind(begun["kind"]),
        key=begun["key"],
        verb=begun["verb"],
        start=begun["start"],
        end=None if ended is None else ended["end"],
        answer=None if ended is None else Answer(**ended["answer"]),
        arguments=begun["arguments"],
    )
