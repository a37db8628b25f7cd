"""The entities on their own, and the schema that backs them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Integer, MetaData, Table, text
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlmodel import SQLModel, select

from codex_state.database import Database
from codex_state.errors import IntegrityViolationError, InvalidInputError, InvalidRowError
from codex_state.models import (
    Anchor,
    BackfillState,
    BackfillStatus,
    HolderWrite,
    LogEntry,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Status,
    StateModel,
    Thread,
    ThreadQuery,
    metadata,
    thread_key,
)
from codex_state.repositories import BackfillRepository, DynamicToolRepository, Phase1JobRepository, ThreadRepository
from codex_state.testing.emptying import empty
from codex_state.testing.samples import a_thread, a_tool
from tests import postgres, stores


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        template = stores.sqlite_template(tmp_path_factory.mktemp("schema"))
        with stores.opened(f"sqlite:///{template}") as database:
            yield database
    else:
        server: postgres.TestServer = request.getfixturevalue("postgres_server")
        with stores.postgres_with_schema(server) as url, stores.opened(url) as database:
            yield database


@pytest.fixture
def store(shared_store: Database) -> Database:
    empty(shared_store)
    return shared_store


def a_job(thread: Thread, **values: object) -> dict[str, object]:
    return {
        "thread_id": str(thread.id),
        "scope_kind": "user",
        "scope_key": "user",
        "status": "running",
        "source_updated_at": 0,
        "attempt": 1,
    } | values


def _insert(store: Database, table: str, row: dict[str, object]) -> None:
    columns = ", ".join(row)
    values = ", ".join(f"CAST(:{name} AS uuid)" if name == "thread_id" else f":{name}" for name in row)
    if store.dialect == "sqlite":
        values = ", ".join(f":{name}" for name in row)
    with store.begin() as session:
        session.connection().execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)


@pytest.fixture
def thread(store: Database) -> Thread:
    thread = a_thread()
    with store.begin() as session:
        ThreadRepository(session).upsert(thread)
    return thread


def names_of(table: Table) -> set[str | None]:
    return {None if each.name is None else str(each.name) for each in (*table.constraints, *table.indexes)}


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (None, {"fk_{}_a_threads", "ix_{}_a", "fk_{}_b_threads", "uq_{}_b", None}),
        ({"pk": "pk"}, {"fk_{}_a_threads", "ix_{}_a", "fk_{}_b_threads", "uq_{}_b", "pk"}),
        (
            {name: f"{name} %(column_0_name)s" for name in ("fk", "uq", "ix", "pk")},
            {"fk a", "ix a", "fk b", "uq b", "pk id"},
        ),
    ],
)
def test_keys_to_threads_are_named_in_each_table_unless_the_metadata_names_them(
    convention: dict[str, str] | None, expected: set[str | None]
) -> None:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=convention)

    class Mixin:
        id = mapped_column(Integer, primary_key=True)
        a = thread_key().sa_column
        b = thread_key(unique=True).sa_column

    for name in ("first", "second"):
        table = type(name, (Mixin, Base), {"__tablename__": name}).__table__  # type: ignore[attr-defined]
        assert names_of(table) == {None if each is None else each.format(name) for each in expected}


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_every_constraint_of_every_table_has_a_name(table: object) -> None:
    assert [constraint for constraint in table.constraints if not constraint.name] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("memory_phase1_jobs", {"status": "pending"}),
        ("memory_phase1_jobs", {"status": "RUNNING"}),
        ("memory_phase1_jobs", {"attempt": -1}),
    ],
)
def test_the_schema_refuses_a_bad_job(store: Database, thread: Thread, table: str, row: dict[str, object]) -> None:
    with pytest.raises(IntegrityViolationError):
        _insert(store, table, a_job(thread, **row))


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("backfill_state", {"id": 2, "home": "local", "status": "pending", "updated_at": 0}),
        ("backfill_state", {"id": 1, "home": "local", "status": "started", "updated_at": 0}),
        ("memory_scope_dirty", {"scope_kind": "user", "scope_key": "user", "dirty": 2, "updated_at": 0}),
    ],
)
def test_the_schema_refuses_a_bad_row(store: Database, table: str, row: dict[str, object]) -> None:
    with pytest.raises(IntegrityViolationError):
        _insert(store, table, row)


@pytest.mark.parametrize("values", [{"tokens_used": -1}, {"title": None}, {"created_at": None}])
def test_a_bad_thread_is_refused_by_the_schema_though_the_constructor_takes_it(
    store: Database, values: dict[str, object]
) -> None:
    with pytest.raises(IntegrityViolationError), store.begin() as session:
        ThreadRepository(session).upsert(a_thread(**values))


@pytest.mark.parametrize("value", ["abc", "7", 1.5])
def test_a_text_for_a_whole_number_is_refused_on_its_way_into_a_row(store: Database, value: object) -> None:
    with pytest.raises(InvalidInputError, match="not a whole number"), store.begin() as session:
        ThreadRepository(session).upsert(a_thread(tokens_used=value))
    with pytest.raises(InvalidInputError, match="not a whole number"), store.begin() as session:
        ThreadRepository(session).upsert_many([a_thread(tokens_used=value)])


@pytest.mark.parametrize("values", [{"tokens_used": -1}, {"created_at": "yesterday"}, {"id": "7"}])
def test_model_validate_is_the_border_that_checks(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Thread.model_validate(a_thread().model_dump() | values)


def test_foreign_keys_hold_on_every_pooled_connection(store: Database) -> None:
    orphan = a_tool(a_thread())
    with ExitStack() as held:
        for session in [held.enter_context(store.autocommit()) for _ in range(5)]:
            with pytest.raises(IntegrityViolationError):
                DynamicToolRepository(session).persist([orphan])


def test_an_unknown_status_in_a_row_is_an_invalid_row_that_says_so(store: Database, thread: Thread) -> None:
    _insert(store, "memory_phase1_jobs", a_job(thread))
    key = Phase1Key(thread.id, MemoryScope.user())
    with _without_checks(store, "memory_phase1_jobs", "ck_memory_phase1_jobs_status"):
        with store.begin() as session:
            session.connection().execute(text("UPDATE memory_phase1_jobs SET status = 'paused'"))
        with store.read() as session, pytest.raises(InvalidRowError, match=r"Phase1Status 'paused'.*known: running"):
            Phase1JobRepository(session).get(key)
        empty(store)


def test_an_unknown_backfill_status_is_an_invalid_row(store: Database) -> None:
    with store.autocommit() as session:
        BackfillRepository(session).take_over(owner="me", lease=timedelta(hours=1))
    with _without_checks(store, "backfill_state", "ck_backfill_state_status"):
        with store.begin() as session:
            session.connection().execute(text("UPDATE backfill_state SET status = 'paused'"))
        with store.read() as session, pytest.raises(InvalidRowError, match="BackfillStatus 'paused'"):
            BackfillRepository(session).get()
        empty(store)


class _without_checks:  # noqa: N801 - reads as the statement it is
    """Lets rows in that the schema refuses: what another program, or a damaged file, may hold."""

    def __init__(self, store: Database, table: str, constraint: str) -> None:
        self.store, self.table, self.constraint = store, table, constraint
        self.connection: object = None

    def __enter__(self) -> None:
        if self.store.dialect == "sqlite":
            for _ in range(5):  # every connection of the pool
                self._pragma("ON")
            return
        with self.store.begin() as session:
            session.connection().execute(text(f"ALTER TABLE {self.table} DROP CONSTRAINT {self.constraint}"))

    def __exit__(self, *_: object) -> None:
        if self.store.dialect == "sqlite":
            self._pragma("OFF")
            return
        table = metadata.tables[self.table]
        (check,) = (each for each in table.constraints if each.name == self.constraint)
        with self.store.begin() as session:
            condition = check.sqltext  # type: ignore[attr-defined]
            session.connection().execute(
                text(f"ALTER TABLE {self.table} ADD CONSTRAINT {self.constraint} CHECK ({condition})")
            )

    def _pragma(self, value: str) -> None:
        connections = [self.store.engine.raw_connection() for _ in range(5)]
        for connection in connections:
            connection.driver_connection.execute(f"PRAGMA ignore_check_constraints = {value}")
            connection.close()


def test_an_id_that_is_no_uuid_is_an_invalid_row(tmp_path: Path) -> None:
    with stores.opened(f"sqlite:///{stores.sqlite_template(tmp_path)}") as store:
        with store.begin() as session:
            ThreadRepository(session).upsert(a_thread())
            session.connection().execute(text("UPDATE threads SET id = 'not-a-uuid'"))
        with store.read() as session, pytest.raises(InvalidRowError, match="'not-a-uuid'"):
            ThreadRepository(session).list_ids(ThreadQuery(limit=1))


def test_a_snapshot_is_an_ordinary_entity_that_belongs_to_no_session(store: Database, thread: Thread) -> None:
    with store.read() as session:
        snapshot = ThreadRepository(session).get(thread.id)
        assert snapshot is not None
        assert snapshot not in session
    assert snapshot == thread
    assert snapshot.model_dump() == thread.model_dump()
    assert snapshot.model_dump(mode="json")["id"] == str(thread.id)
    assert repr(thread.id) in repr(snapshot)
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert copy.deepcopy(snapshot) == snapshot
    assert Thread.model_validate(snapshot.model_dump()) == snapshot


def test_a_snapshot_can_be_merged_into_a_session_of_the_services_own(store: Database, thread: Thread) -> None:
    with store.read() as session:
        snapshot = ThreadRepository(session).get(thread.id)
    assert snapshot is not None
    snapshot.title = "renamed"
    with store.begin() as session:
        session.merge(snapshot)
    with store.read() as session:
        stored = session.exec(select(Thread)).one()
        assert stored.title == "renamed"


def test_the_metadata_is_our_own() -> None:
    assert "threads" in metadata.tables
    assert "threads" not in SQLModel.metadata.tables

    class Base(SQLModel):
        pass

    assert StateModel.metadata is metadata
    assert Base.metadata is SQLModel.metadata


@settings(max_examples=200, deadline=None)
@given(ts=st.datetimes(timezones=st.just(UTC)), identifier=st.uuids())
def test_a_cursor_comes_back_as_the_anchor_it_was(ts: datetime, identifier: UUID) -> None:
    anchor = Anchor(ts, identifier)
    assert Anchor.parse(anchor.cursor()) == anchor


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "|",
        "2026-02-10T12:00:00Z",
        "2026-02-10T12:00:00Z|",
        "2026-02-10T12:00:00Z|nobody",
        "2026-02-10T12:00:00|0190163d-8694-739b-aea5-966c26f8ad91",
        "yesterday|0190163d-8694-739b-aea5-966c26f8ad91",
        "|0190163d-8694-739b-aea5-966c26f8ad91",
        "2026-02-10T12:00:00Z|0190163d-8694-739b-aea5-966c26f8ad91|",
    ],
)
def test_a_malformed_cursor_is_refused_and_shown(cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="malformed cursor") as refusal:
        Anchor.parse(cursor)
    assert repr(cursor) in str(refusal.value)


@settings(max_examples=300, deadline=None)
@given(cursor=st.text())
def test_any_text_is_a_cursor_or_refused(cursor: str) -> None:
    try:
        anchor = Anchor.parse(cursor)
    except InvalidInputError:
        return
    assert anchor.ts.tzinfo is not None


def test_a_lost_lease_is_false_and_an_applied_write_is_true() -> None:
    assert HolderWrite.APPLIED
    assert not HolderWrite.LEASE_LOST


@pytest.mark.parametrize("cwd", ["/code", "/", ""])
def test_the_scope_of_a_directory_is_keyed_by_its_stored_text(cwd: str) -> None:
    assert MemoryScope.cwd(Path(cwd)) == MemoryScope("cwd", cwd)


def test_the_time_of_a_log_line_keeps_its_microseconds() -> None:
    entry = LogEntry(ts=1_770_730_929, ts_nanos=123_456_789, level="INFO", target="t")
    assert entry.timestamp == datetime(2026, 2, 10, 13, 42, 9, 123_456, tzinfo=UTC)


def test_the_storage_of_statuses_is_what_the_original_writes() -> None:
    assert [status.value for status in Phase1Status] == ["running", "succeeded", "failed"]
    assert [status.value for status in BackfillStatus] == ["pending", "running", "complete"]
    assert Phase1Job.__tablename__ == "memory_phase1_jobs"
    assert BackfillState.__tablename__ == "backfill_state"
