"""Threads: writing and reading rows of the index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from codex_state.errors import InvalidInputError
from codex_state.models import MemoryScope, Phase1Key, Thread, ThreadQuery
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
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
    "name": "Mine",
    "name_at": NOON,
    "original_name": "Theirs",
    "preview": "make all tests pass",
    "thread_source": "subagent",
    "originator": "codex_cli",
    "parent_thread_id": uuid4(),
    "forked_from_id": uuid4(),
    "memory_mode_chosen_at": NOON,
    "gone_at": NOON,
    "pinned": True,
    "updated_ns": 7,
    "turns": 3,
    "tokens_inherited": 2**61,
    "tokens_input": 2**60,
    "tokens_cached": 5,
    "tokens_output": 6,
    "tokens_reasoning": 4,
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
        thread = a_thread(memory_mode="polluted", git_sha="old", title="before")
        state.threads.upsert(thread)
        changed = a_thread(**(_FULL | {"id": thread.id, "memory_mode": "enabled", "git_sha": None}))
        state.threads.upsert(changed)
        stored = state.threads.get(thread.id)
        assert stored is not None
        kept = {"memory_mode", "memory_mode_chosen_at", "original_name"}
        assert (stored.memory_mode, stored.memory_mode_chosen_at, stored.original_name) == ("polluted", None, None)
        assert stored.model_dump(exclude=kept) == changed.model_dump(exclude=kept)

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

    def test_a_rebuild_takes_everything_else_from_the_rollout(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        new = a_thread(**_FULL)
        state.threads.upsert_from_rollouts([a_thread(**(_FULL | {"id": thread.id})), new])
        # No rollout says these: the one row has them as they were, the other as a new one has them. A rollout is there.
        own = {"memory_mode_chosen_at": None, "pinned": False, "original_name": None, "gone_at": None}
        for thread_id in (thread.id, new.id):
            assert state.threads.get(thread_id) == a_thread(**(_FULL | own | {"id": thread_id}))

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

    def test_a_name_can_be_given_and_taken_away_and_the_title_stays(self, state: State, clock: ManualClock) -> None:
        """L3: when it was given is the database's time."""
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        assert state.threads.set_name(thread.id, "mine") is True
        named = state.threads.get(thread.id)
        assert named is not None
        assert named == a_thread(**(thread.model_dump() | {"name": "mine", "name_at": clock.now}))
        assert named.display_name == "mine"
        assert state.threads.set_name(thread.id, None) is True
        nameless = state.threads.get(thread.id)
        assert nameless is not None
        later = clock.now + timedelta(seconds=1)
        assert (nameless.name, nameless.name_at) == (None, later), "no older name may come back"
        assert state.threads.get(other.id) == other

    def test_a_name_given_here_is_newer_than_one_from_a_clock_that_is_ahead(self, state: State) -> None:
        ahead = datetime(2999, 1, 1, tzinfo=UTC)
        thread = a_thread(name="theirs", name_at=ahead)
        state.threads.upsert(thread)
        state.threads.set_name(thread.id, "mine")
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert (stored.name, stored.name_at) == ("mine", ahead + timedelta(seconds=1))

    @pytest.mark.parametrize("name", ["", " ", "\t\n"])
    def test_a_blank_name_is_refused(self, state: State, name: str) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        with pytest.raises(InvalidInputError, match="blank"):
            state.threads.set_name(thread.id, name)
        assert state.threads.get(thread.id) == thread

    @pytest.mark.parametrize(
        ("stored", "written", "expected"),
        [
            (("old", NOON), (None, None), ("old", NOON)),
            (("old", NOON), (None, _LATER), ("old", NOON)),
            (("old", NOON), ("new", _LATER), ("new", _LATER)),
            (("old", NOON), ("new", NOON), ("new", NOON)),
            (("new", _LATER), ("old", NOON), ("new", _LATER)),
            ((None, _LATER), ("old", NOON), (None, _LATER)),
            ((None, NOON), ("new", _LATER), ("new", _LATER)),
            ((None, None), ("new", NOON), ("new", NOON)),
            (("old", NOON), ("", None), ("old", NOON)),
        ],
    )
    def test_upsert_keeps_a_name_unless_it_brings_one_that_is_not_older(
        self,
        state: State,
        stored: tuple[str | None, datetime | None],
        written: tuple[str | None, datetime | None],
        expected: tuple[str | None, datetime | None],
    ) -> None:
        thread = a_thread(name=stored[0], name_at=stored[1])
        state.threads.upsert(thread)
        state.threads.upsert(a_thread(id=thread.id, name=written[0], name_at=written[1]))
        found = state.threads.get(thread.id)
        assert found is not None
        assert (found.name, found.name_at) == expected

    def test_a_name_that_is_written_without_a_time_is_given_now(self, state: State, clock: ManualClock) -> None:
        """L3."""
        thread, again = a_thread(name="first"), a_thread(name="old", name_at=NOON)
        state.threads.upsert_many([thread, again])
        state.threads.upsert(a_thread(id=again.id, name="new"))
        for thread_id, name in ((thread.id, "first"), (again.id, "new")):
            found = state.threads.get(thread_id)
            assert found is not None
            assert (found.name, found.name_at) == (name, clock.now)

    @pytest.mark.parametrize("path", [None, Path()])
    def test_a_rollout_path_may_be_unknown(self, state: State, path: Path | None) -> None:
        thread = a_thread(rollout_path=path)
        state.threads.upsert(thread)
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert stored.rollout_path is None
        assert state.threads.find_rollout_path(thread.id) is None

    def test_the_memory_mode_can_be_chosen(self, state: State, clock: ManualClock) -> None:
        """L3: when it was chosen is the database's time."""
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        assert state.threads.set_memory_mode(thread.id, "disabled") is True
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert (stored.memory_mode, stored.memory_mode_chosen_at) == ("disabled", clock.now)
        assert state.threads.get(other.id) == other
        state.threads.upsert(a_thread(id=thread.id))
        state.threads.upsert_from_rollouts([a_thread(id=thread.id, memory_mode="polluted")])
        assert state.threads.get(thread.id) == stored

    def test_a_rebuild_keeps_what_somebody_gave_the_thread(self, state: State) -> None:
        chosen = {"memory_mode": "disabled", "memory_mode_chosen_at": NOON}
        thread = a_thread(pinned=True, name="mine", name_at=NOON, original_name="theirs", **chosen)
        state.threads.upsert(thread)
        state.threads.upsert_from_rollouts([a_thread(id=thread.id)])
        assert state.threads.get(thread.id) == thread

    @pytest.mark.parametrize(("first", "second"), [(NOON, _LATER), (_LATER, NOON), (None, NOON), (NOON, None)])
    def test_of_two_names_a_rebuild_keeps_the_newer(
        self, state: State, first: datetime | None, second: datetime | None
    ) -> None:
        thread = a_thread(name=first and "first", name_at=first)
        state.threads.upsert(thread)
        state.threads.upsert_from_rollouts([a_thread(id=thread.id, name=second and "second", name_at=second)])
        stored = state.threads.get(thread.id)
        assert stored is not None
        is_second_newer = first is None or (second is not None and second > first)
        assert (stored.name, stored.name_at) == (("second", second) if is_second_newer else ("first", first))

    def test_a_rollout_is_gone_or_found_and_a_row_stays(self, state: State, clock: ManualClock) -> None:
        """L7."""
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        assert list(state.threads.mark_gone([thread.id], thread.home)) == [thread.id]
        gone = state.threads.get(thread.id)
        assert gone is not None
        assert gone.gone_at == clock.now
        clock.advance(timedelta(hours=1))
        assert list(state.threads.mark_gone([thread.id], thread.home)) == []
        assert state.threads.get(thread.id) == gone, "since when stays"
        state.threads.upsert_from_rollouts([thread])
        assert state.threads.get(thread.id) == thread
        assert state.threads.get(other.id) == other
        assert list(state.threads.mark_gone([], thread.home)) == []

    def test_only_its_own_home_judges_a_rollout_and_only_where_there_is_one(self, state: State) -> None:
        elsewhere, without = a_thread(home="laptop"), a_thread(rollout_path=None)
        state.threads.upsert_many([elsewhere, without])
        assert list(state.threads.mark_gone([elsewhere.id, without.id, uuid4()], "local")) == []
        assert state.threads.mark_gone([elsewhere.id], "laptop") == [elsewhere.id]

    @pytest.mark.parametrize("step", ["upsert", "upsert elsewhere", "rollout", "archive", "unarchive"])
    def test_a_rollout_is_gone_until_one_is_seen_or_named(self, state: State, step: str) -> None:
        thread = a_thread(rollout_path=Path("/a"))
        state.threads.upsert(thread)
        state.threads.mark_gone([thread.id], thread.home)
        match step:
            case "upsert":
                state.threads.upsert(thread)
            case "upsert elsewhere":
                state.threads.upsert(a_thread(id=thread.id, rollout_path=Path("/b")))
            case "rollout":
                state.threads.upsert_from_rollouts([thread])
            case "archive":
                state.threads.mark_archived(thread.id, Path("/b"), NOON)
            case _:
                state.threads.mark_unarchived(thread.id, Path("/b"))
        stored = state.threads.get(thread.id)
        assert stored is not None
        assert (stored.gone_at is not None) is (step == "upsert")

    def test_a_repair_deletes_rows_of_rollouts_that_are_gone_with_their_tools(self, state: State) -> None:
        gone, there = a_thread(), a_thread()
        state.threads.upsert_many([gone, there])
        state.dynamic_tools.persist([a_tool(gone)])
        both = [gone.id, there.id]
        assert list(state.threads.delete_gone(both, "local")) == []
        state.threads.mark_gone([gone.id], "local")
        assert list(state.threads.delete_gone(both, "laptop")) == []
        assert list(state.threads.delete_gone([], "local")) == []
        assert list(state.threads.delete_gone(both, "local")) == [gone.id]
        assert state.threads.get(gone.id) is None
        assert state.dynamic_tools.get(gone.id) is None
        assert state.threads.get(there.id) == there

    @pytest.mark.parametrize("reason", ["memory", "job", "name", "pin", "memory mode", "found"])
    def test_a_thread_with_something_to_lose_survives_its_rollout(self, state: State, reason: str) -> None:
        """L7."""
        thread = a_thread(pinned=reason == "pin")
        state.threads.upsert(thread)
        state.threads.mark_gone([thread.id], thread.home)
        match reason:
            case "memory":
                state.thread_memories.upsert(thread.id, "raw", "summary")
            case "job":
                key = Phase1Key(thread.id, MemoryScope.user())
                state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=NOON, lease=timedelta(hours=1))
            case "name":
                state.threads.set_name(thread.id, "mine")
            case "memory mode":
                state.threads.set_memory_mode(thread.id, "disabled")
            case "found":
                state.threads.upsert_from_rollouts([thread])
        stored = state.threads.get(thread.id)
        assert list(state.threads.delete_gone([thread.id], thread.home)) == []
        assert state.threads.get(thread.id) == stored

    @pytest.mark.parametrize(
        "definition",
        [
            "CREATE TABLE {name} (thread {type} REFERENCES threads (id) ON DELETE CASCADE)",
            "CREATE TABLE {name} (thread {type} REFERENCES threads ON DELETE SET NULL)",
            'CREATE TABLE {name} (n INTEGER, thread {type}, FOREIGN KEY (thread) REFERENCES "threads" (id))',
        ],
    )
    def test_a_thread_that_a_services_row_refers_to_survives_its_rollout(self, state: State, definition: str) -> None:
        """L7: whatever would become of the service's row."""
        threads = [a_thread(), a_thread()]
        state.threads.upsert_many(threads)
        ids = [thread.id for thread in threads]
        state.threads.mark_gone(ids, "local")
        connection = state.session.connection()
        kind = "uuid" if connection.dialect.name == "postgresql" else "TEXT"
        name = '"Tickets of ours"'
        connection.execute(text(definition.format(name=name, type=kind)))
        try:
            connection.execute(text(f"INSERT INTO {name} (thread) VALUES ('{ids[0]}')"))  # noqa: S608
            assert list(state.threads.delete_gone(ids, "local")) == [ids[1]]
            assert state.threads.get(ids[0]) is not None
            connection.execute(text(f"DELETE FROM {name}"))  # noqa: S608
            assert list(state.threads.delete_gone(ids, "local")) == [ids[0]]
        finally:
            connection.execute(text(f"DROP TABLE {name}"))

    def test_what_was_handed_out_does_not_change_with_later_writes(self, state: State) -> None:
        thread = a_thread(name="before")
        state.threads.upsert(thread)
        handed_out = state.threads.get(thread.id)
        state.threads.set_name(thread.id, "after")
        assert handed_out is not None
        assert handed_out.name == "before"
        read_again = state.threads.get(thread.id)
        assert read_again is not None
        assert read_again.name == "after"
