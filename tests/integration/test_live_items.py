"""Applying items to a thread's row while its rollout is written, on both databases."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollout_files import (
    rollout_path,
    session_meta,
    thread_id,
    token_count,
    turn_context,
    user_message,
    write_rollout,
)

from codex_state import DatabaseError, DynamicTool, StateRuntime, Thread, telemetry
from codex_state.errors import ConfigurationError
from codex_state.models.columns import from_epoch_seconds
from codex_state.repositories import DynamicToolRepository
from codex_state.repositories.rollout_files import RolloutFileRepository
from codex_state.rollout import (
    GitInfo,
    ResponseItem,
    RolloutItem,
    ThreadMetadataBuilder,
    ToolSpec,
    apply_rollout_items,
    backfill,
    builder_from_items,
    diff_fields,
    extract_metadata,
)

MODIFIED = 1_767_400_000
TOOL = ToolSpec(name="t", description="d", input_schema=msgspec.Raw(b"{}"))


def builder(runtime: StateRuntime, *items: RolloutItem) -> ThreadMetadataBuilder:
    made = builder_from_items(items or [session_meta()], rollout_path(runtime.codex_home, 1))
    assert made is not None
    return made


def stored(runtime: StateRuntime) -> Thread | None:
    with runtime.read() as state:
        return state.threads.get(thread_id(1))


def tools(runtime: StateRuntime) -> list[DynamicTool]:
    with runtime.read() as state:
        return state.dynamic_tools.get(thread_id(1)) or []


def test_without_items_nothing_is_done(runtime: StateRuntime) -> None:
    assert apply_rollout_items(runtime, builder(runtime), []) is None
    assert stored(runtime) is None


def test_a_thread_that_names_its_provider_needs_no_default(runtime: StateRuntime) -> None:
    (runtime.codex_home / "config.toml").write_text("half of a")
    items = [session_meta(model_provider="mine"), user_message("hi")]
    given = apply_rollout_items(runtime, builder(runtime, *items), items)
    assert given is not None
    assert given.model_provider == "mine"
    nameless = [session_meta(2, model_provider=None)]
    with pytest.raises(ConfigurationError, match=r"config\.toml"):
        apply_rollout_items(runtime, builder(runtime, *nameless), nameless)


def test_a_new_threads_row_is_what_a_backfill_of_its_rollout_gives(runtime: StateRuntime) -> None:
    items = [session_meta(dynamic_tools=[TOOL]), user_message("hi"), turn_context(effort="low"), token_count(7)]
    path = write_rollout(runtime.codex_home, 1, *items, modified=MODIFIED)
    given = apply_rollout_items(runtime, builder(runtime, *items), items)
    live = stored(runtime)
    assert given is not None
    assert live is not None
    assert diff_fields(given, live) == []
    assert diff_fields(live, extract_metadata(path, runtime.default_provider).thread) == []
    assert live.home == runtime.home
    assert [tool.name for tool in tools(runtime)] == ["t"]


def test_later_items_are_applied_to_the_row(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, session_meta(), user_message("first"), modified=MODIFIED)
    backfill(runtime)
    moment = from_epoch_seconds(MODIFIED + 60)
    items = [user_message("second"), turn_context(), token_count(99), ResponseItem("message")]
    apply_rollout_items(runtime, builder(runtime), items, updated_at=moment + timedelta(milliseconds=999))
    thread = stored(runtime)
    assert thread is not None
    assert (thread.title, thread.tokens_used, thread.approval_mode) == ("first", 99, "never")
    assert thread.updated_at == moment


def test_the_files_time_counts_when_none_is_given(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, modified=MODIFIED)
    apply_rollout_items(runtime, builder(runtime), [ResponseItem("message")])
    thread = stored(runtime)
    assert thread is not None
    assert thread.updated_at == from_epoch_seconds(MODIFIED)


def test_without_a_file_a_new_thread_is_as_old_as_it_says(runtime: StateRuntime) -> None:
    apply_rollout_items(runtime, builder(runtime), [user_message()])
    thread = stored(runtime)
    assert thread is not None
    assert thread.updated_at == thread.created_at


def test_what_the_row_knows_stays(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, session_meta(git=GitInfo(branch="known")), user_message("first"))
    backfill(runtime)
    with runtime.begin() as state:
        state.threads.set_name(thread_id(1), "Mine")
        state.threads.set_memory_mode(thread_id(1), "polluted")
        state.threads.mark_archived(thread_id(1), rollout_path(runtime.codex_home, 1), from_epoch_seconds(MODIFIED))
    again = session_meta(git=GitInfo(branch="new", commit_hash="c"))
    apply_rollout_items(runtime, builder(runtime), [again, user_message("second")])
    thread = stored(runtime)
    assert thread is not None
    assert (thread.name, thread.title, thread.first_user_message) == ("Mine", "first", "first")
    assert (thread.git_branch, thread.git_sha) == ("known", "c")
    assert (thread.memory_mode, thread.archived_at) == ("polluted", from_epoch_seconds(MODIFIED))


def test_the_memory_mode_of_the_last_session_meta_counts_else_that_of_a_new_thread(runtime: StateRuntime) -> None:
    apply_rollout_items(runtime, builder(runtime), [user_message()], memory_mode="disabled")
    thread = stored(runtime)
    assert thread is not None
    assert thread.memory_mode == "disabled"
    apply_rollout_items(runtime, builder(runtime), [user_message()], memory_mode="enabled")
    thread = stored(runtime)
    assert thread is not None
    assert thread.memory_mode == "disabled"
    modes = [session_meta(memory_mode="polluted"), session_meta(), user_message()]
    apply_rollout_items(runtime, builder(runtime), modes)
    thread = stored(runtime)
    assert thread is not None
    assert thread.memory_mode == "polluted"


def test_the_row_follows_the_rollout_and_its_directory_is_normalised(runtime: StateRuntime, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    apply_rollout_items(runtime, builder(runtime), [user_message()])
    moved = builder(runtime)
    moved.rollout_path = tmp_path / "moved.jsonl"
    apply_rollout_items(runtime, moved, [session_meta(cwd=str(tmp_path / "link"))])
    thread = stored(runtime)
    assert thread is not None
    assert (thread.rollout_path, thread.cwd) == (tmp_path / "moved.jsonl", (tmp_path / "real").resolve())


def test_a_directory_that_is_not_there_stays_as_it_was_spelled(runtime: StateRuntime) -> None:
    """L11: also by items that don't name it."""

    def spelled() -> str:
        with runtime.read() as state:
            found: str = state.session.connection().exec_driver_sql("SELECT cwd FROM threads").scalar_one()
            return found

    write_rollout(runtime.codex_home, 1, session_meta(cwd="/nowhere//a/./b/"), user_message())
    backfill(runtime)
    assert spelled() == "/nowhere//a/./b/"
    apply_rollout_items(runtime, builder(runtime), [user_message("more")])
    assert spelled() == "/nowhere//a/./b/"
    apply_rollout_items(runtime, builder(runtime), [session_meta(cwd="/nowhere//c/")])
    assert spelled() == "/nowhere//c/"


def test_a_parents_session_meta_brings_no_tools(runtime: StateRuntime) -> None:
    apply_rollout_items(runtime, builder(runtime), [session_meta(2, dynamic_tools=[TOOL]), user_message()])
    assert tools(runtime) == []


def test_a_longer_list_of_tools_only_adds_its_tail(runtime: StateRuntime) -> None:
    apply_rollout_items(runtime, builder(runtime), [session_meta(dynamic_tools=[TOOL])])
    other = msgspec.structs.replace(TOOL, name="other")
    apply_rollout_items(runtime, builder(runtime), [session_meta(dynamic_tools=[other, other])])
    assert [tool.name for tool in tools(runtime)] == ["t", "other"]


@pytest.mark.parametrize(
    ("repository", "verb", "stage"),
    [
        (RolloutFileRepository, "upsert_threads", "apply_rollout_items"),
        (DynamicToolRepository, "persist", "persist_dynamic_tools"),
    ],
)
def test_an_error_of_the_database_is_counted_by_its_stage_and_raised_and_nothing_is_kept(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch, repository: type, verb: str, stage: str
) -> None:
    """L5, L8."""
    counted: list[tuple[str, int, dict[str, str]]] = []
    monkeypatch.setattr(telemetry, "count", lambda name, amount=1, **tags: counted.append((name, amount, tags)))

    def fail(*_arguments: Any) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(repository, verb, fail)
    with pytest.raises(DatabaseError, match="the disk is full"):
        apply_rollout_items(runtime, builder(runtime), [session_meta(dynamic_tools=[TOOL]), user_message()])
    assert counted == [("codex.db.error", 1, {"stage": stage})]
    assert stored(runtime) is None
