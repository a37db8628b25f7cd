"""A process that backfills a home, for tests that pause or kill it.

``python backfill_process.py HOME BATCH_SIZE LEASE_SECONDS WORKERS build|refresh [PAUSE_BEFORE_BATCH]``

It prints one line when it starts, one after each batch, and the outcome at the end. With the last argument it stops
itself (SIGSTOP) when that batch (counted from 1) has been read and is about to be stored.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from datetime import timedelta
from pathlib import Path

from codex_state import StateRuntime, StateSettings
from codex_state.rollout import BackfillProgress, backfill, backfilling


def pause_before(batch: int) -> None:
    commit = backfilling._Run._commit
    batches = 0

    def paused(run: backfilling._Run, *arguments: object) -> None:
        nonlocal batches
        batches += 1
        if batches == batch:
            print("paused", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        commit(run, *arguments)  # type: ignore[arg-type]

    backfilling._Run._commit = paused  # type: ignore[method-assign, assignment]


def say(progress: BackfillProgress) -> None:
    print(progress.files_done, flush=True)


def main() -> None:
    home, batch_size, lease, workers, what, *pause = sys.argv[1:]
    if pause:
        pause_before(int(pause[0]))
    settings = StateSettings(
        codex_home=Path(home),
        backfill_batch_size=int(batch_size),
        backfill_lease=timedelta(seconds=int(lease)),
        busy_timeout=timedelta(seconds=20),
    )
    with StateRuntime.open(settings) as runtime:
        print("started", flush=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = backfill(runtime, on_progress=say, workers=int(workers), refresh=what == "refresh")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(report.status.value, report.upserted, report.failed, report.parse_errors, grown, flush=True)


if __name__ == "__main__":
    main()
