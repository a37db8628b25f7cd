"""A pass of extraction as a worker of the chaos makes it, told to the journal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from codex_state import ExtractedMemory, Phase1Options, Phase1Outcome, RetryPolicy, StateRuntime, Thread, run_phase1
from codex_state.models import MemoryScope, Phase1Key

_AGAIN = RetryPolicy(attempts=1_000_000, backoff=timedelta(0))


def extract_some(
    runtime: StateRuntime, *, owner: UUID, lease: timedelta, max_age: timedelta, work: Callable[[], None]
) -> list[dict[str, Any]]:
    """Run one pass over the threads of the runtime's home. Answers what there is to note of it."""
    tokens: dict[UUID, str] = {}

    def extract(thread: Thread) -> ExtractedMemory:
        job = runtime.run_read(lambda state: state.phase1_jobs.get(Phase1Key(thread.id, MemoryScope.user())))
        if job is None or job.owner_session_id != owner:
            return ExtractedMemory("it was taken over, so nobody may store this", "summary")
        tokens[thread.id] = job.ownership_token
        work()
        return ExtractedMemory(job.ownership_token, "summary")

    options = Phase1Options(
        lease=lease, limit=4, concurrency=2, max_age=max_age, retry=_AGAIN, scope_kinds=("user",), write_files=False
    )
    report = run_phase1(runtime, extract, owner=owner, options=options)
    return [{"what": "pass", "tokens": [token]} for token in tokens.values()] + [
        {"what": "store memory", "token": tokens[result.key.thread_id], "answer": "applied"}
        for result in report.results
        if result.outcome is Phase1Outcome.SUCCEEDED
    ]
