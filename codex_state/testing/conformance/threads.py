"""Threads: writing and reading rows of the index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from codex_state.models import MemoryScope, Phase1Key, Thread, ThreadQuery
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread, a_tool

_LATER = NOON + timedelta(hours=1)

_FULL = {
    "rollout_path": Path("/home/sessions/2026/02/10/rollout.jsonl"),
    "created_at": datetime(1969, 7, 20, 20, 17, tzinfo=UTC),
    "updated_at": _LATER,
    "source": '{"subagent":"review"}',
    "model_provider": "azure",
    "cwd": Path("/code/ä b"),
    "title": "Title\nof two lines ' \" % _ \\",
    "sandbox_policy": '{"type":"danger-full-access"}',
    "approval_mode": "never",
    "tokens_used": 2**62,
    "archived": True,
    "archived_at": NOON,
    "git_sha": "abc",
    "git_branch": "main",
    "git_origin_url": "git@example.org:a/b.git",
    "cli_version": "0.99.0",
    "first_user_message": "\N{PILE OF POO}",
    "agent_nickname": "Ada",
    "agent_role": "reviewer",
    "agent_path": "/root/review",
    "memory_mode": "disabled",
    "model": "gpt-5",
    "reasoning_effort": "high",
    "home": "laptop",
}


class TestThreads:
    """``ThreadRepository``, but for ``list`` and ``list_ids``."""

    def test_a_thread_comes_back_with_every_column(self, state: State) -> None:
        thread = a_thread(**_FULL)
        assert set(_FULL) | {"id"} == set(Thread.model_fields)
        state.threads.upsert(thread)
        assert state.threads.get(thread.id) == thread

    def test_an_unknown_thread_is_none(self, state: State) -> None:
        assert state.threads.get(uuid4()) is None
        assert state.threads.find_rollout_path(uuid4()) is None

    def test_upsert_replaces_everything_but_the_memory_mode(self, state: State) -> None:
        thread = a_thread(memory_mode="polluted", git_sha="old", title="renamed")
        state.threads.upsert(thread)
        changed = a_thread(**(_FULL | {"id": thread.id, "memory_mode": "enabled", "git_sha": None}))
        state.threads.upsert(changed)
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.memory_mode == "polluted"
        assert stored.model_dump(exclude={"memory_mode"}) == changed.model_dump(exclude={"memory_mode"})

    def test_upsert_many_stores_all_and_takes_the_last_of_one_id(self, state: State) -> None:
        threads = [a_thread(title=str(number)) for number in range(300)]
        again = a_thread(**(threads[0].model_dump() | {"title": "again"}))
        state.threads.upsert_many([])
        state.threads.upsert_many([*threads, again])
        stored = {thread.id: thread.title for thread in state.threads.list(ThreadQuery(limit=1000)).items}
        assert stored == {thread.id: thread.title for thread in threads} | {again.id: "again"}

    def test_insert_if_absent_leaves_an_existing_row_as_it_is(self, state: State) -> None:
        thread = a_thread(title="first")
        assert state.threads.insert_if_absent(thread) is True
        assert state.threads.insert_if_absent(a_thread(id=thread.id, title="second")) is False
        assert state.threads.get(thread.id) == thread

    @pytest.mark.parametrize("stored", [{"git_branch": "mine"}, {"git_sha": "1", "git_origin_url": "u"}, {}])
    def test_a_rebuild_keeps_each_git_field_that_the_row_has(self, state: State, stored: dict[str, str]) -> None:
        rollout = {"git_sha": "2", "git_branch": "theirs", "git_origin_url": "v"}
        thread = a_thread(**stored)
        state.threads.upsert(thread)
        state.threads.upsert_from_rollouts([a_thread(id=thread.id, **rollout)])
        rebuilt = state.threads.get(thread.id)
        assert rebuilt is not None
        assert {name: getattr(rebuilt, name) for name in rollout} == rollout | stored

    @pytest.mark.parametrize(
        ("title", "first_user_message", "rebuilt"),
        [
            ("my name for it", "fix the bug", "my name for it"),
            ("my name for it", None, "my name for it"),
            ("fix the bug", "fix the bug", "fix the other bug"),
            (" fix the bug ", "fix the bug", "fix the other bug"),
            ("", "fix the bug", "fix the other bug"),
            ("  ", "fix the bug", "fix the other bug"),
            ("", None, "fix the other bug"),
        ],
    )
    def test_a_rebuild_keeps_a_title_that_the_user_gave(
        self, state: State, title: str, first_user_message: str | None, rebuilt: str
    ) -> None:
        thread = a_thread(title=title, first_user_message=first_user_message)
        state.threads.upsert(thread)
        from_rollout = a_thread(id=thread.id, title="fix the other bug", first_user_message="fix the other bug")
        state.threads.upsert_from_rollouts([from_rollout])
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert (stored.title, stored.first_user_message) == (rebuilt, "fix the other bug")

    def test_a_rebuild_takes_everything_else_from_the_rollout(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        rollout = a_thread(**(_FULL | {"id": thread.id}))
        new = a_thread(**_FULL)
        state.threads.upsert_from_rollouts([rollout, new])
        assert state.threads.get(thread.id) == rollout
        assert state.threads.get(new.id) == new

    @pytest.mark.parametrize(("archived", "archived_at"), [(True, None), (False, NOON)])
    def test_every_write_derives_the_archived_flag_from_its_time(
        self, state: State, archived: bool, archived_at: datetime | None
    ) -> None:
        thread = a_thread(archived=archived, archived_at=archived_at)
        state.threads.upsert(thread)
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.archived is (archived_at is not None)

    def test_an_archived_flag_without_its_time_is_repaired_by_the_next_upsert(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        state.session.connection().execute(text("UPDATE threads SET archived = 1"))
        state.threads.upsert(thread)
        assert state.threads.get(thread.id) == thread
        assert state.threads.find_rollout_path(thread.id, archived=False) is not None

    def test_archiving_moves_the_rollout_and_back(self, state: State) -> None:
        thread = a_thread(rollout_path=Path("/s/a"))
        state.threads.upsert(thread)
        assert state.threads.mark_archived(thread.id, Path("/archived/a"), _LATER) is True
        archived = state.threads.get(thread.id)
        assert archived == a_thread(
            **(thread.model_dump() | {"rollout_path": Path("/archived/a"), "archived": True, "archived_at": _LATER})
        )
        assert state.threads.mark_unarchived(thread.id, Path("/s/a")) is True
        assert state.threads.get(thread.id) == thread

    def test_archiving_sets_updated_at_only_when_it_is_given(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        state.threads.mark_archived(thread.id, Path("/a"), NOON, updated_at=_LATER)
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.updated_at == _LATER
        state.threads.mark_unarchived(thread.id, Path("/a"), updated_at=NOON - timedelta(days=1))
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.updated_at == NOON - timedelta(days=1)

    def test_the_rollout_path_can_be_asked_for_one_kind_only(self, state: State) -> None:
        live, archived = a_thread(rollout_path=Path("/live")), a_thread(rollout_path=Path("/old"), archived_at=NOON)
        state.threads.upsert_many([live, archived])
        paths = {
            wanted: [state.threads.find_rollout_path(thread.id, archived=wanted) for thread in (live, archived)]
            for wanted in (None, False, True)
        }
        assert paths == {
            None: [Path("/live"), Path("/old")],
            False: [Path("/live"), None],
            True: [None, Path("/old")],
        }

    def test_the_memory_mode_and_the_title_can_be_set(self, state: State) -> None:
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        assert state.threads.set_memory_mode(thread.id, "disabled") is True
        assert state.threads.set_name(thread.id, "mine") is True
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert (stored.memory_mode, stored.title) == ("disabled", "mine")
        assert state.threads.get(other.id) == other

    def test_changing_a_thread_without_a_row_says_so_and_makes_none(self, state: State) -> None:
        nobody = uuid4()
        assert state.threads.mark_archived(nobody, Path("/a"), NOON) is False
        assert state.threads.mark_unarchived(nobody, Path("/a")) is False
        assert state.threads.set_memory_mode(nobody, "enabled") is False
        assert state.threads.set_name(nobody, "mine") is False
        assert state.threads.delete(nobody) is False
        assert state.threads.get(nobody) is None

    def test_deleting_a_thread_takes_its_tools_memories_and_jobs_with_it(self, state: State) -> None:
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        scope = MemoryScope.user()
        for each in (thread, other):
            state.dynamic_tools.persist([a_tool(each)])
            state.thread_memories.upsert_for_scope(each.id, scope, "raw", "summary")
            state.phase1_jobs.try_claim(
                Phase1Key(each.id, scope), owner=uuid4(), source_updated_at=NOON, lease=timedelta(hours=1)
            )
        assert state.threads.delete(thread.id) is True
        assert state.dynamic_tools.get(thread.id) is None
        assert state.thread_memories.get(thread.id) is None
        assert state.phase1_jobs.get(Phase1Key(thread.id, scope)) is None
        assert state.dynamic_tools.get(other.id) == [a_tool(other)]
        assert state.thread_memories.get(other.id) is not None
        assert state.phase1_jobs.get(Phase1Key(other.id, scope)) is not None

    def test_a_thread_can_be_relocated(self, state: State) -> None:
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        for archived_at in (NOON, None):
            moved = {"rollout_path": Path("/b"), "cwd": Path("/elsewhere"), "archived_at": archived_at}
            assert (
                state.threads.relocate(thread.id, Path("/b"), cwd=Path("/elsewhere"), archived_at=archived_at) is True
            )
            assert state.threads.get(thread.id) == a_thread(
                **(thread.model_dump() | moved | {"archived": archived_at is not None})
            )
        assert state.threads.get(other.id) == other
        assert state.threads.relocate(uuid4(), Path("/b"), cwd=Path("/"), archived_at=None) is False

    def test_the_rollouts_of_one_home_can_be_listed(self, state: State) -> None:
        here = [a_thread(rollout_path=Path("/a")), a_thread(rollout_path=Path("/b"), archived_at=NOON)]
        state.threads.upsert_many([*here, a_thread(rollout_path=Path("/c"), home="laptop")])
        assert sorted(state.threads.rollout_paths()) == [Path("/a"), Path("/b")]
        assert list(state.threads.rollout_paths("laptop")) == [Path("/c")]
        assert list(state.threads.rollout_paths("nowhere")) == []

    def test_a_thread_whose_rollout_vanished_is_deleted_with_its_tools(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        state.dynamic_tools.persist([a_tool(thread)])
        assert state.threads.delete_vanished(thread.id, thread.rollout_path, thread.home) is True
        assert state.threads.get(thread.id) is None
        assert state.dynamic_tools.get(thread.id) is None
        assert state.threads.delete_vanished(thread.id, thread.rollout_path, thread.home) is False

    @pytest.mark.parametrize("reason", ["memory", "job", "title", "moved", "home"])
    def test_a_thread_with_something_to_lose_survives_its_rollout(self, state: State, reason: str) -> None:
        """L7: and only its own home may judge that the file is gone."""
        thread = a_thread()
        state.threads.upsert(thread)
        path, home = thread.rollout_path, thread.home
        match reason:
            case "memory":
                state.thread_memories.upsert(thread.id, "raw", "summary")
            case "job":
                key = Phase1Key(thread.id, MemoryScope.user())
                state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=NOON, lease=timedelta(hours=1))
            case "title":
                state.threads.set_name(thread.id, "mine")
            case "moved":
                path = Path("/where/it/was/before")
            case _:
                home = "laptop"
        stored = state.threads.get(thread.id)
        assert state.threads.delete_vanished(thread.id, path, home) is False
        assert state.threads.get(thread.id) == stored

    def test_what_was_handed_out_does_not_change_with_later_writes(self, state: State) -> None:
        thread = a_thread(title="before")
        state.threads.upsert(thread)
        handed_out = state.threads.get(thread.id)
        state.threads.set_name(thread.id, "after")
        assert handed_out is not None
        assert handed_out.title == "before"
        read_again = state.threads.get(thread.id)
        assert read_again is not None
        assert read_again.title == "after"
