"""The lease model beside the real store, step by step, for many steps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from codex_state import StateRuntime, StateSettings
from codex_state.database import Database
from codex_state.testing.clock import ManualClock
from codex_state.testing.lease_machine import LeaseMachine, Store
from codex_state.testing.samples import NOON
from tests.chaos.verdict import Verdict

_STEPS_OF_AN_EXAMPLE = 50
_EXAMPLES_OF_A_ROUND = 50


def agreement(url: str, directory: Path, steps: int, number: int) -> Verdict:
    """Run the state machine for at least so many steps."""
    verdict = Verdict()
    StateRuntime.open(StateSettings(codex_home=directory, database_url=url)).close()
    database = Database.open(url)
    with ManualClock(directory / "clock", NOON) as clock:
        clock.install(database)
        try:
            done = _run(Store(database, clock), steps, number)
        except AssertionError as error:
            verdict.problems.append("\n".join([f"model and store disagree: {error}", *getattr(error, "__notes__", ())]))
            return verdict
        finally:
            database.close()
    verdict.figures["steps in agreement with the model"] = str(done)
    return verdict


def _run(store: Store, steps: int, number: int) -> int:
    class Counting(LeaseMachine):
        stores = (store,)
        steps: ClassVar[int] = 0

        @invariant()
        def count(self) -> None:
            Counting.steps += 1

    while Counting.steps < steps:
        machine = seed(number)(Counting)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=min(_EXAMPLES_OF_A_ROUND, -(-steps // _STEPS_OF_AN_EXAMPLE)),
                stateful_step_count=_STEPS_OF_AN_EXAMPLE,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        number += 1
    return Counting.steps
