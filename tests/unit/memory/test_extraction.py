"""What an extractor gives back, made fit to be stored."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_state.errors import InvalidInputError
from codex_state.memory import ExtractedMemory
from codex_state.memory.reports import RAW_MEMORY_BYTES, RAW_MEMORY_CUT, SUMMARY_BYTES, described, truncated


def test_texts_within_the_limits_are_kept_as_they_are() -> None:
    raw, summary = "# Würde\n\n- größer", "s" * SUMMARY_BYTES
    memory = ExtractedMemory(raw, summary)
    assert (memory.raw_memory, memory.memory_summary) == (raw, summary)


def test_a_raw_memory_over_its_limit_keeps_its_beginning_and_says_that_it_was_cut() -> None:
    memory = ExtractedMemory("x" * (RAW_MEMORY_BYTES + 1), "s")
    assert len(memory.raw_memory.encode()) == RAW_MEMORY_BYTES
    assert memory.raw_memory == "x" * (RAW_MEMORY_BYTES - len(RAW_MEMORY_CUT)) + RAW_MEMORY_CUT


def test_a_raw_memory_of_exactly_its_limit_is_not_cut() -> None:
    assert ExtractedMemory("ä" * (RAW_MEMORY_BYTES // 2), "s").raw_memory == "ä" * (RAW_MEMORY_BYTES // 2)


def test_a_summary_over_its_limit_is_cut_between_characters() -> None:
    summary = ExtractedMemory("raw", "😀" * 400).memory_summary
    assert summary == "😀" * 298 + " [...]"
    assert len(summary.encode()) <= SUMMARY_BYTES


@given(st.text(), st.integers(min_value=10, max_value=40))
def test_a_cut_text_is_valid_and_within_its_limit(text: str, limit: int) -> None:
    cut = truncated(text, limit, " [...]")
    assert len(cut.encode()) <= limit
    assert cut == text or (cut.endswith(" [...]") and text.startswith(cut.removesuffix(" [...]")))


def test_line_ends_and_white_space_are_normalised() -> None:
    memory = ExtractedMemory("\r\n a\r\nb\rc \n", " one\r\n  two\tthree ")
    assert memory.raw_memory == "a\nb\nc"
    assert memory.memory_summary == "one two three"


def test_what_no_database_stores_is_replaced_or_dropped() -> None:
    memory = ExtractedMemory("a\x00b\ud83dc", "s\x00\udc00")
    assert memory.raw_memory == "ab\ufffdc"
    assert memory.memory_summary == "s\ufffd"


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_whatever_is_accepted_can_be_stored(raw: str, summary: str) -> None:
    try:
        memory = ExtractedMemory(raw, summary)
    except InvalidInputError:
        assert not raw.replace("\x00", "").strip()
        return
    for text, limit in ((memory.raw_memory, RAW_MEMORY_BYTES), (memory.memory_summary, SUMMARY_BYTES)):
        assert 0 < len(text.encode()) <= limit
        assert "\x00" not in text
    assert ExtractedMemory(memory.raw_memory, memory.memory_summary) == memory


def test_without_a_summary_the_beginning_of_the_raw_memory_is_the_summary() -> None:
    assert ExtractedMemory("# Title\n\nbody", "  ").memory_summary == "# Title body"


@pytest.mark.parametrize(("raw", "summary"), [("", "s"), (" \n\x00", "s"), (None, "s"), ("raw", None), (b"raw", "s")])
def test_what_is_no_memory_is_refused(raw: Any, summary: Any) -> None:
    with pytest.raises(InvalidInputError):
        ExtractedMemory(raw, summary)


def test_the_hash_is_the_sha_256_of_the_stored_summary() -> None:
    memory = ExtractedMemory("raw", " größer ")
    assert memory.summary_hash == sha256("größer".encode()).hexdigest()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\x00 model"), "ValueError: no model"),
        (TimeoutError(), "TimeoutError"),
        (KeyError("k"), "KeyError: 'k'"),
    ],
)
def test_an_error_is_described_by_its_kind_and_text(error: Exception, reason: str) -> None:
    assert described(error) == reason


def test_the_description_of_an_error_is_bounded() -> None:
    assert len(described(ValueError("x" * 100_000))) == 2_000
