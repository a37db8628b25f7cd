"""What others depend on is killed again and again while they use it, and comes back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import Protocol

_LONGEST_THERE, _LONGEST_AWAY = 40.0, 2.0
_TIMES_OF_A_RUN = 8
_SHORTEST_TO_LONGEST = 8


@dataclass(frozen=True)
class Outage:
    """From the kill until the server answered again, in nanoseconds of the monotonic clock."""

    start: int
    end: int


class Killable(Protocol):
    """A server, or what is in front of one."""

    @property
    def kind(self) -> str:
        """What it is called."""

    @property
    def ways_to_end(self) -> Sequence[Signals]:
        """The signals that end it at once."""

    def start(self) -> None:
        """Start it and wait until it answers."""

    def kill(self, number: Signals, /) -> None:
        """End it by one of these signals."""


class Outages:
    """What is done to servers, from a thread of its own."""

    def __init__(self, servers: Sequence[Killable], seed: int, seconds: float) -> None:
        """Prepare.

        Args:
            servers: they run. One of them is killed at a time.
            seed: decides which and when, how, and for how long it is away.
            seconds: how long the run is. In a long one it is there for 5 to 40 s and away for up to 2 s; in a short one
                less, so that it fails some times.
        """
        self.seen: list[Outage] = []
        self.kind = " or ".join(server.kind for server in servers)
        self._servers = servers
        self._random = random.Random(seed)
        self._longest = min(_LONGEST_THERE, max(seconds / _TIMES_OF_A_RUN, 2.0))
        self._error: BaseException | None = None

    @contextmanager
    def until(self, moment: float) -> Iterator[None]:
        """Kill and restart them while the block runs, but not after ``moment``. At its end they are there."""
        thread = threading.Thread(target=self._go_on, args=(moment,))
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if self._error is not None:
            raise self._error

    def _go_on(self, moment: float) -> None:
        try:
            shortest = self._longest / _SHORTEST_TO_LONGEST
            while (rest := self._random.uniform(shortest, self._longest)) < moment - time.monotonic():
                time.sleep(rest)
                self._once()
        except BaseException as error:  # noqa: BLE001 - it is raised where the block ends
            self._error = error

    def _once(self) -> None:
        server = self._random.choice(self._servers)
        began = time.monotonic_ns()
        server.kill(self._random.choice(server.ways_to_end))
        time.sleep(self._random.uniform(0, min(_LONGEST_AWAY, self._longest / 4)))
        server.start()
        self.seen.append(Outage(began, time.monotonic_ns()))
