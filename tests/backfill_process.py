"""A process that backfills a home, for tests that pause or kill it.

It tells when it starts, how many files are done after each batch, and at the end what came of it.
"""

from __future__ import annotations

import os
import resource
import signal
from datetime import timedelta
from pathlib import Path

from codex_state import StateRuntime, StateSettings
from codex_state.rollout import backfill, backfilling
from tests.chaos.channel import Channel


def run(
    channel: Channel, home: str, batch_size: int, lease: int, workers: int, refresh: bool, pause: int | None
) -> None:
    """Backfill ``home``. With ``pause`` it stops itself (SIGSTOP) when that batch, counted from 1, is to be stored."""
    if pause is not None:
        _pause_before(pause, channel)
    settings = StateSettings(
        codex_home=Path(home),
        backfill_batch_size=batch_size,
        backfill_lease=timedelta(seconds=lease),
        busy_timeout=timedelta(seconds=20),
    )
    with StateRuntime.open(settings) as runtime:
        channel.send("started")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = backfill(
            runtime,
            on_progress=lambda progress: channel.send(progress.files_done),
            workers=workers,
            refresh=refresh,
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    channel.send([report.status.value, report.upserted, report.failed, report.parse_errors, grown])


def _pause_before(batch: int, channel: Channel) -> None:
    commit = backfilling._Run._commit
    batches = 0

    def paused(run: backfilling._Run, *arguments: object) -> None:
        nonlocal batches
        batches += 1
        if batches == batch:
            channel.send("paused")
            os.kill(os.getpid(), signal.SIGSTOP)
        commit(run, *arguments)  # type: ignore[arg-type]

    backfilling._Run._commit = paused  # type: ignore[method-assign, assignment]
