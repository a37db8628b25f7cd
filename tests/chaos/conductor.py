"""The conductor of the chaos: starts workers, kills, stops and continues them, and moves the clock."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from codex_state import StateRuntime, StateSettings
from codex_state.database import Database
from codex_state.database.sql import server_now
from codex_state.errors import DatabaseError
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import thread_id_of
from codex_state.testing.samples import NOON, a_thread
from tests.chaos import audit
from tests.chaos.clocks import RIGHT, ClientClock
from tests.chaos.outages import Outage, Outages
from tests.chaos.processes import Worker, WorkerError, WorkerHost
from tests.chaos.worker import BUSY_TIMEOUT, PIPELINE, RECORDED, THREADS, final_reads, thread_name
from tests.history import Call, Recorder, read_calls

_TICK_SECONDS = 0.02
_KILLS_PER_SECOND = 2.0
_PAUSES_PER_SECOND = 1.5
_JUMPS_PER_SECOND = 5.0
_LONGEST_PAUSE = 3.5
"""Longer than the longest lease."""
_RARELY = 0.2
"""How many of the kills and pauses there are beside outages, which workers must live to see."""
_CALM_SECONDS = 5.0
"""After the last outage workers are left alone, so that each can show that it recovered."""


@dataclass(frozen=True)
class Pause:
    """A worker was stopped for a while, in nanoseconds of the monotonic clock."""

    worker: str
    start: int
    end: int


@dataclass
class Run:
    """What happened, as far as the conductor knows."""

    name: str
    dialect: str
    manual: bool
    seconds: float
    kills: int = 0
    ended: dict[int, int | None] = field(default_factory=dict)
    """The ids of processes that were killed, with the last number of the record before that, or that ended."""
    jumps: int = 0
    pauses: list[Pause] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Workers that ended otherwise than they should."""
    records: list[audit.Record] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    journals: list[Path] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    failing: str = ""
    """What it was that failed then."""
    last: list[str] = field(default_factory=list)
    """The workers that were there at the end."""
    integrity: str = ""


class Conductor:
    """One run of the chaos over one database."""

    def __init__(
        self,
        host: WorkerHost,
        url: str,
        directory: Path,
        *,
        manual: bool,
        seed: int,
        workers: int,
        bug: str | None = None,
        outages: Outages | None = None,
        clocks: Sequence[ClientClock] = (RIGHT,),
        pooler: str | None = None,
    ) -> None:
        """Prepare. Workers reach the database of ``url`` through the transaction ``pooler`` of that URL, if given."""
        self._host = host
        self._bug = bug
        self._outages = outages
        self._clocks = clocks
        self._pooler = pooler
        self._url = url
        self._directory = directory
        self._clock_path = directory / "clock" if manual else None
        self._random = random.Random(seed)
        self._count = workers
        self._lives = 0
        self._workers: dict[int, tuple[str, Worker]] = {}
        self._stopped: dict[int, tuple[float, int]] = {}
        """Until when each stopped worker rests, and since when, by its place."""

    def run(self, name: str, seconds: float, *, changes: int | None = None) -> Run:
        """Let the workers loose for so many seconds, or until there are so many ``changes`` on record: then end them.

        A machine that is busy needs longer for the same changes.
        """
        with ExitStack() as held:
            clock = None
            if self._clock_path is not None:
                clock = held.enter_context(ManualClock(self._clock_path, NOON))
            database = held.enter_context(self._prepared(clock))
            recorder = held.enter_context(Recorder(self._directory / "conductor.calls", worker="conductor"))
            run = Run(name, database.dialect, clock is not None, seconds)
            with database.autocommit() as session:
                recorder.read_clock(session)
            self._database = database
            self._conduct(run, clock, recorder, changes)
            if self._outages is not None:
                run.outages, run.failing = self._outages.seen, self._outages.kind
                database.engine.dispose()
            with database.autocommit() as session:
                recorder.read_clock(session)
            with StateRuntime(self._settings, database).autocommit() as state:
                final_reads(state, recorder)
            run.records = audit.records(database)
            run.integrity = _integrity_of(database)
        run.calls = read_calls(self._directory.glob("*.calls"))
        run.journals = sorted(self._directory.glob("*.journal"))
        return run

    @property
    def _settings(self) -> StateSettings:
        return StateSettings(codex_home=self._directory, database_url=self._url)

    @contextmanager
    def _prepared(self, clock: ManualClock | None) -> Iterator[Database]:
        StateRuntime.open(self._settings).close()
        database = Database.open(self._url, busy_timeout=BUSY_TIMEOUT)
        try:
            if clock is not None:
                clock.install(database)
            audit.install(database, str(server_now().compile(dialect=database.engine.dialect)))
            with StateRuntime(self._settings, database).begin() as state:
                state.threads.upsert_many(
                    a_thread(id=thread_id_of(thread_name(home, number)), home=home)
                    for home in (RECORDED, PIPELINE)
                    for number in range(THREADS)
                )
            yield database
        finally:
            database.close()

    def _conduct(self, run: Run, clock: ManualClock | None, recorder: Recorder, changes: int | None) -> None:
        self._began = time.monotonic()
        self._until = self._began + run.seconds
        calm = self._until if self._outages is None else self._until - min(_CALM_SECONDS, run.seconds / 3)
        share = 1.0 if self._outages is None else _RARELY
        with nullcontext() if self._outages is None else self._outages.until(calm):
            try:
                for place in range(self._count):
                    self._start(place)
                while time.monotonic() < self._until:
                    if changes is not None and self._last_number() >= changes:
                        self._kill_all(recorder)
                        return
                    time.sleep(_TICK_SECONDS)
                    self._continue_rested(run, time.monotonic())
                    self._respawn_ended(run)
                    if time.monotonic() < calm:
                        self._disturb(run, clock, recorder, share)
            finally:
                self._continue_rested(run, float("inf"))
        for name, worker in self._workers.values():
            run.last.append(name)
            self._end(run, name, worker)

    def _disturb(self, run: Run, clock: ManualClock | None, recorder: Recorder, share: float) -> None:
        if self._happens(_KILLS_PER_SECOND * share):
            self._kill(run, recorder)
        if self._happens(_PAUSES_PER_SECOND * share):
            self._stop_one()
        if clock is not None and self._happens(_JUMPS_PER_SECOND):
            self._jump(run, clock, recorder)

    def _happens(self, per_second: float) -> bool:
        return self._random.random() < per_second * _TICK_SECONDS

    def _start(self, place: int) -> None:
        self._lives += 1
        name = f"worker {place} life {self._lives}"
        clock = self._clocks[place % len(self._clocks)]
        worker = self._host.start(
            "tests.chaos.worker:run",
            url=self._pooler or self._url,
            transaction_pooling=self._pooler is not None,
            clock=self._clock_path,
            directory=self._directory,
            name=name,
            seed=self._random.getrandbits(32),
            began=self._began,
            until=self._until,
            bug=self._bug,
            outages=self._outages is not None,
            ahead=clock.ahead.total_seconds(),
            rate=clock.rate,
        )
        self._workers[place] = (name, worker)

    def _kill(self, run: Run, recorder: Recorder) -> None:
        place = self._random.choice(list(self._workers))
        name, worker = self._workers[place]
        if place in self._stopped:
            self._note_pause(run, place)
        run.ended[worker.pid] = self._last_number()
        with recorder.death(name):
            worker.close()
        run.kills += 1
        self._start(place)

    def _kill_all(self, recorder: Recorder) -> None:
        for name, worker in self._workers.values():
            with recorder.death(name):
                worker.close()

    def _stop_one(self) -> None:
        awake = [place for place in self._workers if place not in self._stopped]
        if len(awake) <= 2:
            return
        place = self._random.choice(awake)
        longest = _LONGEST_PAUSE if self._clock_path is None else _LONGEST_PAUSE / 5
        self._stopped[place] = (time.monotonic() + self._random.uniform(0.1, longest), time.monotonic_ns())
        self._workers[place][1].stop()

    def _continue_rested(self, run: Run, now: float) -> None:
        for place in [place for place, (until, _) in self._stopped.items() if until <= now]:
            self._workers[place][1].proceed()
            self._note_pause(run, place)

    def _note_pause(self, run: Run, place: int) -> None:
        _, since = self._stopped.pop(place)
        run.pauses.append(Pause(self._workers[place][0], since, time.monotonic_ns()))

    def _respawn_ended(self, run: Run) -> None:
        for place, (name, worker) in list(self._workers.items()):
            if place not in self._stopped and time.monotonic() < self._until - 0.5 and worker.has_ended():
                self._end(run, name, worker)
                self._start(place)

    def _end(self, run: Run, name: str, worker: Worker) -> None:
        try:
            worker.receive()
            worker.wait()
        except (WorkerError, TimeoutError) as error:
            run.failures.append(f"{name}: {error}")
        worker.close()
        run.ended[worker.pid] = None

    def _last_number(self) -> int:
        try:
            return audit.last_number(self._database)
        except DatabaseError:
            return 0  # the server is away; nobody is called alive who wasn't

    def _jump(self, run: Run, clock: ManualClock, recorder: Recorder) -> None:
        # A statement and the trigger that records it read the clock one after the other, so a step back between them
        # would look like a grant before its time. On SQLite it waits until nobody writes; on PostgreSQL there is none.
        steps = (-2, -1, 1, 1, 1, 2, 4) if self._url.startswith("sqlite") else (1, 1, 1, 2, 4)
        step = self._random.choice(steps)
        with ExitStack() as stack:
            if step < 0 and not stack.enter_context(self._nobody_writing()):
                return  # perhaps a writer that is paused
            moment = clock.now + timedelta(seconds=step)
            with recorder.set_clock(moment):
                clock.set(moment)
        run.jumps += 1

    @contextmanager
    def _nobody_writing(self) -> Iterator[bool]:
        """Hold SQLite's write lock, unless somebody has it. Nobody is waited for: this one wakes those that sleep."""
        assert self._database.path is not None
        with closing(sqlite3.connect(self._database.path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                yield False
                return
            yield True
            connection.execute("COMMIT")


def _integrity_of(database: Database) -> str:
    """What the database says about itself; "ok" is all there is on PostgreSQL."""
    if database.dialect != "sqlite":
        return "ok"
    with database.read() as session:
        connection = session.connection()
        found = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check")]
        found += [f"dangling {tuple(row)}" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    return "; ".join("ok" if line == "ok" else str(line) for line in found)
