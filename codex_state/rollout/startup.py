"""Opening a state whose index is complete and fresh."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from codex_state.errors import BackfillTimeoutError
from codex_state.models import BackfillState
from codex_state.rollout.backfilling import backfill, look
from codex_state.rollout.progress import BackfillOutcome, BackfillReport, OnProgress
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

_log = logging.getLogger("codex_state")

_POLL_SECONDS = 0.25


def open_state(settings: StateSettings | None = None, *, on_progress: OnProgress | None = None) -> StateRuntime:
    """Open the state, bring its index up to date with the home's files, and return it.

    The first process to come builds the index. The others wait for it as long as ``settings.backfill_wait`` says, take
    over when its lease runs out, and give up with an error that names it. Once an index is there nobody waits: while
    another process freshens it, it is used as it is. ``StateRuntime.open`` never looks at the files.

    Args:
        settings: where and how; read from the environment when not given.
        on_progress: called as the work goes, when this process does it.

    Raises:
        BackfillTimeoutError: another worker's first backfill didn't finish in time. It goes on.
        StateError: see ``StateRuntime.open``.
    """
    runtime = StateRuntime.open(settings)
    try:
        _complete_backfill(runtime, on_progress)
    except BaseException:
        runtime.close()
        raise
    return runtime


def freshen(runtime: StateRuntime, *, on_progress: OnProgress | None = None) -> BackfillReport | None:
    """Take in what is new, changed or gone in the home.

    Costs a look at every file's size and time when nothing is; then nothing is claimed or written.

    Returns:
        What was done, and what can't be read; ``None`` when there was nothing of either. ``RUNNING`` when another
        process does it now.
    """
    looked = look(runtime)
    if looked is None:
        return backfill(runtime, refresh=True, on_progress=on_progress)
    return looked if looked.failed else None


def _complete_backfill(runtime: StateRuntime, on_progress: OnProgress | None) -> None:
    deadline = time.monotonic() + runtime.settings.backfill_wait.total_seconds()
    while True:
        report = freshen(runtime, on_progress=on_progress)
        if report is None or report.status is BackfillOutcome.COMPLETE:
            if report is not None and report.failed:
                _log.warning("%d rollouts could not be indexed; `codex-state backfill` names them", report.failed)
            return
        with runtime.read() as state:
            holder = state.backfill.get(runtime.home)
        if holder is not None and holder.last_success_at is not None:
            return
        if time.monotonic() >= deadline:
            raise BackfillTimeoutError(_who_holds_it(holder, runtime.settings.backfill_wait))
        time.sleep(_POLL_SECONDS)


def _who_holds_it(holder: BackfillState | None, waited: timedelta) -> str:
    waited_for = f"timed out waiting {waited.total_seconds():g} s for the backfill of the state database"
    if holder is None or holder.owner_name is None:
        return f"{waited_for}; run `codex-state backfill` to finish it"
    since = "" if holder.claimed_at is None else f" since {holder.claimed_at:%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"{waited_for}: {holder.owner_name} works on it{since}, last seen {holder.updated_at:%H:%M:%S} UTC; "
        "wait for it, or run `codex-state backfill` to see it through"
    )
