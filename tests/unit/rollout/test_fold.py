from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import (
    CREATED_AT,
    body,
    completed_message,
    event,
    goal_updated,
    history_base,
    line,
    name_updated,
    numbered,
    raw,
    record,
    rollout_name,
    session_meta,
    settings_applied,
    text_part,
    thread_id,
    token_count,
    turn_context,
    user_message,
    write,
    write_rollout,
)

from codex_state.drafts import DEFAULT_SANDBOX, ThreadDraft
from codex_state.errors import RolloutError
from codex_state.rollout.fold import (
    MAX_BYTES_OF_TOOL,
    MAX_BYTES_OF_TOOLS,
    MAX_TOOLS,
    Extraction,
    Fold,
    extract,
    go_on_from,
    telling_time,
)
from codex_state.rollout.format import (
    Compacted,
    GitInfo,
    ResponseItem,
    RolloutItem,
    ToolSpec,
    decode_line,
    encode_line,
)

ONE = str(thread_id(1))
TOOL = ToolSpec(name="t", description="d", input_schema=raw({"a": 1}))

IMAGES: list[dict[str, Any]] = [{"type": "image", "image_url": "data:"}, {"type": "local_image", "path": "/x.png"}]
MENTION = {"type": "mention", "name": "file", "path": "/x"}


def folded(*items: RolloutItem | bytes) -> ThreadDraft:
    """The thread of a rollout that begins with its session_meta."""
    fold = Fold(ThreadDraft("", rollout_name(1)), "default")
    fold.all_lines([line(session_meta()), *map(line, items)])
    return fold.finish()


def extracted(home: Path, *items: RolloutItem | bytes, **options: Any) -> Extraction:
    return extract(str(write_rollout(home, 1, *items, **options)), "default")


def asked(*items: RolloutItem | bytes) -> tuple[str, str]:
    draft = folded(*items)
    return draft.title, draft.first_user_message


class TestFirstMessage:
    """What the user asked first, as each era writes it."""

    @pytest.mark.parametrize("message", [user_message, completed_message])
    def test_it_is_the_title_and_the_first_message_without_what_stands_before_the_marker(self, message: Any) -> None:
        assert asked(message("# Context\n\n## My request for Codex:\n  do it  \nnow\n")) == ("do it  \nnow",) * 2

    @pytest.mark.parametrize("message", [user_message, completed_message])
    def test_only_the_first_counts(self, message: Any) -> None:
        assert asked(message("one"), message("two")) == ("one", "one")

    @pytest.mark.parametrize("message", [user_message, completed_message])
    @pytest.mark.parametrize("text", ["", "  \n", "stuff ## My request for Codex:   "])
    def test_a_blank_one_is_taken_over_by_the_next(self, message: Any, text: str) -> None:
        assert asked(message(text)) == ("", "")
        assert asked(message(text), message("real")) == ("real", "real")

    @pytest.mark.parametrize(
        "only_images",
        [
            user_message(" ", images=["data:"]),
            user_message("", local_images=["/x.png"]),
            user_message("", images=[""]),
            completed_message(IMAGES[0]),
            completed_message(IMAGES[1]),
            completed_message(" ", *IMAGES),
            completed_message(MENTION, IMAGES[0]),
        ],
    )
    def test_images_alone_are_shown_as_such_and_leave_the_title_to_a_later_one(self, only_images: RolloutItem) -> None:
        assert asked(only_images) == ("", "[Image]")
        assert asked(only_images, user_message("then text"), completed_message("more")) == ("then text", "[Image]")

    def test_the_texts_of_an_item_are_joined_without_a_separator(self) -> None:
        assert asked(completed_message(" a", IMAGES[0], "b ", MENTION, "c ")) == ("ab c", "ab c")
        assert asked(completed_message("context ## My request", " for Codex: do it")) == ("do it", "do it")

    def test_a_mention_alone_says_nothing(self) -> None:
        assert asked(completed_message(MENTION)) == ("", "")

    @pytest.mark.parametrize(
        "odd",
        [5, None, "text", [], {}, {"type": 5}, {"type": "text"}, {"type": "text", "text": 5}, {"type": "later"}],
        ids=str,
    )
    def test_one_odd_part_loses_no_other(self, odd: Any) -> None:
        parts = [text_part("a"), odd, text_part("b")]
        message = event("item_completed", item={"type": "UserMessage", "content": parts})
        assert asked(message) == ("ab", "ab")

    @pytest.mark.parametrize("content", [5, None, "text", {}, {"type": "text", "text": "x"}], ids=str)
    def test_an_item_with_odd_content_says_nothing(self, content: Any) -> None:
        odd = event("item_completed", item={"type": "UserMessage", "content": content})
        assert asked(odd, completed_message("next")) == ("next", "next")

    @pytest.mark.parametrize("kind", ["AgentMessage", "Reasoning", "CommandExecution", "Later", ""])
    def test_other_items_are_not_the_users(self, kind: str) -> None:
        assert asked(event("item_completed", item={"type": kind, "content": [text_part("x")]})) == ("", "")

    def test_whoever_an_item_names_as_its_thread_does_not_matter(self) -> None:
        """As the original does: forks copy items with the ids of where they come from."""
        item = {"type": "UserMessage", "content": [text_part("x")]}
        assert asked(event("item_completed", thread_id=str(thread_id(9)), item=item)) == ("x", "x")

    def test_a_message_of_the_older_form_beside_an_item_is_the_same(self) -> None:
        assert asked(completed_message("hi"), user_message("hi")) == ("hi", "hi")


class TestWholeLinesWin:
    """What a damaged line says of the first message counts only where no whole line says it."""

    def test_a_whole_line_wins_over_a_salvaged_one_before_it(self) -> None:
        assert asked(b"\xff" + line(user_message("salvaged")), user_message("whole")) == ("whole", "whole")

    def test_without_a_whole_one_the_first_salvaged_counts(self) -> None:
        cut = line(user_message("cut"))[:-9]
        assert asked(cut + line(user_message("one")), b"x" + line(completed_message("two"))) == ("one", "one")

    def test_the_other_things_that_a_salvaged_line_says_count_in_their_order(self) -> None:
        draft = folded(token_count(3), b"x" + line(token_count(9)), b"x" + line(turn_context(effort="low")))
        assert (draft.tokens_used, draft.reasoning_effort) == (9, "low")


class TestSettings:
    def test_a_turn_does_not_move_a_thread_that_has_a_directory(self) -> None:
        assert folded(turn_context(cwd="/elsewhere")).cwd == "/code-x/proj"

    def test_a_turn_gives_a_directory_to_a_thread_that_has_none(self) -> None:
        draft = folded(session_meta(cwd=""), turn_context(cwd="/elsewhere"))
        assert draft.cwd == "/code-x/proj"
        fold = Fold(ThreadDraft("", rollout_name(1)), "default")
        for item in (session_meta(cwd=""), turn_context(cwd=""), turn_context(cwd="/a"), turn_context(cwd="/b")):
            fold.add(item)
        assert fold.finish().cwd == "/a"

    def test_a_turn_sets_policies_model_and_effort(self) -> None:
        draft = folded(turn_context(effort="low", sandbox_policy={"type": "danger-full-access"}))
        assert (draft.approval_mode, draft.model, draft.reasoning_effort) == ("never", "gpt-5.1-codex", "low")
        assert draft.sandbox_policy == '{"type":"danger-full-access"}'

    def test_a_later_turn_without_an_effort_has_none(self) -> None:
        assert folded(turn_context(effort="low"), turn_context(effort=None)).reasoning_effort is None

    @pytest.mark.parametrize("effort", ["minimal", "max", "ultra", "as hard as you can", ""])
    def test_the_effort_is_any_text(self, effort: str) -> None:
        assert folded(turn_context(effort=effort)).reasoning_effort == effort
        assert folded(settings_applied(reasoning_effort=effort)).reasoning_effort == effort

    @pytest.mark.parametrize("odd", [5, [], {"level": "high"}, True])
    def test_an_effort_that_is_no_text_costs_nothing_else_of_its_turn(self, odd: Any) -> None:
        turn = record("turn_context", {"model": "m", "approval_policy": "never", "effort": odd})
        draft = folded(turn_context(effort="low"), turn)
        assert (draft.model, draft.approval_mode, draft.reasoning_effort) == ("m", "never", "low")
        settings = event("thread_settings_applied", thread_settings={"model": "m", "reasoning_effort": odd})
        draft = folded(turn_context(effort="low"), settings)
        assert (draft.model, draft.reasoning_effort) == ("m", "low")

    @pytest.mark.parametrize("word", ["on-failure", "unless-trusted", "later"])
    def test_an_approval_policy_stays_what_the_writer_said(self, word: str) -> None:
        assert folded(turn_context(approval_policy=word)).approval_mode == word

    def test_a_turn_whose_policy_only_some_versions_could_read_says_nothing(self) -> None:
        turn = turn_context(approval_policy={"reject": {"rules": True}}, model="m", effort="low")
        draft = folded(turn)
        assert (draft.approval_mode, draft.model, draft.reasoning_effort) == ("on-request", None, None)

    def test_a_permission_profile_wins_over_the_older_policy_beside_it(self) -> None:
        profile = {"type": "managed", "network": "enabled"}
        draft = folded(turn_context(permission_profile=profile, sandbox_policy={"type": "read-only"}))
        assert draft.sandbox_policy == '{"type":"managed","network":"enabled"}'

    def test_a_permission_profile_alone_is_the_sandbox(self) -> None:
        turn = turn_context(permission_profile={"type": "disabled"}, sandbox_policy=msgspec.UNSET)
        assert folded(turn).sandbox_policy == '{"type":"disabled"}'

    @pytest.mark.parametrize("profile", [None, msgspec.UNSET])
    def test_without_a_profile_the_older_policy_is(self, profile: Any) -> None:
        given_profile = raw(None) if profile is None else profile
        assert folded(turn_context(permission_profile=given_profile)).sandbox_policy == DEFAULT_SANDBOX

    def test_a_turn_that_says_neither_leaves_the_sandbox(self) -> None:
        turns = turn_context(sandbox_policy={"type": "x"}), turn_context(sandbox_policy=msgspec.UNSET)
        assert folded(*turns).sandbox_policy == '{"type":"x"}'

    @pytest.mark.parametrize("policy", [b"1e999", b'{"a":1e999}', b'{"a":' * 300 + b"1" + b"}" * 300])
    def test_no_policy_stops_an_extraction(self, tmp_path: Path, policy: bytes) -> None:
        turn = line(turn_context(sandbox_policy={"a": "POLICY"}, permission_profile=msgspec.UNSET))
        turn = turn.replace(b'{"a": "POLICY"}', policy)
        draft = extracted(tmp_path, session_meta(), turn, user_message("hi")).draft
        assert (draft.first_user_message, draft.sandbox_policy) == ("hi", policy.decode())

    @pytest.mark.parametrize("depth", [300, 900, *range(975, 1000), 5000])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (b'{"type":"session_meta","timestamp":"","payload":{"id":"' + ONE.encode() + b'","source":', b"}}"),
            (b'{"type":"turn_context","timestamp":"","payload":{"approval_policy":', b"}}"),
        ],
    )
    def test_no_depth_stops_an_extraction(self, tmp_path: Path, before: bytes, after: bytes, depth: int) -> None:
        deep = before + b'{"a":' * depth + b"1" + b"}" * depth + after
        draft = extracted(tmp_path, session_meta(), deep, user_message("hi")).draft
        assert draft.first_user_message == "hi"
        assert draft.source in ("cli", "unknown")

    def test_applied_settings_override_all_that_they_name_also_the_directory(self) -> None:
        settings = settings_applied(
            cwd="/set",
            model="new",
            approval_policy="untrusted",
            permission_profile={"type": "disabled"},
            sandbox_policy={"type": "read-only"},
            reasoning_effort="max",
        )
        draft = folded(turn_context(effort="low"), settings)
        assert (draft.cwd, draft.model, draft.approval_mode) == ("/set", "new", "untrusted")
        assert (draft.sandbox_policy, draft.reasoning_effort) == ('{"type":"disabled"}', "max")

    def test_applied_settings_leave_what_they_do_not_name_but_the_effort(self) -> None:
        draft = folded(turn_context(effort="low"), settings_applied(model="new"))
        assert (draft.cwd, draft.model, draft.approval_mode) == ("/code-x/proj", "new", "never")
        assert draft.reasoning_effort is None
        assert folded(turn_context(), settings_applied(cwd="/set"), turn_context()).cwd == "/set"

    def test_a_thread_without_a_turn_has_the_settings_that_were_applied(self) -> None:
        assert folded(settings_applied(model="new", reasoning_effort="high")).model == "new"


class TestSessionMeta:
    def test_a_session_meta_alone_does_not_set_a_model(self) -> None:
        assert folded().model is None

    def test_a_later_one_replaces_what_it_says_and_keeps_what_it_leaves_out(self) -> None:
        draft = folded(
            session_meta(agent_nickname="Zed", git=GitInfo(commit_hash="c", branch="b"), model_provider="first"),
            session_meta(cwd="", cli_version="", model_provider=None, git=GitInfo(branch="other"), source="exec"),
        )
        assert (draft.cwd, draft.cli_version, draft.model_provider) == ("/code-x/proj", "0.99.0", "first")
        assert (draft.source, draft.agent_nickname) == ("exec", None)
        assert (draft.git_sha, draft.git_branch) == (None, "other")

    def test_an_empty_provider_becomes_the_default(self) -> None:
        assert folded(session_meta(model_provider="")).model_provider == "default"

    @pytest.mark.parametrize("source", ["later", {"internal": "x"}, {"subagent": "brand_new"}, {"brand_new": 1}, {}])
    def test_an_unknown_source_is_kept_from_the_interactive_ones_and_costs_nothing_else(self, source: Any) -> None:
        """Law L11."""
        draft = folded(session_meta(source=source, cwd="/here"))
        assert draft.source == "unknown" or draft.source.startswith("{")
        assert draft.cwd == "/here"

    def test_another_threads_says_nothing(self) -> None:
        assert folded(session_meta(2, source="exec", cwd="/other")) == folded()

    def test_where_a_fork_and_a_sub_agent_come_from(self) -> None:
        spawn = {"subagent": {"thread_spawn": {"parent_thread_id": str(thread_id(8)), "depth": 1}}}
        forked = folded(session_meta(forked_from_id=thread_id(9).hex.upper(), thread_source="user", originator="x"))
        assert (forked.forked_from_id, forked.thread_source, forked.originator) == (str(thread_id(9)), "user", "x")
        assert folded(session_meta(source=spawn)).parent_thread_id == str(thread_id(8))
        assert folded(session_meta(source=spawn), session_meta()).parent_thread_id == str(thread_id(8))

    @pytest.mark.parametrize("odd", ["nobody", ""])
    def test_ids_that_are_none_are_left_out(self, odd: str) -> None:
        draft = folded(session_meta(forked_from_id=odd, parent_thread_id=odd))
        assert (draft.forked_from_id, draft.parent_thread_id) == (None, None)

    def test_the_latest_memory_mode_counts_whoever_it_is_of(self, tmp_path: Path) -> None:
        metas = (
            session_meta(memory_mode="enabled"),
            session_meta(2, memory_mode="polluted"),
            session_meta(),
        )
        extraction = extracted(tmp_path, *metas)
        assert (extraction.memory_mode, extraction.draft.memory_mode) == ("polluted", "polluted")
        assert extraction.memory_mode_at == CREATED_AT

    def test_an_empty_memory_mode_is_none(self, tmp_path: Path) -> None:
        extraction = extracted(tmp_path, session_meta(memory_mode=""))
        assert (extraction.memory_mode, extraction.memory_mode_at) == (None, None)
        extraction = extracted(tmp_path, session_meta(memory_mode="disabled"), session_meta(memory_mode=""))
        assert (extraction.memory_mode, extraction.draft.memory_mode) == ("disabled", "disabled")

    def test_what_comes_before_the_first_one_is_not_lost(self, tmp_path: Path) -> None:
        early = turn_context(cwd="/early", effort="low"), user_message("early"), token_count(4)
        draft = extracted(tmp_path, *early, session_meta(cwd="")).draft
        assert (draft.cwd, draft.reasoning_effort, draft.title) == ("/early", "low", "early")
        assert (draft.tokens_used, draft.source) == (4, "cli")

    @pytest.mark.parametrize(
        ("items", "tools"),
        [
            ([session_meta(dynamic_tools=[TOOL, TOOL])], 2),
            ([user_message(), turn_context(), b"bad", session_meta(dynamic_tools=[TOOL])], 1),
            ([ResponseItem("message"), session_meta(dynamic_tools=[TOOL])], 0),
            ([session_meta(), session_meta(2, dynamic_tools=[TOOL])], 0),
            ([session_meta(), session_meta(dynamic_tools=[TOOL])], 0),
            ([session_meta(dynamic_tools=[ToolSpec(name="space", type="namespace", tools=[TOOL, TOOL])])], 2),
        ],
    )
    def test_the_tools_are_those_of_the_head(
        self, tmp_path: Path, items: list[RolloutItem | bytes], tools: int
    ) -> None:
        found = extracted(tmp_path, *items).tools
        assert [(tool.name, tool.input_schema) for tool in found] == [("t", '{"a": 1}')] * tools


class TestOtherItems:
    def test_token_counts_set_the_total_and_never_below_zero(self) -> None:
        assert folded(token_count(7), token_count(5)).tokens_used == 5
        assert folded(token_count(7), token_count(-5)).tokens_used == 0

    def test_a_token_count_without_numbers_changes_nothing(self) -> None:
        assert folded(token_count(7), event("token_count", info=None)).tokens_used == 7

    def test_the_first_goal_is_what_a_list_can_show(self) -> None:
        draft = folded(goal_updated("  \n"), goal_updated(" finish it \n"), goal_updated("something else"))
        assert (draft.preview, draft.title, draft.first_user_message) == ("finish it", "", "")
        assert folded(user_message("hi")).preview is None

    def test_the_last_name_counts_with_the_time_of_its_line(self) -> None:
        draft = folded(name_updated("one"), encode_line(name_updated(" two "), "2026-01-02T03:05:05Z"))
        assert (draft.name, draft.name_at, draft.title) == ("two", CREATED_AT + 60, "")

    @pytest.mark.parametrize("blank", [None, "", " \n"])
    def test_a_blank_name_takes_none_away(self, blank: str | None) -> None:
        assert folded(name_updated("one"), name_updated(blank)).name == "one"

    def test_a_name_of_another_thread_is_not_this_ones(self) -> None:
        draft = folded(name_updated("mine", 1), name_updated("theirs", 2))
        assert draft.name == "mine"

    def test_a_name_without_a_readable_time_is_as_old_as_its_thread(self) -> None:
        assert folded(encode_line(name_updated("one"), "whenever")).name_at == CREATED_AT

    def test_nul_characters_are_replaced(self) -> None:
        draft = folded(user_message("a\0b"), goal_updated("c\0d"), name_updated("e\0f"))
        assert (draft.title, draft.first_user_message) == ("a\ufffdb", "a\ufffdb")
        assert (draft.preview, draft.name) == ("c\ufffdd", "e\ufffdf")


class TestCounting:
    def test_every_broken_line_is_counted_once_and_the_others_are_used(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / rollout_name(1),
            b"\xef\xbb\xbfx\n"
            + body(session_meta(), b"", b" \t", b"{", user_message("a"), b"\xff\xfe", b"null", b'{"timestamp":12}')
            + body(token_count(5))[:-20],
        )
        extraction = extract(str(path), "default")
        assert (extraction.parse_errors, extraction.unknown_lines) == (6, 0)
        assert (extraction.draft.first_user_message, extraction.draft.tokens_used) == ("a", 0)

    def test_a_line_with_several_odd_fields_is_one_parse_error(self, tmp_path: Path) -> None:
        odd = record("turn_context", {"model": 5, "cwd": [], "effort": {}, "approval_policy": "never"}, timestamp=7)
        extraction = extracted(tmp_path, session_meta(), odd)
        assert (extraction.parse_errors, extraction.draft.approval_mode) == (1, "never")

    def test_lines_of_unknown_kinds_are_counted_apart(self, tmp_path: Path) -> None:
        """Law L11: a healthy session has many, and none of them is broken."""
        unknown = record("world_state"), record("token_usage_record"), record("later"), event("later_event")
        extraction = extracted(tmp_path, session_meta(), *unknown, *unknown, Compacted("x"), event("agent_message"))
        assert (extraction.parse_errors, extraction.unknown_lines) == (0, 8)

    def test_two_records_on_one_line_are_no_fault(self, tmp_path: Path) -> None:
        both = line(token_count(3)) + line(token_count(4)) + line(user_message("hi"))
        extraction = extracted(tmp_path, session_meta(), both)
        assert (extraction.parse_errors, extraction.draft.tokens_used) == (0, 4)
        assert extraction.draft.title == "hi"

    def test_windows_line_ends_padding_and_a_missing_last_newline_do_not_matter(self, tmp_path: Path) -> None:
        content = body(session_meta(), b"\0" * 700, user_message("a"), token_count(3)).replace(b"\n", b"\r\n")[:-2]
        extraction = extract(str(write(tmp_path / rollout_name(1), b"\xef\xbb\xbf" + content)), "default")
        assert (extraction.parse_errors, extraction.draft.tokens_used) == (0, 3)

    def test_a_file_with_the_line_ends_of_old_systems_is_read(self, tmp_path: Path) -> None:
        content = body(session_meta(), *(token_count(number) for number in range(100))).replace(b"\n", b"\r")
        extraction = extract(str(write(tmp_path / rollout_name(1), content)), "default")
        assert (extraction.parse_errors, extraction.draft.tokens_used) == (0, 99)


class TestDamagedHead:
    """A fork's rollout goes on with its parent's session_meta: when its own is lost, the name says whose it is."""

    PARENT = (session_meta(2, cwd="/parents", source="exec"), user_message("hi"))

    @pytest.mark.parametrize("length", [1, 40, 120, -30, -1])
    def test_a_fork_with_a_cut_first_line_stays_the_forks(self, tmp_path: Path, length: int) -> None:
        cut = line(session_meta(1))[:length]
        draft = extracted(tmp_path, cut, *self.PARENT).draft
        assert (draft.id, draft.created_at) == (ONE, CREATED_AT)
        assert (draft.cwd, draft.first_user_message) == ("", "hi")

    def test_also_when_the_parents_was_written_behind_it_on_the_same_line(self, tmp_path: Path) -> None:
        cut = line(session_meta(1))[:100]
        assert extracted(tmp_path, cut + line(self.PARENT[0]), user_message("hi")).draft.id == ONE

    def test_a_whole_head_says_whose_it_is_whatever_the_files_name(self, tmp_path: Path) -> None:
        assert extracted(tmp_path, *self.PARENT, b"broken").draft.id == str(thread_id(2))

    @pytest.mark.parametrize("before", [event("later"), record("world_state"), b"", b"\0" * 99])
    def test_what_is_not_broken_before_the_head_does_not_matter(self, tmp_path: Path, before: bytes) -> None:
        assert extracted(tmp_path, before, *self.PARENT).draft.id == str(thread_id(2))

    def test_a_damaged_head_of_a_file_without_a_name_is_believed(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rollout-foo.jsonl", body(b"broken", *self.PARENT))
        assert extract(str(path), "default").draft.id == str(thread_id(2))

    def test_the_parents_session_meta_in_a_whole_fork_says_nothing(self, tmp_path: Path) -> None:
        draft = extracted(tmp_path, session_meta(forked_from_id=str(thread_id(2))), *self.PARENT).draft
        assert (draft.id, draft.cwd, draft.source) == (ONE, "/code-x/proj", "cli")
        assert draft.forked_from_id == str(thread_id(2))

    @pytest.mark.parametrize("items", [[user_message()], [session_meta(timestamp="bad"), session_meta()]])
    def test_a_rollout_that_does_not_say_whose_it_is_is_refused(self, tmp_path: Path, items: list[RolloutItem]) -> None:
        path = write(tmp_path / "rollout-foo.jsonl", body(*items))
        with pytest.raises(RolloutError, match="doesn't say whose it is"):
            extract(str(path), "default")

    def test_a_segments_name_says_whose_it_is(self, tmp_path: Path) -> None:
        assert extracted(tmp_path, user_message("hi"), segment=3).draft.id == ONE


_TEXT = body(session_meta(), user_message("hi")).decode()
_EARLY = b'{"id":"%b","timestamp":"2025-04-01T10:00:00Z","instructions":null}\n{"type":"message"}\n' % ONE.encode()


class TestRefusals:
    """Each says what is the matter with the file, and which one it is."""

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "is empty"),
            (b"\n \n", "is empty"),
            (b"\0" * 5000, "nothing but NUL bytes"),
            (b"x\n{\n]\n", r"no usable line \(3 can't be read\)"),
            (bytes(range(256)) * 50, "no usable line"),
            (_TEXT.encode("utf-16"), "UTF-16"),
            (_TEXT.encode("utf-16-le"), "UTF-16"),
            (_TEXT.encode("utf-16-be"), "UTF-16"),
            (b"\xfe\xff" + _TEXT.encode("utf-16-be"), "UTF-16"),
            (_TEXT.replace("\n", "\r\n").encode("utf-16-le"), "UTF-16"),
            (_EARLY, "early 2025"),
            (b'{"id":"x","instructions":"be nice"}\n', "early 2025"),
            (body(record("later"), event("later"), b"x"), r"no line of a kind that is known \(2 of other kinds, 1"),
            (body(record("world_state"), record("token_usage_record")), "no line of a kind that is known"),
        ],
    )
    def test_a_rollout_without_a_usable_line_is_refused_with_the_reason(
        self, tmp_path: Path, content: bytes, problem: str
    ) -> None:
        path = write(tmp_path / rollout_name(1), content)
        with pytest.raises(RolloutError, match=problem) as caught:
            extract(str(path), "default")
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [_TEXT.encode("utf-16"), _EARLY, b""])
    def test_also_when_it_is_compressed(self, tmp_path: Path, content: bytes) -> None:
        packed = zstandard.ZstdCompressor().compress(content)
        path = write(tmp_path / f"{rollout_name(1)}.zst", packed)
        with pytest.raises(RolloutError, match=r"UTF-16|early 2025|is empty"):
            extract(str(path), "default")

    @pytest.mark.parametrize("kept", [1, 5, 20, -40, -1])
    def test_a_compressed_rollout_that_was_cut_off_is_refused_as_such(self, tmp_path: Path, kept: int) -> None:
        content = body(session_meta(), *(user_message(f"{number} {number**9}") for number in range(900)))
        path = write(tmp_path / f"{rollout_name(1)}.zst", zstandard.ZstdCompressor().compress(content)[:kept])
        with pytest.raises(RolloutError, match="cut off"):
            extract(str(path), "default")

    def test_an_empty_compressed_file_is_empty(self, tmp_path: Path) -> None:
        with pytest.raises(RolloutError, match="is empty"):
            extract(str(write(tmp_path / f"{rollout_name(1)}.zst", b"")), "default")

    def test_damaged_compression_is_refused_as_such(self, tmp_path: Path) -> None:
        with pytest.raises(RolloutError, match="damaged compression"):
            extract(str(write(tmp_path / "rollout-a.jsonl.zst", b"not compressed")), "default")

    def test_the_file_is_not_changed(self, tmp_path: Path) -> None:
        path = write_rollout(tmp_path, 1, modified=1_767_400_000)
        before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir()))
        extract(str(path), "default")
        assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == before


def gone_on(home: Path, *newest_first: Sequence[RolloutItem | bytes]) -> ThreadDraft:
    """A thread in several files: the newest, and those that it goes on from."""
    count = len(newest_first)
    paths = [
        str(write_rollout(home, 1, *items, segment=count - 1 - position or None))
        for position, items in enumerate(newest_first)
    ]
    extraction = extract(paths[0], "default")
    go_on_from(extraction, paths[1:])
    return extraction.draft


def later(end: int | None, *items: RolloutItem | bytes) -> list[bytes]:
    """The lines of a segment that goes on after the ordinals before ``end``."""
    return numbered(session_meta(history_base=history_base(1, end)), *items, start=end or 0)


FIRST = [session_meta(), user_message("one"), goal_updated("goal"), token_count(5), user_message("two")]


class TestSegments:
    """A thread that was reverted goes on in another file, from where that says (``history_base``)."""

    def test_what_only_the_earlier_file_says_counts(self, tmp_path: Path) -> None:
        draft = gone_on(tmp_path, later(5, turn_context(model="new")), numbered(*FIRST, name_updated("mine")))
        assert (draft.title, draft.first_user_message, draft.preview) == ("one", "one", "goal")
        assert (draft.tokens_used, draft.model, draft.name) == (5, "new", None)
        draft = gone_on(tmp_path, later(6, turn_context()), numbered(*FIRST, name_updated("mine")))
        assert (draft.name, draft.name_at) == ("mine", CREATED_AT)

    def test_what_the_later_file_says_again_counts_there_but_for_the_beginning(self, tmp_path: Path) -> None:
        again = later(5, user_message("three"), goal_updated("other"), token_count(9), name_updated("new"))
        draft = gone_on(tmp_path, again, numbered(name_updated("old", 1), *FIRST))
        assert (draft.title, draft.first_user_message, draft.preview) == ("one", "one", "goal")
        assert (draft.tokens_used, draft.name) == (9, "new")

    @pytest.mark.parametrize(
        ("end", "title", "tokens"), [(1, "later", 0), (2, "one", 0), (3, "one", 0), (4, "one", 5), (9, "one", 5)]
    )
    def test_what_was_taken_back_does_not_count(self, tmp_path: Path, end: int, title: str, tokens: int) -> None:
        draft = gone_on(tmp_path, later(end, user_message("later")), numbered(*FIRST))
        assert (draft.title, draft.tokens_used) == (title, tokens)

    def test_lines_without_ordinals_are_counted(self, tmp_path: Path) -> None:
        assert gone_on(tmp_path, later(2, user_message("later")), FIRST).title == "one"
        assert gone_on(tmp_path, later(1, user_message("later")), FIRST).title == "later"
        assert gone_on(tmp_path, later(4, user_message("later")), [*FIRST[:1], b"", *FIRST[1:]]).tokens_used == 5

    def test_two_reverts_are_followed_to_the_beginning(self, tmp_path: Path) -> None:
        middle = later(2, token_count(7), user_message("middle"), goal_updated("middle"))
        draft = gone_on(tmp_path, later(4, user_message("last")), middle, numbered(*FIRST))
        assert (draft.title, draft.tokens_used, draft.preview) == ("one", 7, None)

    def test_a_segment_that_was_taken_back_wholly_says_nothing(self, tmp_path: Path) -> None:
        middle = later(4, token_count(7), name_updated("middle"))
        draft = gone_on(tmp_path, later(2, user_message("last")), middle, numbered(*FIRST))
        assert (draft.title, draft.tokens_used, draft.name) == ("one", 0, None)

    def test_also_one_whose_lines_have_no_ordinals(self, tmp_path: Path) -> None:
        middle = [session_meta(history_base=history_base(1, 4)), token_count(7)]
        draft = gone_on(tmp_path, later(2, user_message("last")), middle, FIRST)
        assert (draft.title, draft.tokens_used) == ("one", 0)

    @pytest.mark.parametrize(
        "base", [None, history_base(9, 5), history_base(1, None)], ids=["none", "another thread's", "no ordinal"]
    )
    def test_a_file_that_does_not_go_on_from_its_own_thread_stands_alone(self, tmp_path: Path, base: Any) -> None:
        fork = [session_meta(history_base=base), user_message("own")]
        draft = gone_on(tmp_path, fork, numbered(*FIRST))
        assert (draft.title, draft.preview, draft.tokens_used) == ("own", None, 0)

    @pytest.mark.parametrize(
        "between",
        [
            [b"broken"],
            [b""],
            numbered(session_meta(2), user_message("another's"), name_updated("another's", 2)),
        ],
        ids=["broken", "empty", "another thread's"],
    )
    def test_a_file_that_is_not_its_own_or_cannot_be_read_is_passed_over(
        self, tmp_path: Path, between: list[bytes]
    ) -> None:
        draft = gone_on(tmp_path, later(5, user_message("last")), between, numbered(*FIRST))
        assert (draft.title, draft.tokens_used, draft.name) == ("one", 5, None)

    def test_one_whose_head_is_lost_goes_on_from_where_its_ordinals_begin(self, tmp_path: Path) -> None:
        middle = later(2, token_count(7))
        middle[0] = middle[0][:-40]
        assert gone_on(tmp_path, later(4), middle, numbered(*FIRST)).title == "one"
        assert gone_on(tmp_path, later(4), middle, numbered(session_meta(), goal_updated("x"), *FIRST)).title == ""

    def test_earlier_files_that_are_gone_are_passed_over(self, tmp_path: Path) -> None:
        extraction = extracted(tmp_path, *later(5, user_message("last")), segment=2)
        go_on_from(extraction, [str(tmp_path / "gone.jsonl")])
        assert extraction.draft.title == "last"

    def test_an_earlier_file_may_be_compressed(self, tmp_path: Path) -> None:
        extraction = extracted(tmp_path, *later(5), segment=2)
        packed = write(tmp_path / "a.jsonl.zst", zstandard.ZstdCompressor().compress(body(*numbered(*FIRST))))
        go_on_from(extraction, [str(packed)])
        assert extraction.draft.title == "one"

    @given(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    def test_any_reverts_give_what_the_history_says_that_is_left(
        self, tmp_path_factory: pytest.TempPathFactory, ends: list[int]
    ) -> None:
        history: list[RolloutItem] = [session_meta(), *(user_message(f"0.{place}") for place in range(3))]
        files: list[Sequence[RolloutItem | bytes]] = [numbered(*history)]
        for segment, wanted in enumerate(ends, 1):
            end = max(1, min(wanted, len(history)))
            meta = session_meta(history_base=history_base(1, end))
            added = [meta, user_message(f"{segment}.0"), token_count(segment), user_message(f"{segment}.1")]
            history = [*history[:end], *added]
            files.insert(0, numbered(*added, start=end))
        expected = Fold(ThreadDraft("", rollout_name(1)), "default")
        for item in history:
            expected.add(item)
        whole = expected.finish()
        found = gone_on(tmp_path_factory.mktemp("home"), *files)
        assert (found.title, found.first_user_message) == (whole.title, whole.first_user_message)
        assert found.tokens_used == whole.tokens_used


class TestStamps:
    def test_the_stamp_is_what_the_file_looked_like(self, tmp_path: Path) -> None:
        path = write_rollout(tmp_path, 1, modified=1_767_400_000)
        extraction = extract(str(path), "default")
        assert extraction.size == path.stat().st_size
        assert extraction.mtime_ns == 1_767_400_000 * 10**9
        assert extraction.draft.updated_at == 1_767_400_000

    def test_a_file_that_was_just_written_may_be_written_again_without_its_time_showing_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1_767_400_000 * 10**9
        monkeypatch.setattr("codex_state.rollout.fold.time.time_ns", lambda: now)
        assert telling_time(now) is None
        assert telling_time(now - 1_999_999_999) is telling_time(now + 1_999_999_999) is None
        assert telling_time(now - 2_000_000_000) == now - 2_000_000_000
        assert telling_time(now + 3_000_000_000) == now + 3_000_000_000
        assert extract(str(write_rollout(tmp_path, 1, modified=1_767_400_000)), "default").mtime_ns is None


def test_tools_beyond_the_bounds_are_left_out_and_counted(tmp_path: Path) -> None:
    """L10, L11: what is too large costs nothing beside it."""
    large = msgspec.structs.replace(TOOL, name="large", description="x" * MAX_BYTES_OF_TOOL)
    found = extracted(tmp_path, session_meta(dynamic_tools=[TOOL, large, TOOL]), user_message())
    assert ([tool.name for tool in found.tools], found.parse_errors) == ([TOOL.name, TOOL.name], 1)

    half = msgspec.structs.replace(TOOL, description="x" * (MAX_BYTES_OF_TOOL // 2))
    found = extracted(tmp_path, session_meta(dynamic_tools=[half] * 40))
    assert sum(len(tool.description) for tool in found.tools) <= MAX_BYTES_OF_TOOLS
    assert (len(found.tools), found.parse_errors) == (15, 25)

    found = extracted(tmp_path, session_meta(dynamic_tools=[ToolSpec(name="t")] * (MAX_TOOLS + 3)))
    assert (len(found.tools), found.parse_errors) == (MAX_TOOLS, 3)


def test_an_extraction_survives_the_way_between_processes(tmp_path: Path) -> None:
    extraction = extracted(
        tmp_path, session_meta(dynamic_tools=[TOOL], memory_mode="disabled"), user_message("hi"), name_updated("n")
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(extraction), type=Extraction) == extraction
    assert (extraction.draft.id, extraction.tools_thread_id) == (ONE, ONE)


def test_an_item_of_any_kind_can_be_folded_alone() -> None:
    for item in (decode_line(event("agent_message")), Compacted("x"), ResponseItem("message")):
        fold = Fold(ThreadDraft(ONE, rollout_name(1)), "default")
        fold.add(item)
        assert fold.finish() == ThreadDraft(ONE, rollout_name(1), model_provider="default")
