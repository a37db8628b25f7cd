"""Who does the extracting of a backfill: this process, or child processes beside it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import Protocol

import msgspec

from codex_state.rollout.inventory import Change
from codex_state.rollout.worker import Job, Result, extract_one, receive, run_job, send

_log = logging.getLogger("codex_state")

JOB_SIZE = 25
"""Rollouts per job: enough to make a hop between processes cheap, few enough to share the work evenly."""

_WORTH_WORKERS_BYTES = 48 * 1024 * 1024
"""Below so many bytes, starting processes costs more than it saves."""

_MAX_WORKERS = 8

WhileWaiting = Callable[[], None]


class Extractor(Protocol):
    """Extracts rollouts in order, holding only a few results at a time."""

    def results(self, changes: Iterable[Change], while_waiting: WhileWaiting) -> Iterator[tuple[Change, Result | None]]:
        """The result for each change, in order; none for a file that is gone.

        ``while_waiting`` is called every now and then.
        """

    def close(self) -> None:
        """Stop."""


def worker_count(total_bytes: int) -> int:
    """How many child processes pay for so many bytes; 0 for none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if total_bytes < _WORTH_WORKERS_BYTES or cores < 2 else min(cores, _MAX_WORKERS)


class InProcess:
    """Extracts in this process, one rollout after the other."""

    def __init__(self, home: str, default_provider: str) -> None:
        self._home = home
        self._default_provider = default_provider

    def results(self, changes: Iterable[Change], while_waiting: WhileWaiting) -> Iterator[tuple[Change, Result | None]]:
        """The result for each change, in order."""
        for change in changes:
            there = change.found is not None
            result = extract_one(f"{self._home}/{change.path}", self._default_provider) if there else None
            while_waiting()
            yield change, result

    def close(self) -> None:
        """Nothing to stop."""


class InWorkers:
    """Extracts in child processes. A thread for each hands it jobs; a child that dies is replaced by this process."""

    def __init__(self, home: str, default_provider: str, workers: int, poll_seconds: float) -> None:
        self._home = home
        self._default_provider = default_provider
        self._poll_seconds = poll_seconds
        # So much that the children go on while a batch is stored, and little beside what a batch holds.
        self._ahead = workers * 8
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        self._children: list[_Child] = []
        try:
            for _ in range(workers):
                self._children.append(_Child())
        except OSError as error:
            # An embedded Python may not know its own executable. A child less is no harm.
            _log.info("a decoding process can't be started: %s", error)
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="codex-state-extract")

    def results(self, changes: Iterable[Change], while_waiting: WhileWaiting) -> Iterator[tuple[Change, Result | None]]:
        """The result for each change, in order."""
        source = iter(changes)
        pending: deque[tuple[list[Change], Future[list[Result]]]] = deque()
        while True:
            while len(pending) < self._ahead and (batch := list(islice(source, JOB_SIZE))):
                paths = [f"{self._home}/{change.path}" for change in batch if change.found is not None]
                pending.append((batch, self._threads.submit(self._run, Job(paths, self._default_provider))))
            if not pending:
                return
            batch, future = pending.popleft()
            while True:
                try:
                    results = iter(future.result(timeout=self._poll_seconds))
                    break
                except TimeoutError:
                    while_waiting()
            while_waiting()
            for change in batch:
                yield change, None if change.found is None else next(results)

    def close(self) -> None:
        """End the children: they stop when their input ends, and at once when they are told to."""
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
