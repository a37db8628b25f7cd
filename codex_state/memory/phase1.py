"""Phase 1 of the memory pipeline: extract what is to be remembered of recent threads, each once.

One call is a whole start-up pass: claim, extract with bounded concurrency while every lease is kept alive, store each
outcome through the fence. Any number of workers may run passes at the same time; what one has claimed, the others leave
to it, and what a crashed one leaves behind, they take over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from uuid import UUID

from codex_state.async_runtime import AsyncStateRuntime
from codex_state.memory.calling import Callee, in_thread, underneath
from codex_state.memory.extraction import ExtractedMemory
from codex_state.memory.options import Phase1Options
from codex_state.memory.phase1_pass import Pass
from codex_state.memory.reports import Phase1Progress, Phase1Report
from codex_state.models import Phase1Key, Thread
from codex_state.runtime import StateRuntime

Extract = Callable[[Thread], ExtractedMemory | Awaitable[ExtractedMemory | None] | None]
"""The caller's function: what is to be remembered of a thread, or ``None``."""

DEFAULT_OPTIONS = Phase1Options()


def run_phase1(
    runtime: StateRuntime,
    extract: Callable[[Thread], ExtractedMemory | None],
    *,
    owner: UUID,
    options: Phase1Options = DEFAULT_OPTIONS,
    keys: Iterable[Phase1Key] | None = None,
    progress: Callable[[Phase1Progress], None] | None = None,
) -> Phase1Report:
    """Run one pass: claim the threads that have something to extract, extract them, store what was found.

    ``extract`` is called once for each thread, from several threads at a time, and its result is stored for each scope
    that was claimed. It returns ``None`` when there is nothing to remember. Whatever it raises makes the job failed,
    with the error as the reason. One that takes long should ask ``current_work()`` now and then whether it must stop.

    When the pass is interrupted (KeyboardInterrupt), its unfinished jobs are given back and can be claimed at once.
    Calls of ``extract`` that still run are told and left behind; what they return is thrown away.

    Args:
        runtime: an open state.
        extract: what to remember of a thread.
        owner: the session that does the work, for people to see.
        options: how the pass runs.
        keys: exactly these jobs instead of the most recent candidates; those that aren't granted are reported.
        progress: called after the claim, when an extraction begins and after each outcome, from any thread, one call
            at a time.

    Raises:
        InvalidInputError: ``extract`` is a coroutine function (await ``arun_phase1``), or an option makes no sense.
        ThreadNotFoundError: one of ``keys`` is of a thread that isn't there. Nothing is claimed.
        DatabaseError: the claim failed. What was claimed before is given back.
    """
    return Pass(runtime, Callee(extract, None), owner, options, progress).run(keys)


async def arun_phase1(
    runtime: AsyncStateRuntime | StateRuntime,
    extract: Extract,
    *,
    owner: UUID,
    options: Phase1Options = DEFAULT_OPTIONS,
    keys: Iterable[Phase1Key] | None = None,
    progress: Callable[[Phase1Progress], None] | None = None,
) -> Phase1Report:
    """Run one pass under asyncio: as ``run_phase1``, and ``extract`` may be a coroutine function.

    Coroutines run in this event loop, each in a task of its own, which is cancelled when its leases are lost or its
    time is over. A plain function is called from other threads. The database's work never runs in the event loop.

    When this is cancelled, the tasks of ``extract`` are cancelled and awaited, and the unfinished jobs are given back,
    before the cancellation goes on.
    """
    work = Pass(underneath(runtime), Callee(extract, asyncio.get_running_loop()), owner, options, progress)
    return await in_thread(partial(work.run, keys), work.interrupt)
