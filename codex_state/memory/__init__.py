"""The two-phase memory pipeline that lives on leases.

Phase 1 extracts what is to be remembered of each thread; phase 2 consolidates what each scope has gathered. Both call
the caller's function, keep its leases alive while it works, and stop it in time when that fails.
"""

from codex_state.database.sql import trust_clock
from codex_state.memory.cancellation import StopReason, StopSignal, current_work
from codex_state.memory.consolidation import aconsolidate_memories, consolidate_memories
from codex_state.memory.extraction import arun_phase1, run_phase1
from codex_state.memory.files import memory_root, raw_memory_path
from codex_state.memory.leases import (
    AsyncLeaseKeeper,
    HeldWork,
    KeptLease,
    LeaseKeeper,
    ahold,
    exit_on_sigterm,
    fence,
    hold,
    trust_window,
)
from codex_state.memory.options import ConsolidationOptions, Phase1Options, RetryPolicy
from codex_state.memory.reports import (
    ConsolidationOutcome,
    ConsolidationReport,
    ConsolidationResult,
    ExtractedMemory,
    Phase1Outcome,
    Phase1Progress,
    Phase1Report,
    Phase1Result,
    Phase1Skipped,
)

__all__ = [
    "AsyncLeaseKeeper",
    "ConsolidationOptions",
    "ConsolidationOutcome",
    "ConsolidationReport",
    "ConsolidationResult",
    "ExtractedMemory",
    "HeldWork",
    "KeptLease",
    "LeaseKeeper",
    "Phase1Options",
    "Phase1Outcome",
    "Phase1Progress",
    "Phase1Report",
    "Phase1Result",
    "Phase1Skipped",
    "RetryPolicy",
    "StopReason",
    "StopSignal",
    "aconsolidate_memories",
    "ahold",
    "arun_phase1",
    "consolidate_memories",
    "current_work",
    "exit_on_sigterm",
    "fence",
    "hold",
    "memory_root",
    "raw_memory_path",
    "run_phase1",
    "trust_clock",
    "trust_window",
]
