"""What is public of the JSONL side, and where it lives: ``__init__.py`` reads it from here, as type checkers do."""

from .backfilling import (
    BackfillFailure as BackfillFailure,
    BackfillOutcome as BackfillOutcome,
    BackfillProgress as BackfillProgress,
    BackfillReport as BackfillReport,
    backfill as backfill,
    freshen as freshen,
    open_state as open_state,
)
from .files import (
    FoundFile as FoundFile,
    find_rollouts as find_rollouts,
    parse_rollout_name as parse_rollout_name,
    walk_rollouts as walk_rollouts,
)
from .format import (
    Compacted as Compacted,
    GitInfo as GitInfo,
    GoalUpdated as GoalUpdated,
    HistoryBase as HistoryBase,
    ItemCompleted as ItemCompleted,
    NameUpdated as NameUpdated,
    OtherEvent as OtherEvent,
    ResponseItem as ResponseItem,
    RolloutItem as RolloutItem,
    SessionMeta as SessionMeta,
    SettingsApplied as SettingsApplied,
    TokenCount as TokenCount,
    TokenUsage as TokenUsage,
    TokenUsageInfo as TokenUsageInfo,
    ToolSpec as ToolSpec,
    TurnContext as TurnContext,
    UserMessage as UserMessage,
    decode_line as decode_line,
    encode_line as encode_line,
)
from .conversation import (
    ConversationPart as ConversationPart,
    ConversationSummary as ConversationSummary,
    TokensByKind as TokensByKind,
    conversation_parts as conversation_parts,
    read_conversation as read_conversation,
    summarize_conversation as summarize_conversation,
)
from .index import (
    index_rollout as index_rollout,
    normalize_cwd as normalize_cwd,
)
from .lookup import (
    archive_thread as archive_thread,
    find_thread_path as find_thread_path,
    list_threads as list_threads,
    unarchive_thread as unarchive_thread,
)
from .reading import read_session_meta as read_session_meta
from .scanning import Hit as Hit
from .searching import (
    SAID as SAID,
    FoundThread as FoundThread,
    search as search,
)
from .threads import (
    ExtractionOutcome as ExtractionOutcome,
    ThreadMetadataBuilder as ThreadMetadataBuilder,
    apply_rollout_item as apply_rollout_item,
    apply_rollout_items as apply_rollout_items,
    builder_from_items as builder_from_items,
    builder_from_session_meta as builder_from_session_meta,
    diff_fields as diff_fields,
    extract_metadata as extract_metadata,
    prefer_existing_git_info as prefer_existing_git_info,
    rollout_item_affects_thread_metadata as rollout_item_affects_thread_metadata,
)
from .transcript import (
    TranscriptItem as TranscriptItem,
    TranscriptKind as TranscriptKind,
    read_transcript as read_transcript,
)
