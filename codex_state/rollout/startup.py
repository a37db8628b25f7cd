"""Opening a state whose index is complete."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from codex_state.errors import BackfillTimeoutError
from codex_state.models import BackfillState
from codex_state.rollout.backfilling import backfill
from codex_state.rollout.progress import OnProgress
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

_log = logging.getLogger("codex_state")

_POLL_SECONDS = 0.25


def open_state(settings: StateSettings | None = None, *, on_progress: OnProgress | None = None) -> StateRuntime:
    """Open the state, bring its index up to date, and return it.

    The first process to come does the backfill. The others wait for it as long as ``settings.backfill_wait`` says,
    take over when its lease runs out, and give up with an error that names it. ``StateRuntime.open`` never backfills.

    Args:
        settings: where and how; read from the environment when not given.
        on_progress: called as the backfill goes, when this process does it.

    Raises:
        BackfillTimeoutError: another worker's backfill didn't finish in time. It goes on.
        StateError: see ``StateRuntime.open``.
    """
    runtime = StateRuntime.open(settings)
    try:
        _complete_backfill(runtime, on_progress)
    except BaseException:
        runtime.close()
        raise
    return runtime


def _complete_backfill(runtime: StateRuntime, on_progress: OnProgress | None) -> None:
    deadline = time.monotonic() + runtime.settings.backfill_wait.total_seconds()
    while True:
        with runtime.read() as state:
            if state.backfill.is_complete(runtime.home):
                return
        report = backfill(runtime, on_progress=on_progress)
        if report.failed:
            _log.warning(
                "%d of %d rollouts could not be indexed; `codex-state backfill --retry-failed` names them",
                report.failed,
                report.scanned,
            )
        with runtime.read() as state:
            if state.backfill.is_complete(runtime.home):
                return
            holder = state.backfill.get(runtime.home)
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
