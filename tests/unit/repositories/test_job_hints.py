"""What a batch claim looks at: the threads in which there may be something to claim, and not what is done (law L10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool
from sqlmodel import Session

from codex_state.models import Claimed, MemoryScope, Phase1Key, Thread, open_threads
from codex_state.repositories import job_hints, jobs
from codex_state.repositories.job_claims import search_of
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread, a_tool
from tests import stores

HOUR = timedelta(hours=1)


@pytest.fixture
def state(clocked: stores.Clocked) -> Iterator[State]:
    with clocked.database.autocommit() as session:
        yield State(session)


def open_ones(state: State, *kinds: str) -> int:
    are_open = open_threads(kinds or ("cwd", "user"))
    counted = state.session.connection().execute(text(f"SELECT count(*) FROM threads WHERE {are_open}"))
    count: int = counted.scalar_one()
    return count


def claim(state: State, **options: object) -> int:
    return len(state.phase1_jobs.claim_candidates(owner=uuid4(), lease=HOUR, **options))  # type: ignore[arg-type]


def finish(state: State, thread: Thread, fail: bool) -> None:
    for scope in (MemoryScope.cwd(thread.cwd), MemoryScope.user()):
        key = Phase1Key(thread.id, scope)
        claimed = state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=thread.updated_at, lease=HOUR)
        lease = claimed.lease  # type: ignore[union-attr]
        if fail:
            state.phase1_jobs.fail(lease, "broken")
        else:
            state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)


@pytest.mark.parametrize("fail", [True, False], ids=["failed", "succeeded"])
def test_finished_threads_are_looked_at_once(state: State, fail: bool) -> None:
    threads = [a_thread(updated_at=NOON - timedelta(seconds=number)) for number in range(20)]
    state.threads.upsert_many(threads)
    for thread in threads[:15]:
        finish(state, thread, fail)
    assert open_ones(state) == 20
    assert claim(state, max_threads=2) == 4
    assert open_ones(state) == 3
    assert claim(state) == 6
    assert open_ones(state) == 0


@pytest.mark.parametrize("kind", ["cwd", "user"])
def test_a_claim_of_one_scope_walks_no_thread_that_is_open_for_another_only(state: State, kind: str) -> None:
    """Each choice of scopes has an index of its own."""
    state.threads.upsert_many([a_thread() for _ in range(5)])
    assert claim(state, scope_kinds=(kind,)) == 5
    other = {"cwd": "user", "user": "cwd"}[kind]
    assert (open_ones(state, kind), open_ones(state, other), open_ones(state)) == (0, 5, 5)
    assert claim(state) == 5
    assert open_ones(state) == 0


def test_more_finished_threads_than_one_window_are_passed_over_at_once(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there are many, many are looked at: after an older version every thread may be."""
    monkeypatch.setattr(job_hints, "LOOK_BEYOND", 2)
    monkeypatch.setattr(job_hints, "LOOK_AT_MANY", 16)
    monkeypatch.setattr(jobs, "_MOST_ROUNDS", 3)
    threads = [a_thread(updated_at=NOON - timedelta(seconds=number)) for number in range(30)]
    state.threads.upsert_many(threads)
    for thread in threads:
        finish(state, thread, fail=False)
    assert claim(state, max_threads=1) == 0
    assert open_ones(state) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda state, thread: state.threads.upsert(thread.model_copy(update={"cwd": Path("/elsewhere")})),
        lambda state, thread: state.threads.upsert(
            thread.model_copy(update={"updated_at": thread.updated_at + timedelta(seconds=1)})
        ),
        lambda state, thread: state.threads.upsert(
            thread.model_copy(update={"updated_at": thread.updated_at - timedelta(seconds=1)})
        ),
    ],
    ids=["another directory", "a newer version", "an older version"],
)
def test_a_thread_that_changes_is_looked_at_again(state: State, change: Callable[[State, Thread], object]) -> None:
    thread = a_thread()
    state.threads.upsert(thread)
    finish(state, thread, fail=False)
    assert claim(state) == 0
    assert open_ones(state) == 0
    change(state, thread)
    assert open_ones(state) == 1


def test_a_directory_that_a_services_session_writes_is_looked_at(clocked: stores.Clocked, state: State) -> None:
    thread = a_thread()
    state.threads.upsert(thread)
    finish(state, thread, fail=False)
    assert claim(state) == 0
    state.session.commit()
    with clocked.database.begin() as session:
        session.get_one(Thread, thread.id).title = "renamed"
    assert open_ones(state) == 0
    state.session.commit()
    with clocked.database.begin() as session:
        session.get_one(Thread, thread.id).cwd = Path("/elsewhere")
    assert claim(state) == 1


@pytest.fixture
def unattended(shared: stores.Clocked) -> Iterator[None]:
    """Tables that nobody analyses meanwhile, as on a server that has much else to do."""

    def set_for_tables(setting: str) -> None:
        with shared.database.begin() as session:
            for table in ("threads", "memory_phase1_jobs", "thread_dynamic_tools"):
                session.connection().execute(text(f"ALTER TABLE {table} {setting}"))

    set_for_tables("SET (autovacuum_enabled = false)")
    yield
    set_for_tables("RESET (autovacuum_enabled)")


@pytest.fixture(params=["held", "a service's own"])
def session(request: pytest.FixtureRequest, clocked: stores.Clocked, unattended: None) -> Iterator[Session]:
    """A session of ours in which every statement commits by itself, or one of a service in which nothing does."""
    if request.param == "held":
        with clocked.database.autocommit() as session:
            yield session
        return
    engine = create_engine(clocked.database.engine.url, poolclass=StaticPool)
    clocked.clock.install(SimpleNamespace(engine=engine, dialect="postgresql", begin=clocked.database.begin))  # type: ignore[arg-type]
    with Session(engine) as session:
        yield session
    engine.dispose()


def claim_often(state: State, threads: list[Thread]) -> None:
    for _ in range(8):
        assert claim(state) == 128
    assert claim(state, max_running=2000) == 128


def store_tools(state: State, threads: list[Thread]) -> None:
    for position in range(8):
        state.dynamic_tools.persist(a_tool(thread, position) for thread in threads[:100])


@pytest.mark.only_on("postgresql")  # SQLite's plan is asserted with the others
@pytest.mark.parametrize("work", [claim_often, store_tools])
def test_no_table_is_read_from_end_to_end_though_nobody_has_analysed_it_since_it_was_small(
    clocked: stores.Clocked, session: Session, work: Callable[[State, list[Thread]], None]
) -> None:
    """By PostgreSQL's estimates reading two thousand threads would be cheaper than seeking some of them.

    And it keeps the plan by which it has checked foreign keys while there was one thread.
    """
    state = State(session)
    first = a_thread(updated_at=NOON - timedelta(days=400))
    with clocked.database.autocommit() as another:
        another.connection().execute(text("TRUNCATE threads CASCADE"))
        State(another).threads.upsert(first)
        another.connection().execute(text("VACUUM ANALYZE threads"))
        # What it has read is counted now, and not some seconds later as that of the work below.
        another.connection().execute(text("SELECT pg_stat_force_next_flush()"))
    for number in range(10):
        key = Phase1Key(first.id, MemoryScope.cwd(Path(f"/{number}")))
        state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=first.updated_at, lease=HOUR)
        state.session.add(a_tool(first, number))
        state.session.flush()
    threads = [a_thread(updated_at=NOON - timedelta(seconds=number)) for number in range(2000)]
    state.threads.upsert_many(threads)
    session.commit()

    # A connection that rests counts what it has read some seconds later, one that was closed before its server's end of
    # it is gone: what earlier tests read whole must not be counted between the two looks.
    clocked.database.engine.dispose()
    mine = session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
    others = text(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend' AND pid != :mine"
    )
    session.connection().execute(others, {"mine": mine}).all()
    session.commit()

    def whole_reads() -> int:
        session.commit()
        session.connection().execute(text("SELECT pg_stat_force_next_flush()"))
        session.commit()
        read: int = (
            session.connection()
            .execute(
                text("SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('threads', 'memory_phase1_jobs')")
            )
            .scalar_one()
        )
        return read

    before = whole_reads()
    work(state, threads)
    assert session.connection().execute(text("SHOW enable_seqscan")).scalar_one() == "on"
    assert whole_reads() == before


@pytest.mark.only_on("postgresql")  # SQLite has one writer at a time
def test_a_claim_behind_others_that_have_not_ended_settles_its_own_threads(
    clocked: stores.Clocked, state: State
) -> None:
    """Else the next one would look at them, be refused, and find nothing though there is something."""
    state.threads.upsert_many([a_thread(updated_at=NOON - timedelta(seconds=number)) for number in range(120)])
    with clocked.database.begin() as first, Session(clocked.database.engine) as second:
        assert claim(State(first), max_threads=30, scope_kinds=("user",)) == 30
        assert claim(State(second), max_threads=30, scope_kinds=("user",)) == 30
        assert claim(state, max_threads=30, scope_kinds=("user",)) == 30
        assert open_ones(state, "user") == 90
        assert claim(state, max_threads=64, scope_kinds=("user",)) == 30


@pytest.mark.only_on("postgresql")  # SQLite has one writer at a time
@pytest.mark.parametrize("times", [1, 2], ids=["at first", "again"])
def test_a_thread_whose_job_is_taken_over_for_an_older_version_meanwhile_is_not_settled(
    clocked: stores.Clocked, state: State, times: int
) -> None:
    """Between the moment as of which a statement sees other rows and the one in which it locks the thread."""
    thread = a_thread()
    state.threads.upsert(thread)
    key, older = Phase1Key(thread.id, MemoryScope.user()), thread.updated_at - timedelta(seconds=1)

    def take_over(source: datetime) -> None:
        claimed = state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=source, lease=timedelta(0))
        assert isinstance(claimed, Claimed)

    search, parameters = search_of(scope_kinds=["user"], max_age_seconds=3600, sources=["cli"], home=None)
    statement = job_hints.settled_threads(search, 9).params(
        parameters | {"new_lease_seconds": 3600, "crashes_allowed": 3} | job_hints.claimed_threads([])
    )
    for _ in range(times):
        take_over(thread.updated_at)
        with clocked.database.begin() as session:
            connection = session.connection()
            inlined = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            connection.exec_driver_sql(f"DECLARE settled NO SCROLL CURSOR FOR {inlined}")
            take_over(older)
            assert connection.exec_driver_sql("FETCH ALL FROM settled").all() == []


def test_jobs_of_a_former_directory_do_not_bring_their_thread_back_again_and_again(
    state: State, clocked: stores.Clocked
) -> None:
    thread = a_thread()
    state.threads.upsert(thread)
    assert claim(state) == 2
    moved = thread.model_copy(update={"cwd": Path("/elsewhere")})
    state.threads.upsert(moved)
    assert claim(state) == 1
    clocked.clock.advance(HOUR)
    assert claim(state) == 2, "the user's scope and the new directory's"
    reopened = job_hints.reopen(("cwd", "user"))
    assert claim(state) == 0
    assert state.session.connection().execute(reopened, {"new_lease_seconds": 3600, "crashes_allowed": 3}).all() == []
    assert open_ones(state) == 0


def test_an_upsert_leaves_alone_what_batch_claims_know(state: State) -> None:
    thread = a_thread()
    state.threads.upsert(thread)
    finish(state, thread, fail=False)
    assert claim(state) == 0
    state.threads.upsert(thread.model_copy(update={"title": "renamed"}))
    state.threads.upsert_from_rollouts([thread])
    assert open_ones(state) == 0
