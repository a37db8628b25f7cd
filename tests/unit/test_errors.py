"""Errors as a service meets them (L8): by which classes they are caught, what they carry, and what they don't say."""

from __future__ import annotations

import copy
import json
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from pydantic import AnyUrl, PostgresDsn
from pydantic_core import MultiHostUrl, Url
from sqlalchemy import create_engine, exc, make_url, text

from codex_state import StateSettings, ThreadNotFoundError, errors
from codex_state.database import Database, url_of
from codex_state.database import errors as database_errors
from codex_state.database.errors import DatabaseError, classify, classify_connecting, place_of
from codex_state.errors import ConfigurationError, InvalidInputError, StateError

URL = make_url("postgresql://somebody:hunter2@db.example:5433/state")

KINDS = [
    kind
    for module in (errors, database_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, StateError)
]


@pytest.mark.parametrize("kind", sorted(set(KINDS), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_is_the_same_after_its_way_through_a_process_pool(kind: type[StateError], way: object) -> None:
    error = kind(uuid4()) if kind is ThreadNotFoundError else kind("what, where and what to do")
    error.add_note("a note")
    back = way(error)  # type: ignore[operator]
    assert type(back) is kind
    assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def test_an_error_whose_cause_cannot_be_pickled_goes_without_it() -> None:
    error = DatabaseError("text", orig=ValueError(lambda: None), params=[lambda: None], statement="SELECT 1")
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.statement, back.orig) == ("text", "SELECT 1", None)


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    return error


def postgresql_error(state: str) -> psycopg.Error:
    return psycopg.errors.lookup(state)("Wörter")


@pytest.mark.parametrize(
    ("error", "ours", "sqlalchemys"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), errors.DatabaseBusyError, exc.OperationalError),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE), errors.IntegrityViolationError, exc.IntegrityError),
        (sqlite_error(sqlite3.SQLITE_ERROR), errors.StatementRefusedError, exc.OperationalError),
        (sqlite_error(sqlite3.SQLITE_READONLY), errors.DatabaseReadOnlyError, exc.OperationalError),
        (sqlite_error(sqlite3.SQLITE_IOERR_READ), errors.StorageError, exc.OperationalError),
        (sqlite_error(sqlite3.SQLITE_TOOBIG), errors.RefusedValueError, exc.DataError),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), errors.DatabaseCorruptError, exc.DatabaseError),
        (postgresql_error("23505"), errors.IntegrityViolationError, exc.IntegrityError),
        (postgresql_error("42P01"), errors.StatementRefusedError, exc.ProgrammingError),
        (postgresql_error("22001"), errors.RefusedValueError, exc.DataError),
        (postgresql_error("25006"), errors.DatabaseReadOnlyError, exc.InternalError),
        (postgresql_error("40001"), errors.TransactionConflictError, exc.OperationalError),
        (postgresql_error("25P02"), errors.TransactionAbortedError, exc.InternalError),
        (postgresql_error("25P04"), errors.ConnectionLostError, exc.OperationalError),
        (postgresql_error("53200"), errors.OutOfMemoryError, exc.OperationalError),
        (postgresql_error("0A000"), errors.StatementRefusedError, exc.NotSupportedError),
        (OverflowError("int too large"), errors.RefusedValueError, exc.DataError),
        (RecursionError("deep"), errors.RefusedValueError, exc.DataError),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), InvalidInputError, exc.DataError),
        (MemoryError(), errors.OutOfMemoryError, exc.OperationalError),
    ],
    ids=lambda value: getattr(value, "__name__", None) or f"{type(value).__name__} {value}",
)
def test_a_drivers_error_has_our_class_and_the_one_that_sqlalchemy_gives_it(
    error: BaseException, ours: type[StateError], sqlalchemys: type[Exception]
) -> None:
    told = classify(error)
    assert type(told) is ours or (ours is InvalidInputError and isinstance(told, ours))
    assert isinstance(told, sqlalchemys)
    assert isinstance(told, exc.DBAPIError)
    assert told.orig is error


def test_a_drivers_error_is_known_by_its_state_whichever_driver_tells_it() -> None:
    class ByPgcode(psycopg.Error):
        pgcode = "23505"

    by_field = type("DatabaseError", (Exception,), {"__module__": "pg8000.exceptions"})({"C": "40P01", "M": "Wörter"})
    assert isinstance(classify(ByPgcode("Wörter")), errors.IntegrityViolationError)
    assert isinstance(classify(by_field), errors.TransactionConflictError)


def test_a_text_names_the_file_or_the_server_and_no_password() -> None:
    told = classify(psycopg.errors.UniqueViolation("duplicate of hunter2"), URL)
    assert str(told) == "db.example:5433/state: duplicate of ***"
    told = classify(sqlite_error(sqlite3.SQLITE_FULL), make_url("sqlite:////srv/state.sqlite"))
    assert str(told).startswith("/srv/state.sqlite: words (free some space")


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB])
def test_what_mends_a_state_is_said_only_of_a_states_file(code: int, tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"x" * 5000)
    of_state, of_another = classify(sqlite_error(code), make_url(f"sqlite:///{path}")), classify(sqlite_error(code))
    of_server = classify(postgresql_error("XX001"), URL)
    assert "`codex-state doctor --repair`" in str(of_state)
    assert not any("doctor" in str(told) for told in (of_another, of_server))


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hunter2@h/db", "postgresql://u@h/db?password=hunter2", "postgresql://u@h/db?sslpassword=hunter2"],
)
def test_no_place_and_no_text_shows_a_password_of_any_part_of_a_url(url: str) -> None:
    parsed = make_url(url)
    assert place_of(parsed) == "h/db"
    assert "hunter2" not in database_errors.without_secrets("it was hunter2", parsed)


@pytest.mark.parametrize(
    "url",
    [
        "host=db user=u password=hunter2 dbname=x",
        "postgresql://u:hunter2",
        "postgresql://u:x@hunter2@host/db",
        "postgresql://u:hunter2@host:hunter2/db",
        "postgresql:u:hunter2@host",
        "u:hunter2@host/db",
        "hunter2",
        "postgresql://u:hunter2@[::1/db",
        "mysql://u:hunter2@host/db",
    ],
)
def test_a_malformed_url_is_refused_without_showing_what_may_be_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Database.of(StateSettings(database_url=url))
    error: BaseException | None = refused.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__
    assert "hunter2" not in repr(refused.value)


def test_a_url_of_sqlalchemys_is_taken_as_it_is() -> None:
    settings = StateSettings(database_url=URL)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://somebody:hunter2@db.example:5433/state"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("kind", [PostgresDsn, AnyUrl, MultiHostUrl, Url])
def test_a_url_of_pydantics_is_taken_as_it_is(kind: Callable[[str], object]) -> None:
    settings = StateSettings(database_url=kind("postgresql://somebody:hunter%402@db.example:5433/state"))
    assert url_of(settings) == URL.set(password="hunter@2")
    assert "hunter" not in repr(settings)
    with pytest.raises(ConfigurationError, match="'mysql' is neither") as refused:
        StateSettings(database_url=AnyUrl("mysql://u:hunter2@host/db"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "may_come_back"),
    [
        ("connection to server failed: Connection refused", True),
        ("connection failed: server does not support SSL, but SSL was required", False),
        ('connection failed: root certificate file "/x" does not exist', False),
        ("connection failed: fe_sendauth: no password supplied", False),
    ],
)
def test_what_will_never_work_is_not_waited_for(words: str, may_come_back: bool) -> None:
    told = classify_connecting(psycopg.OperationalError(words), URL)
    assert isinstance(told, errors.DatabaseUnavailableError)
    assert isinstance(told, errors.ServerUnavailableError) == may_come_back


def test_what_is_nested_too_deeply_is_bad_input() -> None:
    nested = json.loads("[" * 500 + "]" * 500)
    for _ in range(2000):
        nested = [nested]
    from codex_state.models.columns import CompactJson

    with pytest.raises(InvalidInputError, match="not JSON"):
        CompactJson().process_bind_param(nested, create_engine("sqlite://").dialect)


def test_sqlalchemy_is_imported_only_for_the_errors_that_are_its_own() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(exc.OperationalError) as raised:
        connection.execute(text("SELECT bogus"))
    assert isinstance(classify(raised.value), errors.StatementRefusedError), "wrapped errors are looked into"
    with pytest.raises(AttributeError):
        errors.NoSuchError  # noqa: B018
