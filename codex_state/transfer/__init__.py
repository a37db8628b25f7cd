"""Moving a state from one database to another."""

from codex_state.transfer.copying import copy_state
from codex_state.transfer.reports import (
    CopyProgress,
    CopyReport,
    CopyStage,
    NamedRow,
    OnCopyProgress,
    RowOutcome,
    TableCopy,
)

__all__ = [
    "CopyProgress",
    "CopyReport",
    "CopyStage",
    "NamedRow",
    "OnCopyProgress",
    "RowOutcome",
    "TableCopy",
    "copy_state",
]
