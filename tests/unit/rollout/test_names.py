"""The names that users gave to threads, in ``session_index.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import CREATED_AT, WRITTEN_AT, thread_id, write

from codex_state.rollout.names import session_index_names

MODIFIED = 1_767_400_000


def entry(number: int, name: Any, updated_at: Any = WRITTEN_AT) -> bytes:
    return json.dumps({"id": str(thread_id(number)), "thread_name": name, "updated_at": updated_at}).encode()


def names(tmp_path: Path, *lines: bytes) -> dict[UUID, tuple[str, int]]:
    path = write(tmp_path / "session_index.jsonl", b"\n".join(lines), modified=MODIFIED)
    return {found: (name, at) for found, name, at in session_index_names(path)}


def test_the_last_name_of_each_thread_counts_with_its_time(tmp_path: Path) -> None:
    later = "2026-01-02T03:05:05.678Z"
    assert names(tmp_path, entry(1, "first"), entry(2, "other"), entry(1, "last", later)) == {
        thread_id(1): ("last", CREATED_AT + 60),
        thread_id(2): ("other", CREATED_AT),
    }


def test_the_last_line_counts_whatever_its_time(tmp_path: Path) -> None:
    earlier = "2025-01-01T00:00:00Z"
    assert names(tmp_path, entry(1, "first"), entry(1, "last", earlier))[thread_id(1)][0] == "last"


@pytest.mark.parametrize("blank", ["", "  ", "\u3000\n", None, 5, [], {}])
def test_a_blank_or_unreadable_name_takes_none_away(tmp_path: Path, blank: Any) -> None:
    assert names(tmp_path, entry(1, "first"), entry(1, blank)) == {thread_id(1): ("first", CREATED_AT)}
    assert names(tmp_path, entry(1, blank)) == {}


@pytest.mark.parametrize("time", [None, "", "yesterday", 5, [], "2026-01-02"])
def test_a_name_without_a_readable_time_has_that_of_the_file(tmp_path: Path, time: Any) -> None:
    assert names(tmp_path, entry(1, "mine", time)) == {thread_id(1): ("mine", MODIFIED)}
    assert names(tmp_path, f'{{"id":"{thread_id(1)}","thread_name":"mine"}}'.encode()) == {
        thread_id(1): ("mine", MODIFIED)
    }


@pytest.mark.parametrize(
    "corrupt",
    [
        b"",
        b"x",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\0" * 100,
        b'{"thread_name":"whose?"}',
        b'{"id":5,"thread_name":"whose?"}',
        b'{"id":"nobody","thread_name":"whose?"}',
        entry(2, "cut")[:-5],
        entry(2, "x").replace(b'"x"', b'"\xff"'),
        entry(2, "x").replace(b'"x"', rb'"\ud800"'),
        b"[" * 100_000,
    ],
)
def test_lines_that_cannot_be_read_are_passed_over(tmp_path: Path, corrupt: bytes) -> None:
    assert set(names(tmp_path, entry(1, "one"), corrupt, entry(3, "three"))) == {thread_id(1), thread_id(3)}


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\0" * 50, b" \r"])
@pytest.mark.parametrize("after", [b"", b"\r", b"\0" * 50])
def test_padding_round_a_line_does_not_matter(tmp_path: Path, before: bytes, after: bytes) -> None:
    assert names(tmp_path, before + entry(1, "one") + after) == {thread_id(1): ("one", CREATED_AT)}


def test_names_are_trimmed_and_ids_have_one_spelling(tmp_path: Path) -> None:
    line = entry(1, " \u3000my name\0 \n").replace(str(thread_id(1)).encode(), thread_id(1).hex.upper().encode())
    assert names(tmp_path, line) == {thread_id(1): ("my name\ufffd", CREATED_AT)}


def test_a_file_without_a_name_has_none(tmp_path: Path) -> None:
    assert names(tmp_path) == {}


def test_a_file_that_is_not_there_is_an_error_of_reading(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="session_index"):
        list(session_index_names(tmp_path / "session_index.jsonl"))


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", " ", "a", "b", None])), max_size=8))
def test_any_file_gives_the_last_name_that_is_not_blank(
    tmp_path_factory: pytest.TempPathFactory, given_names: list[tuple[int, str | None]]
) -> None:
    expected = {thread_id(number): name for number, name in given_names if name and name.strip()}
    found = names(tmp_path_factory.mktemp("home"), *(entry(*each) for each in given_names))
    assert {thread: name for thread, (name, _) in found.items()} == expected


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    names(tmp_path_factory.mktemp("home"), content)
