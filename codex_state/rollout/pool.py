"""Child processes that do a part of the work: jobs go in on their standard input, results come out on standard output.

Plain child processes rather than ``multiprocessing``: they import only what their work needs, so they start in a
moment, and they don't run the caller's main module again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import msgspec

from codex_state.rollout.messages import receive, send

JobT = TypeVar("JobT", bound=msgspec.Struct)
ResultT = TypeVar("ResultT")


def usable_cores() -> int:
    """How many processes can work at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(Generic[JobT, ResultT]):
    """Child processes, and a thread for each that hands it jobs. A child that dies is replaced by this process."""

    def __init__(self, module: str, run: Callable[[JobT], ResultT], result: Any, workers: int) -> None:
        """Start the children.

        Args:
            module: what they run: it calls ``serve``.
            run: the same by this process.
            result: the type of what it gives.
            workers: how many children.
        """
        self._here = run
        self._is_closed = False
        self._children: list[_Child] = []
        # An embedded Python may not know its own executable. A child less is no harm.
        with suppress(OSError, TypeError):
            self._children.extend(_Child(module, result) for _ in range(workers))
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="codex-state-pool")

    def submit(self, job: JobT) -> Future[ResultT]:
        """Have a job done."""
        return self._threads.submit(self._run, job)

    def close(self) -> None:
        """End the children, whatever they do. What they didn't finish is done by nobody."""
        self._is_closed = True
        for child in self._children:
            child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._children:
            child.wait()

    def _run(self, job: JobT) -> ResultT:
        if not self._children:
            return self._here(job)
        child = self._idle.get()
        try:
            results: ResultT | None = child.run(job)
        finally:
            self._idle.put(child)
        if results is not None:
            return results
        if self._is_closed:
            raise CancelledError
        return self._here(job)


class _Child:
    """One child process."""

    def __init__(self, module: str, result: Any) -> None:
        # The child must find the package wherever this process found it.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # noqa: PTH109
        self._process = subprocess.Popen(  # noqa: S603 - a module of this package
            # -P: and nowhere else, least of all in the working directory.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C in a terminal is for the parent, which finishes its batch and ends its children.
            process_group=0 if os.name == "posix" else None,
        )
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(result).decode

    def run(self, job: Any) -> Any:
        """The result of a job; ``None`` when the child is dead."""
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
