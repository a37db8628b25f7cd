"""The tests of the shipped conformance suite as checks: what a user's own engine is measured by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

from codex_state.testing import conformance
from codex_state.testing.processes import ManualProcesses
from tests.mutants.bench import Bench, Check

SUITE = (
    conformance.TestClaims,
    conformance.TestJobs,
    conformance.TestCrashes,
    conformance.TestThreadMemories,
    conformance.TestMemoryScopes,
    conformance.TestConsolidationLocks,
    conformance.TestNamedLocks,
    conformance.TestBackfills,
    conformance.TestCandidates,
    conformance.TestDeadOwners,
    conformance.TestDeadOwnersOfBatches,
)


def suite_checks() -> Iterator[Check]:
    """The tests of the shipped suite that are about leases, with each of their parameters."""
    for family in SUITE:
        for name, test in inspect.getmembers(family, inspect.isfunction):
            if name.startswith("test_"):
                for label, values in _parameters_of(test):
                    yield Check(f"{family.__name__}.{name}{label}", _in_suite(family, test, values))


def _parameters_of(test: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    axes = []
    for mark in getattr(test, "pytestmark", ()):
        names, rows = mark.args
        names = names if isinstance(names, (list, tuple)) else [name.strip() for name in names.split(",")]
        rows = [row.values if hasattr(row, "marks") else row for row in rows]
        axes.append([dict(zip(names, row if len(names) > 1 else [row], strict=True)) for row in rows])
    for chosen in product(*axes):
        values = {name: value for row in chosen for name, value in row.items()}
        yield f"[{', '.join(map(str, values.values()))}]" if values else "", values


def _in_suite(family: type, test: Any, values: dict[str, Any]) -> Callable[[Bench], None]:
    wanted = inspect.signature(test).parameters

    def run(bench: Bench) -> None:
        processes = ManualProcesses()
        with bench.session() as (state, clock), ExitStack() as held:
            there = {"clock": clock, "processes": processes}
            if "processes" in wanted:
                held.enter_context(processes.installed(bench.memory))
            test(family(), state, **values, **{name: value for name, value in there.items() if name in wanted})

    return run
