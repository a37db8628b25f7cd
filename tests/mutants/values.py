"""Checks of what verbs store, one for each way to the same row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

from codex_state.models import MemoryScope, Skipped, ThreadMemory
from codex_state.processes import THIS_HOST
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread
from tests.mutants.bench import Bench, Check
from tests.mutants.neighbours import HOUR, MINE, OWN, add_threads, claim_job, take_backfill, take_lock

SECOND = timedelta(seconds=1)


Upsert = Callable[[str, str], ThreadMemory]


def _by_the_holder(state: State) -> Upsert:
    lease = claim_job(state, OWN)

    def upsert(raw: str, summary: str) -> ThreadMemory:
        assert state.thread_memories.upsert_if_owner(lease, raw, summary)
        memory = state.thread_memories.get(MINE)
        assert memory is not None
        return memory

    return upsert


_UPSERTS: dict[str, Callable[[State], Upsert]] = {
    "for the thread's directory": lambda state: partial(state.thread_memories.upsert, MINE),
    "for a scope": lambda state: partial(state.thread_memories.upsert_for_scope, MINE, OWN.scope),
    "by the holder of the job": _by_the_holder,
}


def _upserting(name: str) -> Check:
    def run(bench: Bench) -> None:
        with bench.session() as (state, clock):
            state.threads.upsert(a_thread(id=MINE, cwd=Path("/code")))
            upsert = _UPSERTS[name](state)
            first = upsert("raw 1", "summary 1")
            assert first.updated_at == NOON
            assert state.thread_memories.invalidate(MINE, OWN.scope, "old")
            second = upsert("raw 2", "summary 2")
            expected = ThreadMemory(
                **first.model_dump()
                | {"raw_memory": "raw 2", "memory_summary": "summary 2", "updated_at": NOON + SECOND}
            )
            assert second == expected
            assert state.thread_memories.get(MINE) == expected
            clock.advance(SECOND)
            assert upsert("raw 3", "summary 3").updated_at == NOON + 2 * SECOND
            clock.advance(10 * SECOND)
            assert upsert("raw 4", "summary 4").updated_at == NOON + 11 * SECOND
            clock.advance(-timedelta(hours=1))
            assert upsert("raw 5", "summary 5").updated_at == NOON + 12 * SECOND

    return Check(f"a memory stored {name} replaces the older one, strictly later", run)


def _a_clean_scope_becomes_dirty_again(bench: Bench) -> None:
    with bench.session() as (state, _):
        scope = MemoryScope.user()
        seen = state.memory_scopes.mark_dirty(scope)
        assert state.memory_scopes.mark_clean(scope, seen=seen)
        again = state.memory_scopes.mark_dirty(scope)
        mark = state.memory_scopes.get(scope)
        assert mark is not None
        assert (mark.dirty, mark.updated_at) == (True, again)
        assert again == seen + SECOND


def _a_scope_is_marked_clean_once(bench: Bench) -> None:
    with bench.session() as (state, _):
        scope = MemoryScope.user()
        lock = take_lock(state, "/one")
        for held in (None, lock):
            seen = state.memory_scopes.mark_dirty(scope)
            assert state.memory_scopes.mark_clean(scope, seen=seen, lock=held) is True
            assert state.memory_scopes.mark_clean(scope, seen=seen, lock=held) is False


_TAKES: dict[str, Callable[[State], object]] = {
    "by a claim": lambda state: state.backfill.try_claim("home", owner="new", lease=HOUR),
    "by a claim to start over": lambda state: state.backfill.try_claim("home", owner="new", lease=HOUR, again=True),
    "by a claim to refresh": lambda state: state.backfill.try_claim("home", owner="new", lease=HOUR, refresh=True),
    "by force": lambda state: state.backfill.take_over("home", owner="new", lease=HOUR),
    "by force to start over": lambda state: state.backfill.take_over(
        "home", owner="new", lease=HOUR, from_the_start=True
    ),
}


def _taking(name: str) -> Check:
    """A backfill that is running, left behind, or complete is taken over by whoever may."""
    forced, forgets, only_unfinished = "force" in name, "start over" in name, name == "by a claim"

    def run(bench: Bench) -> None:
        for complete, silent, granted in (
            (False, HOUR - SECOND, forced),
            (False, HOUR, True),
            (True, SECOND, not only_unfinished),
        ):
            with bench.session() as (state, clock):
                old = take_backfill(state, "home")
                assert state.backfill.checkpoint(old, "watermark")
                if complete:
                    assert state.backfill.complete(old)
                clock.advance(silent)
                before = state.backfill.get("home")
                assert (not isinstance(_TAKES[name](state), Skipped)) is granted
                row = state.backfill.get("home")
                if not granted:
                    assert row == before
                    continue
                assert row is not None
                assert (row.claimed_at, row.updated_at) == (clock.now, clock.now)
                assert row.owner_name == THIS_HOST.this().known_as("new")
                assert (row.status, row.last_watermark) == ("running", None if forgets else "watermark")
                assert row.ownership_token != old.token

    return Check(f"a backfill is taken {name}", run)


def _a_renewed_backfill_counts_from_the_databases_time(bench: Bench) -> None:
    with bench.session() as (state, clock):
        lease = take_backfill(state, "home")
        clock.advance(SECOND)
        assert state.backfill.renew(lease)
        row = state.backfill.get("home")
        assert row is not None
        assert row.updated_at == NOON + SECOND


def _a_memory_needs_its_thread(bench: Bench) -> None:
    with bench.session() as (state, _):
        add_threads(state)
        state.thread_memories.upsert_for_scope(OWN.thread_id, OWN.scope, "raw", "summary")
        memories = state.thread_memories.last_n_for_scope(OWN.scope, 10)
        assert [memory.thread_id for memory in memories] == [MINE]


def value_checks() -> Iterator[Check]:
    """The checks of this module."""
    for name in _UPSERTS:
        yield _upserting(name)
    for name in _TAKES:
        yield _taking(name)
    for check in (
        _a_clean_scope_becomes_dirty_again,
        _a_scope_is_marked_clean_once,
        _a_renewed_backfill_counts_from_the_databases_time,
        _a_memory_needs_its_thread,
    ):
        yield Check(check.__name__.strip("_").replace("_", " "), check)
