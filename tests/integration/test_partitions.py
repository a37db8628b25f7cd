"""A worker that is cut off from the database past its lease: it stops, another takes over, it changes nothing.

And one whose answers are lost after the server committed: what it was not told of is neither repeated nor undone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from memory_support import OTHER, OWNER, add_threads, now, user_key
from pydantic import SecretStr
from relay import Relay, relay
from rollout_files import write_rollout
from sqlalchemy import event, text

from codex_state import (
    BackfillRepository,
    Claimed,
    ConsolidationOptions,
    ConsolidationOutcome,
    ExtractedMemory,
    HolderWrite,
    MemoryScope,
    Phase1Lease,
    Phase1Options,
    Phase1Outcome,
    Skipped,
    State,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadMemory,
    ThreadQuery,
    UnknownCommitOutcomeError,
    consolidate_memories,
    current_work,
    memory_root,
    run_phase1,
    trust_clock,
)
from codex_state.rollout import BackfillOutcome, BackfillProgress, backfill
from codex_state.rollout.backfilling import _Run

TABLES = (
    "memory_phase1_jobs",
    "thread_memory",
    "memory_scope_dirty",
    "memory_consolidation_locks",
    "backfill_state",
    "threads",
)
LEASE = timedelta(seconds=3)
OPTIONS = Phase1Options(lease=LEASE, scope_kinds=("user",), write_files=False)

Open = Callable[[StateSettings], StateRuntime]


def rows(runtime: StateRuntime) -> list[tuple[object, ...]]:
    """Every row that a lease or its holder's writes are kept in."""
    with runtime.read() as state:
        connection = state.session.connection()
        return [tuple(row) for table in TABLES for row in connection.execute(text(f"SELECT * FROM {table}"))]


def behind(wire: Relay, settings: StateSettings) -> StateSettings:
    """The same home and database, through a wire."""
    return settings.model_copy(update={"database_url": SecretStr(wire.url.render_as_string(hide_password=False))})


@contextmanager
def in_the_background(wire: Relay) -> Iterator[ThreadPoolExecutor]:
    """Runs what may hang in the wire. When the block ends, however it does, nothing hangs any more."""
    with ThreadPoolExecutor() as pool:
        try:
            yield pool
        finally:
            mend(wire)


def mend(wire: Relay) -> None:
    """Break what hangs. From then on connections can be made again."""
    wire.cut()
    wire.thaw()


@pytest.fixture
def wire(postgres_settings: StateSettings) -> Iterator[Relay]:
    assert postgres_settings.database_url is not None
    with relay(postgres_settings.database_url.get_secret_value()) as made:
        yield made


def taken_over(claim: Callable[[], Claimed[Any] | Skipped]) -> Claimed[Any]:
    """Claim until it is granted."""
    deadline = time.monotonic() + 60
    while not isinstance(claimed := claim(), Claimed):
        assert time.monotonic() < deadline, claimed
        time.sleep(0.05)
    return claimed


def test_a_pass_that_is_cut_off_past_its_lease_stops_in_time_and_changes_nothing(
    postgres_settings: StateSettings, opened: Open, wire: Relay
) -> None:
    """L2: nothing gets through either way; after the wire is mended, what was held back arrives."""
    rival = opened(postgres_settings)
    thread = add_threads(rival)[0]
    cut_off = opened(behind(wire, postgres_settings))
    begun = threading.Event()
    told: list[float] = []

    def extract(_thread: Thread) -> ExtractedMemory:
        work = current_work()
        assert work is not None
        begun.set()
        assert work.wait(60)
        told.append(trust_clock())
        return ExtractedMemory("too late", "too late")

    def claim(state: State) -> Claimed[Phase1Lease] | Skipped:
        return state.phase1_jobs.try_claim(user_key(thread), owner=OTHER, source_updated_at=now(), lease=LEASE)

    with in_the_background(wire) as pool:
        report = pool.submit(run_phase1, cut_off, extract, owner=OWNER, options=OPTIONS)
        assert begun.wait(60)
        wire.freeze()
        won = taken_over(lambda: rival.run(claim))
        taken_at = trust_clock()
        with rival.autocommit() as state:
            assert state.thread_memories.upsert_if_owner(won.lease, "the rival's", "the rival's")
            assert state.phase1_jobs.succeed(won.lease, raw_memory_path=None, summary_hash=None)
        before = rows(rival)
        wire.thaw()
        assert [result.outcome for result in report.result(60).results] == [Phase1Outcome.LOST]
    assert told[0] < taken_at
    assert rows(rival) == before


def test_a_consolidation_that_is_cut_off_past_its_lease_stops_in_time_and_changes_nothing(
    postgres_settings: StateSettings, opened: Open, wire: Relay
) -> None:
    """L2: the scope stays dirty, and the rival keeps the lock."""
    rival = opened(postgres_settings)
    with rival.begin() as state:
        state.memory_scopes.mark_dirty(MemoryScope.user())
    cut_off = opened(behind(wire, postgres_settings))
    root = memory_root(rival.codex_home, MemoryScope.user())
    begun = threading.Event()
    told: list[float] = []

    def consolidate(_scope: MemoryScope, _memories: Sequence[ThreadMemory]) -> None:
        work = current_work()
        assert work is not None
        begun.set()
        assert work.wait(60)
        told.append(trust_clock())

    options = ConsolidationOptions(lease=LEASE, write_files=False)
    with in_the_background(wire) as pool:
        report = pool.submit(consolidate_memories, cut_off, consolidate, owner=OWNER, options=options)
        assert begun.wait(60)
        wire.freeze()
        taken_over(lambda: rival.run(lambda state: state.consolidation_locks.try_claim(root, owner=OTHER, lease=LEASE)))
        taken_at = trust_clock()
        before = rows(rival)
        wire.thaw()
        assert [result.outcome for result in report.result(60).results] == [ConsolidationOutcome.LOST]
    assert told[0] < taken_at
    assert rows(rival) == before


def test_a_backfill_that_is_cut_off_past_its_lease_stores_no_other_batch(
    postgres_settings: StateSettings, opened: Open, wire: Relay
) -> None:
    """L2, L5: its second batch is sent into the frozen wire, and arrives when another has the backfill."""
    settings = postgres_settings.model_copy(update={"backfill_lease": LEASE, "backfill_batch_size": 1})
    rival = opened(settings)
    for number in (1, 2, 3):
        write_rollout(settings.codex_home, number)
    cut_off = opened(behind(wire, settings))
    begun = threading.Event()

    def freeze(_progress: BackfillProgress) -> None:
        if not begun.is_set():
            wire.freeze()
            begun.set()

    with in_the_background(wire) as pool:
        report = pool.submit(backfill, cut_off, on_progress=freeze, workers=0)
        assert begun.wait(60)
        taken_over(
            lambda: rival.run(lambda state: state.backfill.try_claim(rival.home, owner="the rival", lease=LEASE))
        )
        before = rows(rival)
        wire.thaw()
        assert report.result(60).status is BackfillOutcome.LEASE_LOST
    assert rows(rival) == before
    with rival.read() as state:
        assert len(state.threads.list_ids(ThreadQuery(limit=9))) == 1


# Answers that are lost after the commit


def lose_the_answer_of_the_commit(runtime: StateRuntime, wire: Relay) -> None:
    """Of the next one: the server commits, and nothing comes back."""
    event.listen(runtime.engine, "commit", lambda _connection: wire.freeze_answers(), once=True)


def lose_the_answer_of_the_statement(runtime: StateRuntime, wire: Relay) -> None:
    """Of the next one, which commits by itself."""
    event.listen(runtime.engine, "before_cursor_execute", lambda *_: wire.freeze_answers(), once=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("by_itself", [False, True])
def test_a_claim_whose_answer_is_lost_is_not_repeated_and_runs_out_like_any_other(
    postgres_settings: StateSettings, opened: Open, wire: Relay, *, by_itself: bool
) -> None:
    """Its holder doesn't know of it: neither when the commit of ``run`` has no answer, nor a statement's own."""
    rival = opened(postgres_settings)
    key = user_key(add_threads(rival)[0])
    cut_off = opened(behind(wire, postgres_settings))
    calls = []

    def claim(state: State) -> Claimed[Phase1Lease] | Skipped:
        calls.append(state)
        return state.phase1_jobs.try_claim(key, owner=OWNER, source_updated_at=now(), lease=LEASE)

    def is_claimed() -> bool:
        with rival.read() as state:
            return state.phase1_jobs.get(key) is not None

    def claim_by_itself() -> Claimed[Phase1Lease] | Skipped:
        with cut_off.autocommit() as state:
            return claim(state)

    (lose_the_answer_of_the_statement if by_itself else lose_the_answer_of_the_commit)(cut_off, wire)
    with in_the_background(wire) as pool:
        claimed = pool.submit(claim_by_itself if by_itself else partial(cut_off.run, claim))
        wait_for(is_claimed)
        before = rows(rival)
        mend(wire)
        with pytest.raises(UnknownCommitOutcomeError):
            claimed.result(60)
    assert len(calls) == 1
    assert rows(rival) == before
    assert taken_over(lambda: rival.run(claim)).lease.attempt == 2


def test_a_memory_whose_answer_is_lost_after_the_commit_is_stored_once_and_reported_as_stored(
    postgres_settings: StateSettings, opened: Open, wire: Relay
) -> None:
    """The row of the job tells the pass that it was its own commit."""
    rival = opened(postgres_settings)
    thread = add_threads(rival)[0]
    cut_off = opened(behind(wire, postgres_settings))

    def extract(_thread: Thread) -> ExtractedMemory:
        lose_the_answer_of_the_commit(cut_off, wire)
        return ExtractedMemory("raw", "summary")

    def is_stored() -> bool:
        with rival.read() as state:
            return state.thread_memories.get(thread.id) is not None

    options = Phase1Options(scope_kinds=("user",), write_files=False)
    with in_the_background(wire) as pool:
        report = pool.submit(run_phase1, cut_off, extract, owner=OWNER, options=options)
        wait_for(is_stored)
        before = rows(rival)
        mend(wire)
        assert [result.outcome for result in report.result(60).results] == [Phase1Outcome.SUCCEEDED]
    assert rows(rival) == before


@pytest.mark.parametrize("lost", ["batch", "completion", "renewal"])
def test_a_backfill_whose_answer_is_lost_after_the_commit_goes_on(
    lost: str, postgres_settings: StateSettings, opened: Open, wire: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lease still, so it writes the same once more."""
    settings = postgres_settings.model_copy(update={"backfill_batch_size": 1})
    rival = opened(settings)
    for number in (1, 2):
        write_rollout(settings.codex_home, number)
    cut_off = opened(behind(wire, settings))
    method = {"batch": "checkpoint", "completion": "complete", "renewal": "renew"}[lost]
    written = getattr(BackfillRepository, method)
    attempts = []

    def write(self: BackfillRepository, *arguments: object) -> HolderWrite:
        if not attempts:
            lose_the_answer_of_the_commit(cut_off, wire)
            pool.submit(mend_once_waited_for)
        attempts.append(arguments)
        return written(self, *arguments)

    def mend_once_waited_for() -> None:
        wait_for(lambda: wire.is_holding_back)
        mend(wire)

    monkeypatch.setattr(BackfillRepository, method, write)
    if lost == "renewal":
        monkeypatch.setattr(_Run, "_renewal_interval", 0.0)
    with in_the_background(wire) as pool:
        report = pool.submit(backfill, cut_off, workers=0).result(60)
    assert (report.status, report.scanned, report.upserted) == (BackfillOutcome.COMPLETE, 2, 2)
    assert attempts[0] == attempts[1]
    with rival.read() as state:
        assert len(state.threads.list_ids(ThreadQuery(limit=9))) == 2
        assert state.backfill.is_complete(rival.home)


def test_a_backfill_that_fails_gives_its_lease_back_though_the_connection_breaks_then(
    postgres_settings: StateSettings, opened: Open, wire: Relay
) -> None:
    """Else the next one would have to wait for the lease to run out."""
    runtime = opened(postgres_settings)
    write_rollout(postgres_settings.codex_home, 1)
    cut_off = opened(behind(wire, postgres_settings))

    def fail(_progress: BackfillProgress) -> None:
        # The pool's connection is broken when the lease is given back by it.
        wire.cut()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backfill(cut_off, on_progress=fail, workers=0)
    assert backfill(runtime, workers=0).status is BackfillOutcome.COMPLETE
