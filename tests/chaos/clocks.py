"""Clocks of clients that are wrong, or that run at another rate: what a process tells its own Python code about time.

Whatever Python asks is answered wrongly: ``time.time``, ``time.monotonic``, ``time.clock_gettime`` and
``datetime.now``. How long it sleeps and waits is as before, as is ``time.monotonic_ns``, by which records are ordered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from codex_state.database.sql import trust_clock
from codex_state.rollout import lookup
from tests.chaos.channel import Channel

true_monotonic = time.monotonic
"""For what the chaos itself needs to know."""


@dataclass(frozen=True)
class ClientClock:
    """How a client's clocks differ."""

    ahead: timedelta = timedelta(0)
    """By how much all of them are ahead at the beginning; negative is behind."""
    rate: float = 1.0
    """How fast they run."""


RIGHT = ClientClock()
HOUR = timedelta(hours=1)
WRONG_CLOCKS = (
    ClientClock(HOUR),
    ClientClock(-HOUR, rate=2.0),
    ClientClock(HOUR, rate=0.5),
    ClientClock(-HOUR),
    ClientClock(rate=2.0),
    ClientClock(rate=0.5),
)


def install(clock: ClientClock) -> None:
    """Live by ``clock`` from now on. For processes that never need the time again."""
    time.time = _wrong(time.time, clock)
    time.monotonic = _wrong(time.monotonic, clock)
    ask = time.clock_gettime
    by_kind: dict[int, Callable[[], float]] = {}

    def clock_gettime(kind: int) -> float:
        if kind not in by_kind:
            by_kind[kind] = _wrong(lambda: ask(kind), clock)
        return by_kind[kind]()

    time.clock_gettime = clock_gettime
    _replace_datetime(_datetime_of(time.time))


def _wrong(ask: Callable[[], float], clock: ClientClock) -> Callable[[], float]:
    began = ask()
    return lambda: began + clock.ahead.total_seconds() + (ask() - began) * clock.rate


def _datetime_of(seconds: Callable[[], float]) -> type[datetime]:
    class _Kind(type):
        # Whatever the drivers make of stored times is a date as well.
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, datetime)

    class WrongDatetime(datetime, metaclass=_Kind):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(seconds(), tz)

    return WrongDatetime


def _replace_datetime(wrong: type[datetime]) -> None:
    """In all of our modules, which have taken it by its name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "codex_state":
            for attribute, value in list(vars(module).items()):
                if value is datetime:
                    setattr(module, attribute, wrong)


def tell(channel: Channel, ahead: float, rate: float) -> None:
    """What our code is told by a wrong clock: the time, and how much of it passed while a little of it did."""
    install(ClientClock(timedelta(seconds=ahead), rate))

    def moments() -> list[float]:
        return [true_monotonic(), time.monotonic(), trust_clock(), time.time()]

    start = moments()
    time.sleep(0.3)
    true, monotonic, trusted, elapsed = (after - before for before, after in zip(start, moments(), strict=True))
    channel.send(
        {
            "true": true,
            "monotonic": monotonic,
            "trusted": trusted,
            "elapsed": elapsed,
            "time": time.time(),
            "datetime": lookup.datetime.now(UTC).timestamp(),  # type: ignore[attr-defined]
        }
    )
