"""Interleaved medians: on a noisy machine only ratios taken side by side mean anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import event

from codex_state import StateRuntime


def interleaved(candidates: Mapping[str, Callable[[], object]], *, calls: int, rounds: int = 7) -> dict[str, float]:
    """The median seconds of one call of each candidate, over rounds in which all of them take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, seconds: Mapping[str, float], floor: str, budgets: Mapping[str, float] | None = None) -> None:
    """Print each candidate's time, its ratio to the floor, and the budget it should stay within."""
    print(f"\n{title}")
    for name, value in seconds.items():
        ratio = value / seconds[floor]
        budget = (budgets or {}).get(name)
        note = "" if budget is None else f"   budget {budget:g}x {'ok' if ratio <= budget else 'OVER'}"
        print(f"  {name:<44}{value * 1e6:>12.1f} us {ratio:>8.2f}x{note}")


def sent_by(runtime: StateRuntime, verb: Callable[[], object]) -> list[tuple[str, Any]]:
    """The SQL that a verb sends, with its parameters, as the driver gets them."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: Any) -> None:
        sent.append((statement, parameters))

    event.listen(runtime.engine, "before_cursor_execute", note)
    try:
        verb()
    finally:
        event.remove(runtime.engine, "before_cursor_execute", note)
    return sent
