"""Worker processes that a test starts, talks to, stops, continues and kills. It touches no process but its own."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.chaos.channel import Channel, ChannelClosedError

ROOT = Path(__file__).parents[2]

_LONGEST_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.001


class WorkerError(Exception):
    """A worker failed; the text is its traceback."""


class WorkerHost:
    """Starts workers. Leaving the block ends those that still run."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.host", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt at the keyboard is for the parent, which ends them all
            )
        self._answers = self._control.makefile("rb")

    def start(self, function: str, **arguments: Any) -> Worker:
        """Run ``function``, named as ``module:name``, with a channel and ``arguments`` in a process of its own."""
        ours, theirs = socket.socketpair()
        with theirs:
            request = json.dumps({"function": function, "arguments": arguments}, default=str).encode() + b"\n"
            socket.send_fds(self._control, [request], [theirs.fileno()])
            pid = self._answer()["pid"]
        worker = Worker(self, pid, Channel(ours))
        self._workers.append(worker)
        return worker

    def event_of(self, pid: int) -> dict[str, Any]:
        """What happened to a worker since it was last asked for."""
        self._control.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise WorkerError("the host of the workers has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end_workers(self) -> None:
        """End every worker."""
        while self._workers:
            self._workers.pop().close()

    def close(self) -> None:
        """End every worker, and what starts them."""
        self.end_workers()
        self._answers.close()
        self._control.close()
        self._process.wait(_LONGEST_WAIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Worker:
    """One started process."""

    def __init__(self, host: WorkerHost, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.status: int | None = None
        """How it ended; negative is a signal. ``None`` while it is there."""
        self._host = host
        self._channel = channel

    def send(self, message: object) -> None:
        """Send it a message."""
        self._channel.send(message)

    def receive(self) -> Any:
        """Its next message.

        Raises:
            WorkerError: it failed or ended instead.
        """
        try:
            message = self._channel.receive(_LONGEST_WAIT_SECONDS)
        except ChannelClosedError:
            raise WorkerError(f"worker {self.pid} ended without a word") from None
        if isinstance(message, dict) and "error" in message:
            raise WorkerError(message["error"])
        return message

    def call(self, message: object) -> Any:
        """Send it a message and wait for the answer."""
        self.send(message)
        return self.receive()

    def stop(self) -> None:
        """Stop it where it is, whatever it is doing."""
        self._signal(signal.SIGSTOP)
        self._wait_for("stopped")

    def proceed(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        self._wait_for("continued")

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself.

        Raises:
            WorkerError: it ended instead.
        """
        self._wait_for("stopped")
        if self.status is not None:
            raise WorkerError(f"worker {self.pid} ended instead of stopping")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, without a chance to clean up. Does nothing when it has ended."""
        if self.has_ended():
            return
        self._signal(signal.SIGKILL)
        self._wait_for("ended")

    def wait(self) -> int:
        """Wait for its end; answers its exit status, negative for a signal."""
        if self.status is None:
            self._wait_for("ended")
        assert self.status is not None
        return self.status

    def has_ended(self) -> bool:
        """Whether it has ended by now."""
        while self.status is None:
            event = self._host.event_of(self.pid)
            if event["event"] is None:
                return False
            self._note(event)
        return True

    def _signal(self, number: signal.Signals) -> None:
        # Until its end was noted it is at least a zombie, so the id is nobody else's.
        if self.status is None:
            os.kill(self.pid, number)

    def _wait_for(self, wanted: str) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while self.status is None:
            event = self._host.event_of(self.pid)
            self._note(event)
            if event["event"] == wanted:
                return
            if time.monotonic() > deadline:
                raise WorkerError(f"worker {self.pid} has not {wanted}")
            time.sleep(_POLL_SECONDS)

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            self.status = event["status"]

    def close(self) -> None:
        """End it and hang up."""
        self.kill()
        self._channel.close()


@cache
def shared_host() -> WorkerHost:
    """The host of whoever needs none of their own, started when it is first wanted."""
    host = WorkerHost()
    atexit.register(host.close)
    return host
