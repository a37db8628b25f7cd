"""Moving a state from one database to another, and taking over what the original's databases know."""

from codex_state.transfer.copying import (
    CopyProgress,
    CopyReport,
    CopyStage,
    NamedRow,
    OnCopyProgress,
    RowOutcome,
    TableCopy,
    copy_state,
)
from codex_state.transfer.importing import (
    ImportedDatabase,
    ImportKind,
    ImportOutcome,
    ImportReport,
    import_original,
)

__all__ = [
    "CopyProgress",
    "CopyReport",
    "CopyStage",
    "ImportKind",
    "ImportOutcome",
    "ImportReport",
    "ImportedDatabase",
    "NamedRow",
    "OnCopyProgress",
    "RowOutcome",
    "TableCopy",
    "copy_state",
    "import_original",
]
