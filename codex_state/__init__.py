"""The state layer of Codex-style agent services.

Everything public is here. Names are imported when they are first used, so that a command line that only prints its help
doesn't wait for SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codex_state.async_runtime import (
        AsyncStateRuntime as AsyncStateRuntime,
    )
    from codex_state.errors import (
        BackfillError as BackfillError,
    )
    from codex_state.errors import (
        BackfillTimeoutError as BackfillTimeoutError,
    )
    from codex_state.errors import (
        ConfigurationError as ConfigurationError,
    )
    from codex_state.errors import (
        ConnectionLostError as ConnectionLostError,
    )
    from codex_state.errors import (
        CopyMismatchError as CopyMismatchError,
    )
    from codex_state.errors import (
        DatabaseBusyError as DatabaseBusyError,
    )
    from codex_state.errors import (
        DatabaseCorruptError as DatabaseCorruptError,
    )
    from codex_state.errors import (
        DatabaseError as DatabaseError,
    )
    from codex_state.errors import (
        DatabaseFullError as DatabaseFullError,
    )
    from codex_state.errors import (
        DatabaseReadOnlyError as DatabaseReadOnlyError,
    )
    from codex_state.errors import (
        DatabaseUnavailableError as DatabaseUnavailableError,
    )
    from codex_state.errors import (
        ForeignSchemaError as ForeignSchemaError,
    )
    from codex_state.errors import (
        IntegrityViolationError as IntegrityViolationError,
    )
    from codex_state.errors import (
        InvalidInputError as InvalidInputError,
    )
    from codex_state.errors import (
        InvalidRowError as InvalidRowError,
    )
    from codex_state.errors import (
        MemoryFilesError as MemoryFilesError,
    )
    from codex_state.errors import (
        NotADatabaseError as NotADatabaseError,
    )
    from codex_state.errors import (
        RolloutError as RolloutError,
    )
    from codex_state.errors import (
        SchemaError as SchemaError,
    )
    from codex_state.errors import (
        SchemaOutdatedError as SchemaOutdatedError,
    )
    from codex_state.errors import (
        SchemaTooNewError as SchemaTooNewError,
    )
    from codex_state.errors import (
        ServerUnavailableError as ServerUnavailableError,
    )
    from codex_state.errors import (
        StateError as StateError,
    )
    from codex_state.errors import (
        ThreadNotFoundError as ThreadNotFoundError,
    )
    from codex_state.errors import (
        TransactionConflictError as TransactionConflictError,
    )
    from codex_state.errors import (
        UnknownCommitOutcomeError as UnknownCommitOutcomeError,
    )
    from codex_state.errors import (
        WorkStoppedError as WorkStoppedError,
    )
    from codex_state.memory import (
        AsyncLeaseKeeper as AsyncLeaseKeeper,
    )
    from codex_state.memory import (
        ConsolidationOptions as ConsolidationOptions,
    )
    from codex_state.memory import (
        ConsolidationOutcome as ConsolidationOutcome,
    )
    from codex_state.memory import (
        ConsolidationReport as ConsolidationReport,
    )
    from codex_state.memory import (
        ConsolidationResult as ConsolidationResult,
    )
    from codex_state.memory import (
        ExtractedMemory as ExtractedMemory,
    )
    from codex_state.memory import (
        KeptLease as KeptLease,
    )
    from codex_state.memory import (
        LeaseKeeper as LeaseKeeper,
    )
    from codex_state.memory import (
        Phase1Options as Phase1Options,
    )
    from codex_state.memory import (
        Phase1Outcome as Phase1Outcome,
    )
    from codex_state.memory import (
        Phase1Progress as Phase1Progress,
    )
    from codex_state.memory import (
        Phase1Report as Phase1Report,
    )
    from codex_state.memory import (
        Phase1Result as Phase1Result,
    )
    from codex_state.memory import (
        Phase1Skipped as Phase1Skipped,
    )
    from codex_state.memory import (
        RetryPolicy as RetryPolicy,
    )
    from codex_state.memory import (
        StopReason as StopReason,
    )
    from codex_state.memory import (
        StopSignal as StopSignal,
    )
    from codex_state.memory import (
        aconsolidate_memories as aconsolidate_memories,
    )
    from codex_state.memory import (
        arun_phase1 as arun_phase1,
    )
    from codex_state.memory import (
        consolidate_memories as consolidate_memories,
    )
    from codex_state.memory import (
        current_work as current_work,
    )
    from codex_state.memory import (
        fence as fence,
    )
    from codex_state.memory import (
        memory_root as memory_root,
    )
    from codex_state.memory import (
        run_phase1 as run_phase1,
    )
    from codex_state.memory import (
        trust_clock as trust_clock,
    )
    from codex_state.models import (
        Anchor as Anchor,
    )
    from codex_state.models import (
        BackfillLease as BackfillLease,
    )
    from codex_state.models import (
        BackfillState as BackfillState,
    )
    from codex_state.models import (
        BackfillStatus as BackfillStatus,
    )
    from codex_state.models import (
        Claimed as Claimed,
    )
    from codex_state.models import (
        ConsolidationLock as ConsolidationLock,
    )
    from codex_state.models import (
        DynamicTool as DynamicTool,
    )
    from codex_state.models import (
        HolderWrite as HolderWrite,
    )
    from codex_state.models import (
        LockLease as LockLease,
    )
    from codex_state.models import (
        LogEntry as LogEntry,
    )
    from codex_state.models import (
        LogQuery as LogQuery,
    )
    from codex_state.models import (
        MemoryMode as MemoryMode,
    )
    from codex_state.models import (
        MemoryScope as MemoryScope,
    )
    from codex_state.models import (
        MemoryScopeDirty as MemoryScopeDirty,
    )
    from codex_state.models import (
        Phase1Job as Phase1Job,
    )
    from codex_state.models import (
        Phase1Key as Phase1Key,
    )
    from codex_state.models import (
        Phase1Lease as Phase1Lease,
    )
    from codex_state.models import (
        Phase1Status as Phase1Status,
    )
    from codex_state.models import (
        Product as Product,
    )
    from codex_state.models import (
        Requeue as Requeue,
    )
    from codex_state.models import (
        Skipped as Skipped,
    )
    from codex_state.models import (
        SkipReason as SkipReason,
    )
    from codex_state.models import (
        SortKey as SortKey,
    )
    from codex_state.models import (
        Thread as Thread,
    )
    from codex_state.models import (
        ThreadMemory as ThreadMemory,
    )
    from codex_state.models import (
        ThreadsPage as ThreadsPage,
    )
    from codex_state.repositories import (
        BackfillRepository as BackfillRepository,
    )
    from codex_state.repositories import (
        ConsolidationLockRepository as ConsolidationLockRepository,
    )
    from codex_state.repositories import (
        DynamicToolRepository as DynamicToolRepository,
    )
    from codex_state.repositories import (
        LogRepository as LogRepository,
    )
    from codex_state.repositories import (
        MemoryScopeRepository as MemoryScopeRepository,
    )
    from codex_state.repositories import (
        Phase1JobRepository as Phase1JobRepository,
    )
    from codex_state.repositories import (
        ThreadMemoryRepository as ThreadMemoryRepository,
    )
    from codex_state.repositories import (
        ThreadRepository as ThreadRepository,
    )
    from codex_state.rollout.archive import (
        archive_thread as archive_thread,
    )
    from codex_state.rollout.archive import (
        unarchive_thread as unarchive_thread,
    )
    from codex_state.rollout.backfilling import (
        backfill as backfill,
    )
    from codex_state.rollout.indexing import (
        index_rollout as index_rollout,
    )
    from codex_state.rollout.lookup import (
        find_thread_path as find_thread_path,
    )
    from codex_state.rollout.lookup import (
        list_threads as list_threads,
    )
    from codex_state.rollout.metadata import (
        ExtractionOutcome as ExtractionOutcome,
    )
    from codex_state.rollout.metadata import (
        ThreadMetadataBuilder as ThreadMetadataBuilder,
    )
    from codex_state.rollout.metadata import (
        extract_metadata as extract_metadata,
    )
    from codex_state.rollout.progress import (
        BackfillFailure as BackfillFailure,
    )
    from codex_state.rollout.progress import (
        BackfillOutcome as BackfillOutcome,
    )
    from codex_state.rollout.progress import (
        BackfillProgress as BackfillProgress,
    )
    from codex_state.rollout.progress import (
        BackfillReport as BackfillReport,
    )
    from codex_state.rollout.startup import (
        open_state as open_state,
    )
    from codex_state.runtime import (
        State as State,
    )
    from codex_state.runtime import (
        StateRuntime as StateRuntime,
    )
    from codex_state.settings import (
        StateSettings as StateSettings,
    )
    from codex_state.transfer.copying import (
        copy_state as copy_state,
    )
    from codex_state.transfer.reports import (
        CopyProgress as CopyProgress,
    )
    from codex_state.transfer.reports import (
        CopyReport as CopyReport,
    )
    from codex_state.transfer.reports import (
        CopyStage as CopyStage,
    )
    from codex_state.transfer.reports import (
        RowOutcome as RowOutcome,
    )

_HOMES = {
    "codex_state.async_runtime": ("AsyncStateRuntime",),
    "codex_state.errors": (
        "BackfillError",
        "BackfillTimeoutError",
        "ConfigurationError",
        "ConnectionLostError",
        "CopyMismatchError",
        "DatabaseBusyError",
        "DatabaseCorruptError",
        "DatabaseError",
        "DatabaseFullError",
        "DatabaseReadOnlyError",
        "DatabaseUnavailableError",
        "ForeignSchemaError",
        "IntegrityViolationError",
        "InvalidInputError",
        "InvalidRowError",
        "MemoryFilesError",
        "NotADatabaseError",
        "RolloutError",
        "SchemaError",
        "SchemaOutdatedError",
        "SchemaTooNewError",
        "ServerUnavailableError",
        "StateError",
        "ThreadNotFoundError",
        "TransactionConflictError",
        "UnknownCommitOutcomeError",
        "WorkStoppedError",
    ),
    "codex_state.memory": (
        "AsyncLeaseKeeper",
        "ConsolidationOptions",
        "ConsolidationOutcome",
        "ConsolidationReport",
        "ConsolidationResult",
        "ExtractedMemory",
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
        "arun_phase1",
        "consolidate_memories",
        "current_work",
        "fence",
        "memory_root",
        "run_phase1",
        "trust_clock",
    ),
    "codex_state.models": (
        "Anchor",
        "BackfillLease",
        "BackfillState",
        "BackfillStatus",
        "Claimed",
        "ConsolidationLock",
        "DynamicTool",
        "HolderWrite",
        "LockLease",
        "LogEntry",
        "LogQuery",
        "MemoryMode",
        "MemoryScope",
        "MemoryScopeDirty",
        "Phase1Job",
        "Phase1Key",
        "Phase1Lease",
        "Phase1Status",
        "Product",
        "Requeue",
        "SkipReason",
        "Skipped",
        "SortKey",
        "Thread",
        "ThreadMemory",
        "ThreadsPage",
    ),
    "codex_state.repositories": (
        "BackfillRepository",
        "ConsolidationLockRepository",
        "DynamicToolRepository",
        "LogRepository",
        "MemoryScopeRepository",
        "Phase1JobRepository",
        "ThreadMemoryRepository",
        "ThreadRepository",
    ),
    "codex_state.rollout.archive": (
        "archive_thread",
        "unarchive_thread",
    ),
    "codex_state.rollout.backfilling": ("backfill",),
    "codex_state.rollout.indexing": ("index_rollout",),
    "codex_state.rollout.lookup": (
        "find_thread_path",
        "list_threads",
    ),
    "codex_state.rollout.metadata": (
        "ExtractionOutcome",
        "ThreadMetadataBuilder",
        "extract_metadata",
    ),
    "codex_state.rollout.progress": (
        "BackfillFailure",
        "BackfillOutcome",
        "BackfillProgress",
        "BackfillReport",
    ),
    "codex_state.rollout.startup": ("open_state",),
    "codex_state.runtime": (
        "State",
        "StateRuntime",
    ),
    "codex_state.settings": ("StateSettings",),
    "codex_state.transfer.copying": ("copy_state",),
    "codex_state.transfer.reports": (
        "CopyProgress",
        "CopyReport",
        "CopyStage",
        "RowOutcome",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = tuple(sorted(_HOME_OF))


def __getattr__(name: str) -> Any:
    try:
        module = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'codex_state' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
