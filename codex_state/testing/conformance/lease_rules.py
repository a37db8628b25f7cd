"""The rules of leases, at random: the engine answers what the model in plain Python answers (laws L1 to L4)."""

from __future__ import annotations

from codex_state.database import Database
from codex_state.testing.clock import ManualClock
from codex_state.testing.lease_machine import Store, check_leases


class TestLeaseRules:
    """The state machine of ``codex_state.testing.lease_machine``."""

    def test_every_answer_and_every_row_are_those_of_the_model(self, database: Database, clock: ManualClock) -> None:
        """L1, L2, L3, L4."""
        check_leases(Store(database, clock), examples=20)
