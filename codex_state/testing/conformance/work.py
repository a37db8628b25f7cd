"""What people are told of work: by the same rules, and the same clock, as claims."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from codex_state.errors import InvalidInputError
from codex_state.models import Claimed, JobQuery, JobState, MemoryScope, Phase1Key, Phase1Lease, WorkKind
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_thread

_HOUR = timedelta(hours=1)
_SESSION = UUID(int=7)


def _claim(state: State, owner: UUID | None = None, **values: Any) -> Phase1Lease:
    thread = a_thread(updated_at=NOON, **values)
    state.threads.upsert(thread)
    claimed = state.phase1_jobs.try_claim(
        Phase1Key(thread.id, MemoryScope.user()), owner=owner or uuid4(), source_updated_at=NOON, lease=_HOUR
    )
    assert isinstance(claimed, Claimed)
    return claimed.lease


def _in_every_state(state: State, clock: ManualClock) -> dict[JobState, Phase1Lease]:
    over = _claim(state)
    clock.advance(_HOUR)
    leases = {JobState.OVER: over} | {each: _claim(state) for each in JobState if each is not JobState.OVER}
    jobs = state.phase1_jobs
    jobs.begin(leases[JobState.WORKING])
    jobs.release(leases[JobState.CLAIMABLE], "given back")
    jobs.fail(leases[JobState.RETRY_LATER], "too busy", retry_after=_HOUR)
    jobs.fail(leases[JobState.FAILED], "too odd")
    jobs.succeed(leases[JobState.DONE], raw_memory_path=None, summary_hash=None)
    return leases


class TestWork:
    """``WorkRepository``."""

    def test_each_job_is_in_one_state_and_filtered_by_what_is_shown(self, state: State, clock: ManualClock) -> None:
        leases = _in_every_state(state, clock)
        told = {each.job.key: each.state for each in state.work.jobs(JobQuery())}
        assert told == {lease.key: each for each, lease in leases.items()}
        for each, lease in leases.items():
            assert [found.job.key for found in state.work.jobs(JobQuery(states=[each]))] == [lease.key]
        both = state.work.jobs(JobQuery(states=[JobState.DONE, JobState.OVER]))
        assert {found.state for found in both} == {JobState.DONE, JobState.OVER}
        with pytest.raises(InvalidInputError):
            JobQuery(states=["lost"])  # type: ignore[list-item]

    def test_a_lease_for_ever_can_be_shown(self, state: State) -> None:
        thread = a_thread(updated_at=NOON)
        state.threads.upsert(thread)
        key = Phase1Key(thread.id, MemoryScope.user())
        claimed = state.phase1_jobs.try_claim(key, owner=uuid4(), source_updated_at=NOON, lease=timedelta.max)
        assert isinstance(claimed, Claimed)
        statement = text("UPDATE memory_phase1_jobs SET lease_seconds = :seconds")
        for seconds in (None, 10**15):
            if seconds is not None:
                state.session.connection().execute(statement, {"seconds": seconds})
            (told,) = state.work.jobs(JobQuery())
            (held,) = state.work.holdings(limit=9)
            assert told.lease_ends_at == held.ends_at
            assert told.lease_ends_at is not None
            assert told.lease_ends_at > NOON + timedelta(days=300_000)

    def test_a_state_changes_with_the_databases_clock(self, state: State, clock: ManualClock) -> None:
        held, later = _claim(state), _claim(state)
        state.phase1_jobs.fail(later, "busy", retry_after=_HOUR)
        states = [(JobState.CLAIMED, JobState.RETRY_LATER), (JobState.OVER, JobState.CLAIMABLE)]
        for expected in states:
            told = {each.job.key: each for each in state.work.jobs(JobQuery())}
            assert (told[held.key].state, told[later.key].state) == expected
            assert told[held.key].lease_ends_at == NOON + _HOUR
            assert told[later.key].lease_ends_at is None
            clock.advance(_HOUR)

    def test_jobs_are_found_by_reason_holder_and_key(self, state: State, clock: ManualClock) -> None:
        leases = _in_every_state(state, clock)
        mine = _claim(state, owner=_SESSION)
        name = state.work.jobs(JobQuery(thread_id=mine.key.thread_id))[0].job.owner_name
        for query, count in (
            (JobQuery(reason="too"), 2),
            (JobQuery(reason="TOO"), 0),
            (JobQuery(holder=str(_SESSION)), 1),
            (JobQuery(holder=name), 8),
            (JobQuery(holder="nobody"), 0),
            (JobQuery(thread_id=leases[JobState.DONE].key.thread_id, scope_kind="user", scope_key="user"), 1),
            (JobQuery(scope_kind="cwd"), 0),
            (JobQuery(limit=3), 3),
            (JobQuery(limit=0), 0),
        ):
            assert len(state.work.jobs(query)) == count, query

    def test_those_come_first_that_ended_or_were_renewed_last(self, state: State, clock: ManualClock) -> None:
        ended, renewed, silent, failed = (_claim(state) for _ in range(4))
        minute = timedelta(minutes=1)
        clock.advance(minute)
        state.phase1_jobs.renew(renewed)
        clock.advance(minute)
        state.phase1_jobs.succeed(ended, raw_memory_path=None, summary_hash=None)
        clock.advance(minute)
        state.phase1_jobs.fail(failed, "odd")

        def found(**query: Any) -> list[Phase1Key]:
            return [each.job.key for each in state.work.jobs(JobQuery(**query))]

        assert found() == [lease.key for lease in (failed, ended, renewed, silent)]
        assert [job.key for job in state.phase1_jobs.list()] == found()
        assert found(states=[JobState.CLAIMED]) == [renewed.key, silent.key]
        assert found(states=[JobState.DONE, JobState.FAILED]) == [failed.key, ended.key]
        assert found(since=NOON + 2 * minute) == [failed.key, ended.key]
        assert found(since=NOON + minute, until=NOON + 2 * minute) == [ended.key, renewed.key]

    def test_pages_by_key_hold_every_job_once(self, state: State, clock: ManualClock) -> None:
        leases = _in_every_state(state, clock)
        found: list[Phase1Key] = []
        query = JobQuery(by_key=True, limit=3)
        while page := state.work.jobs(query):
            found += [each.job.key for each in page]
            query = JobQuery(after=found[-1], limit=3)
        assert len(found) == len(leases)
        assert set(found) == {lease.key for lease in leases.values()}

    def test_whoever_holds_something_is_told_with_what_is_left(self, state: State, clock: ManualClock) -> None:
        begun = _claim(state, owner=_SESSION)
        state.phase1_jobs.begin(begun)
        state.consolidation_locks.try_claim(Path("/m/ä"), owner=_SESSION, lease=_HOUR)
        state.named_locks.try_claim("reports", owner="nightly", lease=2 * _HOUR)
        state.backfill.try_claim(owner="builder", lease=_HOUR)
        clock.advance(_HOUR)
        held = {each.kind: each for each in state.work.holdings()}
        assert {kind: (each.owner, each.is_over) for kind, each in held.items()} == {
            WorkKind.JOB: (str(_SESSION), True),
            WorkKind.CONSOLIDATION: (str(_SESSION), True),
            WorkKind.LOCK: ("nightly", False),
            WorkKind.BACKFILL: ("", True),
        }
        assert (held[WorkKind.JOB].since, held[WorkKind.JOB].state) == (NOON, JobState.OVER)
        assert held[WorkKind.CONSOLIDATION].key == "/m/ä"
        assert held[WorkKind.BACKFILL].since == NOON
        assert {each.ends_at for each in held.values()} == {NOON + _HOUR, NOON + 2 * _HOUR}
        assert {each.now for each in held.values()} == {NOON + _HOUR}
        assert state.work.holdings(limit=0) == []

    def test_an_overview_counts_what_stands_how_and_what_was_done_lately(
        self, state: State, clock: ManualClock
    ) -> None:
        leases = _in_every_state(state, clock)
        state.threads.upsert(a_thread(updated_at=NOON - _HOUR, cwd=Path()))
        overview = state.work.overview()
        assert overview.jobs == dict.fromkeys(JobState, 1)
        assert overview.reasons == [("given back", 1), ("too busy", 1), ("too odd", 1)]
        assert (overview.done_lately, overview.failed_lately, overview.crashes) == (1, 3, 0)
        # Each thread with a job has a directory as well, whose job nobody claimed.
        assert (overview.pending, overview.pending_is_complete) == (len(leases) + 1, True)
        assert (overview.oldest_pending, overview.now) == (NOON - _HOUR, NOON + _HOUR)
        assert overview.left == overview.pending + 5
        assert overview.time_left == timedelta(seconds=round(overview.left * 300))
        clock.advance(timedelta(minutes=6))
        later = state.work.overview()
        assert (later.done_lately, later.time_left) == (0, None)
        assert state.work.overview(window=_HOUR).done_lately == 1

    def test_a_newer_version_of_a_thread_is_pending_again(self, state: State, clock: ManualClock) -> None:
        done = _claim(state, cwd=Path())
        state.phase1_jobs.succeed(done, raw_memory_path=None, summary_hash=None)
        assert state.work.overview().pending == 0
        thread = state.threads.get(done.key.thread_id)
        assert thread is not None
        clock.advance(_HOUR)
        state.threads.upsert(thread.model_copy(update={"updated_at": NOON + _HOUR}))
        assert state.work.overview().pending == 1
        assert state.work.overview(sources=["exec"]).pending == 0
