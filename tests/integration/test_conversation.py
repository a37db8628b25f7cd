"""A thread's whole conversation: its segments, what it was forked from, and what was taken back."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from original import DEFAULT_PROVIDER, unpack
from rollout_files import (
    completed_message,
    event,
    history_base,
    numbered,
    session_meta,
    thread_id,
    turn_context,
    user_message,
    write_rollout,
)

from codex_state import (
    RolloutError,
    StateRuntime,
    StateSettings,
    TokensByKind,
    conversation_parts,
    read_conversation,
    summarize_conversation,
)
from codex_state.rollout import backfill

DAYS = ("2026-01-02T03-04-05", "2026-01-03T00-00-00", "2026-01-04T00-00-00")


def said(runtime: StateRuntime, number: int = 1, *, taken_back: bool = False) -> list[str]:
    """What a thread's conversation holds, notices in brackets."""
    items = read_conversation(runtime, thread_id(number), taken_back=taken_back)
    return [f"({item.text})" if item.kind == "notice" else item.text for item in items]


def asked(*texts: str, start: int) -> list[bytes]:
    return numbered(*map(completed_message, texts), start=start)


def write_segment(runtime: StateRuntime, day: int, end: int, *texts: str, number: int = 1, base: int = 1) -> Path:
    """A later file that goes on from the ordinal ``end`` of the thread ``base``."""
    meta = session_meta(number, history_base=history_base(base, end), timestamp=f"2026-01-0{day + 2}T00:00:00.000Z")
    lines = [*numbered(meta, start=end), *asked(*texts, start=end + 1)]
    return write_rollout(runtime.codex_home, number, *lines, time=DAYS[day], segment=day if number == base else None)


def test_a_reverted_thread_goes_on_where_it_was_reverted_to(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, *numbered(session_meta(1)), *asked("a", "b", "c", start=1))
    write_segment(runtime, 1, 3, "d", "e")
    backfill(runtime, workers=0)
    assert said(runtime) == ["a", "b", "(the thread was reverted to here)", "d", "e"]
    write_segment(runtime, 2, 2, "f")  # before the first segment begins
    backfill(runtime, workers=0, refresh=True)
    assert said(runtime) == ["a", "(the thread was reverted to here)", "f"]


def test_a_thread_that_was_reverted_within_a_later_segment_has_all_before_it(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, *numbered(session_meta(1)), *asked("a", "b", "c", start=1))
    write_segment(runtime, 1, 3, "d", "e")
    write_segment(runtime, 2, 5, "f")
    backfill(runtime, workers=0)
    assert [text for text in said(runtime) if not text.startswith("(")] == ["a", "b", "d", "f"]


def test_a_fork_has_its_parents_history_before_its_own(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, *numbered(session_meta(1)), *asked("a", "b", "c", start=1))
    write_segment(runtime, 1, 3, "of the fork", number=2)
    write_segment(runtime, 2, 5, "of its fork", number=3, base=2)
    backfill(runtime, workers=0)
    assert said(runtime, 3) == [
        *("a", "b", f"(forked from {thread_id(1)})", "of the fork"),
        *(f"(forked from {thread_id(2)})", "of its fork"),
    ]
    assert [part.before for part in conversation_parts(runtime, thread_id(3))] == [3, 5, None]
    assert said(runtime, 1) == ["a", "b", "c"]


def test_a_fork_keeps_what_its_parent_took_back_later(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, *numbered(session_meta(1)), *asked("a", "b", "c", start=1))
    write_segment(runtime, 1, 4, "of the fork", number=2)
    write_segment(runtime, 2, 2, "another way")
    backfill(runtime, workers=0)
    assert said(runtime, 2) == ["a", "b", "c", f"(forked from {thread_id(1)})", "of the fork"]
    assert said(runtime, 1) == ["a", "(the thread was reverted to here)", "another way"]


def test_a_fork_whose_parent_is_gone_says_so_and_has_its_own_part(runtime: StateRuntime) -> None:
    write_segment(runtime, 1, 3, "of the fork", number=2)
    backfill(runtime, workers=0)
    assert said(runtime, 2) == [
        f"(the earlier history is missing: no rollout of thread {thread_id(1)})",
        f"(forked from {thread_id(1)})",
        "of the fork",
    ]


def test_forks_of_each_other_end(runtime: StateRuntime) -> None:
    write_segment(runtime, 1, 3, "one", number=1, base=2)
    write_segment(runtime, 1, 3, "two", number=2, base=1)
    backfill(runtime, workers=0)
    assert said(runtime, 1)[-1] == "one"


def test_turns_that_were_taken_back_are_left_out_unless_asked_for(runtime: StateRuntime) -> None:
    write_rollout(
        runtime.codex_home,
        1,
        session_meta(1),
        *(event("task_started"), user_message("a"), event("agent_message", message="1")),
        *(event("task_started"), user_message("b"), user_message("and this"), event("agent_message", message="2")),
        *(event("task_started"), user_message("c")),
        event("thread_rolled_back", num_turns=2),
        *(event("task_started"), user_message("d")),
    )
    backfill(runtime, workers=0)
    assert said(runtime) == ["a", "1", "(the last 2 turns were taken back)", "d"]
    assert said(runtime, taken_back=True) == [
        *("a", "1", "b", "and this", "2", "c", "(the last 2 turns were taken back)", "d")
    ]
    assert summarize_conversation(runtime, thread_id(1)).turns == 2


def test_without_marks_of_turns_each_question_is_one(runtime: StateRuntime) -> None:
    """As up to 0.99."""
    lines = [user_message("a"), user_message("b"), event("thread_rolled_back", num_turns=1), user_message("c")]
    write_rollout(runtime.codex_home, 1, session_meta(1), *lines, event("thread_rolled_back", num_turns=9))
    backfill(runtime, workers=0)
    assert said(runtime) == ["(the last 9 turns were taken back)"]
    assert summarize_conversation(runtime, thread_id(1)).turns == 0


def test_a_compressed_thread_reads_the_same(runtime: StateRuntime) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = write_rollout(runtime.codex_home, 1, session_meta(1), user_message("a"), user_message("b"))
    path.with_name(f"{path.name}.zst").write_bytes(zstandard.compress(path.read_bytes()))
    path.unlink()
    backfill(runtime, workers=0)
    assert said(runtime) == ["a", "b"]


def test_a_thread_without_a_rollout_is_an_error(runtime: StateRuntime) -> None:
    with pytest.raises(RolloutError, match=f"no rollout of thread {thread_id(9)}"):
        list(read_conversation(runtime, thread_id(9)))


def test_a_conversation_in_numbers(runtime: StateRuntime) -> None:
    def counted(total: int) -> bytes:
        usage = {
            "input_tokens": total - 10,
            "cached_input_tokens": 5,
            "output_tokens": 10,
            "reasoning_output_tokens": 4,
        }
        return event("token_count", info={"total_token_usage": usage | {"total_tokens": total}})

    write_rollout(
        runtime.codex_home,
        1,
        *numbered(session_meta(1), turn_context(model="first"), completed_message("a"), counted(100)),
        *numbered(turn_context(model="second"), completed_message("b"), counted(200), start=4),
        *numbered(turn_context(model="never reached"), completed_message("c"), counted(300), start=7),
    )
    write_segment(runtime, 1, 7, number=2)
    write_segment(runtime, 2, 7, "d")
    backfill(runtime, workers=0)
    own = summarize_conversation(runtime, thread_id(1))
    assert (own.turns, own.models) == (3, ("first", "second"))
    assert own.tokens == TokensByKind(190, 5, 10, 4, 200)
    fork = summarize_conversation(runtime, thread_id(2))
    assert (fork.turns, fork.models, fork.tokens) == (2, ("first", "second"), None)


@pytest.mark.parametrize("name", ["real-0.101.0", "real-0.171.0"])
def test_forks_of_the_original_hold_their_parents_history_once(name: str, tmp_path: Path) -> None:
    original = unpack(name, tmp_path / "home")
    settings = StateSettings(codex_home=original.home, default_provider=DEFAULT_PROVIDER)
    with StateRuntime.open(settings) as runtime:
        backfill(runtime, workers=0)
        (fork,) = [UUID(each) for each in original.threads if _asks(original.home, each, "in the fork of the fork")]
        texts = [item.text for item in read_conversation(runtime, fork) if item.kind == "user"]
    assert texts == ["base first message", "base second message", "message in the fork", "in the fork of the fork"]


def _asks(home: Path, thread: str, text: str) -> bool:
    return any(f'"{text}"' in path.read_text() for path in home.rglob(f"*{thread}.jsonl"))
