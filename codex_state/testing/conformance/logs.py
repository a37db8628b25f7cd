"""Logs: filters, following, and keeping them bounded (law L10)."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest

from codex_state.errors import InvalidInputError
from codex_state.models import LogEntry, LogQuery
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_log_line

_NOON = int(NOON.timestamp())


def _messages(state: State, **filters: Any) -> list[str | None]:
    return [entry.message for entry in state.logs.query(LogQuery(**filters))]


def _lines() -> list[LogEntry]:
    return [
        a_log_line("a", level="INFO", module_path="codex::core", file="src/main.rs", thread_id="t1"),
        a_log_line("b", level="warn", module_path="codex::tui", file="src\\app.rs", thread_id="t2", ts=_NOON + 10),
        a_log_line("c", level="ERROR", module_path=None, file=None, thread_id=None, ts=_NOON + 20),
        a_log_line(None, level="DEBUG", module_path="Codex::Core", thread_id="t1", ts=_NOON + 20, ts_nanos=5),
        a_log_line("50% Off_ähm", level="TRACE", line=7, ts=_NOON + 30),
    ]


class TestLogs:
    """``LogRepository``."""

    def test_a_line_comes_back_with_every_column_and_an_id(self, state: State) -> None:
        line = a_log_line("text\n", module_path="m", file="f", line=2**40, thread_id="t", ts=-1, ts_nanos=999_999_999)
        state.logs.insert(line)
        (stored,) = state.logs.query(LogQuery())
        assert stored.id is not None
        assert stored.model_dump(exclude={"id"}) == line.model_dump(exclude={"id"})

    def test_lines_keep_the_order_they_were_written_in_whatever_their_time(self, state: State) -> None:
        lines = [a_log_line(str(number), ts=_NOON - number) for number in range(100)]
        state.logs.insert_many([])
        state.logs.insert_many(lines)
        assert _messages(state) == [line.message for line in lines]
        assert _messages(state, descending=True, limit=2) == ["99", "98"]

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({}, ["a", "b", "c", None, "50% Off_ähm"]),
            ({"level": "WARN"}, ["b"]),
            ({"level": "info"}, ["a"]),
            ({"from_ts": _NOON + 20}, ["c", None, "50% Off_ähm"]),
            ({"to_ts": _NOON + 10}, ["a", "b"]),
            ({"from_ts": _NOON + 10, "to_ts": _NOON + 20}, ["b", "c", None]),
            ({"module_like": ("core",)}, ["a", None]),
            ({"module_like": ("CORE", "tui")}, ["a", "b", None]),
            ({"module_like": ("c%re",)}, ["a", None]),
            ({"module_like": ("t_i",)}, ["b"]),
            ({"module_like": ("t\\_i",)}, []),
            ({"file_like": ("main",)}, ["a"]),
            ({"file_like": ("src\\app",)}, ["b"]),
            ({"file_like": ("srcapp",)}, []),
            ({"thread_ids": ("t1",)}, ["a", None]),
            ({"thread_ids": ("t1", "t2", "t3")}, ["a", "b", None]),
            ({"thread_ids": ("t2",), "include_threadless": True}, ["b", "c", "50% Off_ähm"]),
            ({"include_threadless": True}, ["c", "50% Off_ähm"]),
            ({"search": "50%"}, ["50% Off_ähm"]),
            ({"search": "off"}, []),
            ({"search": "f_ä"}, ["50% Off_ähm"]),
            ({"search": "fXä"}, []),
            ({"level": "info", "thread_ids": ("t1",), "module_like": ("core",), "file_like": ("main",)}, ["a"]),
            ({"level": "info", "thread_ids": ("t2",)}, []),
            ({"limit": 2}, ["a", "b"]),
            ({"limit": 0}, []),
            ({"limit": -1}, []),
            ({"limit": 1, "descending": True}, ["50% Off_ähm"]),
        ],
    )
    def test_filters_of_one_kind_are_alternatives_and_kinds_are_combined(
        self, state: State, filters: dict[str, Any], found: list[str | None]
    ) -> None:
        state.logs.insert_many(_lines())
        assert _messages(state, **filters) == found

    @pytest.mark.parametrize("level", ["WARN", "warning", "Warning", logging.WARNING])
    def test_a_level_has_the_originals_name_or_any_of_pythons(self, state: State, level: str | int) -> None:
        state.logs.insert_many(
            a_log_line(each, level=each) for each in ("WARN", "WARNING", "warn", "ERROR", "Level 31")
        )
        assert _messages(state, level=level) == ["WARN", "WARNING", "warn"]
        assert _messages(state, level=31) == ["Level 31"]

    def test_times_and_ids_are_taken_as_python_has_them(self, state: State) -> None:
        thread_id = uuid4()
        state.logs.insert_many([*_lines(), a_log_line("mine", thread_id=str(thread_id))])
        assert _messages(state, thread_ids=[thread_id]) == _messages(state, thread_ids=[str(thread_id)]) == ["mine"]
        later = (NOON + timedelta(seconds=20, microseconds=5)).astimezone(timezone(timedelta(hours=5)))
        assert _messages(state, from_ts=later) == ["c", None, "50% Off_ähm"]
        assert _messages(state, from_ts=NOON + timedelta(seconds=1), to_ts=later) == ["b", "c", None]

    @pytest.mark.parametrize(
        "filters",
        [
            {"level": b"WARN"},
            {"from_ts": datetime(2026, 1, 1)},  # noqa: DTZ001
            {"from_ts": 1.5},
            {"to_ts": "yesterday"},
            {"to_ts": True},
            {"thread_ids": "t1"},
            {"thread_ids": uuid4()},
            {"thread_ids": [5]},
            {"module_like": [5]},
            {"file_like": 5},
            {"search": 5},
            {"after_id": "5"},
            {"limit": "5"},
        ],
    )
    def test_what_would_look_for_something_else_is_refused(self, filters: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError):
            LogQuery(**filters)

    def test_following_reads_each_line_once(self, state: State) -> None:
        state.logs.insert_many(_lines())
        last = state.logs.max_id()
        assert _messages(state, after_id=last) == []
        state.logs.insert_many([a_log_line("new"), a_log_line("debug", level="DEBUG")])
        assert _messages(state, after_id=last) == ["new", "debug"]
        assert _messages(state, after_id=last, level="INFO") == ["new"]
        assert state.logs.max_id() > last

    def test_the_newest_id_honours_the_filters(self, state: State) -> None:
        assert state.logs.max_id() == 0
        state.logs.insert_many(_lines())
        ids = {entry.message: entry.id for entry in state.logs.query(LogQuery())}
        assert state.logs.max_id() == ids["50% Off_ähm"]
        assert state.logs.max_id(LogQuery(thread_ids=("t2",))) == ids["b"]
        assert state.logs.max_id(LogQuery(thread_ids=("nobody",))) == 0

    def test_ids_are_never_used_again(self, state: State) -> None:
        state.logs.insert_many(_lines())
        last = state.logs.max_id()
        assert state.logs.retain(max_rows=0) == 5
        state.logs.insert(a_log_line("new"))
        assert state.logs.max_id() > last

    def test_lines_before_a_time_can_be_deleted(self, state: State) -> None:
        state.logs.insert_many(_lines())
        assert state.logs.delete_before(_NOON + 20) == 2
        assert _messages(state) == ["c", None, "50% Off_ähm"]
        assert state.logs.delete_before(_NOON + 20) == 0

    @pytest.mark.parametrize(("age", "left"), [(0, 5), (1, 6), (10, 15), (1000, 20), (-1, 5)])
    def test_age_is_judged_by_the_databases_clock(self, state: State, age: int, left: int) -> None:
        """L3."""
        state.logs.insert_many([a_log_line(str(number), ts=_NOON - number) for number in range(-4, 16)])
        assert state.logs.retain(max_age=timedelta(seconds=age)) == 20 - left
        assert len(_messages(state)) == left

    @pytest.mark.parametrize(("rows", "left"), [(0, 0), (1, 1), (7, 7), (10, 10), (11, 10), (-1, 0)])
    def test_the_newest_lines_stay(self, state: State, rows: int, left: int) -> None:
        state.logs.insert_many([a_log_line(str(number)) for number in range(10)])
        assert state.logs.retain(max_rows=rows) == 10 - left
        assert _messages(state) == [str(number) for number in range(10 - left, 10)]

    def test_the_newest_bytes_stay(self, state: State) -> None:
        lines = [a_log_line("ä" * 13 + str(number)) for number in range(10)]
        state.logs.insert_many(lines)
        size, one = state.logs.stats().size, state.logs.stats().size // 10
        assert state.logs.retain(max_bytes=size) == 0
        assert state.logs.retain(max_bytes=size - 1) == 1
        assert state.logs.retain(max_bytes=3 * one + one // 2) == 6
        assert _messages(state) == [line.message for line in lines[7:]]
        assert state.logs.retain(max_bytes=0) == 3

    def test_a_lines_size_is_told_in_bytes_and_from_above(self, state: State) -> None:
        state.logs.insert_many([a_log_line("ä" * 500, thread_id="t" * 36) for _ in range(10)])
        stats = state.logs.stats()
        assert (stats.lines, stats.oldest, stats.newest) == (10, _NOON, _NOON)
        assert 10 * 1000 < stats.size < 10 * 2000

    def test_without_lines_nothing_is_told_of_them(self, state: State) -> None:
        assert state.logs.stats() == (0, 0, None, None)

    def test_a_single_line_over_the_bound_goes_as_well(self, state: State) -> None:
        state.logs.insert_many([a_log_line("small"), a_log_line("x" * 1000), a_log_line("small")])
        assert state.logs.retain(max_bytes=500) == 2
        assert _messages(state) == ["small"]

    def test_all_bounds_hold_together(self, state: State) -> None:
        state.logs.insert_many([a_log_line(str(number), ts=_NOON - number) for number in range(20)])
        assert state.logs.retain(max_age=timedelta(seconds=9), max_rows=5, max_bytes=100_000) == 15
        assert state.logs.retain() == 0
        assert len(_messages(state)) == 5
