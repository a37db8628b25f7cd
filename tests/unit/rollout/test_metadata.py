from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
import zstandard
from codex_state.rollout.lines import Compacted, GitInfo, ResponseItem, RolloutItem, SessionMeta, ToolSpec, decode_line
from codex_state.rollout.metadata import (
    COMPARED_FIELDS,
    ThreadMetadataBuilder,
    apply_rollout_item,
    builder_from_items,
    builder_from_session_meta,
    diff_fields,
    draft_of,
    extract_metadata,
    normalize_cwd,
    prefer_existing_explicit_title,
    prefer_existing_git_info,
    rollout_item_affects_thread_metadata,
    thread_of,
)
from codex_state.rollout.policies import SubAgentKind, TaggedSource, ThreadSpawn, WorkspaceWrite
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import (
    CREATED_AT,
    WRITTEN_AT,
    body,
    rollout_name,
    session_meta,
    thread_id,
    token_count,
    turn_context,
    user_message,
    write,
    write_rollout,
)

from codex_state.errors import RolloutError
from codex_state.models import Thread
from codex_state.models.columns import from_epoch_seconds, path_to_text, to_epoch_seconds
from codex_state.rollout import metadata as metadata_module
from codex_state.rollout.fold import extract

PATH = Path("/home/sessions") / rollout_name(1)
CREATED = from_epoch_seconds(CREATED_AT)
TOOL = ToolSpec(name="t", description="d", input_schema=msgspec.Raw(b'{"a":1}'))


def new_thread(**changes: object) -> Thread:
    builder = ThreadMetadataBuilder(thread_id(1), PATH, CREATED)
    for name, value in changes.items():
        setattr(builder, name, value)
    return builder.build("default")


def applied(thread: Thread, *items: RolloutItem) -> Thread:
    for item in items:
        apply_rollout_item(thread, item, "default")
    return thread


class TestBuilder:
    def test_the_rest_has_the_defaults_of_a_new_thread(self) -> None:
        thread = new_thread()
        assert {name: getattr(thread, name) for name in Thread.column_names()} == {
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
            "archived_at": None,
            "git_sha": None,
            "git_branch": None,
            "git_origin_url": None,
            "cli_version": "",
            "first_user_message": None,
            "agent_nickname": None,
            "agent_role": None,
            "agent_path": None,
            "memory_mode": "enabled",
            "model": None,
            "reasoning_effort": None,
            "home": "local",
        }

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
            sandbox_policy=WorkspaceWrite(writable_roots=["/a"]),
            approval_mode="never",
            git_branch="main",
        )
        assert (thread.model_provider, thread.cwd, thread.cli_version) == ("given", Path("/code"), "1.2")
        assert json.loads(thread.sandbox_policy)["writable_roots"] == ["/a"]
        assert (thread.approval_mode, thread.git_branch) == ("never", "main")

    @pytest.mark.parametrize(("own", "expected"), [(None, "/root/spawned"), ("/own", "/own")])
    def test_the_agent_path_falls_back_to_that_of_a_spawned_threads_source(
        self, own: str | None, expected: str
    ) -> None:
        spawn = ThreadSpawn(parent_thread_id=str(thread_id(2)), depth=1, agent_path="/root/spawned")
        source = TaggedSource(subagent=SubAgentKind(thread_spawn=spawn))
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

    def test_when_neither_says_enough_there_is_none(self) -> None:
        assert builder_from_items([user_message()], Path("rollout-foo.jsonl")) is None


class TestApply:
    def test_response_items_never_set_title_or_first_message(self) -> None:
        response = decode_line(
            b'{"timestamp":"t","type":"response_item","payload":{"type":"message","role":"user",'
            b'"content":[{"type":"input_text","text":"hello"}]}}'
        )
        thread = applied(new_thread(), response, Compacted("so far"))
        assert diff_fields(thread, new_thread()) == []

    def test_a_user_message_sets_both_without_what_stands_before_the_marker(self) -> None:
        thread = applied(new_thread(), user_message("# Context\n\n## My request for Codex:\n  do it  \nnow\n"))
        assert (thread.title, thread.first_user_message) == ("do it  \nnow", "do it  \nnow")

    def test_only_the_first_message_counts(self) -> None:
        thread = applied(new_thread(), user_message("one"), user_message("two"))
        assert (thread.title, thread.first_user_message) == ("one", "one")

    @pytest.mark.parametrize("images", [{"images": ["data:"]}, {"local_images": ["/x.png"]}, {"images": [""]}])
    def test_a_message_of_images_only_is_shown_as_such_and_leaves_the_title_to_a_later_one(
        self, images: dict[str, list[str]]
    ) -> None:
        thread = applied(new_thread(), user_message(" ", **images))
        assert (thread.title, thread.first_user_message) == ("", "[Image]")
        assert applied(thread, user_message("then text")).title == "then text"
        assert thread.first_user_message == "[Image]"

    @pytest.mark.parametrize("text", ["", "  \n", "stuff ## My request for Codex:   "])
    def test_a_blank_message_without_images_says_nothing(self, text: str) -> None:
        thread = applied(new_thread(), user_message(text, images=[]))
        assert (thread.title, thread.first_user_message) == ("", None)
        assert applied(thread, user_message("real")).first_user_message == "real"

    def test_a_turn_does_not_move_a_thread_that_has_a_directory(self) -> None:
        thread = applied(new_thread(cwd=Path("/code")), turn_context(cwd="/elsewhere"))
        assert thread.cwd == Path("/code")

    def test_a_turn_gives_a_directory_to_a_thread_that_has_none(self) -> None:
        thread = applied(new_thread(), turn_context(cwd=""), turn_context(cwd="/first"), turn_context(cwd="/second"))
        assert thread.cwd == Path("/first")

    def test_a_turn_sets_policies_model_and_effort(self) -> None:
        thread = applied(new_thread(), turn_context(effort="low"))
        assert (thread.approval_mode, thread.model, thread.reasoning_effort) == ("never", "gpt-5.1-codex", "low")
        assert applied(thread, turn_context()).reasoning_effort is None

    def test_a_session_meta_alone_does_not_set_a_model(self) -> None:
        assert applied(new_thread(), session_meta()).model is None

    def test_another_threads_session_meta_says_nothing(self) -> None:
        thread = new_thread()
        assert diff_fields(applied(thread, session_meta(2, source="exec")), new_thread()) == []

    def test_a_later_session_meta_replaces_what_it_says_and_keeps_what_it_leaves_out(self) -> None:
        thread = applied(
            new_thread(),
            session_meta(agent_nickname="Zed", git=GitInfo(commit_hash="c", branch="b"), model_provider="first"),
            session_meta(cwd="", cli_version="", model_provider=None, git=GitInfo(branch="other"), source="exec"),
        )
        assert (thread.cwd, thread.cli_version, thread.model_provider) == (Path("/code-x/proj"), "0.99.0", "first")
        assert (thread.source, thread.agent_nickname) == ("exec", None)
        assert (thread.git_sha, thread.git_branch) == (None, "other")

    def test_an_empty_provider_becomes_the_default(self) -> None:
        thread = applied(new_thread(model_provider="x"), session_meta(model_provider=""))
        assert thread.model_provider == "default"

    def test_token_counts_set_the_total_and_never_below_zero(self) -> None:
        thread = applied(new_thread(), token_count(7), token_count(5))
        assert thread.tokens_used == 5
        assert applied(thread, token_count(-5)).tokens_used == 0

    def test_a_token_count_without_numbers_changes_nothing(self) -> None:
        empty = decode_line(b'{"timestamp":"t","type":"event_msg","payload":{"type":"token_count","info":null}}')
        assert applied(new_thread(), token_count(7), empty).tokens_used == 7

    @pytest.mark.parametrize(
        ("item", "affects"),
        [
            (session_meta(), True),
            (turn_context(), True),
            (token_count(1), True),
            (user_message(), True),
            (ResponseItem("message"), False),
            (Compacted("x"), False),
            (decode_line(b'{"timestamp":"t","type":"event_msg","payload":{"type":"agent_message"}}'), False),
            (decode_line(b'{"timestamp":"t","type":"event_msg","payload":{"type":"thread_goal_updated"}}'), False),
        ],
    )
    def test_which_items_affect_a_thread(self, item: RolloutItem, affects: bool) -> None:
        assert rollout_item_affects_thread_metadata(item) is affects


class TestComparing:
    def test_differing_fields_are_named_in_the_order_of_declaration(self) -> None:
        thread = applied(new_thread(), user_message("hi"), token_count(9))
        assert diff_fields(new_thread(), thread) == ["title", "tokens_used", "first_user_message"]
        assert diff_fields(thread, thread) == []

    def test_everything_a_rollout_tells_is_compared(self) -> None:
        assert set(Thread.column_names()) - set(COMPARED_FIELDS) == {"archived", "memory_mode", "home"}

    def test_known_git_fields_win_one_by_one(self) -> None:
        thread = new_thread(git_sha="new", git_branch="new")
        prefer_existing_git_info(thread, new_thread(git_branch="known", git_origin_url="known"))
        assert (thread.git_sha, thread.git_branch, thread.git_origin_url) == ("new", "known", "known")

    @pytest.mark.parametrize(
        ("existing_title", "new_title", "kept"),
        [
            ("Mine", "first", "Mine"),
            ("Mine", "", "Mine"),
            ("  first ", "first", "first"),
            ("", "first", "first"),
            (" ", "first", "first"),
            ("Mine", "Theirs", "Theirs"),
        ],
    )
    def test_a_title_that_was_given_stays(self, existing_title: str, new_title: str, kept: str) -> None:
        existing, thread = (applied(new_thread(), user_message("first")) for _ in range(2))
        existing.title, thread.title = existing_title, new_title
        prefer_existing_explicit_title(thread, existing)
        assert thread.title == kept


class TestNormalizedDirectory:
    def test_links_and_dots_are_resolved(self, tmp_path: Path) -> None:
        real = tmp_path / "real"
        (real / "inner").mkdir(parents=True)
        (tmp_path / "link").symlink_to(real)
        assert normalize_cwd(tmp_path / "link" / "inner" / ".." / "inner") == (real / "inner").resolve()

    @pytest.mark.parametrize("cwd", ["/code-x/gone", "rel/dir", "~/proj", "nul\0", "/code-ünï/目录", ""])
    def test_what_is_not_there_stays_as_it_is(self, cwd: str) -> None:
        assert normalize_cwd(Path(cwd)) == Path(cwd)

    def test_two_leading_slashes_are_kept(self, tmp_path: Path) -> None:
        assert path_to_text(normalize_cwd(Path(f"/{tmp_path}"))) == f"/{tmp_path.resolve()}"
        assert path_to_text(normalize_cwd(Path(f"//{tmp_path}"))) == str(tmp_path.resolve())

    def test_windows_drives_have_one_spelling_under_wsl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata_module, "_is_wsl", lambda: True)
        assert normalize_cwd(Path("/mnt/C/Users/Ä")) == Path("/mnt/c/users/Ä")
        assert normalize_cwd(Path("/home/Me")) == Path("/home/Me")


class TestExtraction:
    def test_it_equals_the_builder_with_every_item_applied_and_the_files_time(self, tmp_path: Path) -> None:
        items = [session_meta(), user_message("hi"), turn_context(), token_count(9)]
        path = write_rollout(tmp_path, 1, *items, modified=1_767_400_000.9)
        outcome = extract_metadata(path, "default")
        builder = builder_from_items(items, path)
        assert builder is not None
        expected = applied(builder.build("default"), *items)
        expected.updated_at = from_epoch_seconds(1_767_400_000)
        assert diff_fields(outcome.thread, expected) == []
        assert (outcome.parse_errors, outcome.memory_mode, outcome.dynamic_tools) == (0, None, [])

    def test_the_latest_memory_mode_counts_whoever_it_is_of(self, tmp_path: Path) -> None:
        path = write_rollout(
            tmp_path,
            1,
            session_meta(memory_mode="enabled"),
            session_meta(2, memory_mode="polluted"),
            session_meta(),
        )
        outcome = extract_metadata(path, "default")
        assert (outcome.memory_mode, outcome.thread.memory_mode) == ("polluted", "polluted")

    def test_every_bad_line_is_counted_and_the_others_are_used(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / rollout_name(1),
            b"\xef\xbb\xbfx\n"
            + body(session_meta(), b"", b" \t", b"{", user_message("a"), b"\xff\xfe", b"null", b'{"timestamp":12}')
            + body(token_count(3))[:-1]
            + body(token_count(4))
            + body(token_count(5))[:-20],
        )
        outcome = extract_metadata(path, "default")
        assert outcome.parse_errors == 7
        assert (outcome.thread.first_user_message, outcome.thread.tokens_used) == ("a", 0)

    def test_windows_line_ends_and_a_missing_last_newline_do_not_matter(self, tmp_path: Path) -> None:
        content = body(session_meta(), user_message("a"), token_count(3)).replace(b"\n", b"\r\n")[:-2]
        outcome = extract_metadata(write(tmp_path / rollout_name(1), content), "default")
        assert (outcome.parse_errors, outcome.thread.tokens_used) == (0, 3)

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

    def test_what_comes_before_the_first_session_meta_is_not_lost(self, tmp_path: Path) -> None:
        path = write_rollout(
            tmp_path,
            1,
            turn_context(cwd="/early", effort="low"),
            user_message("early"),
            token_count(4),
            session_meta(cwd=""),
        )
        thread = extract_metadata(path, "default").thread
        assert (thread.cwd, thread.reasoning_effort, thread.title, thread.tokens_used, thread.source) == (
            Path("/early"),
            "low",
            "early",
            4,
            "cli",
        )

    @pytest.mark.parametrize(
        ("items", "tools"),
        [
            ([session_meta(dynamic_tools=[TOOL, TOOL])], 2),
            ([user_message(), turn_context(), b"bad", session_meta(dynamic_tools=[TOOL])], 1),
            ([ResponseItem("message"), session_meta(dynamic_tools=[TOOL])], 0),
            ([session_meta(), session_meta(2, dynamic_tools=[TOOL])], 0),
            ([session_meta(), session_meta(dynamic_tools=[TOOL])], 0),
        ],
    )
    def test_the_tools_are_those_of_the_head(
        self, tmp_path: Path, items: list[RolloutItem | bytes], tools: int
    ) -> None:
        outcome = extract_metadata(write_rollout(tmp_path, 1, *items), "default")
        assert [tool.position for tool in outcome.dynamic_tools] == list(range(tools))
        assert all(tool.input_schema == {"a": 1} for tool in outcome.dynamic_tools)

    def test_the_tools_name_the_thread_of_the_head_even_if_the_file_is_named_after_another(
        self, tmp_path: Path
    ) -> None:
        path = write_rollout(tmp_path, 1, session_meta(9, timestamp="bad", dynamic_tools=[TOOL]))
        outcome = extract_metadata(path, "default")
        assert outcome.thread.id == thread_id(1)
        assert [tool.thread_id for tool in outcome.dynamic_tools] == [thread_id(9)]

    def test_nul_characters_are_replaced(self, tmp_path: Path) -> None:
        thread = extract_metadata(write_rollout(tmp_path, 1, session_meta(), user_message("a\0b")), "default").thread
        assert (thread.title, thread.first_user_message) == ("a\ufffdb", "a\ufffdb")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "no usable line"),
            (b"\n \n", "no usable line"),
            (b"x\n{\n]\n", r"no usable line \(3 can't be read\)"),
            (bytes(range(256)) * 50, "no usable line"),
            (body(session_meta()).replace(b"\n", b"\r") + body(user_message()), "no usable line"),
        ],
    )
    def test_a_rollout_without_a_usable_line_is_refused(self, tmp_path: Path, content: bytes, problem: str) -> None:
        path = write(tmp_path / rollout_name(1), content)
        with pytest.raises(RolloutError, match=problem) as caught:
            extract_metadata(path, "default")
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("items", [[user_message()], [session_meta(timestamp="bad"), session_meta()]])
    def test_a_rollout_that_does_not_say_whose_it_is_is_refused(self, tmp_path: Path, items: list[RolloutItem]) -> None:
        path = write(tmp_path / "rollout-foo.jsonl", body(*items))
        with pytest.raises(RolloutError, match="doesn't say whose it is"):
            extract_metadata(path, "default")

    def test_damaged_compression_is_a_rollout_error(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rollout-a.jsonl.zst", b"not compressed")
        with pytest.raises(RolloutError, match="damaged compression"):
            extract_metadata(path, "default")

    def test_the_file_is_not_changed(self, tmp_path: Path) -> None:
        path = write_rollout(tmp_path, 1, modified=1_767_400_000)
        before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir()))
        extract_metadata(path, "default")
        assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


_messages = st.sampled_from(["", " ", "one", "## My request for Codex: two", "three"])
_items = st.lists(
    st.one_of(
        st.builds(
            session_meta,
            st.sampled_from([1, 2]),
            timestamp=st.sampled_from([WRITTEN_AT, "bad"]),
            cwd=st.sampled_from(["", "/meta", "/other"]),
            model_provider=st.sampled_from([None, "", "p"]),
            source=st.sampled_from(["cli", "exec", "later"]),
            memory_mode=st.sampled_from([None, "disabled"]),
            cli_version=st.sampled_from(["", "1"]),
            git=st.sampled_from([None, GitInfo(), GitInfo(branch="b")]),
        ),
        st.builds(turn_context, cwd=st.sampled_from(["", "/turn", "/turn2"]), effort=st.sampled_from([None, "low"])),
        st.builds(user_message, _messages, images=st.sampled_from([None, ["x"]])),
        st.builds(token_count, st.integers(-3, 9)),
        st.just(ResponseItem("message")),
    ),
    min_size=1,
    max_size=8,
)


@given(_items)
def test_one_pass_gives_what_applying_item_by_item_gives(
    tmp_path_factory: pytest.TempPathFactory, items: list[RolloutItem]
) -> None:
    path = write_rollout(tmp_path_factory.mktemp("home"), 1, *items, modified=1_767_400_000)
    builder = builder_from_items(items, path)
    assert builder is not None
    expected = applied(builder.build("default"), *items)
    expected.updated_at = from_epoch_seconds(1_767_400_000)
    outcome = extract_metadata(path, "default")
    assert diff_fields(outcome.thread, expected) == []
    metas = [item for item in items if isinstance(item, SessionMeta)]
    modes = [meta.memory_mode for meta in metas if meta.memory_mode is not None]
    assert outcome.memory_mode == (modes[-1] if modes else None)


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from([body(session_meta()), b"{", b"\n", b"\xff", b"}"])).map(b"".join)
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
    for name in ("source", "title", "model", "git_sha", "agent_role", "first_user_message", "memory_mode"):
        setattr(thread, name, data.draw(text))
    thread.tokens_used = data.draw(st.integers(0, 2**63 - 1))
    thread.archived_at = data.draw(st.none() | st.integers(-(10**9), 10**10).map(from_epoch_seconds))
    thread.archived = thread.archived_at is not None
    thread.cwd = data.draw(st.just(Path()) | text.map(lambda name: Path("/") / name))
    copy = thread_of(draft_of(thread))
    assert {name: getattr(copy, name) for name in Thread.column_names()} == {
        name: getattr(thread, name) for name in Thread.column_names()
    }


def test_a_draft_survives_the_way_between_processes(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, 1, session_meta(dynamic_tools=[TOOL]), user_message("hi"))
    extraction = extract(str(path), "default")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(extraction), type=type(extraction)) == extraction
    assert to_epoch_seconds(CREATED) == extraction.draft.created_at
    assert UUID(extraction.draft.id) == thread_id(1)
