"""Who does the extracting of a backfill: this process, or child processes beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from itertools import islice
from queue import SimpleQueue

import msgspec

from codex_state.rollout.inventory import Change
from codex_state.rollout.worker import Job, Result, extract_one, receive, run_job, send

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    with closing(_Pool(workers)) as pool:
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


class _Pool:
    """Child processes, and a thread for each that hands it jobs. A child that dies is replaced by this process."""

    def __init__(self, workers: int) -> None:
        self._children: list[_Child] = []
        # An embedded Python may not know its own executable. A child less is no harm.
        with suppress(OSError):
            self._children.extend(_Child() for _ in range(workers))
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="codex-state-extract")

    def submit(self, job: Job) -> Future[list[Result]]:
        return self._threads.submit(self._run, job)

    def close(self) -> None:
        for child in self._children:
            child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            child.wait()

    def _run(self, job: Job) -> list[Result]:
        if not self._children:
            return run_job(job)
        child = self._idle.get()
        try:
            results = child.run(job)
        finally:
            self._idle.put(child)
        return run_job(job) if results is None else results


class _Child:
    """One child process."""

    def __init__(self) -> None:
        # The child must find the package wherever this process found it.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # noqa: PTH109
        self._process = subprocess.Popen(
            # -P: and nowhere else, least of all in the working directory.
            [sys.executable, "-P", "-m", "codex_state.rollout.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C in a terminal is for the parent, which finishes its batch and ends its children.
            process_group=0 if os.name == "posix" else None,
        )
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[Result]).decode

    def run(self, job: Job) -> list[Result] | None:
        """The results of a job; ``None`` when the child is dead."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            send(stdin, self._encode(job))
            message = receive(stdout)
            return None if message is None else self._decode(message)
        except (OSError, ValueError):  # a dead child, or one that said something else
            return None

    def kill(self) -> None:
        """End it now; it holds nothing that could be lost."""
        self._process.kill()

    def wait(self) -> None:
        """Reap it."""
        with suppress(OSError):
            self._process.communicate()
