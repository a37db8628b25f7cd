"""Take-overs from dead processes: at once, and from nobody else (laws L1 and L2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from codex_state.models import (
    BackfillState,
    BackfillStatus,
    Claimed,
    ConsolidationLock,
    MemoryScope,
    Phase1Job,
    Phase1Key,
    Phase1Lease,
    Phase1Status,
    Skipped,
    SkipReason,
    Thread,
)
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.processes import ELSEWHERE, HERE, ManualProcesses, a_process
from codex_state.testing.samples import NOON, a_thread

_LEASE = timedelta(seconds=90)
_HELD_FOR = timedelta(seconds=60)
_SECOND = timedelta(seconds=1)
_THREAD = UUID(int=7)
_KEY = Phase1Key(_THREAD, MemoryScope.user())
_ROOT = Path("/memories")
_RUNNING = Skipped(SkipReason.RUNNING)
_EVERY_KIND = pytest.mark.parametrize("kind", ["job", "lock", "backfill", "backfill again"])


def _try_claim(state: State, kind: str, *, owner: int = 1, lease: timedelta = _LEASE) -> Any:
    match kind:
        case "job":
            return state.phase1_jobs.try_claim(_KEY, owner=UUID(int=owner), source_updated_at=NOON, lease=lease)
        case "lock":
            return state.consolidation_locks.try_claim(_ROOT, owner=UUID(int=owner), lease=lease)
    return state.backfill.try_claim(lease=lease, again=kind == "backfill again")


def _claim(state: State, kind: str, **options: Any) -> Any:
    claim = _try_claim(state, kind, **options)
    assert isinstance(claim, Claimed)
    return claim.lease


def _row(state: State, kind: str) -> Any:
    match kind:
        case "job":
            row: Any = state.phase1_jobs.get(_KEY)
        case "lock":
            row = state.consolidation_locks.get(_ROOT)
        case _:
            row = state.backfill.get()
    assert row is not None
    return row


def _renew(state: State, kind: str, lease: Any) -> bool:
    repositories: dict[str, Any] = {"job": state.phase1_jobs, "lock": state.consolidation_locks}
    return bool(repositories.get(kind, state.backfill).renew(lease))


def _owner_of(row: Any) -> tuple[str, str | None, int]:
    return row.owner_name, row.owner_process, row.lease_seconds


def _hold(state: State, processes: ManualProcesses, kind: str) -> Any:
    """Have process 1 hold work, and process 2 be at work."""
    state.threads.upsert(a_thread(id=_THREAD))
    processes.become(1)
    lease = _claim(state, kind, owner=1, lease=_HELD_FOR)
    processes.become(2)
    return lease


_BY_TWO: dict[str, Any] = {"owner_name": "here process 2", "owner_process": f"{HERE}:2:0", "lease_seconds": 90}


def _leave_behind(state: State, thread: Thread, processes: ManualProcesses) -> None:
    """A running job of process 1, which is dead, as no claim would leave it. Process 2 is at work."""
    state.session.add(
        Phase1Job(
            thread_id=thread.id,
            scope_kind="user",
            scope_key="user",
            status=Phase1Status.RUNNING,
            owner_session_id=UUID(int=1),
            started_at=NOON - _SECOND,
            finished_at=NOON - _LEASE,
            failure_reason="an earlier failure",
            source_updated_at=NOON - _SECOND,
            raw_memory_path=Path("/earlier"),
            summary_hash="earlier",
            ownership_token=f"earlier token of {thread.id}",
            attempt=7,
            retry_at=NOON + _LEASE,
            owner_name="here process 1",
            owner_process=f"{HERE}:1:0",
            lease_seconds=60,
        )
    )
    state.session.flush()
    state.session.expunge_all()
    processes.kill(a_process(1))
    processes.become(2)


def _try_claim_job(state: State, thread: Thread, scope: MemoryScope) -> None:
    claim = state.phase1_jobs.try_claim(
        Phase1Key(thread.id, scope), owner=UUID(int=1), source_updated_at=thread.updated_at, lease=_LEASE
    )
    assert isinstance(claim, Claimed)


def _taken_over(lease: Phase1Lease) -> Phase1Job:
    return Phase1Job(
        thread_id=_THREAD,
        scope_kind="user",
        scope_key="user",
        status=Phase1Status.RUNNING,
        owner_session_id=UUID(int=2),
        started_at=NOON,
        source_updated_at=NOON,
        ownership_token=lease.token,
        attempt=8,
        **_BY_TWO,
    )


_WAYS: dict[str, Callable[[State, Any], object]] = {
    "job claim": lambda state, _: _claim(state, "job", owner=2),
    "job renewal": lambda state, lease: state.phase1_jobs.renew(lease),
    "lock claim": lambda state, _: _claim(state, "lock", owner=2),
    "lock renewal": lambda state, lease: state.consolidation_locks.renew(lease),
    "backfill claim": lambda state, _: _claim(state, "backfill"),
    "backfill claim again": lambda state, _: state.backfill.try_claim(lease=_LEASE, again=True),
    "backfill claim to refresh": lambda state, _: state.backfill.try_claim(lease=_LEASE, refresh=True),
    "backfill by force": lambda state, _: state.backfill.take_over(lease=_LEASE),
    "backfill by force from the start": lambda state, _: state.backfill.take_over(lease=_LEASE, from_the_start=True),
    "backfill renewal": lambda state, lease: state.backfill.renew(lease),
    "backfill checkpoint": lambda state, lease: state.backfill.checkpoint(lease, "sessions/a"),
}
"""Ways to come to a lease that process 1 held, or to prolong it."""


class TestDeadOwners:
    """The claims of jobs, locks and backfills, whose holders die."""

    @_EVERY_KIND
    def test_who_holds_it_is_in_the_row(self, state: State, processes: ManualProcesses, kind: str) -> None:
        _hold(state, processes, kind)
        assert _owner_of(_row(state, kind)) == ("here process 1", f"{HERE}:1:0", 60)

    @_EVERY_KIND
    def test_who_renews_it_is_in_the_row(self, state: State, processes: ManualProcesses, kind: str) -> None:
        assert _renew(state, kind, _hold(state, processes, kind))
        assert _owner_of(_row(state, kind)) == ("here process 2", f"{HERE}:2:0", 60)

    @pytest.mark.parametrize("way", _WAYS)
    def test_whoever_takes_or_prolongs_a_lease_writes_every_column_of_its_owner_anew(
        self, state: State, processes: ManualProcesses, clock: ManualClock, way: str
    ) -> None:
        kind = way.partition(" ")[0]
        lease = _hold(state, processes, kind)
        clock.advance(_LEASE)
        _WAYS[way](state, replace(lease, duration=_LEASE))
        assert _owner_of(_row(state, kind)) == ("here process 2", f"{HERE}:2:0", 90)

    def test_a_backfill_is_named_as_it_was_claimed(self, state: State, processes: ManualProcesses) -> None:
        processes.become(3)
        lease = state.backfill.take_over(owner="indexer", lease=_LEASE)
        for prolonged in (state.backfill.renew(lease), state.backfill.checkpoint(lease, "sessions/a")):
            assert prolonged
            assert _row(state, "backfill").owner_name == "here process 3 (indexer)"

    @_EVERY_KIND
    def test_what_a_dead_process_of_this_host_held_is_taken_over_at_once(
        self, state: State, processes: ManualProcesses, kind: str
    ) -> None:
        """L2: and its lease is void."""
        stale = _hold(state, processes, kind)
        processes.kill(a_process(1))
        lease = _claim(state, kind, owner=2)
        assert _row(state, kind).ownership_token == lease.token != stale.token
        assert not _renew(state, kind, stale)

    def test_nothing_of_the_dead_stays_in_a_job(self, state: State, processes: ManualProcesses) -> None:
        thread = a_thread(id=_THREAD)
        state.threads.upsert(thread)
        _leave_behind(state, thread, processes)
        lease = _claim(state, "job", owner=2)
        assert _row(state, "job") == _taken_over(lease)

    def test_nothing_of_the_dead_stays_in_a_lock(
        self, state: State, processes: ManualProcesses, clock: ManualClock
    ) -> None:
        _hold(state, processes, "lock")
        processes.kill(a_process(1))
        clock.advance(_SECOND)
        lease = _claim(state, "lock", owner=2)
        assert _row(state, "lock") == ConsolidationLock(
            cwd=_ROOT,
            working_thread_id=UUID(int=2),
            updated_at=NOON + _SECOND,
            ownership_token=lease.token,
            **_BY_TWO,
        )

    @_EVERY_KIND
    def test_what_a_living_process_holds_is_not(
        self, state: State, processes: ManualProcesses, clock: ManualClock, kind: str
    ) -> None:
        _hold(state, processes, kind)
        processes.kill(a_process(3))
        clock.advance(_HELD_FOR - _SECOND)
        before = _row(state, kind)
        assert _try_claim(state, kind, owner=2) == _RUNNING
        assert _row(state, kind) == before

    @_EVERY_KIND
    def test_who_is_on_another_host_cannot_be_judged(
        self, state: State, processes: ManualProcesses, clock: ManualClock, kind: str
    ) -> None:
        """The lease decides, as it does for who doesn't know where it is."""
        _hold(state, processes, kind)
        processes.kill(a_process(1))
        clock.advance(_HELD_FOR - _SECOND)
        for host in (ELSEWHERE, None):
            processes.become(2, host)
            assert _try_claim(state, kind, owner=2) == _RUNNING
        clock.advance(_SECOND)
        _claim(state, kind, owner=2)

    @_EVERY_KIND
    def test_who_has_no_identity_cannot_be_judged(
        self, state: State, processes: ManualProcesses, clock: ManualClock, kind: str
    ) -> None:
        state.threads.upsert(a_thread(id=_THREAD))
        processes.become(1, None)
        _claim(state, kind)
        assert _owner_of(_row(state, kind)) == ("nowhere process 1", None, 90)
        processes.kill(a_process(1))
        processes.become(2)
        assert _try_claim(state, kind, owner=2) == _RUNNING
        clock.advance(_LEASE)
        _claim(state, kind, owner=2)

    @_EVERY_KIND
    def test_a_lease_that_was_renewed_in_another_process_outlives_the_first(
        self, state: State, processes: ManualProcesses, kind: str
    ) -> None:
        assert _renew(state, kind, _hold(state, processes, kind))
        processes.kill(a_process(1))
        processes.become(3)
        assert _try_claim(state, kind, owner=3) == _RUNNING

    @_EVERY_KIND
    def test_of_two_that_find_the_holder_dead_one_takes_over(
        self, state: State, processes: ManualProcesses, kind: str
    ) -> None:
        """L1: the other comes when the first has judged and not yet claimed, and then it is the other's."""
        _hold(state, processes, kind)
        processes.kill(a_process(1))

        def another_takes_over() -> None:
            processes.become(3)
            _claim(state, kind, owner=3)
            processes.become(2)

        processes.meanwhile = another_takes_over
        assert _try_claim(state, kind, owner=2) == _RUNNING
        assert _owner_of(_row(state, kind)) == ("here process 3", f"{HERE}:3:0", 90)

    @_EVERY_KIND
    def test_work_that_is_given_back_after_the_judgement_is_not_taken_for_held(
        self, state: State, processes: ManualProcesses, kind: str
    ) -> None:
        """L1: what was finished in between is for a claim of its own to decide."""
        lease = _hold(state, processes, kind)
        processes.kill(a_process(1))
        finish: dict[str, Callable[[], object]] = {
            "job": lambda: state.phase1_jobs.fail(lease, "broken"),
            "lock": lambda: state.consolidation_locks.release(lease),
        }
        processes.meanwhile = finish.get(kind, lambda: state.backfill.complete(lease))
        assert isinstance(_try_claim(state, kind, owner=2), Claimed) is (kind == "lock")

    def test_a_dead_holder_of_an_older_version_is_taken_over_for_any_version(
        self, state: State, processes: ManualProcesses
    ) -> None:
        _hold(state, processes, "job")
        state.threads.upsert(a_thread(id=_THREAD, updated_at=NOON + _SECOND))
        processes.kill(a_process(1))
        _claim(state, "job", owner=2)

    def test_a_thread_that_gets_newer_after_the_judgement_is_not_taken_over_for_its_old_version(
        self, state: State, processes: ManualProcesses
    ) -> None:
        """Batch claims would take it for settled."""
        _hold(state, processes, "job")
        processes.kill(a_process(1))
        processes.meanwhile = lambda: state.threads.upsert(a_thread(id=_THREAD, updated_at=NOON + _SECOND))
        assert _try_claim(state, "job", owner=2) == _RUNNING
        _claim(state, "job", owner=2)

    def test_a_take_over_from_the_dead_concerns_its_own_job_only(
        self, state: State, processes: ManualProcesses
    ) -> None:
        _hold(state, processes, "job")
        other = a_thread()
        state.threads.upsert(other)
        processes.kill(a_process(1))
        _claim(state, "job", owner=2)
        assert [job.thread_id for job in state.phase1_jobs.list()] == [_THREAD]

    @pytest.mark.parametrize("newer", [True, False])
    def test_failures_before_the_death_count_for_their_version(
        self, state: State, processes: ManualProcesses, newer: bool
    ) -> None:
        state.phase1_jobs.fail(_hold(state, processes, "job"), "broken", retry_after=timedelta(0))
        assert _claim(state, "job", owner=2).failures == 1
        processes.kill(a_process(2))
        processes.become(3)
        source = NOON + _SECOND if newer else NOON
        state.threads.upsert(a_thread(id=_THREAD, updated_at=source))
        taken = state.phase1_jobs.try_claim(_KEY, owner=UUID(int=3), source_updated_at=source, lease=_LEASE)
        assert isinstance(taken, Claimed)
        assert taken.lease.failures == (0 if newer else 1)

    def test_what_a_dead_process_finished_stays_finished(self, state: State, processes: ManualProcesses) -> None:
        state.phase1_jobs.succeed(_hold(state, processes, "job"), raw_memory_path=None, summary_hash=None)
        state.backfill.complete(_hold(state, processes, "backfill"))
        processes.kill(a_process(1))
        assert _try_claim(state, "job") == _try_claim(state, "backfill") == Skipped(SkipReason.UP_TO_DATE)
        assert state.phase1_jobs.claim_candidates(owner=UUID(int=2), lease=_LEASE, scope_kinds=["user"]) == []

    def test_a_take_over_of_a_lock_or_backfill_concerns_no_other(
        self, state: State, processes: ManualProcesses
    ) -> None:
        for kind in ("lock", "backfill"):
            _hold(state, processes, kind)
        processes.become(1)
        others = [
            state.consolidation_locks.try_claim(_ROOT / "other", owner=UUID(int=1), lease=_LEASE),
            state.backfill.try_claim("other", lease=_LEASE),
        ]
        processes.become(2)
        processes.kill(a_process(1))
        for kind in ("lock", "backfill"):
            _claim(state, kind, owner=2)
        rows: list[Any] = [state.consolidation_locks.get(_ROOT / "other"), state.backfill.get("other")]
        tokens = [claim.lease.token for claim in others if isinstance(claim, Claimed)]
        assert [row.ownership_token for row in rows] == tokens

    @pytest.mark.parametrize("claim", [{"again": True}, {"refresh": True}, {}], ids=["again", "refresh", "as it is"])
    def test_a_backfill_of_the_dead_goes_on_where_it_stopped_or_from_the_start(
        self, state: State, processes: ManualProcesses, clock: ManualClock, claim: dict[str, Any]
    ) -> None:
        state.backfill.checkpoint(_hold(state, processes, "backfill"), "sessions/a")
        processes.kill(a_process(2))
        processes.become(3)
        clock.advance(_SECOND)
        taken = state.backfill.try_claim(owner="again", lease=_LEASE, **claim)
        assert isinstance(taken, Claimed)
        watermark = None if claim.get("again") else "sessions/a"
        assert taken.lease.last_watermark == watermark
        assert state.backfill.get() == BackfillState(
            status=BackfillStatus.RUNNING,
            last_watermark=watermark,
            updated_at=NOON + _SECOND,
            ownership_token=taken.lease.token,
            claimed_at=NOON + _SECOND,
            owner_name="here process 3 (again)",
            owner_process=f"{HERE}:3:0",
            lease_seconds=90,
        )


class TestDeadOwnersOfBatches:
    """``Phase1JobRepository.claim_candidates`` beside jobs of dead processes."""

    def test_a_batch_is_filled_with_what_the_dead_hold(self, state: State, processes: ManualProcesses) -> None:
        """After all that can be claimed anyway; what the living and other hosts hold stays theirs."""
        number = 0

        def threads(count: int) -> set[UUID]:
            nonlocal number
            made = [a_thread(updated_at=NOON - timedelta(seconds=number + at)) for at in range(count)]
            number += count
            state.threads.upsert_many(made)
            return {thread.id for thread in made}

        def claim(limit: int) -> set[UUID]:
            leases = state.phase1_jobs.claim_candidates(
                owner=UUID(int=1), lease=_LEASE, limit=limit, scope_kinds=["user"]
            )
            rows = [state.phase1_jobs.get(lease.key) for lease in leases]
            assert [row and row.ownership_token for row in rows] == [lease.token for lease in leases]
            return {lease.key.thread_id for lease in leases}

        of_one, of_two = threads(3), threads(2)
        processes.become(1)
        assert claim(3) == of_one
        processes.become(2)
        assert claim(2) == of_two
        elsewhere, unknown, free = threads(1), threads(1), threads(2)
        processes.become(1, ELSEWHERE)
        assert claim(1) == elsewhere
        processes.become(1, None)
        assert claim(1) == unknown
        processes.kill(a_process(1))
        processes.kill(a_process(1, ELSEWHERE))
        processes.become(3)
        first = claim(3)
        assert free < first
        assert first - free < of_one
        assert first | claim(64) == free | of_one
        assert claim(64) == set()
        processes.kill(a_process(2))
        assert claim(64) == of_two

    def test_nothing_of_the_dead_stays_in_a_job(self, state: State, processes: ManualProcesses) -> None:
        thread = a_thread(id=_THREAD)
        state.threads.upsert(thread)
        _leave_behind(state, thread, processes)
        (lease,) = state.phase1_jobs.claim_candidates(owner=UUID(int=2), lease=_LEASE, scope_kinds=["user"])
        assert _row(state, "job") == _taken_over(lease)

    @pytest.mark.parametrize(
        "scope", [MemoryScope.user(), MemoryScope.cwd(Path("/code"))], ids=lambda scope: scope.kind
    )
    def test_threads_with_nothing_to_take_over_take_no_room(
        self, state: State, processes: ManualProcesses, scope: MemoryScope
    ) -> None:
        """Though they are looked at, as they changed while their job runs; and so does the one that is left out."""
        dead, left_out = a_thread(), a_thread(updated_at=NOON + 9 * _SECOND)
        living = [a_thread(updated_at=NOON + (number + 1) * _SECOND) for number in range(3)]
        state.threads.upsert_many([dead, left_out, *living])
        for thread in (dead, left_out):
            _try_claim_job(state, thread, scope)
        processes.become(2)
        for thread in living:
            _try_claim_job(state, thread, scope)
        state.threads.upsert_many([a_thread(id=each.id, updated_at=NOON + 5 * _SECOND) for each in living])
        processes.kill(a_process(1))
        processes.become(3)
        leases = state.phase1_jobs.claim_candidates(
            owner=UUID(int=3), lease=_LEASE, limit=1, scope_kinds=[scope.kind], exclude=left_out.id
        )
        assert [lease.key.thread_id for lease in leases] == [dead.id]

    @pytest.mark.parametrize(
        "living", [MemoryScope.user(), MemoryScope.cwd(Path("/elsewhere")), MemoryScope("user", "/code")]
    )
    def test_a_job_that_a_living_process_holds_blocks_no_other_of_its_thread(
        self, state: State, processes: ManualProcesses, living: MemoryScope
    ) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        for number, scope in enumerate([MemoryScope.cwd(thread.cwd), living], start=1):
            processes.become(number)
            _try_claim_job(state, thread, scope)
        processes.kill(a_process(1))
        processes.become(3)
        leases = state.phase1_jobs.claim_candidates(owner=UUID(int=3), lease=_LEASE)
        scopes = {lease.key.scope for lease in leases}
        assert MemoryScope.cwd(thread.cwd) in scopes
        assert living not in scopes

    @pytest.mark.parametrize("scopes", [["cwd"], ["user"], ["cwd", "user"]])
    def test_every_scope_of_the_dead_is_taken_over(
        self, state: State, processes: ManualProcesses, scopes: list[str]
    ) -> None:
        state.threads.upsert_many([a_thread() for _ in range(20)])

        def claim(limit: int) -> int:
            leases = state.phase1_jobs.claim_candidates(
                owner=UUID(int=1), lease=_LEASE, max_threads=limit, scope_kinds=scopes
            )
            return len(leases)

        assert claim(64) == 20 * len(scopes)
        processes.kill(a_process(1))
        processes.become(2)
        assert [claim(limit) for limit in (1, 3, 64, 64)] == [count * len(scopes) for count in (1, 3, 16, 0)]

    @pytest.mark.parametrize("newer", [True, False])
    def test_failures_before_the_death_count_for_their_version(
        self, state: State, processes: ManualProcesses, newer: bool
    ) -> None:
        thread = a_thread()
        state.threads.upsert(thread)

        def claim() -> int:
            (lease,) = state.phase1_jobs.claim_candidates(owner=UUID(int=1), lease=_LEASE, scope_kinds=["user"])
            if processes.this() == a_process(1) and lease.attempt == 1:
                state.phase1_jobs.fail(lease, "broken", retry_after=timedelta(0))
            return lease.failures

        assert (claim(), claim()) == (0, 1)
        processes.kill(a_process(1))
        processes.become(2)
        if newer:
            state.threads.upsert(a_thread(id=thread.id, updated_at=NOON + _SECOND))
        assert claim() == (0 if newer else 1)

    def test_leases_of_the_dead_count_for_no_cap(self, state: State, processes: ManualProcesses) -> None:
        state.threads.upsert_many([a_thread() for _ in range(5)])

        def claim() -> int:
            leases = state.phase1_jobs.claim_candidates(
                owner=UUID(int=1), lease=_LEASE, scope_kinds=["user"], max_running=2
            )
            return len(leases)

        assert (claim(), claim()) == (2, 0)
        processes.become(2)
        assert claim() == 0
        processes.kill(a_process(1))
        assert (claim(), claim()) == (2, 0)
        processes.kill(a_process(2))
        processes.become(3)
        assert claim() == 2
