"""A process that copies a state in small batches, for tests that kill it.

``python copy_process.py SOURCE_URL TARGET_URL HOME ROWS_IN_A_BATCH``

It prints one line after each batch, and ``complete`` at the end.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from codex_state import StateRuntime, StateSettings
from codex_state.transfer import CopyProgress, copy_state, tables


def say(progress: CopyProgress) -> None:
    print(progress.stage.value, progress.table, flush=True)


def main() -> None:
    source_url, target_url, home, rows = sys.argv[1:]
    tables.PAGE_ROWS = int(rows)
    wait = timedelta(seconds=30)
    with (
        StateRuntime.open(StateSettings(codex_home=home, database_url=source_url, busy_timeout=wait)) as source,
        StateRuntime.open(StateSettings(codex_home=home, database_url=target_url, busy_timeout=wait)) as target,
    ):
        report = copy_state(source, target, on_progress=say)
    print("complete" if report.complete else "incomplete", flush=True)


if __name__ == "__main__":
    main()
