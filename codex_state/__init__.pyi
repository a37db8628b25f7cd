"""Everything public, and where it lives: ``__init__.py`` reads it from here, as type checkers do."""

from .async_runtime import AsyncStateRuntime as AsyncStateRuntime
from .errors import (
    BackfillError as BackfillError,
    BackfillTimeoutError as BackfillTimeoutError,
    ConfigurationError as ConfigurationError,
    ConnectionLostError as ConnectionLostError,
    CopyMismatchError as CopyMismatchError,
    DataLossError as DataLossError,
    DatabaseBusyError as DatabaseBusyError,
    DatabaseCorruptError as DatabaseCorruptError,
    DatabaseError as DatabaseError,
    DatabaseFullError as DatabaseFullError,
    DatabaseReadOnlyError as DatabaseReadOnlyError,
    DatabaseUnavailableError as DatabaseUnavailableError,
    ForeignSchemaError as ForeignSchemaError,
    IntegrityViolationError as IntegrityViolationError,
    InvalidInputError as InvalidInputError,
    InvalidRowError as InvalidRowError,
    LeaseLost as LeaseLost,
    MemoryFilesError as MemoryFilesError,
    NotADatabaseError as NotADatabaseError,
    OutOfMemoryError as OutOfMemoryError,
    RefusedValueError as RefusedValueError,
    RolloutError as RolloutError,
    SchemaChangedError as SchemaChangedError,
    SchemaError as SchemaError,
    RestoreRefusedError as RestoreRefusedError,
    SchemaOutdatedError as SchemaOutdatedError,
    SchemaTooNewError as SchemaTooNewError,
    ServerUnavailableError as ServerUnavailableError,
    StateError as StateError,
    StateFileLostError as StateFileLostError,
    StatementRefusedError as StatementRefusedError,
    StorageError as StorageError,
    ThreadNotFoundError as ThreadNotFoundError,
    TransactionConflictError as TransactionConflictError,
    UnknownCommitOutcomeError as UnknownCommitOutcomeError,
    UsageError as UsageError,
    WorkStoppedError as WorkStoppedError,
)
from .log_handler import (
    StateLogHandler as StateLogHandler,
    log_thread as log_thread,
)
from .memory import (
    AsyncLeaseKeeper as AsyncLeaseKeeper,
    ConsolidationOptions as ConsolidationOptions,
    ConsolidationOutcome as ConsolidationOutcome,
    ConsolidationReport as ConsolidationReport,
    ConsolidationResult as ConsolidationResult,
    ExtractedMemory as ExtractedMemory,
    HeldWork as HeldWork,
    KeptLease as KeptLease,
    LeaseKeeper as LeaseKeeper,
    Phase1Options as Phase1Options,
    Phase1Outcome as Phase1Outcome,
    Phase1Progress as Phase1Progress,
    Phase1Report as Phase1Report,
    Phase1Result as Phase1Result,
    Phase1Skipped as Phase1Skipped,
    RetryPolicy as RetryPolicy,
    StopReason as StopReason,
    StopSignal as StopSignal,
    aconsolidate_memories as aconsolidate_memories,
    ahold as ahold,
    arun_phase1 as arun_phase1,
    consolidate_memories as consolidate_memories,
    current_work as current_work,
    exit_on_sigterm as exit_on_sigterm,
    fence as fence,
    hold as hold,
    memory_root as memory_root,
    run_phase1 as run_phase1,
    trust_clock as trust_clock,
)
from .models import (
    Anchor as Anchor,
    BackfillLease as BackfillLease,
    BackfillState as BackfillState,
    BackfillStatus as BackfillStatus,
    Claimed as Claimed,
    ConsolidationLock as ConsolidationLock,
    DynamicTool as DynamicTool,
    HolderWrite as HolderWrite,
    Lease as Lease,
    LockLease as LockLease,
    LogEntry as LogEntry,
    LogQuery as LogQuery,
    MemoryMode as MemoryMode,
    MemoryScope as MemoryScope,
    MemoryScopeDirty as MemoryScopeDirty,
    NamedLease as NamedLease,
    NamedLock as NamedLock,
    Phase1Job as Phase1Job,
    Phase1Key as Phase1Key,
    Phase1Lease as Phase1Lease,
    Phase1Status as Phase1Status,
    Product as Product,
    Requeue as Requeue,
    RolloutFile as RolloutFile,
    RolloutFileState as RolloutFileState,
    Skipped as Skipped,
    SkipReason as SkipReason,
    SortKey as SortKey,
    Thread as Thread,
    ThreadMemory as ThreadMemory,
    ThreadQuery as ThreadQuery,
    ThreadsPage as ThreadsPage,
    UnreadableRow as UnreadableRow,
    UnshownThreads as UnshownThreads,
    thread_key as thread_key,
)
from .repositories import (
    BackfillRepository as BackfillRepository,
    ConsolidationLockRepository as ConsolidationLockRepository,
    DynamicToolRepository as DynamicToolRepository,
    LogRepository as LogRepository,
    MemoryScopeRepository as MemoryScopeRepository,
    NamedLockRepository as NamedLockRepository,
    Phase1JobRepository as Phase1JobRepository,
    RolloutFileRepository as RolloutFileRepository,
    ThreadMemoryRepository as ThreadMemoryRepository,
    ThreadRepository as ThreadRepository,
)
from .repositories.imports import ImportOutcome as ImportOutcome
from .rollout.archive import (
    archive_thread as archive_thread,
    unarchive_thread as unarchive_thread,
)
from .rollout.backfilling import backfill as backfill
from .rollout.index import index_rollout as index_rollout
from .rollout.lookup import (
    find_thread_path as find_thread_path,
    list_threads as list_threads,
)
from .rollout.progress import (
    BackfillFailure as BackfillFailure,
    BackfillOutcome as BackfillOutcome,
    BackfillProgress as BackfillProgress,
    BackfillReport as BackfillReport,
)
from .rollout.startup import open_state as open_state
from .rollout.threads import (
    ExtractionOutcome as ExtractionOutcome,
    ThreadMetadataBuilder as ThreadMetadataBuilder,
    extract_metadata as extract_metadata,
)
from .runtime import (
    State as State,
    StateRuntime as StateRuntime,
)
from .settings import StateSettings as StateSettings
from .transfer.copying import copy_state as copy_state
from .transfer.importing import (
    ImportedDatabase as ImportedDatabase,
    ImportKind as ImportKind,
    ImportReport as ImportReport,
    import_original as import_original,
)
from .transfer.reports import (
    CopyProgress as CopyProgress,
    CopyReport as CopyReport,
    CopyStage as CopyStage,
    RowOutcome as RowOutcome,
)
