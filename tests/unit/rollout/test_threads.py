from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import (
    CREATED_AT,
    WRITTEN_AT,
    body,
    completed_message,
    event,
    goal_updated,
    name_updated,
    raw,
    rollout_name,
    session_meta,
    settings_applied,
    thread_id,
    token_count,
    turn_context,
    user_message,
    write,
    write_rollout,
)

from codex_state.errors import RolloutError
from codex_state.models import Thread
from codex_state.models.columns import from_epoch_seconds
from codex_state.repositories.rollout_files import ROLLOUT_COLUMNS
from codex_state.rollout.format import Compacted, GitInfo, ResponseItem, RolloutItem, SessionMeta, ToolSpec, decode_line
from codex_state.rollout.threads import (
    COMPARED_FIELDS,
    ThreadMetadataBuilder,
    apply_rollout_item,
    builder_from_items,
    builder_from_session_meta,
    diff_fields,
    draft_of,
    extract_metadata,
    prefer_existing_git_info,
    rollout_item_affects_thread_metadata,
    thread_of,
)

PATH = Path("/home/sessions") / rollout_name(1)
CREATED = from_epoch_seconds(CREATED_AT)


def new_thread(**changes: object) -> Thread:
    builder = ThreadMetadataBuilder(thread_id(1), PATH, CREATED)
    for name, value in changes.items():
        setattr(builder, name, value)
    return builder.build("default")


def applied(thread: Thread, *items: RolloutItem) -> Thread:
    for item in items:
        apply_rollout_item(thread, item, "default")
    return thread


def columns(thread: Thread) -> dict[str, Any]:
    return {name: getattr(thread, name) for name in Thread.column_names()}


class TestBuilder:
    def test_the_rest_has_the_defaults_of_a_new_thread(self) -> None:
        stated = {
            "id": thread_id(1),
            "rollout_path": PATH,
            "created_at": CREATED,
            "updated_at": CREATED,
            "source": "vscode",
            "model_provider": "default",
            "cwd": Path(),
            "title": "",
            "sandbox_policy": '{"type":"read-only"}',
            "approval_mode": "on-request",
            "tokens_used": 0,
            "archived": False,
            "cli_version": "",
            "memory_mode": "enabled",
            "home": "local",
        }
        found = columns(new_thread())
        assert {name: found[name] for name in stated} == stated
        others = {name: value for name, value in found.items() if name not in stated}
        assert others == {name: Thread.model_fields[name].default for name in others}

    def test_times_are_cut_to_whole_seconds(self) -> None:
        precise = CREATED + timedelta(microseconds=999_999)
        thread = new_thread(created_at=precise, updated_at=precise + timedelta(seconds=1), archived_at=precise)
        assert (thread.created_at, thread.updated_at) == (CREATED, CREATED + timedelta(seconds=1))
        assert (thread.archived_at, thread.archived) == (CREATED, True)

    def test_given_values_are_taken(self) -> None:
        thread = new_thread(
            model_provider="given",
            cwd=Path("/code"),
            cli_version="1.2",
            sandbox_policy={"type": "workspace-write", "writable_roots": ["/a"]},
            approval_mode={"granular": {"rules": True}},
            git_branch="main",
        )
        assert (thread.model_provider, thread.cwd, thread.cli_version) == ("given", Path("/code"), "1.2")
        assert json.loads(thread.sandbox_policy)["writable_roots"] == ["/a"]
        assert json.loads(thread.approval_mode)["granular"]["rules"] is True
        assert thread.git_branch == "main"

    def test_policies_and_sources_may_be_given_as_they_are_stored(self) -> None:
        thread = new_thread(sandbox_policy='{"type":"x"}', approval_mode="never", source="exec")
        assert (thread.sandbox_policy, thread.approval_mode, thread.source) == ('{"type":"x"}', "never", "exec")

    @pytest.mark.parametrize(("own", "expected"), [(None, "/root/spawned"), ("/own", "/own")])
    def test_the_agent_path_falls_back_to_that_of_a_spawned_threads_source(
        self, own: str | None, expected: str
    ) -> None:
        spawn = {"parent_thread_id": str(thread_id(2)), "depth": 1, "agent_path": "/root/spawned"}
        source = {"subagent": {"thread_spawn": spawn}}
        assert new_thread(source=source, agent_path=own).agent_path == expected


class TestBuilderFromRollout:
    def test_a_session_meta_gives_all_it_says(self) -> None:
        meta = session_meta(
            agent_nickname="Bob",
            agent_role="reviewer",
            agent_path="/root/bob",
            git=GitInfo(commit_hash="c" * 40, branch="main", repository_url="https://example.org/r"),
        )
        builder = builder_from_session_meta(meta, PATH)
        assert builder == ThreadMetadataBuilder(
            id=thread_id(1),
            rollout_path=PATH,
            created_at=CREATED,
            source="cli",
            agent_nickname="Bob",
            agent_role="reviewer",
            agent_path="/root/bob",
            model_provider="openai",
            cwd=Path("/code-x/proj"),
            cli_version="0.99.0",
            git_sha="c" * 40,
            git_branch="main",
            git_origin_url="https://example.org/r",
        )

    @pytest.mark.parametrize("source", [None, "", "later", {}, {"subagent": "review"}])
    def test_it_names_the_source_that_the_fold_names(self, source: Any) -> None:
        """Law L11: an empty source isn't taken for a missing one, which would be interactive."""
        builder = builder_from_session_meta(session_meta(source=source), PATH)
        assert builder is not None
        assert builder.build("default").source == applied(new_thread(), session_meta(source=source)).source

    def test_a_session_meta_without_a_readable_time_gives_none(self) -> None:
        assert builder_from_session_meta(session_meta(timestamp="yesterday"), PATH) is None

    def test_the_first_session_meta_decides(self) -> None:
        builder = builder_from_items([user_message(), session_meta(5), session_meta(1)], PATH)
        assert builder is not None
        assert builder.id == thread_id(5)

    @pytest.mark.parametrize("items", [[], [user_message()], [session_meta(5, timestamp="bad"), session_meta(1)]])
    def test_without_one_the_files_name_decides(self, items: list[RolloutItem]) -> None:
        named = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert builder_from_items(items, PATH) == ThreadMetadataBuilder(thread_id(1), PATH, named)

    def test_the_name_of_a_later_segment_will_do(self) -> None:
        builder = builder_from_items([], PATH.with_name(rollout_name(1, segment=2)))
        assert builder is not None
        assert builder.id == thread_id(1)

    def test_when_neither_says_enough_there_is_none(self) -> None:
        assert builder_from_items([user_message()], Path("rollout-foo.jsonl")) is None


class TestApply:
    def test_response_items_never_set_title_or_first_message(self) -> None:
        response = decode_line(
            b'{"timestamp":"t","type":"response_item","payload":{"type":"message","role":"user",'
            b'"content":[{"type":"input_text","text":"hello"}]}}'
        )
        thread = applied(new_thread(), response, Compacted("so far"))
        assert columns(thread) == columns(new_thread())

    def test_only_what_an_item_says_is_changed(self) -> None:
        thread = new_thread()
        thread.pinned, thread.title, thread.first_user_message = True, "one", "one"
        before = columns(thread)
        applied(thread, token_count(7))
        assert columns(thread) == before | {"tokens_used": 7}

    def test_a_name_is_given_with_the_time_of_its_line(self) -> None:
        thread = applied(new_thread(), name_updated("mine", 1))
        assert (thread.name, thread.name_at, thread.title) == ("mine", CREATED, "")

    @pytest.mark.parametrize(
        ("item", "affects"),
        [
            (session_meta(), True),
            (turn_context(), True),
            (settings_applied(model="m"), True),
            (token_count(1), True),
            (user_message(), True),
            (completed_message(), True),
            (goal_updated("g"), True),
            (name_updated("n"), True),
            (ResponseItem("message"), False),
            (Compacted("x"), False),
            (decode_line(event("agent_message")), False),
        ],
    )
    def test_which_items_affect_a_thread(self, item: RolloutItem, affects: bool) -> None:
        assert rollout_item_affects_thread_metadata(item) is affects
        if not affects:
            assert columns(applied(new_thread(), item)) == columns(new_thread())


class TestComparing:
    def test_differing_fields_are_named_in_the_order_of_declaration(self) -> None:
        thread = applied(new_thread(), user_message("hi"), token_count(9))
        assert diff_fields(new_thread(), thread) == ["title", "tokens_used", "first_user_message"]
        assert diff_fields(thread, thread) == []

    def test_everything_a_rollout_tells_is_compared_but_for_what_is_counted(self) -> None:
        counted = {"turns", *(name for name in ROLLOUT_COLUMNS if name.startswith("tokens_"))} - {"tokens_used"}
        assert set(ROLLOUT_COLUMNS) - set(COMPARED_FIELDS) == {"archived", "memory_mode", "name", "name_at"} | counted
        assert set(ROLLOUT_COLUMNS) < set(Thread.column_names())

    def test_known_git_fields_win_one_by_one(self) -> None:
        thread = new_thread(git_sha="new", git_branch="new")
        prefer_existing_git_info(thread, new_thread(git_branch="known", git_origin_url="known"))
        assert (thread.git_sha, thread.git_branch, thread.git_origin_url) == ("new", "known", "known")


class TestExtraction:
    def test_it_equals_the_builder_with_every_item_applied_and_the_files_time(self, tmp_path: Path) -> None:
        items = [session_meta(), user_message("hi"), turn_context(), token_count(9)]
        path = write_rollout(tmp_path, 1, *items, modified=1_767_400_000.9)
        outcome = extract_metadata(path, "default")
        builder = builder_from_items(items, path)
        assert builder is not None
        expected = applied(builder.build("default"), *items)
        expected.updated_at, expected.updated_ns = from_epoch_seconds(1_767_400_000), path.stat().st_mtime_ns % 10**9
        assert diff_fields(outcome.thread, expected) == []
        assert (outcome.parse_errors, outcome.unknown_lines) == (0, 0)
        assert (outcome.memory_mode, outcome.dynamic_tools) == (None, [])

    def test_a_compressed_rollout_gives_the_same(self, tmp_path: Path) -> None:
        plain = write_rollout(tmp_path, 1, modified=1_767_400_000)
        expected = extract_metadata(plain, "default")
        packed = write(
            plain.with_name(plain.name + ".zst"),
            zstandard.ZstdCompressor().compress(plain.read_bytes()),
            modified=1_767_400_000,
        )
        outcome = extract_metadata(packed, "default")
        assert diff_fields(outcome.thread, expected.thread) == ["rollout_path"]
        assert outcome.thread.rollout_path == packed

    def test_the_tools_name_the_thread_of_the_head_even_if_the_file_is_named_after_another(
        self, tmp_path: Path
    ) -> None:
        tool = ToolSpec(name="t", description="d", input_schema=raw({"a": 1}))
        path = write_rollout(tmp_path, 1, session_meta(9, timestamp="bad", dynamic_tools=[tool]))
        outcome = extract_metadata(path, "default")
        assert outcome.thread.id == thread_id(1)
        (found,) = outcome.dynamic_tools
        assert (found.thread_id, found.position, found.input_schema) == (thread_id(9), 0, {"a": 1})

    def test_broken_lines_and_those_of_unknown_kinds_are_told_apart(self, tmp_path: Path) -> None:
        outcome = extract_metadata(write_rollout(tmp_path, 1, session_meta(), b"{", event("later")), "default")
        assert (outcome.parse_errors, outcome.unknown_lines) == (1, 1)


_messages = st.sampled_from(["", " ", "one", "## My request for Codex: two", "three"])
_items = st.lists(
    st.one_of(
        st.builds(
            session_meta,
            st.sampled_from([1, 2]),
            timestamp=st.sampled_from([WRITTEN_AT, "bad"]),
            cwd=st.sampled_from(["", "/meta", "/other"]),
            model_provider=st.sampled_from([None, "", "p"]),
            source=st.sampled_from([None, "cli", "exec", "later", {"internal": "x"}]),
            memory_mode=st.sampled_from([None, "disabled"]),
            cli_version=st.sampled_from(["", "1"]),
            git=st.sampled_from([None, GitInfo(), GitInfo(branch="b")]),
        ),
        st.builds(turn_context, cwd=st.sampled_from(["", "/turn", "/turn2"]), effort=st.sampled_from([None, "low"])),
        st.builds(settings_applied, cwd=st.sampled_from(["", "/set"]), model=st.sampled_from([None, "m"])),
        st.builds(user_message, _messages, images=st.sampled_from([None, ["x"]])),
        st.builds(completed_message, _messages, st.sampled_from(["", {"type": "image"}, {"type": "mention"}])),
        st.builds(token_count, st.integers(-3, 9)),
        st.builds(goal_updated, _messages),
        st.builds(name_updated, st.sampled_from([None, " ", "named"]), st.sampled_from([None, 1, 2])),
        st.just(ResponseItem("message")),
    ),
    min_size=1,
    max_size=8,
)


@given(_items)
def test_one_pass_gives_what_applying_item_by_item_gives(
    tmp_path_factory: pytest.TempPathFactory, items: list[RolloutItem]
) -> None:
    metas = [item for item in items if isinstance(item, SessionMeta)]
    path = write_rollout(tmp_path_factory.mktemp("home"), 1, *items, modified=1_767_400_000)
    builder = builder_from_items(items, path)
    assert builder is not None
    expected = applied(builder.build("default"), *items)
    expected.updated_at = from_epoch_seconds(1_767_400_000)
    outcome = extract_metadata(path, "default")
    assert diff_fields(outcome.thread, expected) == []
    modes = [meta.memory_mode for meta in metas if meta.memory_mode is not None]
    assert outcome.memory_mode == (modes[-1] if modes else None)


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from([body(session_meta()), b"{", b"\n", b"\xff", b"}", b"\0", event("later")])).map(b"".join)
)
def test_any_bytes_give_a_thread_or_a_rollout_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("home") / rollout_name(1), content)
    try:
        outcome = extract_metadata(path, "default")
    except RolloutError:
        return
    assert outcome.thread.id == thread_id(1)


@given(st.data())
def test_a_draft_and_its_entity_say_the_same(data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=5)
    thread = new_thread()
    for name in ("source", "title", "model", "git_sha", "agent_role", "first_user_message", "memory_mode", "preview"):
        setattr(thread, name, data.draw(text))
    thread.tokens_used = data.draw(st.integers(0, 2**63 - 1))
    thread.archived_at = data.draw(st.none() | st.integers(-(10**9), 10**10).map(from_epoch_seconds))
    thread.archived = thread.archived_at is not None
    thread.cwd = data.draw(st.just(Path()) | text.map(lambda name: Path("/") / name))
    thread.name = data.draw(st.none() | text)
    thread.name_at = None if thread.name is None else CREATED
    thread.parent_thread_id = data.draw(st.none() | st.uuids())
    assert columns(thread_of(draft_of(thread))) == columns(thread)
