"""Reading what people type."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_state.cli.parsing import epoch_seconds_of, source_of, thread_id_of
from codex_state.errors import InvalidInputError

ID = UUID("019d2e85-9680-78fe-ba6a-0940e85a7a6c")


@pytest.mark.parametrize(
    "spelling",
    [str(ID), str(ID).upper(), ID.hex, f"{{{ID}}}", ID.urn, f" {ID}\n"],
)
def test_an_id_may_be_spelled_in_every_form_of_a_uuid(spelling: str) -> None:
    assert thread_id_of(spelling) == ID


@pytest.mark.parametrize("text", ["", "1", "x" * 36, str(ID)[:-1], f"{ID}0"])
def test_a_malformed_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"malformed thread id .*expected a UUID like"):
        thread_id_of(text)


@given(st.integers(-(10**17), 10**17))
def test_unix_seconds_are_taken_as_they_are(seconds: int) -> None:
    assert epoch_seconds_of(str(seconds)) == seconds


@given(
    st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
)
def test_an_rfc_3339_date_is_the_second_it_lies_in(naive: datetime, offset: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=offset)))
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    assert epoch_seconds_of(moment.isoformat()) == expected


def test_the_last_microsecond_of_a_second_lies_in_it_however_far_off() -> None:
    # As a floating-point number it would be the next one.
    assert epoch_seconds_of("2515-01-01T00:00:00.999999Z") == 17198524800


def test_small_letters_in_a_date_are_fine() -> None:
    assert epoch_seconds_of("2026-01-02t03:04:05z") == 1767323045


@pytest.mark.parametrize(
    "text", ["tomorrow", "2026-13-01", "2026-13-01T00:00:00Z", "", "1e5", "٣", "2026-01-02T03:04:05"]
)
def test_a_malformed_date_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"malformed date|has no zone"):
        epoch_seconds_of(text)


@pytest.mark.usefixtures("in_utc")
def test_a_day_is_its_first_or_its_last_second() -> None:
    assert epoch_seconds_of("2026-01-02") == 1767312000
    assert epoch_seconds_of("2026-01-02", end_of_day=True) == 1767312000 + 86_399
    assert epoch_seconds_of("today") - epoch_seconds_of("Yesterday") == 86_400
    assert epoch_seconds_of("yesterday", end_of_day=True) == epoch_seconds_of("today") - 1
    with pytest.raises(InvalidInputError, match="malformed date"):
        epoch_seconds_of("9999-12", end_of_day=True)
    assert epoch_seconds_of("2026-12") == epoch_seconds_of("2026-12-01")
    assert epoch_seconds_of("2026-12", end_of_day=True) == epoch_seconds_of("2026-12-31", end_of_day=True)


@given(st.text())
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (thread_id_of, epoch_seconds_of, source_of):
        try:
            read(text)
        except InvalidInputError as refusal:
            assert repr(text)[1:20] in str(refusal)  # noqa: PT017


def test_a_source_is_brought_to_the_form_that_rows_have() -> None:
    assert source_of(" cli ") == "cli"
    assert source_of("subagent") == "subagent"
    assert source_of('{ "subagent" : "review" }') == '{"subagent":"review"}'
    assert source_of('{"subagent": "of a later version"}') == '{"subagent":"of a later version"}'
    spawned = f'{{"subagent": {{"thread_spawn": {{"depth": 1, "parent_thread_id": "{str(ID).upper()}"}}}}}}'
    assert source_of(spawned) == (
        f'{{"subagent":{{"thread_spawn":{{"parent_thread_id":"{ID}","depth":1,'
        '"agent_path":null,"agent_nickname":null,"agent_role":null}}}'
    )


@pytest.mark.parametrize(
    "text", ["clii", "sub", "{", "{}", "[]", '"cli"', '{"subagent":"review","custom":"atlas"}', "\udcff"]
)
def test_a_source_that_no_row_can_have_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"malformed source .*expected one of cli, vscode"):
        source_of(text)
