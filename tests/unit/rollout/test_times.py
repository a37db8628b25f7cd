from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_state.rollout.format import parse_timestamp


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-02T03:04:05.678Z", 1_767_323_045),
        ("2026-01-02T05-06-07", 1_767_330_367),
        ("2026-1-2T5-6-7", 1_767_330_367),
        ("2026-01-02t05:06:07z", 1_767_330_367),
        ("2026-01-02 05:06:07Z", 1_767_330_367),
        ("2026-01-02T07:06:07+02:00", 1_767_330_367),
        ("2026-01-02T00:06:07-05:00", 1_767_330_367),
        ("2026-01-02T05:06:07.999999999Z", 1_767_330_367),
        ("2026-01-02T05:06:07.1234567890123Z", 1_767_330_367),
        ("1969-12-31T23:59:58.500Z", -2),
        ("2016-12-31T23:59:60Z", 1_483_228_799),
        ("2016-12-31T23-59-60", 1_483_228_799),
        ("2019-12-31T23:59:59.999Z", 1_577_836_799),
        ("2001-09-09T01:46:40Z", 1_000_000_000),
    ],
)
def test_both_forms_of_time_are_read_as_whole_seconds_rounded_down(text: str, seconds: int) -> None:
    assert parse_timestamp(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "1767330367",
        "2026-01-02T05:06:07",
        "2026-01-02T05-06-07Z",
        "2026-01-02",
        "20260102T050607Z",
        "2026-01-02T24:00:00Z",
        "2026-02-30T05:06:07Z",
        "2026-13-02T05-06-07",
        " 2026-01-02T05:06:07Z",
        "2026-01-02T05:06:07.Z",
        "2026-01-02T05:06:07+24:00",
        "2026-01-02T05:06:07+01:60",
        "0000-01-02T05:06:07Z",
        "٢٠٢٦-01-02T05:06:07Z",
    ],
)
def test_every_other_text_is_no_time(text: str) -> None:
    assert parse_timestamp(text) is None


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),  # noqa: DTZ001 - the zone is added below
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_rfc_3339_times_of_every_zone_agree_with_python(moment: datetime, offset: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_timestamp(zoned.isoformat()) == (zoned - epoch) // timedelta(seconds=1)


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    parse_timestamp(text)
