"""The type map: what goes in comes out, on both databases, and what can't go in is refused clearly."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text

from codex_state.database import Database
from codex_state.errors import InvalidInputError, InvalidRowError, StateError
from codex_state.models import columns
from tests.sample_table import SAMPLES, Colour

storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
paths = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1), min_size=1, max_size=4
).map(lambda parts: Path("/", *parts))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | storable_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(storable_text, inner, max_size=4),
    max_leaves=12,
)
moments = st.datetimes(timezones=st.timezones())
pages = settings(max_examples=60, deadline=None)


def _round_trip(store: Database, **values: Any) -> Any:
    """What the database gives back for these values, and the raw text or number it stored."""
    with store.begin() as session:
        connection = session.connection()
        connection.execute(SAMPLES.delete())
        connection.execute(insert(SAMPLES).values(id=1, **values))
        (column,) = values
        converted = connection.execute(select(SAMPLES.c[column])).scalar_one()
        raw = connection.execute(text(f"SELECT {column} FROM samples")).scalar_one()
    return converted, raw


def _refused(store: Database, **values: Any) -> str:
    with store.begin() as session:
        session.connection().execute(SAMPLES.delete())
        with pytest.raises(InvalidInputError) as refusal:
            session.connection().execute(insert(SAMPLES).values(id=1, **values))
        session.rollback()
    return str(refusal.value)


@pages
@given(value=st.uuids())
def test_a_uuid_comes_back_equal(store: Database, value: UUID) -> None:
    converted, raw = _round_trip(store, uuid=value)
    assert converted == value
    assert str(raw) == str(value)
    assert isinstance(raw, str if store.dialect == "sqlite" else UUID)


@pages
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_a_whole_number_of_64_bits_comes_back(store: Database, value: int) -> None:
    assert _round_trip(store, number=value) == (value, value)


@pytest.mark.parametrize("value", ["abc", "7", 7.0, 1.5, b"7", UUID(int=7)])
def test_what_is_no_whole_number_is_refused(store: Database, value: object) -> None:
    assert "not a whole number" in _refused(store, number=value)


def test_a_flag_given_for_a_whole_number_is_one(store: Database) -> None:
    assert _round_trip(store, number=True) == (1, 1)


@pages
@given(value=moments)
def test_a_time_comes_back_in_utc_without_its_fraction(store: Database, value: datetime) -> None:
    converted, raw = _round_trip(store, seconds=value)
    assert converted.tzinfo is UTC
    assert timedelta(0) <= value - converted < timedelta(seconds=1)
    assert raw == (converted - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1),
        (datetime.min.replace(tzinfo=UTC), -62_135_596_800),
        (datetime.max.replace(tzinfo=UTC), 253_402_300_799),
        (datetime(2026, 2, 10, 14, 42, 9, tzinfo=timezone(timedelta(hours=1))), 1_770_730_929),
    ],
)
def test_a_time_is_stored_as_whole_seconds_rounded_down(store: Database, moment: datetime, seconds: int) -> None:
    assert _round_trip(store, seconds=moment)[1] == seconds


def test_a_time_without_a_zone_is_refused(store: Database) -> None:
    naive = datetime(2026, 2, 10, 13, 42, 9)  # noqa: DTZ001 - the point of the test
    assert "2026-02-10T13:42:09" in _refused(store, seconds=naive)


@pytest.mark.parametrize("seconds", [253_402_300_800, -62_135_596_801, 2**62])
def test_a_stored_time_that_python_cannot_express_is_an_invalid_row(store: Database, seconds: int) -> None:
    with store.begin() as session:
        session.connection().execute(SAMPLES.delete())
        session.connection().execute(text("INSERT INTO samples (id, seconds) VALUES (1, :s)"), {"s": seconds})
    with store.read() as session, pytest.raises(InvalidRowError, match=str(seconds)):
        session.connection().execute(select(SAMPLES.c.seconds)).scalar_one()


@pages
@given(value=paths)
def test_a_path_comes_back_equal(store: Database, value: Path) -> None:
    assert _round_trip(store, path=value) == (value, str(value))


def test_the_empty_path_is_stored_as_the_empty_text(store: Database) -> None:
    assert _round_trip(store, path=Path()) == (Path(), "")


@pages
@given(value=st.none() | storable_text)
def test_optional_text_comes_back_with_the_empty_text_meaning_none(store: Database, value: str | None) -> None:
    assert _round_trip(store, optional=value) == (value or None, value or "")


@pytest.mark.parametrize(("value", "stored"), [(True, 1), (False, 0), (None, None)])
def test_a_flag_is_stored_as_an_integer(store: Database, value: bool | None, stored: int | None) -> None:
    assert _round_trip(store, flag=value) == (value, stored)


@pages
@given(value=json_values)
def test_json_comes_back_equal_as_compact_text(store: Database, value: Any) -> None:
    converted, raw = _round_trip(store, json=value)
    assert converted == value
    assert raw == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize(
    ("value", "stored"),
    [(None, "null"), ([None], "[null]"), ({"b": None, "a": 1}, '{"b":null,"a":1}'), ("ä", '"ä"')],
)
def test_none_is_the_json_null_and_keys_keep_their_order(store: Database, value: Any, stored: str) -> None:
    converted, raw = _round_trip(store, json=value)
    assert (converted, raw) == (value, stored)
    assert list(converted) == list(value) if isinstance(value, dict) else True


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, {"a": b"bytes"}])
def test_what_is_not_json_is_refused(store: Database, value: Any) -> None:
    assert "JSON" in _refused(store, json=value)


def test_a_stored_text_that_is_not_json_is_an_invalid_row(store: Database) -> None:
    with store.begin() as session:
        session.connection().execute(SAMPLES.delete())
        session.connection().execute(text("INSERT INTO samples (id, json) VALUES (1, '{')"))
    with store.read() as session, pytest.raises(InvalidRowError, match="not JSON"):
        session.connection().execute(select(SAMPLES.c.json)).scalar_one()


@pytest.mark.parametrize("value", [*Colour, "rot"])
def test_an_enum_is_stored_as_its_value(store: Database, value: Colour | str) -> None:
    converted, raw = _round_trip(store, colour=value)
    assert isinstance(converted, Colour)
    assert (converted, raw) == (Colour(value), Colour(value).value)


def test_a_text_that_is_no_member_of_the_enum_is_refused(store: Database) -> None:
    assert "'RED'" in _refused(store, colour="RED")


def test_an_unknown_stored_enum_value_is_an_invalid_row_that_names_the_known_ones(store: Database) -> None:
    with store.begin() as session:
        session.connection().execute(SAMPLES.delete())
        session.connection().execute(text("INSERT INTO samples (id, colour) VALUES (1, 'blau')"))
    with store.read() as session, pytest.raises(InvalidRowError, match=r"'blau'.*known: rot, grün"):
        session.connection().execute(select(SAMPLES.c.colour)).scalar_one()


@pytest.mark.parametrize("column", ["uuid", "seconds", "path", "flag", "colour"])
def test_none_is_null(store: Database, column: str) -> None:
    assert _round_trip(store, **{column: None}) == (None, None)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uuid", "not-a-uuid"),
        ("uuid", 7),
        ("seconds", 1_770_730_929),
        ("seconds", "2026-02-10"),
        ("flag", "perhaps"),
        ("colour", 7),
    ],
)
def test_a_value_of_another_type_is_refused_before_it_is_stored(store: Database, column: str, value: Any) -> None:
    assert repr(value) in _refused(store, **{column: value})


@pytest.mark.parametrize("value", ["0190163D-8694-739B-AEA5-966C26F8AD91", "0190163d8694739baea5966c26f8ad91"])
def test_a_uuid_given_as_text_is_stored_in_the_one_spelling(store: Database, value: str) -> None:
    converted, raw = _round_trip(store, uuid=value)
    assert converted == UUID(value)
    assert str(raw) == "0190163d-8694-739b-aea5-966c26f8ad91"


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
def test_text_with_half_a_surrogate_pair_is_refused(store: Database, value: str) -> None:
    assert "UTF-8" in _refused(store, text=value)
    assert "UTF-8" in _refused(store, path=Path(f"/x{value}"))
    assert "UTF-8" in _refused(store, json={"key": value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**100])
def test_an_integer_beyond_64_bits_is_refused(store: Database, value: int) -> None:
    _refused(store, number=value)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 0])
def test_an_integer_of_64_bits_comes_back_equal(store: Database, value: int) -> None:
    assert _round_trip(store, number=value) == (value, value)


def test_text_with_a_nul_comes_back_equal_or_is_refused(store: Database) -> None:
    # PostgreSQL can't store it; SQLite can.
    if store.dialect == "sqlite":
        assert _round_trip(store, text="a\0b") == ("a\0b", "a\0b")
    else:
        assert "NUL" in _refused(store, text="a\0b")


@settings(max_examples=25, deadline=None)
@given(values=st.lists(storable_text, max_size=12, unique=True), ids=st.lists(st.uuids(), max_size=12, unique=True))
def test_text_and_ids_have_the_same_order_everywhere(store: Database, values: list[str], ids: list[UUID]) -> None:
    # Keyset pages of the two databases agree only if their orders do.
    with store.begin() as session:
        connection = session.connection()
        connection.execute(SAMPLES.delete())
        rows = [{"id": number, "text": value} for number, value in enumerate(values)]
        rows += [{"id": 100 + number, "uuid": value} for number, value in enumerate(ids)]
        for row in rows:
            connection.execute(insert(SAMPLES).values(row))
        by_text = connection.scalars(select(SAMPLES.c.text).where(SAMPLES.c.id < 100).order_by(SAMPLES.c.text)).all()
        by_uuid = connection.scalars(select(SAMPLES.c.uuid).where(SAMPLES.c.id >= 100).order_by(SAMPLES.c.uuid)).all()
        below = {
            value: len(connection.scalars(select(SAMPLES.c.uuid).where(SAMPLES.c.uuid < value)).all()) for value in ids
        }
    assert by_text == sorted(values, key=lambda value: value.encode())
    assert by_uuid == sorted(ids, key=str)
    assert below == {value: place for place, value in enumerate(by_uuid)}


def test_the_storage_of_a_path_ignores_its_flavour_only() -> None:
    assert columns.path_to_text(Path("/a/../b")) == "/a/../b"
    assert columns.path_to_text(Path(PurePosixPath("/ä"))) == "/ä"


def test_every_refusal_is_a_state_error() -> None:
    assert issubclass(InvalidInputError, StateError)
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(InvalidRowError, StateError)
