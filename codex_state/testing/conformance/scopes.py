"""Dirty scopes: nothing that became dirty while it was consolidated is forgotten."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from codex_state.models import Claimed, LockLease, MemoryScope, MemoryScopeDirty
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON

_SECOND = timedelta(seconds=1)
_USER = MemoryScope.user()
_CWD = MemoryScope.cwd(Path("/code"))


class TestMemoryScopes:
    """``MemoryScopeRepository``."""

    def test_a_scope_starts_without_a_mark(self, state: State) -> None:
        assert state.memory_scopes.get(_USER) is None
        assert state.memory_scopes.list_dirty() == []
        assert state.memory_scopes.mark_clean(_USER, seen=NOON) is False

    def test_a_dirty_scope_is_listed_until_it_is_clean(self, state: State) -> None:
        seen = state.memory_scopes.mark_dirty(_USER)
        assert seen == NOON
        dirty = MemoryScopeDirty(scope_kind="user", scope_key="user", dirty=True, updated_at=NOON)
        assert state.memory_scopes.list_dirty() == [dirty]
        assert state.memory_scopes.mark_clean(_USER, seen=seen) is True
        assert state.memory_scopes.list_dirty() == []
        assert state.memory_scopes.get(_USER) == MemoryScopeDirty(**(dirty.model_dump() | {"dirty": False}))
        assert state.memory_scopes.mark_clean(_USER, seen=seen) is False

    def test_a_scope_that_became_dirty_again_in_the_same_second_is_not_marked_clean(self, state: State) -> None:
        seen = state.memory_scopes.mark_dirty(_USER)
        again = state.memory_scopes.mark_dirty(_USER)
        assert again == seen + _SECOND
        assert state.memory_scopes.mark_clean(_USER, seen=seen) is False
        assert len(state.memory_scopes.list_dirty()) == 1
        assert state.memory_scopes.mark_clean(_USER, seen=again) is True

    def test_a_mark_made_after_a_clean_one_is_a_new_one(self, state: State, clock: ManualClock) -> None:
        first = state.memory_scopes.mark_dirty(_USER)
        state.memory_scopes.mark_clean(_USER, seen=first)
        clock.advance(timedelta(hours=-1))
        second = state.memory_scopes.mark_dirty(_USER)
        assert second == first + _SECOND
        assert state.memory_scopes.mark_clean(_USER, seen=first) is False

    def test_marks_follow_the_clock(self, state: State, clock: ManualClock) -> None:
        state.memory_scopes.mark_dirty(_USER)
        clock.advance(timedelta(hours=1))
        assert state.memory_scopes.mark_dirty(_USER) == NOON + timedelta(hours=1)

    def test_those_that_wait_longest_come_first(self, state: State, clock: ManualClock) -> None:
        scopes = [MemoryScope("cwd", key) for key in ("/c", "/a", "/b")]
        for scope in scopes:
            state.memory_scopes.mark_dirty(scope)
            clock.advance(_SECOND)
        clock.set(NOON)
        state.memory_scopes.mark_dirty(_USER)
        listed = [mark.scope_key for mark in state.memory_scopes.list_dirty()]
        assert listed == ["/c", "user", "/a", "/b"]
        assert [mark.scope_key for mark in state.memory_scopes.list_dirty(limit=2)] == ["/c", "user"]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_of_nothing_lists_nothing(self, state: State, limit: int) -> None:
        state.memory_scopes.mark_dirty(_USER)
        assert state.memory_scopes.list_dirty(limit=limit) == []

    def test_scopes_are_independent(self, state: State) -> None:
        seen = state.memory_scopes.mark_dirty(_CWD)
        state.memory_scopes.mark_dirty(_USER)
        assert state.memory_scopes.mark_clean(_CWD, seen=seen) is True
        assert [mark.scope_kind for mark in state.memory_scopes.list_dirty()] == ["user"]

    def test_a_scope_is_marked_clean_under_a_lock_that_is_held(self, state: State) -> None:
        lock = _acquire(state, UUID(int=1))
        seen = state.memory_scopes.mark_dirty(_USER)
        assert state.memory_scopes.mark_clean(_USER, seen=seen, lock=lock) is True
        assert _dirty(state) == []

    @pytest.mark.parametrize("end", ["taken over", "taken again", "released"])
    def test_a_scope_is_not_marked_clean_under_a_lock_that_is_lost(
        self, state: State, clock: ManualClock, end: str
    ) -> None:
        """L2."""
        lock = _acquire(state, UUID(int=1))
        seen = state.memory_scopes.mark_dirty(_USER)
        clock.advance(timedelta(hours=1))
        if end == "released":
            state.consolidation_locks.release(lock)
        else:
            _acquire(state, UUID(int=2 if end == "taken over" else 1))
        assert state.memory_scopes.mark_clean(_USER, seen=seen, lock=lock) is False
        assert _dirty(state) == [_USER]

    def test_a_lock_does_not_make_an_old_mark_good(self, state: State) -> None:
        lock = _acquire(state, UUID(int=1))
        seen = state.memory_scopes.mark_dirty(_USER)
        state.memory_scopes.mark_dirty(_USER)
        assert state.memory_scopes.mark_clean(_USER, seen=seen, lock=lock) is False


def _acquire(state: State, owner: UUID) -> LockLease:
    claim = state.consolidation_locks.try_claim(Path("/memories"), owner=owner, lease=timedelta(hours=1))
    assert isinstance(claim, Claimed)
    return claim.lease


def _dirty(state: State) -> list[MemoryScope]:
    return [MemoryScope(mark.scope_kind, mark.scope_key) for mark in state.memory_scopes.list_dirty()]
