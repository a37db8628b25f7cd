"""The JSONL side: rollouts, the truth about threads.

Names are imported when they are first used: a decoding process needs little of this package, and should start in a
moment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codex_state.rollout.archive import (
        archive_thread as archive_thread,
    )
    from codex_state.rollout.archive import (
        unarchive_thread as unarchive_thread,
    )
    from codex_state.rollout.backfilling import (
        backfill as backfill,
    )
    from codex_state.rollout.files import (
        RolloutFile as RolloutFile,
    )
    from codex_state.rollout.files import (
        find_rollouts as find_rollouts,
    )
    from codex_state.rollout.files import (
        parse_rollout_name as parse_rollout_name,
    )
    from codex_state.rollout.files import (
        walk_rollouts as walk_rollouts,
    )
    from codex_state.rollout.head import (
        read_session_meta as read_session_meta,
    )
    from codex_state.rollout.indexing import (
        index_rollout as index_rollout,
    )
    from codex_state.rollout.lines import (
        Compacted as Compacted,
    )
    from codex_state.rollout.lines import (
        GitInfo as GitInfo,
    )
    from codex_state.rollout.lines import (
        OtherEvent as OtherEvent,
    )
    from codex_state.rollout.lines import (
        ResponseItem as ResponseItem,
    )
    from codex_state.rollout.lines import (
        RolloutItem as RolloutItem,
    )
    from codex_state.rollout.lines import (
        SessionMeta as SessionMeta,
    )
    from codex_state.rollout.lines import (
        TokenCount as TokenCount,
    )
    from codex_state.rollout.lines import (
        TokenUsage as TokenUsage,
    )
    from codex_state.rollout.lines import (
        TokenUsageInfo as TokenUsageInfo,
    )
    from codex_state.rollout.lines import (
        ToolSpec as ToolSpec,
    )
    from codex_state.rollout.lines import (
        TurnContext as TurnContext,
    )
    from codex_state.rollout.lines import (
        UserMessage as UserMessage,
    )
    from codex_state.rollout.lines import (
        decode_line as decode_line,
    )
    from codex_state.rollout.lines import (
        encode_line as encode_line,
    )
    from codex_state.rollout.live import (
        apply_rollout_items as apply_rollout_items,
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
        apply_rollout_item as apply_rollout_item,
    )
    from codex_state.rollout.metadata import (
        builder_from_items as builder_from_items,
    )
    from codex_state.rollout.metadata import (
        builder_from_session_meta as builder_from_session_meta,
    )
    from codex_state.rollout.metadata import (
        diff_fields as diff_fields,
    )
    from codex_state.rollout.metadata import (
        extract_metadata as extract_metadata,
    )
    from codex_state.rollout.metadata import (
        normalize_cwd as normalize_cwd,
    )
    from codex_state.rollout.metadata import (
        prefer_existing_explicit_title as prefer_existing_explicit_title,
    )
    from codex_state.rollout.metadata import (
        prefer_existing_git_info as prefer_existing_git_info,
    )
    from codex_state.rollout.metadata import (
        rollout_item_affects_thread_metadata as rollout_item_affects_thread_metadata,
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

_HOMES = {
    "codex_state.rollout.archive": (
        "archive_thread",
        "unarchive_thread",
    ),
    "codex_state.rollout.backfilling": ("backfill",),
    "codex_state.rollout.files": (
        "RolloutFile",
        "find_rollouts",
        "parse_rollout_name",
        "walk_rollouts",
    ),
    "codex_state.rollout.head": ("read_session_meta",),
    "codex_state.rollout.indexing": ("index_rollout",),
    "codex_state.rollout.lines": (
        "Compacted",
        "GitInfo",
        "OtherEvent",
        "ResponseItem",
        "RolloutItem",
        "SessionMeta",
        "TokenCount",
        "TokenUsage",
        "TokenUsageInfo",
        "ToolSpec",
        "TurnContext",
        "UserMessage",
        "decode_line",
        "encode_line",
    ),
    "codex_state.rollout.live": ("apply_rollout_items",),
    "codex_state.rollout.lookup": (
        "find_thread_path",
        "list_threads",
    ),
    "codex_state.rollout.metadata": (
        "ExtractionOutcome",
        "ThreadMetadataBuilder",
        "apply_rollout_item",
        "builder_from_items",
        "builder_from_session_meta",
        "diff_fields",
        "extract_metadata",
        "normalize_cwd",
        "prefer_existing_explicit_title",
        "prefer_existing_git_info",
        "rollout_item_affects_thread_metadata",
    ),
    "codex_state.rollout.progress": (
        "BackfillFailure",
        "BackfillOutcome",
        "BackfillProgress",
        "BackfillReport",
    ),
    "codex_state.rollout.startup": ("open_state",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = tuple(sorted(_HOME_OF))


def __getattr__(name: str) -> Any:
    try:
        module = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'codex_state.rollout' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
