"""Turns and tokens of threads, added up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from codex_state.errors import InvalidInputError
from codex_state.models import GroupBy, StatisticsQuery, ThreadStatistics
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread

_DAY = timedelta(days=1)


def _thread(turns: int | None, tokens: int, **values: Any) -> Any:
    counted = {"tokens_input": tokens * 9, "tokens_cached": tokens, "tokens_output": tokens, "tokens_reasoning": 1}
    return a_thread(**({"turns": turns, "tokens_used": tokens * 10} | counted | values))


def _keys(state: State, **query: Any) -> list[tuple[str | None, int]]:
    return [(item.key, item.threads) for item in state.threads.statistics(StatisticsQuery(**query)).items]


class TestStatistics:
    """``ThreadRepository.statistics``."""

    def test_every_number_is_added_up_and_what_was_inherited_is_left_out(self, state: State) -> None:
        state.threads.upsert_many([_thread(2, 100), _thread(3, 10, tokens_used=5000, tokens_inherited=4900)])
        page = state.threads.statistics()
        expected = ThreadStatistics(NOON.date().isoformat(), 2, 5, 990, 110, 110, 2, 1100, 0)
        assert (page.items, page.total, page.more) == ([expected], replace(expected, key=None), False)

    def test_nothing_is_no_group(self, state: State) -> None:
        page = state.threads.statistics()
        assert (page.items, page.total, page.more) == ([], ThreadStatistics(None, *[0] * 8), False)

    def test_groups_are_the_latest_days_or_those_with_most_tokens(self, state: State) -> None:
        for number, model in enumerate(["small", "large", "medium", "large"]):
            state.threads.upsert(
                _thread(1, {"small": 1, "large": 50, "medium": 20}[model], created_at=NOON - number * _DAY, model=model)
            )
        assert _keys(state, by=GroupBy.MODEL) == [("large", 2), ("medium", 1), ("small", 1)]
        page = state.threads.statistics(StatisticsQuery(limit=3))
        days = [(NOON - number * _DAY).date().isoformat() for number in range(4)]
        assert [item.key for item in page.items] == days[:3]
        assert (page.total.threads, page.more) == (4, True)
        assert state.threads.statistics(StatisticsQuery(limit=4)).more is False
        none = state.threads.statistics(StatisticsQuery(limit=0))
        assert (none.items, none.total.threads, none.more) == ([], 4, True)

    def test_a_day_that_no_calendar_has_is_a_group_without_a_key(self, state: State) -> None:
        last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        state.threads.upsert(_thread(1, 1, created_at=last))
        eastern = timezone(timedelta(hours=5))
        assert [_keys(state, by=by, zone=eastern) for by in (GroupBy.DAY, GroupBy.MONTH)] == [[(None, 1)]] * 2
        assert _keys(state, by=GroupBy.MONTH, limit=1 << 62) == [("9999-12", 1)]

    def test_months_are_the_latest_with_all_their_days(self, state: State) -> None:
        days = [datetime(2026, 3, 1, tzinfo=UTC) - number * _DAY for number in range(61)]
        state.threads.upsert_many([_thread(1, 10, created_at=day) for day in days])
        assert _keys(state, by=GroupBy.MONTH) == [("2026-03", 1), ("2026-02", 28), ("2026-01", 31), ("2025-12", 1)]
        page = state.threads.statistics(StatisticsQuery(by=GroupBy.MONTH, limit=3))
        assert [(item.key, item.turns, item.tokens_total) for item in page.items] == [
            ("2026-03", 1, 100),
            ("2026-02", 28, 2800),
            ("2026-01", 31, 3100),
        ]
        assert (page.total.threads, page.more) == (61, True)
        eastern = state.threads.statistics(StatisticsQuery(by=GroupBy.MONTH, zone=timezone(timedelta(hours=-5))))
        assert [item.key for item in eastern.items] == ["2026-02", "2026-01", "2025-12"]

    @pytest.mark.parametrize(
        ("by", "values"),
        [
            (GroupBy.CWD, {"cwd": Path("/code/ä b")}),
            (GroupBy.PROVIDER, {"model_provider": "azure"}),
            (GroupBy.BRANCH, {"git_branch": "main"}),
        ],
    )
    def test_what_is_not_known_is_a_group_without_a_key(
        self, state: State, by: GroupBy, values: dict[str, Any]
    ) -> None:
        unknown = {"cwd": Path(), "model_provider": "", "git_branch": None}
        state.threads.upsert_many([_thread(1, 9, **unknown), _thread(1, 8, **(unknown | values))])
        (known,) = values.values()
        assert _keys(state, by=by) == [(None, 1), (str(known), 1)]

    @pytest.mark.parametrize(
        ("zone", "days"),
        [
            (UTC, ["2026-03-29", "2026-03-28"]),
            (timezone(timedelta(hours=-11)), ["2026-03-28"]),
            (ZoneInfo("Europe/Berlin"), ["2026-03-30", "2026-03-29"]),
        ],
    )
    def test_days_are_those_of_the_zone_also_where_its_clocks_change(
        self, state: State, zone: Any, days: list[str]
    ) -> None:
        # In Berlin 00:30 on the 29th, and 00:30 on the 30th, when summer time has begun.
        for moment in (datetime(2026, 3, 28, 23, 30, tzinfo=UTC), datetime(2026, 3, 29, 22, 30, tzinfo=UTC)):
            if zone != timezone(timedelta(hours=-11)) or moment.day == 28:
                state.threads.upsert(_thread(1, 1, created_at=moment))
        assert [key for key, _ in _keys(state, zone=zone)] == days

    def test_filters_leave_out_what_does_not_match(self, state: State) -> None:
        one = _thread(1, 1, cwd=Path("/code/a"), source="exec", model="m", git_branch="b", home="laptop")
        below = _thread(1, 1, cwd=Path("/code/a//below/"), parent_thread_id=uuid4(), source='{"subagent":"review"}')
        beside = _thread(1, 1, cwd=Path("/code/a-b"), created_at=NOON - _DAY, archived_at=NOON)
        state.threads.upsert_many([one, below, beside])
        for query, count in (
            ({"cwd": Path("/code/a")}, 2),
            ({"cwd": Path("/")}, 3),
            ({"cwd": Path("/code")}, 3),
            ({"sources": ["exec", "exec"]}, 1),
            ({"sources": ["subagent"]}, 1),
            ({"sources": ["subagent", "exec"]}, 2),
            ({"models": ["m"]}, 1),
            ({"branches": ["b", "none"]}, 1),
            ({"providers": ["nobody"]}, 0),
            ({"home": "laptop"}, 1),
            ({"children": False}, 2),
            ({"archived": True}, 1),
            ({"archived": False}, 2),
            ({"since": NOON}, 2),
            ({"until": NOON}, 3),
            ({"until": NOON - timedelta(seconds=1)}, 1),
            ({"since": NOON - _DAY, "until": NOON, "cwd": Path("/code"), "archived": True}, 1),
        ):
            assert state.threads.statistics(StatisticsQuery(**query)).total.threads == count, query

    def test_threads_whose_rollout_nobody_counted_are_told(self, state: State) -> None:
        uncounted, own = a_thread(tokens_used=7), a_thread(rollout_path=None, tokens_used=5)
        state.threads.upsert_many([uncounted, own])
        total = state.threads.statistics().total
        assert (total.uncounted, total.turns, total.tokens_total) == (1, 0, 12)

    def test_what_would_count_something_else_is_refused(self) -> None:
        for wrong in ({"by": "week"}, {"sources": "cli"}, {"since": datetime(2026, 1, 1)}):  # noqa: DTZ001
            with pytest.raises(InvalidInputError):
                StatisticsQuery(**wrong)
