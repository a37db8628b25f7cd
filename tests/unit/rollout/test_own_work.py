"""Forks and segments count what is their own: the homes of real versions are held to each response's own usage."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rollout_files import event, history_base, line, numbered, session_meta, thread_id, user_message, write_rollout

from codex_state.drafts import ThreadDraft
from codex_state.rollout.fold import Fold, extract, go_on_from
from codex_state.rollout.format import SessionMeta, decode_line
from tests.archives import unpack_archive

FIXTURES = Path(__file__).parents[2] / "fixtures"

PARENT, FORK = "01990000-0000-7000-8000-000000000001", "01990000-1000-7000-8000-000000000002"
BEFORE, AFTER = "01990000-0800-7000-8000-00000000000a", "01990000-1800-7000-8000-00000000000b"
"""Turns that began before and after the fork was made."""


def head(**changes: Any) -> SessionMeta:
    return session_meta(id=FORK, forked_from_id=PARENT, **changes)


def counted(total: int, last: int | None = None) -> bytes:
    """A count of so many tokens in all: of ten one is output, half of which is reasoning, and two were cached."""

    def usage(tokens: int) -> dict[str, int]:
        tenth = tokens // 10
        return {
            "input_tokens": tokens - tenth,
            "cached_input_tokens": 2 * tenth,
            "output_tokens": tenth,
            "reasoning_output_tokens": tenth // 2,
            "total_tokens": tokens,
        }

    response = {} if last is None else {"last_token_usage": usage(last)}
    return event("token_count", info={"total_token_usage": usage(total), **response})


def started(turn_id: str | None) -> bytes:
    return event("task_started", turn_id=turn_id)


def at(second: float, written: bytes) -> bytes:
    return json.dumps(json.loads(written) | {"timestamp": f"2026-01-02T03:04:{second:06.3f}Z"}).encode()


def folded(*items: SessionMeta | bytes, row: ThreadDraft | None = None) -> ThreadDraft:
    fold = Fold(row or ThreadDraft("", ""), "default")
    fold.all_lines([line(item) for item in items])
    return fold.finish()


def tokens(draft: ThreadDraft) -> tuple[int, ...]:
    return (draft.tokens_input, draft.tokens_cached, draft.tokens_output, draft.tokens_reasoning)


def test_a_thread_counts_its_turns_and_tokens_by_kind() -> None:
    draft = folded(session_meta(), started(AFTER), counted(100, 100), started(AFTER), counted(300, 200))
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited) == (2, 300, 0)
    assert tokens(draft) == (270, 60, 30, 15)


def test_what_a_user_asked_is_a_turn_only_where_turns_have_no_lines_of_their_own() -> None:
    asked = line(user_message())
    assert folded(session_meta(), asked, asked).turns == 2
    assert folded(session_meta(), started(AFTER), asked, asked).turns == 1


def test_a_fork_that_copied_its_parents_lines_counts_what_follows_them() -> None:
    copied = [started(BEFORE), counted(100, 100), started(BEFORE), counted(300, 200)]
    draft = folded(head(), session_meta(id=PARENT), *copied, started(AFTER), counted(1000, 700))
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited) == (1, 1000, 300)
    assert tokens(draft) == (630, 140, 70, 35)

    untouched = folded(head(), session_meta(id=PARENT), *copied)
    assert (untouched.turns, untouched.tokens_used, untouched.tokens_inherited) == (0, 300, 300)
    assert tokens(untouched) == (0, 0, 0, 0)


def test_a_copy_is_known_by_its_turns_where_the_parents_head_is_not_in_it() -> None:
    draft = folded(session_meta(id=FORK), started(BEFORE), counted(100, 100), started(AFTER), counted(300, 200))
    assert (draft.turns, draft.tokens_inherited, draft.tokens_input) == (1, 100, 180)


def test_a_copy_without_ids_of_turns_is_what_was_written_in_one_go() -> None:
    asked = line(user_message())
    copied = [at(6.0, line(session_meta(id=PARENT))), at(6.2, asked), at(6.9, counted(100, 100)), at(7.5, asked)]
    own = [at(20, asked), at(20, counted(100, 100)), at(25, counted(150, 50))]
    draft = folded(at(5.9, line(head())), *copied, *own)
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited) == (1, 150, 100)
    assert folded(head(), *copied).turns == 0


def test_a_fork_that_goes_on_from_a_history_counts_from_its_first_response_on() -> None:
    base = history_base(1, 23)
    draft = folded(head(history_base=base), started(AFTER), counted(300, 100), started(AFTER), counted(400, 100))
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited) == (2, 400, 200)
    assert tokens(draft) == (180, 40, 20, 10)
    # Without the last response's usage nobody can tell what was the parent's.
    assert folded(head(history_base=base), counted(300)).tokens_inherited == 300


def test_a_segment_adds_its_turns_to_those_that_it_goes_on_from(tmp_path: Path) -> None:
    first = [session_meta(), started(AFTER), counted(100, 100), started(AFTER), counted(300, 200)]
    again = session_meta(history_base=history_base(1, 3))
    for lines, expected in (
        ([started(AFTER), counted(600, 500)], (2, 600, 0, 540)),
        ([], (1, 100, 0, 90)),
    ):
        later = write_rollout(tmp_path, 1, *numbered(again, *lines, start=3), segment=1)
        earlier = write_rollout(tmp_path, 1, *numbered(*first))
        extraction = extract(str(later), "default")
        go_on_from(extraction, [str(earlier)])
        draft = extraction.draft
        assert (draft.turns, draft.tokens_used, draft.tokens_inherited, draft.tokens_input) == expected


def test_a_forks_segment_inherits_what_the_fork_did(tmp_path: Path) -> None:
    parents = history_base(2, 0)
    fork = numbered(session_meta(history_base=parents), started(AFTER), counted(300, 100))
    again = session_meta(history_base=history_base(1, 3))
    later = write_rollout(tmp_path, 1, *numbered(again, started(AFTER), counted(600, 300), start=3), segment=1)
    extraction = extract(str(later), "default")
    go_on_from(extraction, [str(write_rollout(tmp_path, 1, *fork))])
    draft = extraction.draft
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited) == (2, 600, 200)
    assert tokens(draft) == (360, 80, 40, 20)


def test_items_that_come_one_by_one_count_on_from_the_row() -> None:
    row = ThreadDraft(str(thread_id(1)), "", turns=2, tokens_used=300, tokens_inherited=100, tokens_input=180)
    draft = folded(started(AFTER), counted(400, 100), row=row)
    assert (draft.turns, draft.tokens_used, draft.tokens_inherited, draft.tokens_input) == (3, 400, 100, 270)
    assert folded(started(AFTER), row=draft).tokens_used == 400


def test_an_estimate_after_a_history_was_shortened_is_no_response() -> None:
    estimate = {"total_token_usage": {"total_tokens": 300}, "last_token_usage": {"total_tokens": 5000}}
    draft = folded(head(history_base=history_base(1, 2)), event("token_count", info=estimate), counted(400, 100))
    assert (draft.tokens_used, draft.tokens_inherited) == (400, 300)


def test_negative_and_odd_counts_do_no_harm() -> None:
    assert tokens(folded(session_meta(), counted(-100, -100))) == (0, 0, 0, 0)
    odd = event("token_count", info={"total_token_usage": {"total_tokens": 7}, "last_token_usage": "much"})
    draft = folded(head(history_base=history_base(1, 2)), odd)
    assert (draft.tokens_used, draft.tokens_inherited) == (7, 7)


@pytest.mark.parametrize("version", ["0.110.0", "0.120.0", "0.129.0", "0.138.0", "0.147.0", "0.163.0", "0.171.0"])
def test_the_threads_of_a_real_home_count_each_response_once(version: str, tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / f"real-{version}" / "home.tar.gz") as home:
        unpack_archive(home, tmp_path)
    # Each response of the model that served these homes has another number of tokens.
    responses: set[int] = set()
    turns: set[str] = set()
    own = own_turns = 0
    for path in tmp_path.rglob("rollout-*.jsonl"):
        draft = extract(str(path), "default").draft
        assert draft.tokens_used - draft.tokens_inherited >= draft.tokens_input + draft.tokens_output
        own += draft.tokens_used - draft.tokens_inherited
        if "review" not in draft.source:  # a review's thread has its one turn in common with the reviewed one
            own_turns += draft.turns or 0
        for each in path.read_bytes().splitlines():
            record = json.loads(each)
            payload = record["payload"]
            if payload.get("type") == "task_started":
                turns.add(payload["turn_id"])
                assert decode_line(each).turn_id == payload["turn_id"]  # type: ignore[union-attr]
            last = (payload.get("info") or {}).get("last_token_usage", {"input_tokens": 0})
            if last["input_tokens"]:  # there are estimates as well, of what a shortened history comes to
                responses.add(last["total_tokens"])
    assert own == sum(responses)
    assert own_turns == len(turns)
