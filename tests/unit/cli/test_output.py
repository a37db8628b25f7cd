"""What values look like when they are printed."""

from __future__ import annotations

import io
import sys
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_state.cli.output import ago, counted, json_value, one_line, rfc3339, text_lines, text_of

NOW = datetime(2026, 4, 8, 12, 0, tzinfo=UTC)


def test_values_become_json_as_programs_expect_them() -> None:
    assert json_value(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05Z"
    assert json_value(UUID(int=7)) == "00000000-0000-0000-0000-000000000007"
    assert json_value(Path("/a/b")) == "/a/b"
    assert json_value(Path()) == ""
    assert json_value({"kept": [1, None]}) == {"kept": [1, None]}


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(number, "thread") for number in (0, 1, 2, 1000)] == [
        "0 threads",
        "1 thread",
        "2 threads",
        "1,000 threads",
    ]


def test_times_are_shown_in_utc_whatever_their_zone() -> None:
    assert rfc3339(datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2)))) == "2026-01-02T01:04:05Z"
    assert rfc3339(NOW + timedelta(microseconds=1234), timespec="milliseconds") == "2026-04-08T12:00:00.001Z"


@given(st.text())
def test_one_line_is_one_line_and_moves_no_cursor(text: str) -> None:
    for shown in (one_line(text), one_line(text, keep_spaces=True)):
        assert not any(unicodedata.category(character) == "Cc" for character in shown)
        assert len(shown.splitlines()) <= 1


def test_a_title_cannot_speak_to_the_terminal() -> None:
    assert one_line("red \x1b[31mhat\x07\nnext\tword") == "red \ufffd[31mhat\ufffd next word"
    assert one_line("ab\u202ecd") == "ab\ufffdcd"


def test_what_the_terminal_has_no_character_for_is_measured_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert one_line("日本 é") == "?? ?"


def test_of_an_output_that_was_written_over_the_last_form_is_shown_and_of_a_message_all() -> None:
    assert text_lines("10%\r50%\r100%\r\ndone", overwritten=True) == ["100%", "done"]
    assert text_lines("done\rover\r\nnext") == ["done", "over", "next"]


def test_code_keeps_its_indentation_where_asked() -> None:
    assert one_line("+\tif x:  y", keep_spaces=True) == "+   if x:  y"


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(0), "now"),
        (timedelta(seconds=59), "now"),
        (timedelta(minutes=1), "1m ago"),
        (timedelta(minutes=59, seconds=59), "59m ago"),
        (timedelta(hours=1), "1h ago"),
        (timedelta(hours=23, minutes=59), "23h ago"),
        (timedelta(days=1), "1d ago"),
        (timedelta(days=6, hours=23), "6d ago"),
    ],
)
def test_a_recent_moment_is_shown_by_its_age(age: timedelta, shown: str) -> None:
    assert ago(NOW - age, NOW) == shown


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001
def test_every_moment_fits_ten_characters(naive: datetime) -> None:
    assert len(ago(naive.replace(tzinfo=UTC), NOW)) <= 10


def test_old_moments_and_those_ahead_of_the_clock_are_shown_as_dates() -> None:
    assert ago(NOW - timedelta(days=7), NOW) == f"{(NOW - timedelta(days=7)).astimezone():%Y-%m-%d}"
    assert ago(NOW + timedelta(days=1), NOW) == f"{(NOW + timedelta(days=1)).astimezone():%Y-%m-%d}"
    assert ago(None) == "-"


def test_plain_texts_are_what_a_shell_can_cut() -> None:
    assert text_of(None) == ""
    assert text_of(True) == "yes"
    assert text_of("a\tb\nc") == "a b c"
    assert text_of(NOW) == "2026-04-08T12:00:00Z"
