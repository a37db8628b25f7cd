"""A worker of the chaos: it claims, works, writes, forgets and comes back too late, until its time is over."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlmodel import Session

from codex_state import ExtractedMemory, StateRuntime, StateSettings
from codex_state.database import Database
from codex_state.memory import extraction
from codex_state.models import BackfillLease, Claimed, LockLease, MemoryScope, Phase1Key, Phase1Lease, ThreadQuery
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import source_of, thread_id_of
from codex_state.testing.samples import a_thread
from tests.chaos.bugs import planted
from tests.chaos.channel import Channel
from tests.chaos.clocks import RIGHT, ClientClock, install, true_monotonic
from tests.chaos.journal import Journal
from tests.chaos.passes import extract_some
from tests.history import Answer, Kind, RecordedState, Recorder

RECORDED, PIPELINE = "recorded", "pipeline"
"""The homes of two sets of threads: jobs whose calls are recorded one by one, and jobs that end in transactions."""

THREADS = 12
ROOTS = tuple(Path(f"/roots/{number}") for number in range(3))
HOMES = tuple(f"home {number}" for number in range(3))
LEASES = (1, 2, 3)
BUSY_TIMEOUT = timedelta(seconds=30)
"""Longer than the longest pause: a process that is stopped while it writes to an SQLite file holds up all others."""

ANY_AGE = timedelta(days=36500)

_PAUSE_AFTER_AN_ERROR = 0.2
"""A worker that is refused doesn't ask all the time."""


def thread_name(home: str, number: int) -> str:
    """What a thread is called."""
    return f"{home} {number}"


@dataclass(frozen=True)
class Orders:
    """What a worker is told."""

    url: str
    clock: str | None
    directory: str
    name: str
    seed: int
    began: float
    until: float
    bug: str | None = None
    """A mutant of the lease core to be planted, when the chaos itself is tested."""
    outages: bool = False
    """Whether the server, or the pooler, goes away now and then."""
    transaction_pooling: bool = False
    """Whether the URL leads to a pooler in transaction mode."""
    ahead: float = 0.0
    rate: float = 1.0
    """The worker's own clocks: by how many seconds they are ahead, and how fast they run."""

    @property
    def client_clock(self) -> ClientClock:
        """The worker's own clocks."""
        return ClientClock(timedelta(seconds=self.ahead), self.rate)


class Worker:
    """One life of a worker."""

    def __init__(self, orders: Orders, runtime: StateRuntime, recorder: Recorder, journal: Journal) -> None:
        self._orders = orders
        self._runtime = runtime
        self._recorder = recorder
        self._journal = journal
        self._random = random.Random(orders.seed)
        self._forgotten: list[Phase1Lease | LockLease | BackfillLease] = []
        self._operations: dict[str, tuple[Callable[[], None], int]] = {
            "job": (self._job, 40),
            "pipeline": (self._pipeline, 15),
            "batch": (self._batch, 6),
            "consolidation": (self._consolidation, 14),
            "backfill": (self._backfill, 12),
            "come back": (self._come_back, 12),
            "touch": (self._touch, 4),
            "read": (self._read, 4),
        }
        if orders.outages or orders.client_clock != RIGHT:
            self._operations["pass"] = (self._pass, 4)

    def run(self) -> None:
        """Work until the time is over."""
        names = list(self._operations)
        weights = [weight for _, weight in self._operations.values()]
        while true_monotonic() < self._orders.until:
            name = self._random.choices(names, weights)[0]
            try:
                self._operations[name][0]()
            except Exception as error:  # noqa: BLE001 - which ones callers may see is for the verdict
                self._note_error(name, error)
                if self._orders.outages:
                    time.sleep(self._random.random() * _PAUSE_AFTER_AN_ERROR)

    def _note_error(self, operation: str, error: Exception) -> None:
        self._journal.note(what="error", operation=operation, kind=type(error).__name__, error=str(error))

    # Choices

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _lease(self) -> int:
        return self._random.choice(LEASES)

    def _key(self, home: str) -> Phase1Key:
        # One of them is everybody's favourite.
        number = 0 if self._often(0.4) else self._random.randrange(THREADS)
        return Phase1Key(thread_id_of(thread_name(home, number)), MemoryScope.user())

    def _version(self) -> int:
        """Which version of a thread there is by now: it is updated twice a second."""
        return int((true_monotonic() - self._orders.began) * 2)

    def _work(self) -> None:
        longest = self._random.choices((0.0, 0.005, 0.02, 0.1, 1.2), (60, 20, 13, 5, 2))[0]
        time.sleep(self._random.random() * longest)

    @contextmanager
    def _recorded(self) -> Iterator[RecordedState]:
        with self._runtime.autocommit() as state:
            self._reach(state)
            yield RecordedState(state, self._recorder)

    def _reach(self, state: State) -> None:
        """Find out that the server is away before a call is recorded: then nobody wonders what became of it."""
        if self._orders.outages:
            state.session.connection().exec_driver_sql("SELECT 1")

    # Extraction jobs

    def _job(self) -> None:
        lease = self._lease()
        with self._recorded() as state:
            claim = state.phase1_jobs.try_claim(
                self._key(RECORDED),
                owner=uuid4(),
                source_updated_at=source_of(self._version()),
                lease=timedelta(seconds=lease),
            )
            if isinstance(claim, Claimed):
                self._finish(state, claim.lease)

    def _finish(self, state: RecordedState, lease: Phase1Lease) -> None:
        self._work()
        if self._often(0.3):
            state.phase1_jobs.renew(lease)
            self._work()
        if self._often(0.15):
            self._forgotten.append(lease)
            return
        state.thread_memories.upsert_if_owner(lease, lease.token, "summary")
        ending = self._random.random()
        if ending < 0.7:
            state.phase1_jobs.succeed(lease, raw_memory_path=Path("/raw"), summary_hash=lease.token)
        elif ending < 0.85:
            retry_after = timedelta(seconds=self._random.randrange(2))
            state.phase1_jobs.fail(lease, "broken", retry_after=retry_after)
        else:
            state.phase1_jobs.release(lease, "interrupted")

    def _batch(self) -> None:
        lease = self._lease()
        options: dict[str, Any] = {
            "owner": uuid4(),
            "lease": timedelta(seconds=lease),
            "limit": 4,
            "max_age": ANY_AGE,
            "max_running": 40 if self._often(0.5) else None,
        }
        with self._recorded() as state:
            for granted in state.phase1_jobs.claim_candidates(**options, home=RECORDED):
                self._finish(state, granted)
        with self._runtime.autocommit() as plain, self._journal.timed("claim_candidates") as noted:
            leases = plain.phase1_jobs.claim_candidates(**options, home=PIPELINE)
            noted["tokens"] = [granted.token for granted in leases]
        for granted in leases:
            self._store(granted)

    def _pipeline(self) -> None:
        lease = self._lease()
        with self._runtime.autocommit() as state, self._journal.timed("try_claim") as noted:
            claim = state.phase1_jobs.try_claim(
                self._key(PIPELINE),
                owner=uuid4(),
                source_updated_at=source_of(self._version()),
                lease=timedelta(seconds=lease),
            )
            noted["tokens"] = [claim.lease.token] if isinstance(claim, Claimed) else []
        if isinstance(claim, Claimed):
            self._store(claim.lease)

    def _store(self, lease: Phase1Lease) -> None:
        self._work()
        if self._often(0.1):
            self._forgotten.append(lease)
            return
        ending = self._random.choices(("memory", "nothing", "failure", "give back"), (7, 1, 1, 1))[0]
        try:
            with self._journal.timed(f"store {ending}") as noted:
                noted["token"] = lease.token
                noted["answer"] = self._stored(lease, ending)
        except Exception as error:  # noqa: BLE001 - as in run, under the name of what was tried
            self._note_error(f"store {ending}", error)

    def _pass(self) -> None:
        longest = max(LEASES)
        with self._journal.timed("run_phase1"):
            told = extract_some(
                self._runtime,
                owner=uuid4(),
                lease=timedelta(seconds=longest),
                max_age=ANY_AGE,
                work=self._work,
            )
        for values in told:
            self._journal.note(**values)

    def _stored(self, lease: Phase1Lease, ending: str) -> str | None:
        match ending:
            case "memory":
                memory = ExtractedMemory(lease.token, "summary")
                stored = extraction._store_memory(self._runtime, lease, memory, Path("/raw"))
            case "nothing":
                stored = extraction._store_nothing(self._runtime, lease)
            case "failure":
                retry_after = timedelta(seconds=self._random.randrange(2))
                stored = extraction._store_failed(self._runtime, lease, "broken", retry_after)
            case _:
                extraction._give_back(self._runtime, lease, "interrupted")
                return None  # it doesn't tell
        return "lost" if stored is None else "applied"

    # Locks and scopes

    def _consolidation(self) -> None:
        root, lease = self._random.choice(ROOTS), self._lease()
        scope = MemoryScope.cwd(root)
        with self._runtime.autocommit() as plain:
            self._reach(plain)
            state = RecordedState(plain, self._recorder)
            if self._often(0.5):
                plain.memory_scopes.mark_dirty(scope)
            claim = state.consolidation_locks.try_claim(root, owner=uuid4(), lease=timedelta(seconds=lease))
            if not isinstance(claim, Claimed):
                return
            mark = plain.memory_scopes.get(scope)
            self._work()
            if self._often(0.3):
                state.consolidation_locks.renew(claim.lease)
                self._work()
            if self._often(0.2):
                self._forgotten.append(claim.lease)
                return
            if mark is not None:
                with self._journal.timed("mark_clean") as noted:
                    noted["token"] = claim.lease.token
                    noted["clean"] = plain.memory_scopes.mark_clean(scope, seen=mark.updated_at, lock=claim.lease)
            state.consolidation_locks.release(claim.lease)

    # Backfills

    def _backfill(self) -> None:
        home, lease = self._random.choice(HOMES), self._lease()
        with self._recorded() as state:
            claim = state.backfill.try_claim(
                home, owner=self._orders.name, lease=timedelta(seconds=lease), again=self._often(0.5)
            )
        if not isinstance(claim, Claimed):
            return
        first = int(claim.lease.last_watermark or 0)
        for number in range(first + 1, first + 1 + self._random.randrange(4)):
            self._work()
            if not self._store_batch(claim.lease, number):
                return
        if self._often(0.2):
            self._forgotten.append(claim.lease)
            return
        with self._recorded() as state:
            if self._often(0.5):
                state.backfill.complete(claim.lease)
            else:
                state.backfill.release(claim.lease)

    def _store_batch(self, lease: BackfillLease, number: int) -> bool:
        """One thread and the checkpoint, whole or not at all. The thread's title is the token that it came under."""
        watermark = f"{number:06}"
        with self._recorder.call(
            Kind.BACKFILL, lease.key, "checkpoint", token=lease.token, watermark=watermark
        ) as call:
            with Session(self._runtime.engine) as session:
                state = State(session)
                state.threads.upsert(a_thread(home=lease.key, title=lease.token))
                outcome = state.backfill.checkpoint(lease, watermark)
                if outcome:
                    session.commit()
            call.answered(Answer(outcome))
        return bool(outcome)

    # Late holders, and everything else

    def _come_back(self) -> None:
        """Write under a lease that was forgotten. Whoever was taken over is refused."""
        if not self._forgotten:
            return
        lease = self._forgotten.pop(self._random.randrange(len(self._forgotten)))
        with self._recorded() as state:
            match lease:
                case Phase1Lease() if self._is_recorded(lease):
                    self._finish(state, lease)
                case Phase1Lease():
                    self._store(lease)
                case LockLease():
                    self._random.choice((state.consolidation_locks.renew, state.consolidation_locks.release))(lease)
                case BackfillLease():
                    if self._store_batch(lease, int(lease.last_watermark or 0) + 1):
                        self._random.choice((state.backfill.renew, state.backfill.complete))(lease)

    @staticmethod
    def _is_recorded(lease: Phase1Lease) -> bool:
        return lease.key.thread_id in {thread_id_of(thread_name(RECORDED, number)) for number in range(THREADS)}

    def _touch(self) -> None:
        """Update a thread, so that there is something new to extract."""
        home = self._random.choice((RECORDED, PIPELINE))
        name = thread_name(home, self._random.randrange(THREADS))
        thread = a_thread(id=thread_id_of(name), home=home, updated_at=source_of(self._version()))
        with self._journal.timed("touch"):
            self._runtime.run(lambda state: state.threads.upsert(thread))

    def _read(self) -> None:
        def look(state: State) -> None:
            state.threads.list(ThreadQuery(limit=20))
            state.phase1_jobs.count_by_status()

        with self._journal.timed("read"):
            self._runtime.run_read(look)


@contextmanager
def opened(orders: Orders) -> Iterator[StateRuntime]:
    """The state that a worker works on. Whoever gives the orders has migrated it."""
    with ExitStack() as held:
        database = Database.open(orders.url, busy_timeout=BUSY_TIMEOUT, transaction_pooling=orders.transaction_pooling)
        held.callback(database.close)
        if orders.clock is not None:
            held.enter_context(ManualClock(Path(orders.clock))).install(database)
        yield StateRuntime(StateSettings(codex_home=Path(orders.directory), home=PIPELINE), database)


def run(channel: Channel, **orders: Any) -> None:
    """Live until the time is over."""
    given = Orders(**orders)
    directory = Path(given.directory)
    journal = Journal(directory / f"{given.name}.journal")
    if given.client_clock != RIGHT:
        install(given.client_clock)
    with (
        planted(given.bug),
        opened(given) as runtime,
        Recorder(directory / f"{given.name}.calls", worker=given.name) as recorder,
    ):
        try:
            Worker(given, runtime, recorder, journal).run()
        finally:
            with recorder.death(given.name):
                """From now on others may find it dead."""
    channel.send("done")


def final_reads(state: State, recorder: Recorder) -> None:
    """Look at everything once more, so that the rows themselves are part of the record."""
    recorded = RecordedState(state, recorder)
    for number in range(THREADS):
        thread = thread_id_of(thread_name(RECORDED, number))
        for scope in (MemoryScope.user(), MemoryScope.cwd(Path("/code"))):
            recorded.phase1_jobs.get(Phase1Key(thread, scope))
    for root in ROOTS:
        recorded.consolidation_locks.get(root)
    for home in HOMES:
        recorded.backfill.get(home)
