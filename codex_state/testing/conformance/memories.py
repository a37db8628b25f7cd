"""Memories: what was remembered, and the time that only grows (law L4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from codex_state.errors import ThreadNotFoundError
from codex_state.models import Claimed, HolderWrite, MemoryScope, Phase1Key, Phase1Lease, ThreadMemory
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_thread

_SECOND = timedelta(seconds=1)
_USER = MemoryScope.user()


def _a_stored_thread(state: State, cwd: str = "/code", thread_id: UUID | None = None) -> UUID:
    thread = a_thread(cwd=Path(cwd), id=thread_id or uuid4())
    state.threads.upsert(thread)
    return thread.id


def _claimed(state: State, thread_id: UUID, scope: MemoryScope = _USER) -> Phase1Lease:
    outcome = state.phase1_jobs.try_claim(
        Phase1Key(thread_id, scope), owner=uuid4(), source_updated_at=NOON, lease=timedelta(0)
    )
    assert isinstance(outcome, Claimed)
    return outcome.lease


class TestThreadMemories:
    """``ThreadMemoryRepository``."""

    def test_a_thread_without_memories_has_none(self, state: State) -> None:
        assert state.thread_memories.get(_a_stored_thread(state)) is None
        assert state.thread_memories.get(uuid4()) is None

    def test_a_memory_is_stored_for_the_threads_directory(self, state: State) -> None:
        thread_id = _a_stored_thread(state, "/code/ä")
        memory = state.thread_memories.upsert(thread_id, "raw", "summary")
        assert memory == ThreadMemory(
            thread_id=thread_id,
            scope_kind="cwd",
            scope_key="/code/ä",
            raw_memory="raw",
            memory_summary="summary",
            updated_at=NOON,
        )
        assert state.thread_memories.get(thread_id) == memory

    def test_both_texts_are_replaced_and_the_time_never_goes_back(self, state: State, clock: ManualClock) -> None:
        thread_id = _a_stored_thread(state)
        state.thread_memories.upsert(thread_id, "raw 1", "summary 1")
        clock.advance(timedelta(hours=-1))
        replaced = state.thread_memories.upsert(thread_id, "raw 2", "summary 2")
        assert (replaced.raw_memory, replaced.memory_summary) == ("raw 2", "summary 2")
        assert replaced.updated_at == NOON + _SECOND

    def test_the_time_strictly_increases_within_one_second_and_follows_the_clock_after_it(
        self, state: State, clock: ManualClock
    ) -> None:
        thread_id = _a_stored_thread(state)
        lease = _claimed(state, thread_id)
        times = [state.thread_memories.upsert_for_scope(thread_id, _USER, "r", "s").updated_at for _ in range(3)]
        assert state.thread_memories.upsert_if_owner(lease, "r", "s")
        guarded = state.thread_memories.get(thread_id)
        assert guarded is not None
        assert [*times, guarded.updated_at] == [NOON + number * _SECOND for number in range(4)]
        clock.advance(timedelta(minutes=1))
        memory = state.thread_memories.upsert_for_scope(thread_id, _USER, "r", "s")
        assert memory.updated_at == NOON + timedelta(minutes=1)

    def test_a_memory_of_a_thread_without_a_row_is_refused(self, state: State) -> None:
        nobody = uuid4()
        lease = Phase1Lease(
            key=Phase1Key(nobody, _USER),
            owner=uuid4(),
            token="token",  # noqa: S106 - no password
            granted_at=NOON,
            duration=timedelta(hours=1),
            source_updated_at=NOON,
        )
        with pytest.raises(ThreadNotFoundError, match=f"thread not found: {nobody}"):
            state.thread_memories.upsert(nobody, "raw", "summary")
        with pytest.raises(ThreadNotFoundError, match="thread not found"):
            state.thread_memories.upsert_for_scope(nobody, _USER, "raw", "summary")
        with pytest.raises(ThreadNotFoundError, match="thread not found"):
            state.thread_memories.upsert_if_owner(lease, "raw", "summary")

    def test_the_holder_of_the_job_stores_for_its_own_key(self, state: State) -> None:
        thread_id = _a_stored_thread(state)
        assert state.thread_memories.upsert_if_owner(_claimed(state, thread_id), "raw", "summary")
        memory = state.thread_memories.get(thread_id)
        assert memory is not None
        assert (memory.thread_id, memory.scope_kind, memory.scope_key) == (thread_id, "user", "user")
        assert (memory.raw_memory, memory.memory_summary) == ("raw", "summary")

    @pytest.mark.parametrize("way", ["as the holder", "for the directory", "for a scope"])
    def test_whoever_stores_a_memory_makes_its_scope_dirty(self, state: State, way: str) -> None:
        """L5: in one transaction, so that no memory waits for a consolidation that nobody asks for."""
        thread_id = _a_stored_thread(state)
        scope = _USER
        match way:
            case "as the holder":
                state.thread_memories.upsert_if_owner(_claimed(state, thread_id), "raw", "summary")
            case "for the directory":
                stored = state.thread_memories.upsert(thread_id, "raw", "summary")
                scope = MemoryScope(stored.scope_kind, stored.scope_key)
            case _:
                state.thread_memories.upsert_for_scope(thread_id, _USER, "raw", "summary")
        assert [MemoryScope(mark.scope_kind, mark.scope_key) for mark in state.memory_scopes.list_dirty()] == [scope]

    @pytest.mark.parametrize("way", ["deleted", "disabled by its rollout"])
    def test_marks_of_what_is_to_be_forgotten_follow_the_clock_and_strictly_increase(
        self, state: State, clock: ManualClock, way: str
    ) -> None:
        """L3, L4."""
        threads = [_a_stored_thread(state) for _ in range(2)]
        for each in threads:
            state.thread_memories.upsert_for_scope(each, _USER, "raw", "summary")
        clock.advance(timedelta(minutes=1))
        marks = []
        for each in threads:
            if way == "deleted":
                state.threads.delete(each)
            else:
                state.threads.upsert_from_rollouts([a_thread(id=each, memory_mode="disabled")])
            mark = state.memory_scopes.get(_USER)
            assert mark is not None
            marks.append(mark.updated_at)
        assert marks == [clock.now, clock.now + _SECOND]

    @pytest.mark.parametrize(
        "way", ["the thread is deleted", "its memory mode is disabled", "its rollout says so", "it is invalidated"]
    )
    def test_a_memory_that_counts_no_more_makes_its_scope_dirty_and_is_handed_out_to_nobody(
        self, state: State, way: str
    ) -> None:
        """What was derived from it is made anew without it."""
        thread_id, other = _a_stored_thread(state), _a_stored_thread(state)
        for each in (thread_id, other):
            state.thread_memories.upsert_for_scope(each, _USER, "raw", "summary")
        mark = state.memory_scopes.get(_USER)
        assert mark is not None
        assert state.memory_scopes.mark_clean(_USER, seen=mark.updated_at)
        match way:
            case "the thread is deleted":
                state.threads.delete(thread_id)
            case "its memory mode is disabled":
                state.threads.set_memory_mode(thread_id, "disabled")
            case "its rollout says so":
                state.threads.upsert_from_rollouts([a_thread(id=thread_id, memory_mode="disabled")])
            case _:
                state.thread_memories.invalidate(thread_id, _USER, "wrong")
        dirty = state.memory_scopes.get(_USER)
        assert dirty is not None
        assert (dirty.dirty, dirty.updated_at > mark.updated_at) == (True, True)
        assert [memory.thread_id for memory in state.thread_memories.last_n_for_scope(_USER, 10)] == [other]

    def test_a_holder_that_was_taken_over_changes_nothing(self, state: State) -> None:
        """L2."""
        thread_id = _a_stored_thread(state)
        stale = _claimed(state, thread_id)
        current = _claimed(state, thread_id)
        state.thread_memories.upsert_if_owner(current, "raw", "summary")
        stored = state.thread_memories.get(thread_id)
        assert state.thread_memories.upsert_if_owner(stale, "stale", "stale") is HolderWrite.LEASE_LOST
        assert state.thread_memories.get(thread_id) == stored

    @pytest.mark.parametrize("finish", ["succeed", "fail"])
    def test_a_holder_whose_job_is_finished_changes_nothing(self, state: State, finish: str) -> None:
        thread_id = _a_stored_thread(state)
        lease = _claimed(state, thread_id)
        if finish == "succeed":
            state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m"), summary_hash="h")
        else:
            state.phase1_jobs.fail(lease, "broken")
        assert state.thread_memories.upsert_if_owner(lease, "late", "late") is HolderWrite.LEASE_LOST
        assert state.thread_memories.get(thread_id) is None

    def test_the_token_of_one_key_opens_no_other(self, state: State) -> None:
        thread_id = _a_stored_thread(state)
        user, cwd = _claimed(state, thread_id), _claimed(state, thread_id, MemoryScope.cwd(Path("/code")))
        crossed = replace(user, key=cwd.key)
        assert state.thread_memories.upsert_if_owner(crossed, "raw", "summary") is HolderWrite.LEASE_LOST
        assert state.thread_memories.get(thread_id) is None

    def test_the_newest_memory_of_a_thread_is_the_one_it_has(self, state: State, clock: ManualClock) -> None:
        thread_id = _a_stored_thread(state)
        scopes = [MemoryScope("cwd", "/a"), MemoryScope("cwd", "/b"), MemoryScope("user", "user")]
        for scope in reversed(scopes):
            state.thread_memories.upsert_for_scope(thread_id, scope, scope.key, "s")
        newest = state.thread_memories.get(thread_id)
        assert newest is not None
        assert newest.scope_kind == "user"  # equal times: by kind, then key, descending
        clock.advance(_SECOND)
        state.thread_memories.upsert_for_scope(thread_id, scopes[0], "/a", "s")
        newest = state.thread_memories.get(thread_id)
        assert newest is not None
        assert newest.scope_key == "/a"

    def test_the_last_memories_of_a_directory_are_newest_first(self, state: State, clock: ManualClock) -> None:
        first, second, elsewhere = (_a_stored_thread(state, cwd) for cwd in ("/code", "/code", "/elsewhere"))
        for thread_id in (first, second, elsewhere):
            state.thread_memories.upsert(thread_id, "raw", "summary")
        state.thread_memories.upsert(first, "raw", "summary")  # within the same second: one second later than itself
        assert [memory.thread_id for memory in state.thread_memories.last_n_for_cwd(Path("/code"), 10)] == [
            first,
            second,
        ]
        clock.advance(timedelta(minutes=1))
        state.thread_memories.upsert(second, "raw", "summary")
        assert [memory.thread_id for memory in state.thread_memories.last_n_for_cwd(Path("/code"), 1)] == [second]
        assert state.thread_memories.last_n_for_cwd(Path("/unknown"), 10) == []

    def test_memories_of_one_second_are_ordered_by_thread_descending(self, state: State) -> None:
        ids = [_a_stored_thread(state) for _ in range(5)]
        for thread_id in ids:
            state.thread_memories.upsert_for_scope(thread_id, _USER, "raw", "summary")
        listed = [memory.thread_id for memory in state.thread_memories.last_n_for_scope(_USER, 5)]
        assert listed == sorted(ids, key=str, reverse=True)

    @pytest.mark.parametrize("n", [0, -1])
    def test_no_memories_are_no_memories(self, state: State, n: int) -> None:
        state.thread_memories.upsert(_a_stored_thread(state), "raw", "summary")
        assert state.thread_memories.last_n_for_cwd(Path("/code"), n) == []

    @pytest.mark.parametrize("asked", ["/wor", "/code/", "/code/sub", "/WORK", "%", "/w_rk"])
    def test_a_directory_matches_exactly(self, state: State, asked: str) -> None:
        state.thread_memories.upsert(_a_stored_thread(state, "/code"), "raw", "summary")
        found = state.thread_memories.last_n_for_scope(MemoryScope("cwd", asked), 10)
        assert found == []

    def test_an_invalidated_memory_is_kept_but_no_longer_listed(self, state: State, clock: ManualClock) -> None:
        thread_id = _a_stored_thread(state)
        state.thread_memories.upsert_for_scope(thread_id, _USER, "raw", "summary")
        clock.advance(timedelta(hours=1))
        assert state.thread_memories.invalidate(thread_id, _USER, "wrong") is True
        assert state.thread_memories.invalidate(thread_id, _USER, "again") is False
        assert state.thread_memories.last_n_for_scope(_USER, 10) == []
        kept = state.thread_memories.get(thread_id)
        assert kept is not None
        assert (kept.invalidated_at, kept.invalid_reason) == (NOON + timedelta(hours=1), "wrong")
        assert kept.updated_at == NOON

    def test_a_new_text_makes_an_invalidated_memory_valid_again(self, state: State) -> None:
        thread_id = _a_stored_thread(state)
        state.thread_memories.upsert_for_scope(thread_id, _USER, "raw", "summary")
        state.thread_memories.invalidate(thread_id, _USER, "wrong")
        memory = state.thread_memories.upsert_for_scope(thread_id, _USER, "better", "summary")
        assert (memory.invalidated_at, memory.invalid_reason) == (None, None)
        assert state.thread_memories.last_n_for_scope(_USER, 10) == [memory]

    def test_uses_are_counted_with_their_time_and_survive_a_new_text(self, state: State, clock: ManualClock) -> None:
        thread_id = _a_stored_thread(state)
        assert state.thread_memories.record_use(thread_id, _USER) is False
        state.thread_memories.upsert_for_scope(thread_id, _USER, "raw", "summary")
        clock.advance(timedelta(hours=1))
        assert state.thread_memories.record_use(thread_id, _USER) is True
        assert state.thread_memories.record_use(thread_id, _USER) is True
        memory = state.thread_memories.upsert_for_scope(thread_id, _USER, "new", "summary")
        assert (memory.used_count, memory.last_used_at) == (2, NOON + timedelta(hours=1))

    def test_a_memory_of_nobody_cannot_be_invalidated(self, state: State) -> None:
        assert state.thread_memories.invalidate(uuid4(), _USER, "wrong") is False
