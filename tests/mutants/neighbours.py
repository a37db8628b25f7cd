"""Checks that a verb changes its own row only, and that a token opens nothing but its own work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from codex_state.models import (
    BackfillLease,
    Claimed,
    HolderWrite,
    LockLease,
    MemoryScope,
    NamedLease,
    Phase1Key,
    Phase1Lease,
    metadata,
)
from codex_state.runtime import State
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite
from codex_state.testing.samples import NOON, a_thread
from tests.mutants.bench import Bench, Check

MINE, OTHERS = UUID(int=1), UUID(int=2)
HOUR = timedelta(hours=1)
OWN = Phase1Key(MINE, MemoryScope("cwd", "/code"))
NEIGHBOURS = {
    "thread": Phase1Key(OTHERS, OWN.scope),
    "kind of scope": Phase1Key(MINE, MemoryScope("user", "/code")),
    "key of scope": Phase1Key(MINE, MemoryScope("cwd", "/code/sub")),
}
"""What differs from ``OWN`` in one part only."""


def add_threads(state: State) -> None:
    state.threads.upsert_many([a_thread(id=MINE), a_thread(id=OTHERS)])


def claim_job(state: State, key: Phase1Key) -> Phase1Lease:
    claim = state.phase1_jobs.try_claim(key, owner=MINE, source_updated_at=NOON, lease=HOUR)
    assert isinstance(claim, Claimed)
    return claim.lease


def take_lock(state: State, path: str) -> LockLease:
    claim = state.consolidation_locks.try_claim(Path(path), owner=MINE, lease=HOUR)
    assert isinstance(claim, Claimed)
    return claim.lease


def take_name(state: State, name: str) -> NamedLease:
    claim = state.named_locks.try_claim(name, owner="me", lease=HOUR)
    assert isinstance(claim, Claimed)
    return claim.lease


def take_backfill(state: State, home: str) -> BackfillLease:
    claim = state.backfill.try_claim(home, owner="me", lease=HOUR)
    assert isinstance(claim, Claimed)
    return claim.lease


def _rows(state: State) -> dict[str, list[tuple[Any, ...]]]:
    connection = state.session.connection()
    return {
        table.name: [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table.name} ORDER BY 1, 2, 3")]
        for table in metadata.sorted_tables
    }


def _pairs(state: State, kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Two leases each that differ in one part."""
    if kind is Phase1Lease:
        own = claim_job(state, OWN)
        for part, key in NEIGHBOURS.items():
            yield part, own, claim_job(state, key)
    elif kind is LockLease:
        yield "root", take_lock(state, "/one"), take_lock(state, "/two")
    elif kind is NamedLease:
        yield "name", take_name(state, "one"), take_name(state, "two")
    else:
        yield "home", take_backfill(state, "one"), take_backfill(state, "two")


def _crossing(write: RegisteredWrite[Any]) -> Check:
    def run(bench: Bench) -> None:
        with bench.session() as (state, clock):
            add_threads(state)
            write.arrange(state.session)
            pairs = list(_pairs(state, write.lease))
            before = _rows(state)
            clock.advance(HOUR)
            for part, own, other in pairs:
                answer = write.call(state.session, replace(other, token=own.token))
                assert answer is write.refused, f"the token of another {part} was accepted"
                assert _rows(state) == before, part

    return Check(f"a token of a neighbour is refused by {write.name}", run)


# Verbs that name their row without a lease


def _remember(state: State) -> None:
    for key in (OWN, *NEIGHBOURS.values()):
        state.thread_memories.upsert_for_scope(key.thread_id, key.scope, "raw", "summary")


def _fail_all(state: State) -> None:
    for key in (OWN, *NEIGHBOURS.values()):
        assert state.phase1_jobs.fail(claim_job(state, key), "broken") is HolderWrite.APPLIED


def _mark_all(state: State) -> None:
    for scope in (OWN.scope, *(key.scope for key in NEIGHBOURS.values())):
        # Marking a second time would give it another time than the others have.
        if state.memory_scopes.get(scope) is None:
            assert state.memory_scopes.mark_dirty(scope) == NOON


def _mark_all_under_a_lock(state: State) -> None:
    _mark_all(state)
    take_lock(state, "/one")


_VERBS: dict[str, tuple[Callable[[State], object], Callable[[State], object], str]] = {
    "a requeue": (_fail_all, lambda state: state.phase1_jobs.requeue(OWN), "memory_phase1_jobs"),
    "a use": (_remember, lambda state: state.thread_memories.record_use(OWN.thread_id, OWN.scope), "thread_memory"),
    "an invalidation": (
        _remember,
        lambda state: state.thread_memories.invalidate(OWN.thread_id, OWN.scope, "old"),
        "thread_memory",
    ),
    "a new text": (
        _remember,
        lambda state: state.thread_memories.upsert_for_scope(OWN.thread_id, OWN.scope, "new", "new"),
        "thread_memory",
    ),
    "a clean mark": (
        _mark_all,
        lambda state: state.memory_scopes.mark_clean(OWN.scope, seen=NOON),
        "memory_scope_dirty",
    ),
    "a clean mark under a lock": (
        _mark_all_under_a_lock,
        lambda state: state.memory_scopes.mark_clean(OWN.scope, seen=NOON, lock=take_lock(state, "/one")),
        "memory_scope_dirty",
    ),
    "a first text": (
        add_threads,
        lambda state: state.thread_memories.upsert_for_scope(OWN.thread_id, OWN.scope, "new", "new"),
        "thread_memory",
    ),
}


def _alone(name: str) -> Check:
    arrange, verb, table = _VERBS[name]

    def run(bench: Bench) -> None:
        with bench.session() as (state, _):
            add_threads(state)
            arrange(state)
            before = set(_rows(state)[table])
            assert verb(state)
            after = set(_rows(state)[table])
            assert len(after - before) == 1
            assert len(before - after) <= 1

    return Check(f"{name} touches no neighbour", run)


def neighbour_checks() -> Iterator[Check]:
    """The checks of this module."""
    for write in HOLDER_WRITES:
        yield _crossing(write)
    for name in _VERBS:
        yield _alone(name)
