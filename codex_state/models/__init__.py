"""The entities and the values they speak."""

from codex_state.models.backfill import BackfillState, BackfillStatus, FileRow, RolloutFile, RolloutFileState
from codex_state.models.base import StateModel, entities, metadata
from codex_state.models.leases import (
    CRASHES_ALLOWED,
    SCOPE_CWD,
    SCOPE_USER,
    BackfillLease,
    Claimed,
    HolderWrite,
    Lease,
    LockLease,
    MemoryScope,
    NamedLease,
    Phase1Key,
    Phase1Lease,
    Product,
    Requeue,
    Skipped,
    SkipReason,
)
from codex_state.models.log import LogEntry, LogSegment
from codex_state.models.memory import (
    ConsolidationLock,
    MemoryScopeDirty,
    NamedLock,
    Phase1Job,
    Phase1Status,
    ThreadMemory,
)
from codex_state.models.queries import (
    Anchor,
    LogQuery,
    SortKey,
    ThreadQuery,
    ThreadsPage,
    UnreadableRow,
    UnshownThreads,
)
from codex_state.models.relations import relate
from codex_state.models.thread import (
    EXTRACTABLE_THREADS,
    IS_SHOWN,
    LOCAL_HOME,
    SHOWN_THREADS,
    DynamicTool,
    MemoryMode,
    Thread,
    nanoseconds_of,
    open_threads,
    thread_key,
)

__all__ = [
    "CRASHES_ALLOWED",
    "EXTRACTABLE_THREADS",
    "IS_SHOWN",
    "LOCAL_HOME",
    "SCOPE_CWD",
    "SCOPE_USER",
    "SHOWN_THREADS",
    "Anchor",
    "BackfillLease",
    "BackfillState",
    "BackfillStatus",
    "Claimed",
    "ConsolidationLock",
    "DynamicTool",
    "FileRow",
    "HolderWrite",
    "Lease",
    "LockLease",
    "LogEntry",
    "LogQuery",
    "LogSegment",
    "MemoryMode",
    "MemoryScope",
    "MemoryScopeDirty",
    "NamedLease",
    "NamedLock",
    "Phase1Job",
    "Phase1Key",
    "Phase1Lease",
    "Phase1Status",
    "Product",
    "Requeue",
    "RolloutFile",
    "RolloutFileState",
    "SkipReason",
    "Skipped",
    "SortKey",
    "StateModel",
    "Thread",
    "ThreadMemory",
    "ThreadQuery",
    "ThreadsPage",
    "UnreadableRow",
    "UnshownThreads",
    "metadata",
    "nanoseconds_of",
    "open_threads",
    "thread_key",
]

# Snapshots are made without the constructor, which is what otherwise makes SQLAlchemy finish its mapping.
relate()
entities.configure()
