"""The behaviour that every engine must show (law L9), as a suite for pytest.

To put an engine of your own through it, write a test module with one fixture::

    from codex_state.testing.conformance import *

    @pytest.fixture
    def database():
        database = Database.open("postgresql://…")
        ...  # bring it to the current schema, with no rows
        yield database
        database.close()

Every test then runs against that database, on a clock that it moves by hand. For readable failures let pytest rewrite
the assertions: ``pytest.register_assert_rewrite("codex_state.testing.conformance")`` in your ``conftest.py``.
"""

from codex_state.testing.conformance.at_once import TestLeasesAtOnce
from codex_state.testing.conformance.backfills import TestBackfills
from codex_state.testing.conformance.candidates import TestCandidates
from codex_state.testing.conformance.claims import TestClaims
from codex_state.testing.conformance.dynamic_tools import TestDynamicTools
from codex_state.testing.conformance.fixtures import clock, front, state
from codex_state.testing.conformance.holder_writes import TestHolderWrites
from codex_state.testing.conformance.jobs import TestJobs
from codex_state.testing.conformance.lease_rules import TestLeaseRules
from codex_state.testing.conformance.listing import TestListing
from codex_state.testing.conformance.locks import TestConsolidationLocks
from codex_state.testing.conformance.logs import TestLogs
from codex_state.testing.conformance.memories import TestThreadMemories
from codex_state.testing.conformance.modes import TestTransactionModes
from codex_state.testing.conformance.scopes import TestMemoryScopes
from codex_state.testing.conformance.threads import TestThreads

__all__ = [
    "TestBackfills",
    "TestCandidates",
    "TestClaims",
    "TestConsolidationLocks",
    "TestDynamicTools",
    "TestHolderWrites",
    "TestJobs",
    "TestLeaseRules",
    "TestLeasesAtOnce",
    "TestListing",
    "TestLogs",
    "TestMemoryScopes",
    "TestThreadMemories",
    "TestThreads",
    "TestTransactionModes",
    "clock",
    "front",
    "state",
]
