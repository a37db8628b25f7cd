"""A Hypothesis state machine that runs the rules of leases beside real stores.

Several workers claim, steal, renew, finish, fail and write, also with leases they lost long ago, while the clock jumps
and processes die. After every step each store must have given the answer of the model, and hold exactly its rows
(laws L1, L2, L4, L9).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from codex_state.errors import ThreadNotFoundError
from codex_state.models import MemoryScope, Phase1Key
from codex_state.models.columns import to_epoch_seconds
from codex_state.processes import Owner
from codex_state.runtime import State
from codex_state.testing import lease_model as model
from codex_state.testing.lease_stores import Grant, Store, StoresBesideModel
from codex_state.testing.processes import ELSEWHERE, HERE
from codex_state.testing.samples import NOON, a_thread

__all__ = ["LeaseMachine", "Store", "check_leases", "lease_machine"]

THREADS = tuple(UUID(int=number) for number in (1, 2))
OWNERS = tuple(UUID(int=number) for number in (101, 102, 103))
CWD = Path("/code")
SCOPES = (MemoryScope.cwd(CWD), MemoryScope.user())
KEYS = tuple(Phase1Key(thread, scope) for thread in THREADS for scope in SCOPES)
ROOTS = (Path("/memories/one"), Path("/memories/user"))

keys = st.sampled_from(KEYS)
owners = st.sampled_from(OWNERS)
roots = st.sampled_from(ROOTS)
scopes = st.sampled_from(SCOPES)
leases = st.sampled_from([-5, 0, 1, 10, 3600])
sources = st.integers(0, 3)
texts = st.sampled_from(["one", "two", "naïve → 数据"])
watermarks = st.sampled_from(["archived_sessions/a", "sessions/b", "sessions/c", "sessions/é", "sessions/\U0001d537"])
processes = st.integers(1, 3)
hosts = st.sampled_from([HERE, HERE, ELSEWHERE, None])
jumps = st.sampled_from([-3600, -1, 1, 9, 10, 11, 3599, 3600, 3601])


def _moment(seconds: int) -> datetime:
    return NOON + timedelta(seconds=seconds)


class LeaseMachine(StoresBesideModel):
    """The machine. Use ``lease_machine`` to give it stores."""

    job_grants: Bundle[Grant] = Bundle("job_grants")
    lock_grants: Bundle[Grant] = Bundle("lock_grants")
    backfill_grants: Bundle[Grant] = Bundle("backfill_grants")
    marks: Bundle[tuple[MemoryScope, int]] = Bundle("marks")

    @initialize()
    def begin(self) -> None:
        """Start from empty tables, at noon, with two threads."""
        self.start_afresh()
        for thread in THREADS:
            self.add_thread(thread)

    # Time and threads

    @rule(seconds=jumps)
    def jump(self, seconds: int) -> None:
        """Let time pass, or turn the clock back."""
        self.now += seconds
        for store in self.stores:
            store.clock.advance(timedelta(seconds=seconds))

    @rule(thread=st.sampled_from(THREADS))
    def delete_thread(self, thread: UUID) -> None:
        """Delete a thread: its jobs and memories go with it, leases on them are lost, and its scopes are dirty."""
        self.agree(thread in self.rows.threads, lambda state, _: state.threads.delete(thread))
        model.mark_all_dirty(
            self.rows.marks, [key.scope for key in self.rows.memories if key.thread_id == thread], self.now
        )
        self.rows.threads.discard(thread)
        for key in [key for key in self.rows.jobs if key.thread_id == thread]:
            del self.rows.jobs[key]
        for key in [key for key in self.rows.memories if key.thread_id == thread]:
            del self.rows.memories[key]

    @rule(thread=st.sampled_from(THREADS))
    def add_thread(self, thread: UUID) -> None:
        """Give a deleted thread a row again."""
        self.agree(
            thread not in self.rows.threads,
            lambda state, _: state.threads.insert_if_absent(a_thread(id=thread, cwd=CWD)),
        )
        self.rows.threads.add(thread)

    # Processes

    @rule(number=processes, host=hosts)
    def go_on_as(self, number: int, host: str | None) -> None:
        """Go on as another living process, of this host or another, or as one that can't be judged."""
        self.process = self.processes.become(number, host)
        while self.process.process in self.dead:
            number += 3
            self.process = self.processes.become(number, host)

    @rule(number=processes, host=hosts)
    def die(self, number: int, host: str | None) -> None:
        """Have the process at work die. Its leases may be renewed all the same: it may have passed them on."""
        self.processes.kill(self.process)
        if self.process.process is not None:
            self.dead.add(self.process.process)
        self.go_on_as(number, host)

    @property
    def known_dead(self) -> set[str]:
        """The dead on the host of the process at work."""
        return {process for process in self.dead if self.processes.is_dead(process)}

    # Extraction jobs

    @rule(target=job_grants, key=keys, owner=owners, source=sources, lease=leases, crashes=st.sampled_from([1, 2, 3]))
    def claim_job(self, key: Phase1Key, owner: UUID, source: int, lease: int, crashes: int) -> Any:
        """Claim a job, or steal it."""
        if key.thread_id not in self.rows.threads:
            return self._claim_without_thread(key, owner)
        token = self.new_token()
        job, expected = model.claim_job(
            self.rows.jobs.get(key),
            owner=str(owner),
            token=token,
            source=to_epoch_seconds(_moment(source)),
            lease=lease,
            now=self.now,
            crashes_allowed=crashes,
            by=self.process,
            dead=self.known_dead,
        )
        grant = self.claim(
            key,
            expected,
            token,
            lambda state, _: state.phase1_jobs.try_claim(
                key,
                owner=owner,
                source_updated_at=_moment(source),
                lease=timedelta(seconds=lease),
                crashes_allowed=crashes,
            ),
        )
        self.keep(self.rows.jobs, key, job)
        return grant

    def _claim_without_thread(self, key: Phase1Key, owner: UUID) -> Any:
        def claim(state: State, _: int) -> Any:
            try:
                return state.phase1_jobs.try_claim(key, owner=owner, source_updated_at=NOON, lease=timedelta(0))
            except ThreadNotFoundError:
                return "no thread"

        self.agree("no thread", claim)
        return multiple()

    @rule(grant=job_grants)
    def renew_job(self, grant: Grant) -> None:
        """Renew a lease, held or lost."""
        job, outcome = model.renew_job(self.rows.jobs.get(grant.key), grant.token, self.now, self.process)
        self.agree(outcome, lambda state, n: state.phase1_jobs.renew(grant.leases[n]))
        self.keep(self.rows.jobs, grant.key, job)

    @rule(grant=job_grants)
    def begin_job(self, grant: Grant) -> None:
        """Begin the work of a job."""
        job, outcome = model.begin_job(self.rows.jobs.get(grant.key), grant.token, self.now, self.process)
        self.agree(outcome, lambda state, n: state.phase1_jobs.begin(grant.leases[n]))
        self.keep(self.rows.jobs, grant.key, job)

    @rule(grant=job_grants, text=texts)
    def succeed_job(self, grant: Grant, text: str) -> None:
        """Finish a job."""
        job, outcome = model.succeed_job(self.rows.jobs.get(grant.key), grant.token, "/raw.md", text, self.now)
        self.agree(
            outcome,
            lambda state, n: state.phase1_jobs.succeed(
                grant.leases[n], raw_memory_path=Path("/raw.md"), summary_hash=text
            ),
        )
        self.keep(self.rows.jobs, grant.key, job)

    @rule(grant=job_grants, text=texts, retry=st.sampled_from([None, 0, 10]))
    def fail_job(self, grant: Grant, text: str, retry: int | None) -> None:
        """Fail a job, for good or until later."""
        job, outcome = model.fail_job(self.rows.jobs.get(grant.key), grant.token, text, retry, self.now)
        after = None if retry is None else timedelta(seconds=retry)
        self.agree(outcome, lambda state, n: state.phase1_jobs.fail(grant.leases[n], text, retry_after=after))
        self.keep(self.rows.jobs, grant.key, job)

    @rule(grant=job_grants, text=texts)
    def release_job(self, grant: Grant, text: str) -> None:
        """Give a job back."""
        job, outcome = model.release_job(self.rows.jobs.get(grant.key), grant.token, text, self.now)
        self.agree(outcome, lambda state, n: state.phase1_jobs.release(grant.leases[n], text))
        self.keep(self.rows.jobs, grant.key, job)

    @rule(key=keys)
    def requeue_job(self, key: Phase1Key) -> None:
        """Have a job tried again that failed or was left behind."""
        job, outcome = model.requeue_job(self.rows.jobs.get(key), self.now, dead=self.known_dead)
        self.agree(outcome, lambda state, _: state.phase1_jobs.requeue(key))
        self.keep(self.rows.jobs, key, job)

    # Memories

    @rule(grant=job_grants, raw=texts, summary=texts)
    def write_memory_if_owner(self, grant: Grant, raw: str, summary: str) -> None:
        """Write a memory as the holder of its job."""
        if grant.key.thread_id not in self.rows.threads:
            return
        memory, outcome = model.write_memory_if_owner(
            self.rows.memories.get(grant.key),
            self.rows.jobs.get(grant.key),
            grant.token,
            raw_memory=raw,
            memory_summary=summary,
            now=self.now,
        )
        self.agree(outcome, lambda state, n: state.thread_memories.upsert_if_owner(grant.leases[n], raw, summary))
        self.keep(self.rows.memories, grant.key, memory)
        if outcome:
            model.mark_all_dirty(self.rows.marks, [grant.key.scope], self.now)

    @rule(key=keys, raw=texts, summary=texts)
    def write_memory(self, key: Phase1Key, raw: str, summary: str) -> None:
        """Write a memory whoever holds its job."""
        if key.thread_id not in self.rows.threads:
            return
        memory = model.write_memory(self.rows.memories.get(key), raw, summary, self.now)
        self.agree(
            memory.updated_at,
            lambda state, _: to_epoch_seconds(
                state.thread_memories.upsert_for_scope(key.thread_id, key.scope, raw, summary).updated_at
            ),
        )
        self.rows.memories[key] = memory
        model.mark_all_dirty(self.rows.marks, [key.scope], self.now)

    # Scopes

    @rule(target=marks, scope=scopes)
    def mark_dirty(self, scope: MemoryScope) -> tuple[MemoryScope, int]:
        """Note something new in a scope."""
        mark = model.mark_dirty(self.rows.marks.get(scope), self.now)
        self.agree(mark.updated_at, lambda state, _: to_epoch_seconds(state.memory_scopes.mark_dirty(scope)))
        self.rows.marks[scope] = mark
        return scope, mark.updated_at

    @rule(seen=marks)
    def mark_clean(self, seen: tuple[MemoryScope, int]) -> None:
        """Note that a scope is consolidated up to a mark, whoever holds a lock."""
        self._mark_clean(seen, None)

    @rule(seen=marks, grant=lock_grants)
    def mark_clean_under_lock(self, seen: tuple[MemoryScope, int], grant: Grant) -> None:
        """The same as the holder of a lock, held or lost."""
        self._mark_clean(seen, grant)

    def _mark_clean(self, seen: tuple[MemoryScope, int], grant: Grant | None) -> None:
        scope, seconds = seen
        lock = None if grant is None else self.rows.locks.get(grant.key)
        still_locked = grant is None or (lock is not None and lock.token == grant.token)
        mark, expected = model.mark_clean(self.rows.marks.get(scope), seconds, still_locked=still_locked)
        moment = _moment(seconds - to_epoch_seconds(NOON))
        self.agree(
            expected,
            lambda state, n: state.memory_scopes.mark_clean(
                scope, seen=moment, lock=None if grant is None else grant.leases[n]
            ),
        )
        self.keep(self.rows.marks, scope, mark)

    # Consolidation locks

    @rule(target=lock_grants, root=roots, owner=owners, lease=leases)
    def acquire_lock(self, root: Path, owner: UUID, lease: int) -> Any:
        """Take a lock, again, or from another."""
        token = self.new_token()
        lock, expected = model.acquire_lock(
            self.rows.locks.get(root),
            owner=str(owner),
            token=token,
            lease=lease,
            now=self.now,
            by=self.process,
            dead=self.known_dead,
        )
        grant = self.claim(
            root,
            expected,
            token,
            lambda state, _: state.consolidation_locks.try_claim(root, owner=owner, lease=timedelta(seconds=lease)),
        )
        self.rows.locks[root] = lock
        return grant

    @rule(grant=lock_grants)
    def renew_lock(self, grant: Grant) -> None:
        """Renew a lock, held or lost."""
        lock, outcome = model.renew_lock(self.rows.locks.get(grant.key), grant.token, self.now, self.process)
        self.agree(outcome, lambda state, n: state.consolidation_locks.renew(grant.leases[n]))
        self.keep(self.rows.locks, grant.key, lock)

    @rule(grant=lock_grants)
    def release_lock(self, grant: Grant) -> None:
        """Release a lock, held or lost."""
        lock, outcome = model.release_lock(self.rows.locks.get(grant.key), grant.token)
        self.agree(outcome, lambda state, n: state.consolidation_locks.release(grant.leases[n]))
        self.keep(self.rows.locks, grant.key, lock)

    # Backfill

    @rule(target=backfill_grants, owner=st.sampled_from(["one", "two"]), lease=leases, again=st.booleans())
    def claim_backfill(self, owner: str, lease: int, again: bool) -> Any:
        """Claim the backfill, or steal it."""
        token = self.new_token()
        row, expected = model.claim_backfill(
            self.rows.backfill,
            token=token,
            lease=lease,
            now=self.now,
            again=again,
            by=self._known_as(owner),
            dead=self.known_dead,
        )
        grant = self.claim(
            None,
            expected,
            token,
            lambda state, _: state.backfill.try_claim(owner=owner, lease=timedelta(seconds=lease), again=again),
        )
        self.rows.backfill = row
        return grant

    @rule(target=backfill_grants, owner=st.sampled_from(["", "two"]), lease=leases, from_the_start=st.booleans())
    def take_over_backfill(self, owner: str, lease: int, from_the_start: bool) -> Any:
        """Take the backfill over by force."""
        token = self.new_token()
        self.rows.backfill = model.take_over_backfill(
            self.rows.backfill,
            token=token,
            lease=lease,
            now=self.now,
            from_the_start=from_the_start,
            by=self._known_as(owner),
        )
        return self.claim(
            None,
            model.GRANTED,
            token,
            lambda state, _: state.backfill.take_over(
                owner=owner, lease=timedelta(seconds=lease), from_the_start=from_the_start
            ),
        )

    def _known_as(self, what: str) -> Owner:
        return Owner(self.process.known_as(what), self.process.process)

    def _of(self, grant: Grant) -> Owner:
        return self._known_as(grant.leases[0].owner)

    @rule(grant=backfill_grants)
    def renew_backfill(self, grant: Grant) -> None:
        """Renew the backfill's lease, held or lost."""
        self.rows.backfill, outcome = model.renew_backfill(self.rows.backfill, grant.token, self.now, self._of(grant))
        self.agree(outcome, lambda state, n: state.backfill.renew(grant.leases[n]))

    @rule(grant=backfill_grants, watermark=watermarks)
    def checkpoint_backfill(self, grant: Grant, watermark: str) -> None:
        """Note progress, possibly behind what is noted already."""
        self.rows.backfill, outcome = model.checkpoint_backfill(
            self.rows.backfill, grant.token, watermark, self.now, self._of(grant)
        )
        self.agree(outcome, lambda state, n: state.backfill.checkpoint(grant.leases[n], watermark))

    @rule(grant=backfill_grants, watermark=st.none() | watermarks)
    def complete_backfill(self, grant: Grant, watermark: str | None) -> None:
        """Note that all is done."""
        self.rows.backfill, outcome = model.complete_backfill(self.rows.backfill, grant.token, watermark, self.now)
        self.agree(outcome, lambda state, n: state.backfill.complete(grant.leases[n], watermark))

    @rule(grant=backfill_grants)
    def release_backfill(self, grant: Grant) -> None:
        """Give the backfill back."""
        self.rows.backfill, outcome = model.release_backfill(self.rows.backfill, grant.token, self.now)
        self.agree(outcome, lambda state, n: state.backfill.release(grant.leases[n]))


def lease_machine(stores: Sequence[Store]) -> type[LeaseMachine]:
    """The state machine over these stores: one for each engine that must behave alike. Their tables are emptied.

    ``check_leases`` runs it. With settings of your own, use ``.TestCase`` of the result.
    """
    return type("LeaseMachineOverStores", (LeaseMachine,), {"stores": tuple(stores)})


def check_leases(*stores: Store, examples: int = 100, steps: int = 50) -> None:
    """Run the machine over these stores, which must all answer as the model does. Their tables are emptied.

    Args:
        stores: one for each engine that must behave alike.
        examples: how many runs.
        steps: how many steps a run has at most.

    Raises:
        AssertionError: a store and the model disagree; the shortest run that shows it is printed.
    """
    run_state_machine_as_test(
        lease_machine(stores),
        settings=settings(
            # How fast a step is says something about the machine. Runs aren't kept: databases differ.
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            max_examples=examples,
            stateful_step_count=steps,
        ),
    )
