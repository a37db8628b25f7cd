"""Who does the extracting of a backfill: this process, or child processes beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import islice

from codex_state.rollout.inventory import Change
from codex_state.rollout.pool import Pool, usable_cores
from codex_state.rollout.worker import Job, Result, extract_one, run_job

JOB_SIZE = 25
"""Rollouts per job: enough to make a hop between processes cheap, few enough to share the work evenly."""

_WORTH_WORKERS_BYTES = 48 * 1024 * 1024
"""Below so many bytes, starting processes costs more than it saves."""

_MAX_WORKERS = 8

WhileWaiting = Callable[[], None]
Extracting = tuple[Change, Result | None]
"""A change, and what its file says; nothing for one that is gone."""


def worker_count(total_bytes: int) -> int:
    """How many child processes pay for so many bytes; 0 for none."""
    cores = usable_cores()
    return 0 if total_bytes < _WORTH_WORKERS_BYTES or cores < 2 else min(cores, _MAX_WORKERS)


def in_process(
    changes: Iterable[Change], home: str, default_provider: str, while_waiting: WhileWaiting
) -> Generator[Extracting, None, None]:
    """The result for each change, in order, by this process alone. ``while_waiting`` is called every now and then."""
    for change in changes:
        result = None if change.found is None else extract_one(f"{home}/{change.path}", default_provider)
        while_waiting()
        yield change, result


def in_workers(
    changes: Iterable[Change],
    home: str,
    default_provider: str,
    while_waiting: WhileWaiting,
    *,
    workers: int,
    poll_seconds: float,
) -> Generator[Extracting, None, None]:
    """The same by so many child processes, with ``while_waiting`` called every ``poll_seconds`` at least."""
    source = iter(changes)
    pending: deque[tuple[list[Change], Future[list[Result]]]] = deque()
    with closing(Pool("codex_state.rollout.worker", run_job, list[Result], workers)) as pool:
        while True:
            # So much that the children go on while a batch is stored, and little beside what a batch holds.
            while len(pending) < workers * 8 and (batch := list(islice(source, JOB_SIZE))):
                paths = [f"{home}/{change.path}" for change in batch if change.found is not None]
                pending.append((batch, pool.submit(Job(paths, default_provider))))
            if not pending:
                return
            batch, future = pending.popleft()
            while_waiting()
            while not wait([future], poll_seconds).done:
                while_waiting()
            results = iter(future.result())
            for change in batch:
                yield change, None if change.found is None else next(results)
