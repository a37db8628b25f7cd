"""Moving a state from one database to another, and taking over what the original's databases know."""

from codex_state.transfer.backups import Restored, back_up_file, back_up_server, restore_file, restore_into_server
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
    "Restored",
    "RowOutcome",
    "TableCopy",
    "back_up_file",
    "back_up_server",
    "copy_state",
    "import_original",
    "restore_file",
    "restore_into_server",
]
