"""The batch claim: which threads are candidates, in which order, and how many."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import literal_column, update
from sqlmodel import col

from codex_state.errors import InvalidInputError
from codex_state.models import Claimed, HolderWrite, MemoryScope, Phase1Key, Phase1Lease, Phase1Status, Thread
from codex_state.models.base import table_of
from codex_state.models.columns import LAST_SECOND, from_epoch_seconds
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_thread

_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_OWNER = UUID(int=1)
_USER = MemoryScope.user()


def _stored(state: State, **values: Any) -> Thread:
    thread = a_thread(**values)
    state.threads.upsert(thread)
    return thread


def _claim(state: State, **options: Any) -> list[Phase1Lease]:
    defaults: dict[str, Any] = {"owner": _OWNER, "lease": _HOUR, "scope_kinds": ["user"]}
    return state.phase1_jobs.claim_candidates(**(defaults | options))


def _claimed_threads(state: State, **options: Any) -> list[UUID]:
    return [lease.key.thread_id for lease in _claim(state, **options)]


def _holds(state: State, thread: Thread, scope: MemoryScope = _USER, source: datetime = NOON) -> Phase1Lease:
    outcome = state.phase1_jobs.try_claim(
        Phase1Key(thread.id, scope), owner=uuid4(), source_updated_at=source, lease=timedelta(0)
    )
    assert isinstance(outcome, Claimed)
    return outcome.lease


_JOBS: dict[str, Callable[[State, Phase1Lease], object]] = {
    "running": lambda _state, _lease: None,
    "succeeded": lambda state, lease: state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None),
    "failed": lambda state, lease: state.phase1_jobs.fail(lease, "broken"),
    "failed, to be retried": lambda state, lease: state.phase1_jobs.fail(lease, "broken", retry_after=_HOUR),
}
_ELSEWHERE = Path("/elsewhere")


def _claims_a_newer_version(state: State, thread: Thread, lease: Phase1Lease, clock: ManualClock) -> None:
    clock.advance(_HOUR)
    outcome = state.phase1_jobs.try_claim(
        lease.key, owner=_OWNER, source_updated_at=thread.updated_at + _SECOND, lease=_HOUR
    )
    assert isinstance(outcome, Claimed)


_EVENTS: dict[str, Callable[[State, Thread, Phase1Lease, ManualClock], object]] = {
    "nothing": lambda *_: None,
    "the thread is updated": lambda state, thread, *_: state.threads.upsert(
        thread.model_copy(update={"updated_at": thread.updated_at + _SECOND})
    ),
    "the directory changes": lambda state, thread, *_: state.threads.upsert_from_rollouts(
        [thread.model_copy(update={"cwd": _ELSEWHERE})]
    ),
    "it is requeued": lambda state, _thread, lease, _clock: state.phase1_jobs.requeue(lease.key),
    "its time comes": lambda _state, _thread, _lease, clock: clock.advance(_HOUR),
    "somebody claims a newer version": _claims_a_newer_version,
}


class TestCandidates:
    """``Phase1JobRepository.claim_candidates``."""

    def test_nothing_to_claim_is_no_leases(self, state: State) -> None:
        assert _claim(state) == []
        _stored(state)
        assert _claim(state, max_threads=0) == []
        assert _claim(state, max_threads=-1) == []
        assert _claim(state, scope_kinds=[]) == []
        assert _claim(state, sources=[]) == []

    def test_each_candidate_gives_one_lease_per_scope(self, state: State) -> None:
        thread = _stored(state, updated_at=NOON - _HOUR, cwd=Path("/code/ä"))
        leases = _claim(state, scope_kinds=["cwd", "user"])
        assert {lease.key.scope for lease in leases} == {MemoryScope.cwd(Path("/code/ä")), _USER}
        for lease in leases:
            assert lease.key.thread_id == thread.id
            assert (lease.owner, lease.attempt, lease.granted_at, lease.duration) == (_OWNER, 1, NOON, _HOUR)
            assert lease.source_updated_at == thread.updated_at
            assert state.phase1_jobs.renew(lease)
        assert len({lease.token for lease in leases}) == 2

    def test_a_thread_whose_time_can_not_be_read_keeps_no_other_from_its_worker(self, state: State) -> None:
        thread = _stored(state, updated_at=from_epoch_seconds(LAST_SECOND))
        _stored(state)
        beyond = str(LAST_SECOND + 1)
        state.session.connection().execute(
            update(table_of(Thread)).where(col(Thread.id) != thread.id).values(updated_at=literal_column(beyond))
        )
        assert _claimed_threads(state) == [thread.id]

    def test_a_lease_of_a_batch_is_as_good_as_any(self, state: State, clock: ManualClock) -> None:
        """L2: fenced after a take-over."""
        _stored(state)
        (lease,) = _claim(state)
        clock.advance(_HOUR)
        (second,) = _claim(state)
        assert second.attempt == 2
        assert state.phase1_jobs.fail(lease, "late") is HolderWrite.LEASE_LOST
        assert state.phase1_jobs.succeed(second, raw_memory_path=Path("/m"), summary_hash="h") is HolderWrite.APPLIED

    def test_the_most_recently_updated_come_first_and_the_limit_cuts_the_rest(self, state: State) -> None:
        threads = [_stored(state, updated_at=NOON - number * _SECOND) for number in range(10)]
        twins = [_stored(state, updated_at=NOON + _SECOND) for _ in range(3)]
        newest_first = sorted((twin.id for twin in twins), key=str, reverse=True) + [thread.id for thread in threads]
        assert _claimed_threads(state, limit=5) == newest_first[:5]
        assert _claimed_threads(state, limit=5) == newest_first[5:10]
        assert _claimed_threads(state) == newest_first[10:]
        assert _claimed_threads(state) == []

    def test_most_threads_counts_threads_and_not_leases(self, state: State) -> None:
        for _ in range(3):
            _stored(state)
        leases = _claim(state, scope_kinds=["cwd", "user"], max_threads=2)
        assert len(leases) == 4
        assert len({lease.key.thread_id for lease in leases}) == 2

    @pytest.mark.parametrize("limit", [0, 1, 3, 4, 10])
    def test_the_limit_counts_leases(self, state: State, limit: int) -> None:
        """Whoever does one piece of work at a time asks for one."""
        for _ in range(3):
            _stored(state)
        taken = []
        while leases := _claim(state, scope_kinds=["cwd", "user"], limit=limit):
            assert len(leases) <= limit
            taken += leases
        assert len({lease.key for lease in taken}) == (6 if limit else 0)

    def test_the_defaults_take_64_threads_of_both_scopes(self, state: State) -> None:
        state.threads.upsert_many([a_thread() for _ in range(70)])
        leases = state.phase1_jobs.claim_candidates(owner=_OWNER, lease=_HOUR)
        assert len(leases) == 128
        assert len({lease.key.thread_id for lease in leases}) == 64

    def test_a_thread_of_exactly_the_maximal_age_is_taken(self, state: State) -> None:
        month = timedelta(days=30)
        kept = _stored(state, updated_at=NOON - month)
        _stored(state, updated_at=NOON - month - _SECOND)
        assert _claimed_threads(state) == [kept.id]

    @pytest.mark.parametrize(
        "values",
        [
            {"archived_at": NOON},
            {"memory_mode": "disabled"},
            {"memory_mode": "polluted"},
            {"memory_mode": "something else"},
            {"source": "exec"},
            {"source": '{"subagent":"review"}'},
            {"updated_at": NOON - timedelta(days=31)},
        ],
    )
    def test_a_thread_that_is_no_candidate_is_left_alone(self, state: State, values: dict[str, Any]) -> None:
        _stored(state, **values)
        candidate = _stored(state, source="vscode")
        assert _claimed_threads(state) == [candidate.id]

    def test_a_thread_without_a_first_message_is_a_candidate(self, state: State) -> None:
        thread = _stored(state, first_user_message=None)
        assert _claimed_threads(state) == [thread.id]

    def test_the_callers_own_thread_is_left_alone(self, state: State) -> None:
        own, other = _stored(state), _stored(state)
        assert _claimed_threads(state, exclude=own.id) == [other.id]

    def test_only_the_asked_home_is_looked_at(self, state: State) -> None:
        _stored(state, home="laptop")
        there = _stored(state, home="server")
        assert _claimed_threads(state, home="server") == [there.id]
        assert _claimed_threads(state, home="nowhere") == []

    def test_several_homes_may_be_looked_at(self, state: State) -> None:
        here, _, there = (_stored(state, home=home) for home in ("laptop", "phone", "server"))
        assert _claimed_threads(state, home=[]) == []
        assert set(_claimed_threads(state, home=["laptop", "server"])) == {here.id, there.id}

    def test_only_the_asked_sources_count(self, state: State) -> None:
        _stored(state, source="cli")
        wanted = [_stored(state, source="exec"), _stored(state, source="mcp")]
        assert set(_claimed_threads(state, sources=["exec", "mcp"])) == {thread.id for thread in wanted}

    def test_a_thread_without_a_directory_has_the_user_scope_only(self, state: State) -> None:
        thread = _stored(state, cwd=Path())
        leases = _claim(state, scope_kinds=["cwd", "user"])
        assert [lease.key for lease in leases] == [Phase1Key(thread.id, _USER)]
        assert _claim(state, scope_kinds=["cwd"]) == []

    def test_an_unknown_scope_kind_is_refused(self, state: State) -> None:
        with pytest.raises(InvalidInputError, match="'team'"):
            _claim(state, scope_kinds=["user", "team"])

    @pytest.mark.parametrize(
        ("case", "claimable"),
        [
            ("fresh", False),
            ("stale", True),
            ("succeeded", False),
            ("succeeded for an older source", True),
            ("failed", False),
            ("failed, to be retried", False),
            ("failed, retry reached", True),
            ("requeued", True),
        ],
    )
    def test_the_rules_are_those_of_a_single_claim(
        self, state: State, clock: ManualClock, case: str, claimable: bool
    ) -> None:
        thread = _stored(state)
        lease = _holds(state, thread, source=NOON - _SECOND if "older" in case else NOON)
        match case:
            case "stale":
                clock.advance(_HOUR)
            case "succeeded" | "succeeded for an older source":
                state.phase1_jobs.succeed(lease, raw_memory_path=Path("/m"), summary_hash="h")
            case "failed":
                state.phase1_jobs.fail(lease, "broken")
            case "failed, to be retried":
                state.phase1_jobs.fail(lease, "broken", retry_after=_SECOND)
            case "failed, retry reached":
                state.phase1_jobs.fail(lease, "broken", retry_after=timedelta(0))
            case "requeued":
                state.phase1_jobs.fail(lease, "broken")
                state.phase1_jobs.requeue(lease.key)
        assert [each.key for each in _claim(state)] == ([lease.key] if claimable else [])

    @pytest.mark.parametrize("way", ["a batch", "one claim"])
    @pytest.mark.parametrize("written", ["by its service", "by its rollout", "by a session"])
    def test_a_thread_that_changes_within_the_second_of_its_extraction_is_taken_up_again(
        self, state: State, way: str, written: str
    ) -> None:
        """Rows store whole seconds; the rest of the time is beside them."""

        def write(microsecond: int) -> None:
            values = {"updated_at": NOON.replace(microsecond=microsecond)}
            if written == "by its rollout":
                state.threads.upsert_from_rollouts([thread.model_copy(update=values)])
            elif written == "by a session" and state.threads.get(thread.id) is not None:
                stored = state.session.get(Thread, thread.id)
                assert stored is not None
                stored.updated_at = values["updated_at"]
                state.session.flush()
                state.session.expunge_all()
            else:
                state.threads.upsert(thread.model_copy(update=values))

        def claim() -> list[Phase1Lease]:
            if way == "a batch":
                return _claim(state)
            key = Phase1Key(thread.id, _USER)
            outcome = state.phase1_jobs.try_claim(key, owner=_OWNER, source_updated_at=NOON, lease=_HOUR)
            return [outcome.lease] if isinstance(outcome, Claimed) else []

        thread = a_thread()
        for microsecond in (100_000, 900_000):
            write(microsecond)
            (lease,) = claim()
            state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
            assert claim() == []
            write(microsecond)
            assert claim() == [], "nothing has changed"

    def test_a_thread_with_one_free_scope_gives_that_scope(self, state: State) -> None:
        thread = _stored(state)
        _holds(state, thread)
        leases = _claim(state, scope_kinds=["cwd", "user"])
        assert [lease.key for lease in leases] == [Phase1Key(thread.id, MemoryScope.cwd(thread.cwd))]

    def test_threads_that_cannot_be_claimed_do_not_use_up_the_limit(self, state: State) -> None:
        held = [_stored(state, updated_at=NOON + _SECOND) for _ in range(5)]
        for thread in held:
            _holds(state, thread, source=thread.updated_at)
        free = _stored(state)
        assert _claimed_threads(state, max_threads=1) == [free.id]

    @pytest.mark.parametrize("kind", ["cwd", "user"])
    def test_threads_updated_under_their_holders_do_not_use_up_the_limit(self, state: State, kind: str) -> None:
        for _ in range(5):
            thread = _stored(state, updated_at=NOON + _SECOND)
            _holds(state, thread, _USER if kind == "user" else MemoryScope.cwd(thread.cwd))
        free = _stored(state)
        assert _claimed_threads(state, max_threads=1, scope_kinds=[kind]) == [free.id]

    def test_the_cap_counts_the_live_leases_of_all_workers(self, state: State) -> None:
        for _ in range(5):
            _stored(state)
        assert len(_claim(state, max_running=3)) == 3
        assert _claim(state, max_running=3) == []
        assert len(_claim(state, max_running=4)) == 1
        assert _claim(state, max_running=0) == []
        assert _claim(state, max_running=-1) == []

    def test_the_cap_counts_leases_and_not_threads(self, state: State) -> None:
        for _ in range(5):
            _stored(state)
        assert len(_claim(state, scope_kinds=["cwd", "user"], max_running=3)) == 3

    def test_a_cap_full_of_stale_leases_blocks_no_take_over(self, state: State, clock: ManualClock) -> None:
        threads = [_stored(state) for _ in range(3)]
        for thread in threads:
            _holds(state, thread)
        clock.advance(_HOUR)
        assert len(_claim(state, max_running=3)) == 3
        assert [job.attempt for job in state.phase1_jobs.list(status=Phase1Status.RUNNING)] == [2, 2, 2]
        assert _claim(state, max_running=3) == []

    @pytest.mark.parametrize("settled", [True, False], ids=["after a look that passed it over", "at the first look"])
    @pytest.mark.parametrize(
        ("job", "event", "claimable"),
        [
            ("succeeded", "nothing", False),
            ("succeeded", "the thread is updated", True),
            ("succeeded", "the directory changes", True),
            ("failed", "nothing", False),
            ("failed", "the thread is updated", False),
            ("failed", "it is requeued", True),
            ("failed", "the directory changes", True),
            ("failed, to be retried", "nothing", False),
            ("failed, to be retried", "its time comes", True),
            ("running", "nothing", False),
            ("running", "its time comes", True),
            ("running", "the thread is updated", False),
            ("running", "somebody claims a newer version", False),
            ("running", "the thread is updated, and its time comes", True),
        ],
    )
    def test_a_thread_that_batch_claims_pass_over_is_found_again(  # noqa: PLR0917 - a table of cases
        self, state: State, clock: ManualClock, job: str, event: str, claimable: bool, settled: bool
    ) -> None:
        """L10: finished threads cost nothing, but no work is forgotten."""
        thread = _stored(state)
        lease = _holds(state, thread, MemoryScope.cwd(thread.cwd))
        _JOBS[job](state, lease)
        if settled:
            assert _claim(state, scope_kinds=["cwd"]) == []
            assert _claim(state, scope_kinds=["cwd"]) == []
        for part in event.split(", and "):
            _EVENTS[part](state, thread, lease, clock)
        assert len(_claim(state, scope_kinds=["cwd"])) == claimable

    def test_a_thread_that_one_kind_of_scope_is_done_with_is_open_to_the_other(self, state: State) -> None:
        thread = _stored(state)
        (lease,) = _claim(state, scope_kinds=["user"])
        state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
        assert _claim(state, scope_kinds=["user"]) == []
        assert [each.key.scope for each in _claim(state)] == []
        assert [each.key.scope for each in _claim(state, scope_kinds=["cwd"])] == [MemoryScope.cwd(thread.cwd)]
        assert _claim(state, scope_kinds=["cwd", "user"]) == []

    def test_a_newer_claim_that_was_given_up_is_taken_over_though_the_thread_looked_done(
        self, state: State, clock: ManualClock
    ) -> None:
        """The thread's row may never learn of the version that the dead worker saw."""
        thread = _stored(state)
        lease = _holds(state, thread)
        state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
        assert _claim(state) == []
        _holds(state, thread, source=thread.updated_at + _SECOND)
        assert _claim(state) == []
        clock.advance(_HOUR)
        assert _claimed_threads(state) == [thread.id]

    @pytest.mark.parametrize("kind", ["cwd", "user"])
    @pytest.mark.parametrize("before", ["running", "failed, to be retried", "requeued"])
    def test_a_version_that_a_claim_of_an_older_one_left_behind_is_found(
        self, state: State, clock: ManualClock, before: str, kind: str
    ) -> None:
        """L10: who claims a thread by its key may have read it a while ago, and no work is forgotten."""
        thread = _stored(state)
        (lease,) = _claim(state, scope_kinds=[kind])
        if before == "requeued":
            state.phase1_jobs.fail(lease, "broken")
        else:
            _JOBS[before](state, lease)
        assert _claim(state, scope_kinds=[kind]) == []
        clock.advance(_HOUR)
        state.phase1_jobs.requeue(lease.key)
        older = thread.updated_at - _SECOND
        taken = state.phase1_jobs.try_claim(lease.key, owner=_OWNER, source_updated_at=older, lease=_HOUR)
        assert isinstance(taken, Claimed)
        assert (taken.lease.source_updated_at, taken.lease.attempt) == (older, 2)
        assert _claim(state, scope_kinds=[kind]) == []
        state.phase1_jobs.succeed(taken.lease, raw_memory_path=None, summary_hash=None)
        (latest,) = _claim(state, scope_kinds=[kind])
        assert (latest.key, latest.source_updated_at) == (lease.key, thread.updated_at)
