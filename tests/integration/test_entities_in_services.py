"""Entities in a service's own queries, bodies and tables: they mean the same on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import (
    DateTime,
    MetaData,
    Uuid,
    and_,
    bindparam,
    case,
    event,
    exists,
    false,
    func,
    insert,
    inspect,
    literal,
    not_,
    null,
    or_,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased, registry, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlmodel import Field, Session, SQLModel, col, select

from codex_state import (
    Claimed,
    ConsolidationOptions,
    DatabaseCorruptError,
    DynamicTool,
    ImportedDatabase,
    ImportReport,
    IntegrityViolationError,
    InvalidInputError,
    JobQuery,
    JobState,
    LogEntry,
    LogQuery,
    MemoryScope,
    MemoryScopeDirty,
    Phase1Job,
    Phase1Key,
    Phase1Options,
    State,
    StatementRefusedError,
    StateRuntime,
    StatisticsPage,
    StatisticsQuery,
    Thread,
    ThreadMemory,
    ThreadQuery,
    ThreadsPage,
    UsageError,
    thread_key,
)
from codex_state.models import StateModel
from codex_state.models.base import entities
from codex_state.testing.samples import NOON, a_thread, a_tool

own = MetaData()


class OwnModel(SQLModel, registry=registry(metadata=own)):
    """The base of a service's own tables."""


class Message(OwnModel, table=True):
    """A row that refers to a thread, as the documentation shows."""

    __tablename__ = "service_messages"

    id: int | None = Field(default=None, primary_key=True)
    thread_id: UUID = thread_key()
    parent_id: UUID | None = thread_key(nullable=True, ondelete="SET NULL")
    at: datetime


class Plain(OwnModel, table=True):
    """A row with a plain UUID."""

    __tablename__ = "service_plain"

    id: int | None = Field(default=None, primary_key=True)
    thread_id: UUID


class Extra(OwnModel, table=True):
    """What belongs to one thread, and goes with it."""

    __tablename__ = "service_extras"

    thread_id: UUID = thread_key(primary_key=True, ondelete="CASCADE")


LATER = NOON + timedelta(hours=1)


@pytest.fixture
def threads(runtime: StateRuntime) -> dict[str, UUID]:
    """Three threads: ``old`` is archived, ``new`` was updated later than it was created."""
    made = {
        "old": a_thread(archived=True, archived_at=NOON),
        "mid": a_thread(pinned=True, first_user_message=None, rollout_path=None),
        "new": a_thread(updated_at=LATER),
    }
    runtime.run(lambda state: state.threads.upsert_many(made.values()))
    return {name: thread.id for name, thread in made.items()}


def found(runtime: StateRuntime, threads: dict[str, UUID], *conditions: Any) -> set[str]:
    with Session(runtime.engine) as session:
        ids = set(session.exec(select(Thread.id).where(*conditions)).all())
    return {name for name, key in threads.items() if key in ids}


Other = aliased(Thread)
zone = timezone(timedelta(hours=5))

FLAGS: list[tuple[str, Callable[[], Any], set[str]]] = [
    ("== True", lambda: Thread.archived == True, {"old"}),  # noqa: E712
    ("== False", lambda: Thread.archived == False, {"mid", "new"}),  # noqa: E712
    ("!= True", lambda: Thread.archived != True, {"mid", "new"}),  # noqa: E712
    ("== 1", lambda: Thread.archived == 1, {"old"}),
    ("== 0", lambda: Thread.archived == 0, {"mid", "new"}),
    ("is_(True)", lambda: col(Thread.archived).is_(True), {"old"}),
    ("is_(False)", lambda: col(Thread.archived).is_(False), {"mid", "new"}),
    ("is_not(True)", lambda: col(Thread.archived).is_not(True), {"mid", "new"}),
    ("is_(true())", lambda: col(Thread.archived).is_(true()), {"old"}),
    ("== false()", lambda: Thread.archived == false(), {"mid", "new"}),
    ("is_(None)", lambda: col(Thread.archived).is_(None), set()),
    ("bare", lambda: Thread.archived, {"old"}),
    ("~", lambda: ~col(Thread.archived), {"mid", "new"}),
    ("not_", lambda: not_(Thread.archived), {"mid", "new"}),
    ("not_(not_)", lambda: not_(not_(Thread.archived)), {"old"}),
    ("in_", lambda: col(Thread.archived).in_([True]), {"old"}),
    ("or_", lambda: or_(Thread.archived, Thread.pinned), {"old", "mid"}),  # type: ignore[arg-type]
    ("and_(not_)", lambda: and_(not_(Thread.archived), not_(Thread.pinned)), {"new"}),
    ("column", lambda: Thread.archived == Thread.pinned, {"new"}),
    ("truth", lambda: Thread.archived == col(Thread.archived_at).is_not(None), {"old", "mid", "new"}),
    ("case", lambda: case((col(Thread.archived).is_(True), 1), else_=0) == 1, {"old"}),
    ("case of the bare flag", lambda: case((Thread.archived, 1), else_=0) == 1, {"old"}),  # type: ignore[call-overload]
]

TIMES: list[tuple[str, Callable[[], Any], set[str]]] = [
    ("> datetime", lambda: Thread.updated_at > NOON, {"new"}),
    ("> datetime of a zone", lambda: Thread.updated_at > NOON.astimezone(zone), {"new"}),
    ("== datetime", lambda: Thread.updated_at == LATER, {"new"}),
    ("> literal", lambda: Thread.updated_at > literal(NOON), {"new"}),
    ("< now()", lambda: Thread.updated_at < func.now(), {"old", "mid", "new"}),
    ("now() <", lambda: func.now() < Thread.updated_at, set()),
    ("now() >", lambda: func.now() > Thread.updated_at, {"old", "mid", "new"}),
    ("> current_timestamp()", lambda: Thread.updated_at > func.current_timestamp(), set()),
    ("> now() - days", lambda: Thread.updated_at > func.now() - timedelta(days=1), set()),
    ("> now() - decades", lambda: Thread.updated_at > func.now() - timedelta(days=36_500), {"old", "mid", "new"}),
    ("between", lambda: col(Thread.updated_at).between(LATER, func.now()), {"new"}),
    ("in_", lambda: col(Thread.updated_at).in_([LATER]), {"new"}),
    ("is_(None)", lambda: col(Thread.archived_at).is_(None), {"mid", "new"}),
    ("== None", lambda: Thread.archived_at == None, {"mid", "new"}),  # noqa: E711
    ("+ hours", lambda: Thread.created_at + timedelta(hours=1) <= Thread.updated_at, {"new"}),
    ("difference", lambda: col(Thread.updated_at) - col(Thread.created_at) >= timedelta(hours=1), {"new"}),
    ("difference to now", lambda: func.now() - timedelta(days=1) > Thread.updated_at, {"old", "mid", "new"}),
    ("literal <", lambda: literal(NOON) < Thread.updated_at, {"new"}),
    ("- bound duration", lambda: col(Thread.updated_at) - literal(timedelta(hours=1)) == NOON, {"new"}),
    ("twice", lambda: Thread.updated_at < func.now() - timedelta(hours=1) - timedelta(hours=1), {"old", "mid", "new"}),
    ("twice, centuries", lambda: Thread.updated_at < func.now() - timedelta(1) - timedelta(36_500), set()),
    ("duration first", lambda: Thread.updated_at > literal(timedelta(hours=-1)) + func.now(), set()),
    ("age", lambda: func.now() - col(Thread.updated_at) < timedelta(hours=1), set()),
    ("age, reversed", lambda: timedelta(hours=1) < func.now() - col(Thread.updated_at), {"old", "mid", "new"}),
    ("age at a time", lambda: literal(LATER) - col(Thread.updated_at) >= timedelta(hours=1), {"old", "mid"}),
    (
        "pairs",
        lambda: tuple_(Thread.updated_at, Thread.created_at) > tuple_(NOON, NOON),  # type: ignore[arg-type]
        {"new"},
    ),
    (
        "pairs, reversed",
        lambda: tuple_(literal(LATER), literal(NOON)) <= tuple_(Thread.updated_at, Thread.created_at),  # type: ignore[arg-type]
        {"new"},
    ),
]

NONES: list[tuple[str, Callable[[], Any], set[str]]] = [
    ("== None", lambda: Thread.first_user_message == None, {"mid"}),  # noqa: E711
    ("is_(None)", lambda: col(Thread.first_user_message).is_(None), {"mid"}),
    ("!= None", lambda: Thread.first_user_message != None, {"old", "new"}),  # noqa: E711
    ("is_not(None)", lambda: col(Thread.first_user_message).is_not(None), {"old", "new"}),
    ("null()", lambda: col(Thread.first_user_message).is_(null()), {"mid"}),
    ("outer join", lambda: ~exists().where(Other.id == Thread.id, col(Other.first_user_message).is_not(None)), {"mid"}),
    (
        "of nothing",
        lambda: select(Other.rollout_path).where(Other.id == Thread.id, Other.archived).scalar_subquery().is_(None),  # type: ignore[arg-type]
        {"mid", "new"},
    ),
    ("path == None", lambda: Thread.rollout_path == None, {"mid"}),  # noqa: E711
    ("path is_not(None)", lambda: col(Thread.rollout_path).is_not(None), {"old", "new"}),
]


FILTERS = FLAGS + TIMES + NONES


@pytest.mark.parametrize(("condition", "expected"), [each[1:] for each in FILTERS], ids=[each[0] for each in FILTERS])
def test_a_filter_means_the_same_on_both_databases(
    runtime: StateRuntime, threads: dict[str, UUID], condition: Callable[[], Any], expected: set[str]
) -> None:
    """L9."""
    assert found(runtime, threads, condition()) == expected


REUSED: list[tuple[str, Callable[[Any], Any]]] = [
    ("now", lambda days: func.now() - timedelta(days=days) < Thread.updated_at),
    ("literal", lambda days: literal(datetime.now(UTC) - timedelta(days=days)) < Thread.updated_at),
    ("column", lambda days: col(Other.created_at) - timedelta(days=days) < Thread.updated_at),
    ("age", lambda days: func.now() - col(Thread.updated_at) < timedelta(days=days)),
    ("ours first", lambda days: Thread.updated_at > func.now() - timedelta(days=days)),
    ("pairs", lambda days: tuple_(Thread.updated_at) > tuple_(datetime.now(UTC) - timedelta(days=days))),
]


@pytest.mark.parametrize("condition", [each[1] for each in REUSED], ids=[each[0] for each in REUSED])
def test_a_statement_that_was_compiled_before_goes_by_its_values_of_now(
    runtime: StateRuntime, threads: dict[str, UUID], condition: Callable[[Any], Any]
) -> None:
    for days, expected in ((36_500, set(threads)), (-36_500, set()), (36_500, set(threads))):
        assert found(runtime, threads, condition(days), Thread.id != uuid4()) == expected


def test_parameters_that_are_named_are_given_later(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    one = select(Thread.id).where(Thread.id == bindparam("id", type_=Uuid()))
    other = select(Thread.id).where(bindparam("id", type_=Uuid()) == Thread.id)
    some = select(Thread.id).where(col(Thread.id).in_(bindparam("ids", expanding=True, type_=Uuid())))
    since = select(Thread.id).where(Thread.updated_at > bindparam("since", type_=DateTime()))
    moments = select(Thread.id).where(col(Thread.updated_at).in_(bindparam("at", expanding=True, type_=DateTime())))
    with Session(runtime.engine) as session:
        for name in ("old", "new"):
            for statement in (one, other):
                assert session.scalars(statement, {"id": threads[name]}).all() == [threads[name]]
            assert session.scalars(some, {"ids": [threads[name]]}).all() == [threads[name]]
        assert session.scalars(since, {"since": NOON}).all() == [threads["new"]]
        assert session.scalars(moments, {"at": [LATER]}).all() == [threads["new"]]


def test_flags_are_counted(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    counted = select(func.sum(Thread.pinned), func.sum(1 - col(Thread.pinned)), func.count().filter(Thread.pinned))  # type: ignore[arg-type,operator]
    with Session(runtime.engine) as session:
        assert session.exec(counted).one() == (1, len(threads) - 1, 1)


def test_flags_and_differences_come_back_as_what_they_are(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    statement = select(Thread.archived, col(Thread.updated_at) - col(Thread.created_at)).where(
        Thread.id == threads["new"]
    )
    with Session(runtime.engine) as session:
        assert session.exec(statement).one() == (False, timedelta(hours=1))
        counted = session.exec(select(Other.archived, func.count()).where(~Other.pinned).group_by(Other.archived)).all()
    assert sorted(counted) == [(False, 1), (True, 1)]


def test_what_a_service_sets_by_hand_is_stored_as_a_flag(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    with Session(runtime.engine) as session:
        thread = session.get(Thread, threads["new"])
        assert thread is not None
        thread.archived, thread.archived_at = True, datetime.now(UTC)
        session.commit()
        session.refresh(thread)
        assert thread.archived is True
    assert found(runtime, threads, Thread.archived) == {"old", "new"}


def test_a_time_may_be_the_databases_own(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    with Session(runtime.engine) as session:
        thread = session.get(Thread, threads["new"])
        assert thread is not None
        thread.gone_at = func.now()
        thread.updated_at = func.now() - timedelta(hours=1)
        added = a_thread()
        added.created_at = func.now()
        session.add(added)
        session.commit()
        for moment in (thread.gone_at, thread.updated_at + timedelta(hours=1), added.created_at):
            assert timedelta(0) <= datetime.now(UTC) - moment < timedelta(minutes=1)


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00Z", None, 5, NOON.date()], ids=repr)
def test_what_is_no_time_is_refused_as_such(runtime: StateRuntime, moment: Any) -> None:
    """L8."""
    thread = Thread(id=uuid4(), source="cli", updated_at=moment)
    with pytest.raises((InvalidInputError, IntegrityViolationError)):
        runtime.run(lambda state: state.threads.upsert(thread))
    with Session(runtime.engine) as session:
        session.add(thread)
        with pytest.raises((InvalidInputError, IntegrityViolationError)):
            session.commit()


def test_many_threads_are_inserted_from_what_they_dump(runtime: StateRuntime) -> None:
    some = [a_thread(rollout_path=None, first_user_message=None) for _ in range(2)]
    with Session(runtime.engine) as session:
        session.execute(insert(Thread), [thread.model_dump() for thread in some])
        session.commit()
        assert {thread.id for thread in session.exec(select(Thread)).all()} == {thread.id for thread in some}
        assert session.exec(select(Thread.rollout_path, Thread.first_user_message)).all() == [(None, None)] * 2


def test_rows_of_a_service_join_with_their_threads(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    own.create_all(runtime.engine)
    with Session(runtime.engine) as session:
        session.add(Message(thread_id=threads["new"], at=LATER))
        session.add(Message(thread_id=threads["old"], parent_id=threads["new"], at=NOON))
        session.add(LogEntry(ts=1, ts_nanos=0, level="INFO", target="t", thread_id=str(threads["new"])))
        session.commit()
        joined = select(Thread.id).join(Message, Thread.id == Message.thread_id)
        assert set(session.exec(joined).all()) == {threads["new"], threads["old"]}
        assert session.exec(joined.where(Message.at == Thread.updated_at, ~Thread.archived)).all() == [threads["new"]]
        reverse = select(Message.id).where(col(Message.thread_id).in_(select(Thread.id).where(Thread.archived)))
        assert len(session.exec(reverse).all()) == 1
        by_log = select(Thread.id).join(LogEntry, LogEntry.thread_id == Thread.id)
        assert session.exec(by_log).all() == [threads["new"]]
        assert session.exec(select(Thread.id).join(LogEntry, Thread.id == LogEntry.thread_id)).all() == [threads["new"]]


def test_a_thread_that_rows_refer_to_is_deleted_only_as_they_say(
    runtime: StateRuntime, threads: dict[str, UUID]
) -> None:
    """L7."""
    own.create_all(runtime.engine)
    with Session(runtime.engine) as session:
        session.add(Message(thread_id=threads["old"], parent_id=threads["new"], at=NOON))
        session.add(Extra(thread_id=threads["mid"]))
        session.commit()
    with pytest.raises(IntegrityViolationError):
        runtime.run(lambda state: state.threads.delete(threads["old"]))
    for name in ("mid", "new"):
        assert runtime.run(lambda state, key: state.threads.delete(key), threads[name])
    with Session(runtime.engine) as session:
        assert session.exec(select(Extra)).all() == []
        assert session.exec(select(Message.parent_id)).all() == [None]
    with Session(runtime.engine) as session:
        session.add(Message(thread_id=uuid4(), at=NOON))
        with pytest.raises(IntegrityViolationError):
            session.commit()
    indexed = {tuple(index["column_names"]) for index in inspect(runtime.engine).get_indexes("service_messages")}
    assert {("thread_id",), ("parent_id",)} <= indexed


COMPARED = [
    lambda: Plain.thread_id == Thread.id,
    lambda: Thread.id == Plain.thread_id,
    lambda: Plain.thread_id != Thread.id,
    lambda: col(Thread.id).in_(select(Plain.thread_id)),
    lambda: col(Plain.thread_id).in_(select(Thread.id)),
    lambda: Other.parent_thread_id == Plain.thread_id,
]


@pytest.mark.parametrize("condition", COMPARED, ids=map(str, range(len(COMPARED))))
def test_a_plain_uuid_is_compared_with_an_id_or_refused_with_the_helpers_name(
    runtime: StateRuntime, condition: Callable[[], Any]
) -> None:
    own.create_all(runtime.engine)
    with Session(runtime.engine) as session:
        if runtime.database.dialect == "sqlite":
            with pytest.raises(InvalidInputError, match=r"service_plain\.thread_id is a plain UUID.*thread_key\(\)"):
                session.exec(select(func.count()).where(condition()))
        else:
            assert session.exec(select(func.count()).where(condition())).one() == 0


def test_a_uuid_that_python_gives_is_no_plain_one(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    for condition in (Thread.id == threads["new"], literal(threads["new"]) == Thread.id):
        assert found(runtime, threads, condition) == {"new"}
    assert found(runtime, threads, col(Thread.id).in_([threads["new"], threads["old"]])) == {"new", "old"}


FORGETTING: dict[str, Callable[[Session, Thread, ThreadMemory], object]] = {
    "the thread is deleted": lambda session, thread, _memory: session.delete(thread),
    "its mode is another": lambda _session, thread, _memory: setattr(thread, "memory_mode", "disabled"),
    "the memory is deleted": lambda session, _thread, memory: session.delete(memory),
    "the memory is invalidated": lambda _session, _thread, memory: setattr(memory, "invalidated_at", NOON),
    "the memory is another": lambda _session, _thread, memory: setattr(memory, "raw_memory", "another"),
    "the memory is of another scope": lambda _session, _thread, memory: setattr(memory, "scope_key", "/moved"),
    "a memory is added": lambda session, thread, _memory: session.add(
        ThreadMemory(
            thread_id=thread.id,
            scope_kind="cwd",
            scope_key="user",
            raw_memory="",
            memory_summary="",
            updated_at=NOON,
        )
    ),
}


@pytest.mark.parametrize("change", FORGETTING)
def test_what_an_own_session_changes_is_forgotten_by_the_next_consolidation(
    runtime: StateRuntime, threads: dict[str, UUID], change: str
) -> None:
    scopes = {
        "a memory is added": {MemoryScope("cwd", "user")},
        "the memory is of another scope": {MemoryScope.user(), MemoryScope("user", "/moved")},
    }
    with runtime.begin() as state:
        state.thread_memories.upsert_for_scope(threads["new"], MemoryScope.user(), "secret", "secret")
        mark = state.memory_scopes.get(MemoryScope.user())
        assert mark is not None
        assert state.memory_scopes.mark_clean(MemoryScope.user(), seen=mark.updated_at)
    with Session(runtime.engine) as session:
        thread = session.get_one(Thread, threads["new"])
        memory = session.exec(select(ThreadMemory)).one()
        thread.title, memory.used_count = "of no importance", 1
        session.commit()
        assert State(session).memory_scopes.list_dirty() == []
        FORGETTING[change](session, thread, memory)
        session.commit()
        dirty = {mark.scope for mark in State(session).memory_scopes.list_dirty()}
        assert dirty == scopes.get(change, {MemoryScope.user()})


def test_sessions_that_store_memories_do_not_wait_for_each_other_in_a_circle(
    runtime: StateRuntime, threads: dict[str, UUID]
) -> None:
    """Each flush marks its scopes in one order."""
    marked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "memory_scope_dirty" in statement:
            marked.append(str(parameters))

    event.listen(runtime.engine, "before_cursor_execute", note)
    with Session(runtime.engine) as session:
        for key in ("/b", "/a"):
            memory = {"scope_kind": "cwd", "scope_key": key, "raw_memory": "", "memory_summary": "", "updated_at": NOON}
            session.add(ThreadMemory(thread_id=threads["new"], **memory))
        session.commit()
    assert [each for each in ("/a", "/b") if each in marked[0]] == ["/a"]
    assert "/b" in marked[1]


def test_tuples_of_different_lengths_are_refused_as_the_database_does(runtime: StateRuntime) -> None:
    """L8."""
    with Session(runtime.engine) as session, pytest.raises(StatementRefusedError):
        session.exec(select(Thread.id).where(tuple_(Thread.created_at, Thread.id) == tuple_(NOON))).all()


def test_another_time_has_nanoseconds_of_its_own(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    with Session(runtime.engine) as session:
        thread = session.get_one(Thread, threads["new"])
        for moment, nanoseconds in ((LATER + timedelta(microseconds=5), 5000), (LATER + timedelta(hours=1), 0)):
            thread.updated_at = moment
            session.commit()
            assert thread.updated_ns == nanoseconds
            assert session.get_one(Thread, threads["new"], populate_existing=True).updated_ns == nanoseconds


# Bodies and answers.

ENTITIES = sorted((mapper.class_ for mapper in entities.mappers), key=lambda entity: entity.__name__)


def test_json_of_an_entity_is_read_back_as_the_same_entity() -> None:
    thread = a_thread(archived_at=NOON, name="n", parent_thread_id=uuid4())
    back = Thread.model_validate_json(thread.model_dump_json())
    assert back == thread
    assert (type(back.id), type(back.created_at), type(back.cwd)) == (type(thread.id), datetime, type(thread.cwd))
    assert Thread.model_validate(json.loads(thread.model_dump_json())) == thread


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.__name__)
def test_no_entity_takes_garbage_as_json(entity: type[StateModel]) -> None:
    for garbage in ("{}", '{"id": "zzz"}', "[]", '{"updated_at": "2026-01-01T00:00:00"}'):
        with pytest.raises(ValidationError):
            entity.model_validate_json(garbage)


def test_a_time_without_a_zone_is_refused_and_others_become_utc() -> None:
    values = {"id": str(uuid4()), "source": "cli"}
    with pytest.raises(ValidationError, match="without a zone"):
        Thread.model_validate_json(json.dumps(values | {"created_at": "2026-01-01T00:00:00"}))
    thread = Thread.model_validate(values | {"created_at": "2026-01-01T05:00:00+05:00"})
    assert thread.created_at.isoformat() == "2026-01-01T00:00:00+00:00"


def test_fastapi_reads_an_entity_from_a_body_and_writes_it_as_an_answer(runtime: StateRuntime) -> None:
    app = FastAPI()

    @app.put("/threads")
    def put(thread: Thread) -> Thread:
        with Session(runtime.engine) as session:
            session.add(thread)
            session.commit()
            session.refresh(thread)
            return thread

    @app.get("/threads", response_model=list[Thread])
    def listed() -> Any:
        return runtime.run_read(lambda state: state.threads.list(ThreadQuery(all=True))).items

    client = TestClient(app)
    sent = json.loads(a_thread(memory_mode="disabled").model_dump_json())
    assert client.put("/threads", json=sent).json() == sent
    assert client.get("/threads").json() == [sent]
    for garbage in ({"id": "zzz"}, sent | {"tokens_used": -1}, sent | {"updated_at": "yesterday"}, []):
        assert client.put("/threads", json=garbage).status_code == 422
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Thread"]
    assert schema["required"] == ["id", "source"]


def answer_of(kind: Any, path: str, body: Any = None) -> Any:
    app = FastAPI()

    @app.get("/")
    def asked(query: Any = Depends(kind)) -> str:  # noqa: B008 - FastAPI's way
        return repr(query)

    response = TestClient(app).request("GET", path, json=body)
    assert response.status_code == 200, response.text
    assert TestClient(app).get("/openapi.json").status_code == 200
    return response.json()


@pytest.mark.filterwarnings("ignore:Default value UTC is not JSON")
def test_queries_are_dependencies_of_fastapis() -> None:
    for kind, path, body, expected in (
        (ThreadQuery, "/?archived=1", {"sources": ["cli"]}, ThreadQuery(archived=True, sources=["cli"])),
        (JobQuery, "/?limit=5", {"states": ["failed"]}, JobQuery(limit=5, states=[JobState.FAILED])),
        (LogQuery, "/?level=warning&from_ts=2026-01-01T00:00:00Z", None, LogQuery(level="WARN", from_ts=1767225600)),
        (StatisticsQuery, "/?zone=Europe/Athens", None, StatisticsQuery(zone=ZoneInfo("Europe/Athens"))),
        (Phase1Options, "/?limit=5", None, Phase1Options(limit=5)),
        (ConsolidationOptions, "/", None, ConsolidationOptions()),
    ):
        assert answer_of(kind, path, body) == repr(expected)


def test_results_are_answers_of_fastapis(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    app = FastAPI()

    @app.get("/threads")
    def listed() -> ThreadsPage:
        return runtime.run_read(lambda state: state.threads.list(ThreadQuery(all=True)))

    @app.get("/statistics")
    def added_up() -> StatisticsPage:
        return runtime.run_read(lambda state: state.threads.statistics(StatisticsQuery()))

    @app.get("/import")
    def imported() -> ImportReport:
        problem = DatabaseCorruptError("it is damaged")
        return ImportReport(Path("/home"), [ImportedDatabase(Path("/home/state.sqlite"), problem=problem)])

    client = TestClient(app)
    assert [each["id"] for each in client.get("/threads").json()["items"]] == [str(threads["new"]), str(threads["mid"])]
    assert client.get("/statistics").json()["total"]["threads"] == 3
    assert client.get("/import").json()["databases"][0]["problem"] == "it is damaged"
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("several", [list, tuple, set, frozenset, dict.fromkeys])
def test_several_values_are_given_as_any_collection(
    runtime: StateRuntime, threads: dict[str, UUID], several: Callable[[list[str]], Any]
) -> None:
    query = ThreadQuery(sources=several(["cli", "exec"]), providers=several(["openai"]))
    jobs = JobQuery(states=several([JobState.FAILED, JobState.DONE]))
    found = runtime.run_read(lambda state: state.threads.list_ids(query))
    assert found == runtime.run_read(lambda state: state.threads.list_ids(ThreadQuery())) != []
    assert runtime.run_read(lambda state: state.work.jobs(jobs)) == []


def test_an_id_and_a_source_are_enough_for_a_thread(runtime: StateRuntime) -> None:
    thread = Thread(id=uuid4(), source="cli")
    runtime.run(lambda state: state.threads.upsert(thread))
    assert runtime.run_read(lambda state: state.threads.get(thread.id)) == thread
    assert runtime.run_read(lambda state: state.threads.list_ids()) == [thread.id]
    assert thread.created_at.tzinfo is UTC


def test_rows_of_a_scope_know_it_as_a_value() -> None:
    scope, thread_id = MemoryScope.user(), uuid4()
    columns = {"scope_kind": scope.kind, "scope_key": scope.key}
    job = Phase1Job(thread_id=thread_id, status="running", source_updated_at=NOON, **columns)
    assert (job.scope, job.key) == (scope, Phase1Key(thread_id, scope))
    memory = ThreadMemory(thread_id=thread_id, raw_memory="", memory_summary="", updated_at=NOON, **columns)
    assert memory.scope == scope
    assert MemoryScopeDirty(dirty=True, updated_at=NOON, **columns).scope == scope


def test_own_filters_and_repositories_agree(runtime: StateRuntime, threads: dict[str, UUID]) -> None:
    with Session(runtime.engine) as session:
        listed = State(session).threads.list_ids(ThreadQuery(archived=True, all=True))
    assert listed == [threads["old"]]


@pytest.fixture
def family(runtime: StateRuntime) -> tuple[Thread, Thread]:
    """A thread with tools, a job and a memory, and the sub-agent that it spawned."""
    parent = a_thread()
    child = a_thread(parent_thread_id=parent.id)

    def store(state: State) -> None:
        state.threads.upsert_many([parent, child])
        state.dynamic_tools.persist(a_tool(parent, position) for position in (1, 0))
        key = Phase1Key(parent.id, MemoryScope.user())
        claimed = state.phase1_jobs.try_claim(
            key, owner=uuid4(), source_updated_at=parent.updated_at, lease=timedelta(hours=1)
        )
        assert isinstance(claimed, Claimed)
        assert state.thread_memories.upsert_if_owner(claimed.lease, "raw", "summary")

    runtime.run(store)
    return parent, child


def test_a_session_of_a_service_follows_what_belongs_to_a_thread(
    runtime: StateRuntime, family: tuple[Thread, Thread]
) -> None:
    with Session(runtime.engine) as session:
        parent, child = (session.get_one(Thread, thread.id) for thread in family)
        assert [tool.position for tool in parent.dynamic_tools] == [0, 1]
        assert [memory.memory_summary for memory in parent.memories] == ["summary"]
        assert [job.scope for job in parent.jobs] == [MemoryScope.user()]
        assert parent.children == [child]
        assert child.parent is parent
        assert parent.parent is None
        assert [part.thread for part in (*parent.dynamic_tools, *parent.memories, *parent.jobs)] == [parent] * 4
        with_tools = select(Thread.id).where(Thread.dynamic_tools.any(col(DynamicTool.position) == 1))
        assert session.exec(with_tools).all() == [parent.id]
        joined = select(Thread.id, ThreadMemory.raw_memory).join(Thread.memories)
        assert session.exec(joined).all() == [(parent.id, "raw")]


def test_what_was_loaded_before_is_there_after_the_session_and_the_rest_is_an_error(
    runtime: StateRuntime, family: tuple[Thread, Thread]
) -> None:
    with Session(runtime.engine) as session:
        loaded = select(Thread).where(Thread.id == family[0].id).options(selectinload(Thread.dynamic_tools))
        thread = session.exec(loaded).one()
    assert [tool.position for tool in thread.dynamic_tools] == [0, 1]
    assert thread.model_dump().keys() == Thread.model_fields.keys()
    assert Thread.model_validate_json(thread.model_dump_json()) == thread
    with pytest.raises(DetachedInstanceError):
        _ = thread.memories


@pytest.mark.parametrize("name", [relation.key for relation in inspect(Thread).relationships])
def test_a_thread_of_no_session_does_not_claim_that_nothing_belongs_to_it(
    runtime: StateRuntime, family: tuple[Thread, Thread], name: str
) -> None:
    handed_out = runtime.run_read(lambda state: state.threads.get(family[0].id))
    for thread in (handed_out, Thread(id=uuid4(), source="cli")):
        with pytest.raises(UsageError, match=r"session\.get\(Thread"):
            getattr(thread, name)


def test_what_belongs_to_a_thread_is_only_looked_at(runtime: StateRuntime, family: tuple[Thread, Thread]) -> None:
    with Session(runtime.engine) as session:
        parent, _child = (session.get_one(Thread, thread.id) for thread in family)
        parent.dynamic_tools.clear()
        parent.children.clear()
        with pytest.raises(ValueError, match="dynamic_tools"):
            parent.dynamic_tools = []  # type: ignore[misc]
        session.commit()
        assert len(parent.dynamic_tools) == 2
        assert len(parent.children) == 1
