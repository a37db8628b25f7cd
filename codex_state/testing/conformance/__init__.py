"""The behaviour that every engine must show (law L9), as a suite for pytest.

To put an engine of your own through it, write a test module with one fixture::

    from codex_state.testing.conformance import *
    from codex_state.testing.emptying import empty

    @pytest.fixture
    def database(tmp_path):
        settings = StateSettings(codex_home=tmp_path, database_url="postgresql://…")
        with StateRuntime.open(settings) as runtime:
            empty(runtime.database)
            yield runtime.database

Every test then runs against that database, on a clock that it moves by hand; see ``docs/testing.md``. With a fixture
``front`` that says ``asyncio`` or ``trio``, the repositories' tests go through ``AsyncStateRuntime``. For readable
failures let pytest rewrite the assertions: ``pytest.register_assert_rewrite("codex_state.testing")`` in your
``conftest.py``.
"""

from codex_state.testing.conformance.at_once import TestLeasesAtOnce
from codex_state.testing.conformance.backfills import TestBackfills
from codex_state.testing.conformance.candidates import TestCandidates
from codex_state.testing.conformance.claims import TestClaims
from codex_state.testing.conformance.crashes import TestCrashes
from codex_state.testing.conformance.dead_owners import TestDeadOwners, TestDeadOwnersOfBatches
from codex_state.testing.conformance.dynamic_tools import TestDynamicTools
from codex_state.testing.conformance.fixtures import clock, front, processes, state
from codex_state.testing.conformance.holder_writes import TestHolderWrites
from codex_state.testing.conformance.jobs import TestJobs
from codex_state.testing.conformance.lease_rules import TestLeaseRules
from codex_state.testing.conformance.listing import TestListing
from codex_state.testing.conformance.locks import TestConsolidationLocks, TestNamedLocks
from codex_state.testing.conformance.logs import TestLogs
from codex_state.testing.conformance.memories import TestThreadMemories
from codex_state.testing.conformance.modes import TestTransactionModes
from codex_state.testing.conformance.scopes import TestMemoryScopes
from codex_state.testing.conformance.statistics import TestStatistics
from codex_state.testing.conformance.threads import TestThreads
from codex_state.testing.conformance.work import TestWork

__all__ = [
    "TestBackfills",
    "TestCandidates",
    "TestClaims",
    "TestConsolidationLocks",
    "TestCrashes",
    "TestDeadOwners",
    "TestDeadOwnersOfBatches",
    "TestDynamicTools",
    "TestHolderWrites",
    "TestJobs",
    "TestLeaseRules",
    "TestLeasesAtOnce",
    "TestListing",
    "TestLogs",
    "TestMemoryScopes",
    "TestNamedLocks",
    "TestStatistics",
    "TestThreadMemories",
    "TestThreads",
    "TestTransactionModes",
    "TestWork",
    "clock",
    "front",
    "processes",
    "state",
]
