"""A peer that vanishes without a word, as a machine without power does: each side gives it up, and work goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import vanishing
from memory_support import OWNER, add_threads
from own_server import own_server
from sqlalchemy import URL, text

from codex_state import (
    ConnectionLostError,
    ExtractedMemory,
    Phase1Options,
    Phase1Outcome,
    ServerUnavailableError,
    State,
    StateRuntime,
    StateSettings,
    Thread,
    UnknownCommitOutcomeError,
    run_phase1,
)
from codex_state.database import Database

pytestmark = vanishing.NEEDED

EARLIEST, LATEST = 15, 90
"""In seconds. Silence is given up after about 20; Linux itself would take from a quarter of an hour to two hours."""

EARLIEST_TO_CONNECT = 8
"""Connecting is given up after 10."""


class Site:
    """A server that is reached by TCP, and clients of it that notice when they are told."""

    def __init__(self, url: str, tcp_url: str, home: Path, held: ExitStack) -> None:
        self._home, self._held = home, held
        self._pool = held.enter_context(ThreadPoolExecutor())  # its threads end when the wires are closed
        self.wire = held.enter_context(vanishing.vanishing_wire(tcp_url))
        self.dead_end = held.enter_context(vanishing.vanishing_wire(tcp_url))
        """Nobody answers there any more, not even to those who come."""
        self.near = self.runtime(url)
        """Connected otherwise."""
        self._vanished = threading.Event()
        self._vanished_at = 0.0

    def runtime(self, url: str | URL) -> StateRuntime:
        text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
        settings = StateSettings(codex_home=self._home, database_url=text, busy_timeout=timedelta(seconds=LATEST))
        return self._held.enter_context(StateRuntime.open(settings))

    def database(self, url: URL) -> Database:
        """Nothing is connected yet."""
        opened = Database.open(url)
        self._held.callback(opened.close)
        return opened

    def vanish(self) -> None:
        """Let the wire vanish and come back: new connections can be made, those that are there are dead."""
        self.wire.vanish()
        self.dead_end.vanish()
        self.wire.come_back()
        self._vanished_at = time.monotonic()
        self._vanished.set()

    def wait_until_vanished(self) -> None:
        assert self._vanished.wait(60)

    def sessions(self) -> set[int]:
        """Those of the server that were begun by TCP."""
        with self.near.read() as state:
            found = text("SELECT pid FROM pg_stat_activity WHERE client_port > 0")
            return set(state.session.connection().execute(found).scalars())

    def start(self, work: Callable[[], object]) -> Future[float]:
        """Do it on a thread; the result is how many seconds after the vanishing it was done."""

        def timed() -> float:
            work()
            return time.monotonic() - self._vanished_at

        return self._pool.submit(timed)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as held:
        server = held.enter_context(own_server(tcp=True))
        yield Site(server.url, server.tcp_url, tmp_path, held)


def test_both_sides_give_up_a_peer_that_vanished_and_work_goes_on_by_itself(site: Site) -> None:
    """By the defaults, and all at once, since each of them takes 20 s."""
    extracted, locked = add_threads(site.near, 2)
    begun = [threading.Event() for _ in range(3)]

    def wait_for_an_answer() -> None:
        """Nothing is on its way, so only probes find out."""
        with site.database(site.wire.url).read() as session:
            begun[0].set()
            with pytest.raises(ConnectionLostError):
                session.connection().execute(text("SELECT pg_sleep(3)"))

    def commit() -> None:
        """What is sent is never acknowledged. The server has a client in a transaction that says nothing more."""

        def unit(state: State) -> None:
            assert state.threads.set_name(locked.id, "the vanished client's")
            begun[1].set()
            site.wait_until_vanished()

        with pytest.raises(UnknownCommitOutcomeError):
            site.runtime(site.wire.url).run(unit)

    def extract(_thread: Thread) -> ExtractedMemory:
        begun[2].set()
        site.wait_until_vanished()
        return ExtractedMemory("raw", "summary")

    def work() -> None:
        """What it stores is sent to nobody first, and then again over a new connection."""
        options = Phase1Options(scope_kinds=("user",), limit=1, write_files=False)
        report = run_phase1(site.runtime(site.wire.url), extract, owner=OWNER, options=options)
        assert [(result.key.thread_id, result.outcome) for result in report.results] == [
            (extracted.id, Phase1Outcome.SUCCEEDED)
        ]

    def connect() -> None:
        with pytest.raises(ServerUnavailableError), site.database(site.dead_end.url).read() as session:
            session.connection()

    def take_the_lock() -> None:
        with site.near.begin() as state:
            assert state.threads.set_name(locked.id, "the next one's")

    clients = [site.start(work) for work in (wait_for_an_answer, commit, work)]
    assert all(event.wait(60) for event in begun)
    time.sleep(1)  # until the first of them waits for its answer
    dead = site.sessions()
    site.vanish()
    deadline = time.monotonic() + LATEST
    connecting, rival = site.start(connect), site.start(take_the_lock)

    for silent in (*clients, rival):
        assert EARLIEST < silent.result(LATEST) < LATEST
    assert EARLIEST_TO_CONNECT < connecting.result(LATEST) < LATEST
    assert len(dead) >= len(clients)
    while site.sessions() & dead:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with site.near.read() as state:
        stored = state.threads.get(locked.id)
        memory = state.thread_memories.get(extracted.id)
    assert stored is not None
    assert stored.name == "the next one's"
    assert memory is not None
    assert memory.raw_memory == "raw"
