"""Checks that the batch claim decides as the single claim does, in every state that a job can be in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

from codex_state.models import Claimed, MemoryScope, Phase1Job, Phase1Key, Phase1Lease, Phase1Status, Thread
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread
from tests.mutants.bench import Bench, Check

SECOND = timedelta(seconds=1)
LEASE = 60 * SECOND
OWNER, SOMEBODY = UUID(int=1), UUID(int=2)
USER = MemoryScope.user()

_STARTED = (None, NOON - LEASE - SECOND, NOON - LEASE, NOON - LEASE + SECOND)
_SOURCES = (NOON - SECOND, NOON, NOON + SECOND)
_RETRIES = (None, NOON - SECOND, NOON, NOON + SECOND)


def _jobs_in_every_state() -> Iterator[dict[str, Any]]:
    for status, started, source, retry in product(Phase1Status, _STARTED, _SOURCES, _RETRIES):
        yield {"status": status, "started_at": started, "source_updated_at": source, "retry_at": retry}


def _job(thread: Thread, scope: MemoryScope, **values: Any) -> Phase1Job:
    earlier = {
        "owner_session_id": SOMEBODY,
        "finished_at": NOON - SECOND,
        "failure_reason": "an earlier failure",
        "raw_memory_path": Path("/earlier"),
        "summary_hash": "earlier",
        "ownership_token": f"earlier {thread.id} {scope.kind}",
        "attempt": 7,
        "failures": 3,
        "started_at": NOON,
        "source_updated_at": NOON,
        "status": Phase1Status.RUNNING,
    }
    return Phase1Job(thread_id=thread.id, scope_kind=scope.kind, scope_key=scope.key, **earlier | values)


def _stored(state: State, threads: Sequence[Thread], jobs: Sequence[Phase1Job]) -> None:
    state.threads.upsert_many(threads)
    state.session.add_all([Phase1Job(**job.model_dump()) for job in jobs])
    state.session.flush()
    state.session.expunge_all()


def _batch(state: State, **options: Any) -> list[Phase1Lease]:
    return state.phase1_jobs.claim_candidates(**{"owner": OWNER, "lease": LEASE, "max_threads": 100_000} | options)


def _rows(state: State) -> dict[Phase1Key, dict[str, Any]]:
    """What is stored of each job, but for its token, which is random."""
    return {
        Phase1Key(job.thread_id, MemoryScope(job.scope_kind, job.scope_key)): job.model_dump(
            exclude={"ownership_token"}
        )
        for job in state.phase1_jobs.list(limit=100_000)
    }


def _claimed_singly(state: State, threads: Sequence[Thread], kinds: Sequence[str]) -> set[Phase1Key]:
    claimed = set()
    for thread, kind in product(threads, kinds):
        key = Phase1Key(thread.id, USER if kind == "user" else MemoryScope.cwd(thread.cwd))
        claim = state.phase1_jobs.try_claim(key, owner=OWNER, source_updated_at=thread.updated_at, lease=LEASE)
        if isinstance(claim, Claimed):
            claimed.add(key)
    return claimed


def _agree(bench: Bench, threads: Sequence[Thread], jobs: Sequence[Phase1Job]) -> None:
    for kinds in (["cwd"], ["user"], ["cwd", "user"]):
        with bench.session() as (state, _):
            _stored(state, threads, jobs)
            expected, expected_rows = _claimed_singly(state, threads, kinds), _rows(state)
        with bench.session() as (state, _):
            _stored(state, threads, jobs)
            leases = _batch(state, scope_kinds=kinds)
            assert {lease.key for lease in leases} == expected
            assert len({lease.token for lease in leases}) == len(leases) == len(expected)
            assert _rows(state) == expected_rows


def _a_batch_claims_what_single_claims_would(bench: Bench) -> None:
    threads, jobs = [], []
    for values in _jobs_in_every_state():
        thread = a_thread()
        threads.append(thread)
        jobs += [_job(thread, scope, **values) for scope in (MemoryScope.cwd(thread.cwd), USER)]
    _agree(bench, threads, jobs)


def _a_batch_keeps_scopes_apart(bench: Bench) -> None:
    """Directories that look like the user's scope, and jobs of directories that a thread has left."""
    threads = [a_thread(cwd=Path("user")) for _ in range(2)] + [a_thread() for _ in range(4)]
    looks_alike, looks_alike_too, moved, moved_too, strange, strange_too = threads
    done = {"status": Phase1Status.SUCCEEDED}
    jobs = [
        _job(looks_alike, MemoryScope.cwd(Path("user")), **done),
        _job(looks_alike_too, USER, **done),
        _job(moved, MemoryScope.cwd(Path("/left")), **done),
        _job(moved_too, MemoryScope.cwd(moved_too.cwd), **done),
        _job(strange, MemoryScope("user", "somebody else"), **done),
        _job(strange_too, MemoryScope("team", str(strange_too.cwd)), **done),
        _job(strange_too, MemoryScope("team", "user"), **done),
    ]
    _agree(bench, threads, jobs)


_BLOCKED: dict[str, dict[str, Any]] = {
    "running": {},
    "done": {"status": Phase1Status.SUCCEEDED},
    "failed": {"status": Phase1Status.FAILED, "retry_at": None},
    "to be retried": {"status": Phase1Status.FAILED, "retry_at": NOON + SECOND},
}


def _blocked_jobs_use_up_nothing(bench: Bench) -> None:
    """Neither the limit nor the cap is spent on what can't be claimed."""
    for name, values in _BLOCKED.items():
        for kind in ("cwd", "user"):
            newest, free = a_thread(updated_at=NOON + SECOND), a_thread()
            scope = USER if kind == "user" else MemoryScope.cwd(newest.cwd)
            other = MemoryScope.cwd(newest.cwd) if kind == "user" else USER
            blocked = _job(newest, scope, **values | {"source_updated_at": newest.updated_at})
            with bench.session() as (state, _):
                _stored(state, [newest, free], [blocked])
                claimed = [lease.key.thread_id for lease in _batch(state, max_threads=1, scope_kinds=[kind])]
                assert claimed == [free.id], (name, kind)
            with bench.session() as (state, _):
                _stored(state, [newest, free], [blocked])
                room = 2 + (name == "running")
                claimed_keys = [lease.key for lease in _batch(state, max_running=room)]
                assert claimed_keys[0] == Phase1Key(newest.id, other), (name, kind)
                assert [key.thread_id for key in claimed_keys[1:]] == [free.id], (name, kind)


def candidate_checks() -> Iterator[Check]:
    """The checks of this module."""
    for check in (
        _a_batch_keeps_scopes_apart,
        _blocked_jobs_use_up_nothing,
        _a_batch_claims_what_single_claims_would,
    ):
        yield Check(check.__name__.strip("_").replace("_", " "), check)
