"""A caller that is cancelled at any moment: no half unit, no leaked connection, and no work that nobody can claim (L5).

A unit writes a thread and claims its job. Whatever becomes of its caller, both are there or neither, every connection
is back in the pool, and a claim whose answer nobody got runs out and is taken over.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from loops import Asyncio, Gate, Loop
from sqlalchemy import event

from codex_state import AsyncStateRuntime, Claimed, MemoryScope, Phase1Key, State, StateSettings, Thread
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_thread

LEASE = timedelta(minutes=1)
WAYS = ["started", "limited", "grouped"]
"""How a caller ends: it is cancelled, its time is over, or its group fails."""

MODES = ["run", "autocommit", "read", "call"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def settings(
    request: pytest.FixtureRequest, migrated_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StateSettings]:
    """A state on each of the two databases. Tests share it, because each has threads of its own."""
    home = tmp_path_factory.mktemp("shared") / "home"
    shutil.copytree(migrated_home, home)
    values: dict[str, Any] = {"codex_home": home, "busy_timeout": timedelta(seconds=30)}
    if request.param == "sqlite":
        yield StateSettings(**values)
    else:
        server = request.getfixturevalue("postgres_server")
        with server.copy_of(request.getfixturevalue("migrated_postgres")) as url:
            yield StateSettings(database_url=url, **values)


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[ManualClock]:
    # One for each test: it writes to the databases that it was installed in, also after they were closed.
    with ManualClock(tmp_path / "clock", NOON) as clock:
        yield clock


@asynccontextmanager
async def opened(settings: StateSettings, clock: ManualClock, pool_size: int) -> AsyncIterator[AsyncStateRuntime]:
    settings = settings.model_copy(update={"pool_size": pool_size})
    async with AsyncStateRuntime.open(settings) as runtime:
        await runtime.call(lambda sync: clock.install(sync.database))
        yield runtime


def in_use(runtime: AsyncStateRuntime) -> int:
    """How many connections are out of the pool."""
    count: int = runtime.sync.engine.pool.checkedout()  # type: ignore[attr-defined]
    return count


def key_of(thread: Thread) -> Phase1Key:
    return Phase1Key(thread.id, MemoryScope.user())


class Caller:
    """Makes one unit of work, which tells of its moments, and knows what became of it."""

    def __init__(self, runtime: AsyncStateRuntime, mode: str, at: Callable[[str], None]) -> None:
        self.thread = a_thread()
        self.answer: Any = None
        self.ended = False
        self._runtime = runtime
        self._mode = mode
        self._at = at

    async def __call__(self) -> None:
        try:
            self.answer = await self._unit()
        finally:
            self.ended = True

    def _unit(self) -> Awaitable[Any]:
        match self._mode:
            case "run":
                return self._runtime.run(self._write)
            case "autocommit":
                return self._runtime.autocommit(self._write)
            case "call":
                return self._runtime.call(lambda runtime: runtime.run(self._write))
            case _:
                return self._runtime.read(self._read)

    def _write(self, state: State) -> Any:
        self._at("begun")
        state.threads.upsert(self.thread)
        self._at("written")
        claim = state.phase1_jobs.try_claim(key_of(self.thread), owner=uuid4(), source_updated_at=NOON, lease=LEASE)
        self._at("claimed")
        return claim

    def _read(self, state: State) -> Any:
        self._at("begun")
        found = state.threads.get(self.thread.id)
        self._at("written")
        self._at("claimed")
        return found or "nothing"

    def is_whole(self, state: State) -> bool:
        """Whether the unit was kept. A half one is an error."""
        thread, job = state.threads.get(self.thread.id), state.phase1_jobs.get(key_of(self.thread))
        assert (thread is None) is (job is None), f"half a unit: {thread}, {job}"
        return job is not None


def steal(state: State, thread: Thread) -> Any:
    return state.phase1_jobs.try_claim(key_of(thread), owner=uuid4(), source_updated_at=NOON, lease=LEASE)


async def can_be_taken_over(runtime: AsyncStateRuntime, clock: ManualClock, *threads: Thread) -> None:
    """A claim is somebody's until its lease is over, and then anybody's."""
    for thread in threads:
        assert not isinstance(await runtime.autocommit(lambda state, thread=thread: steal(state, thread)), Claimed)  # type: ignore[misc]
    await runtime.call(lambda _: clock.advance(LEASE))
    for thread in threads:
        assert isinstance(await runtime.autocommit(lambda state, thread=thread: steal(state, thread)), Claimed)  # type: ignore[misc]
    assert in_use(runtime) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_caller_that_ends_before_its_unit_has_a_thread_leaves_nothing(
    loop: Loop, mode: str, settings: StateSettings, clock: ManualClock
) -> None:
    async def case(runtime: AsyncStateRuntime, way: str) -> None:
        gate = Gate()
        begun: list[str] = []
        caller = Caller(runtime, mode, begun.append)
        async with loop.started(lambda: runtime.run(lambda _: gate.wait())):
            await gate.is_reached(loop)
            async with getattr(loop, way)(caller) as cancel:
                await loop.sleep(0.01)
                cancel()
            # While the only connection is still in another's hands.
            assert caller.ended
            gate.opened.set()
        assert (begun, caller.answer) == ([], None)
        assert await runtime.read(caller.is_whole) is False
        assert in_use(runtime) == 0

    async def main() -> None:
        async with opened(settings, clock, pool_size=1) as runtime:
            for way in WAYS:
                await case(runtime, way)

    loop.run(main)


@pytest.mark.parametrize(
    ("mode", "moment"),
    [
        *((mode, moment) for mode in MODES for moment in ("begun", "written", "claimed", "answering")),
        *((mode, "committing") for mode in ("run", "call")),
    ],
)
def test_a_caller_that_ends_while_its_unit_runs_is_held_until_all_of_it_is_kept(
    loop: Loop, mode: str, moment: str, settings: StateSettings, clock: ManualClock
) -> None:
    """L5. ``committing``: the commit is about to be sent; ``answering``: the connection is on its way to the pool."""

    async def case(runtime: AsyncStateRuntime, way: str) -> None:
        gate = Gate()

        def at(reached: str) -> None:
            if reached == moment and not gate.opened.is_set():
                gate.wait()

        event.listen(runtime.sync.engine, "commit", lambda _connection: at("committing"))
        event.listen(runtime.sync.engine.pool, "checkin", lambda _connection, _record: at("answering"))
        caller = Caller(runtime, mode, at)
        async with getattr(loop, way)(caller) as cancel:
            await gate.is_reached(loop)
            cancel()
            await loop.sleep(0.01)
            assert not caller.ended
            gate.opened.set()
        assert caller.ended
        assert in_use(runtime) == 0
        # Under trio the answer arrives, under asyncio it is lost with the caller.
        assert (caller.answer is None) is (loop is Asyncio)
        assert await runtime.read(caller.is_whole) is (mode != "read")
        if mode != "read":
            await can_be_taken_over(runtime, clock, caller.thread)

    async def main() -> None:
        async with opened(settings, clock, pool_size=1) as runtime:
            for way in WAYS:
                await case(runtime, way)

    loop.run(main)


@pytest.mark.parametrize("mode", ["run", "autocommit", "call"])
def test_a_caller_that_ends_while_its_unit_waits_for_another_writer_is_held_until_all_of_it_is_kept(
    loop: Loop, mode: str, settings: StateSettings, clock: ManualClock
) -> None:
    """L5."""

    async def case(runtime: AsyncStateRuntime, way: str) -> None:
        gate, begun = Gate(), Gate()
        begun.opened.set()
        caller = Caller(runtime, mode, lambda moment: begun.wait() if moment == "begun" else None)

        def hold(state: State) -> None:
            state.threads.upsert(caller.thread)
            gate.wait()
            state.session.rollback()

        async with loop.started(lambda: runtime.run(hold)):
            await gate.is_reached(loop)
            async with getattr(loop, way)(caller) as cancel:
                await begun.is_reached(loop)
                await loop.sleep(0.02)
                cancel()
                await loop.sleep(0.02)
                assert not caller.ended
                gate.opened.set()
        assert await runtime.read(caller.is_whole) is True
        await can_be_taken_over(runtime, clock, caller.thread)

    async def main() -> None:
        async with opened(settings, clock, pool_size=2) as runtime:
            for way in WAYS:
                await case(runtime, way)

    loop.run(main)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["run", "autocommit", "call"])
def test_whenever_a_caller_ends_its_unit_is_whole_or_never_was_and_its_claim_can_be_taken_over(
    loop: Loop, way: str, mode: str, settings: StateSettings, clock: ManualClock
) -> None:
    """L5, at moments from before the unit's start until after its end, with callers that wait for a thread."""
    chance = random.Random(f"{way} {mode}")

    async def main() -> None:
        async with opened(settings, clock, pool_size=2) as runtime:
            callers: list[Caller] = []

            async def one(delay: float | None) -> None:
                caller = Caller(runtime, mode, lambda _moment: time.sleep(0.002))
                callers.append(caller)
                async with getattr(loop, way)(caller) as cancel:
                    if delay is not None:
                        await loop.sleep(delay)
                    cancel()
                assert caller.ended or delay is None

            for step in range(8):
                delays = [step * 0.004 + chance.uniform(0, 0.004) for _ in range(3)]
                await loop.gather([lambda delay=delay: one(delay) for delay in (None, *delays)])  # type: ignore[misc]
                assert in_use(runtime) == 0
            kept = [caller for caller in callers if await runtime.read(caller.is_whole)]
            assert 0 < len(kept) < len(callers)
            # Who got an answer holds what it says.
            answered = [caller for caller in callers if caller.answer is not None]
            assert set(answered) <= set(kept)
            for caller in answered:
                assert await runtime.autocommit(
                    lambda state, lease=caller.answer.lease: state.phase1_jobs.renew(lease)  # type: ignore[misc]
                )
            await can_be_taken_over(runtime, clock, *(caller.thread for caller in kept))

    loop.run(main)
