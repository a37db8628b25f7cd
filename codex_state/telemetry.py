"""Counters through the OpenTelemetry API, when it is installed; nothing otherwise.

The names are those of the original runtime, so existing dashboards keep working.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

DB_INIT = "codex.db.init"
"""One per opened runtime; attribute ``status`` is ``opened``, ``created`` or ``open_error``."""

DB_ERROR = "codex.db.error"
"""Errors met on the way; attribute ``stage`` says where."""

DB_BACKFILL = "codex.db.backfill"
"""Rollouts handled by a backfill; attribute ``status`` is ``upserted`` or ``failed``."""

DB_BACKFILL_DURATION = "codex.db.backfill.duration_ms"
"""How long a backfill took, in milliseconds; attribute ``status`` is ``success``, ``partial_failure`` or ``failed``."""


class _Counter(Protocol):
    def add(self, amount: int, attributes: Mapping[str, str]) -> None: ...


class _Histogram(Protocol):
    def record(self, amount: float, attributes: Mapping[str, str]) -> None: ...


@cache
def _counter(name: str) -> _Counter | None:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    return metrics.get_meter("codex_state").create_counter(name)


@cache
def _histogram(name: str) -> _Histogram | None:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    return metrics.get_meter("codex_state").create_histogram(name, unit="ms")


def count(name: str, amount: int = 1, **attributes: str) -> None:
    """Add ``amount`` to the counter ``name``."""
    counter = _counter(name)
    if counter is not None:
        counter.add(amount, attributes)


def record_milliseconds(name: str, milliseconds: float, **attributes: str) -> None:
    """Record one duration in the histogram ``name``."""
    histogram = _histogram(name)
    if histogram is not None:
        histogram.record(milliseconds, attributes)
