"""A standby that follows a server: what may be read there, what it refuses, and what its promotion keeps and loses."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from memory_support import OTHER, add_threads, claim, now, user_key
from own_server import OwnServer, own_server, standby_of
from sqlalchemy import make_url, text

from codex_state import (
    Claimed,
    DatabaseReadOnlyError,
    ExtractedMemory,
    HolderWrite,
    Phase1Lease,
    Skipped,
    SkipReason,
    State,
    StateRuntime,
    StateSettings,
    ThreadQuery,
    run_phase1,
)

LEASE = timedelta(hours=1)


class Pair:
    """A server with our schema, and a standby that follows it."""

    def __init__(self, primary: OwnServer, standby: OwnServer, home: Path, held: ExitStack) -> None:
        self.primary, self.standby = primary, standby
        self._home, self._held = home, held
        self.on_primary = self.opened(primary.url)

    def opened(self, url: str) -> StateRuntime:
        settings = StateSettings(codex_home=self._home, database_url=url, retry_for=timedelta(seconds=60))
        return self._held.enter_context(StateRuntime.open(settings))

    def opened_to_read(self) -> StateRuntime:
        settings = StateSettings(codex_home=self._home, database_url=self.standby.url, migrate=False)
        return self._held.enter_context(StateRuntime.open(settings))

    def catch_up(self) -> None:
        """Wait until the standby shows what the primary has committed."""
        (position,) = _asked(self.primary, "SELECT pg_current_wal_lsn()")
        wait_for(lambda: _asked(self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == (True,))

    def part(self) -> None:
        """Let the standby hear nothing of the primary any more."""
        _asked(self.standby, "ALTER SYSTEM SET primary_conninfo = ''")
        _asked(self.standby, "SELECT pg_reload_conf()")
        wait_for(lambda: _asked(self.standby, "SELECT count(*) FROM pg_stat_wal_receiver") == (0,))

    def fail_over(self) -> None:
        self.primary.kill(signal.SIGKILL)
        assert _asked(self.standby, "SELECT pg_promote(true, 60)") == (True,)


def _asked(server: OwnServer, statement: str) -> tuple[object, ...]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone() or () if cursor.description else ()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One for all tests of the module, as it takes seconds to make. The test that ends it is the last one."""
    with ExitStack() as held:
        # Replay waits for no query, so that a test needn't wait for it.
        primary = held.enter_context(own_server("max_standby_streaming_delay = 0\n"))
        yield Pair(primary, held.enter_context(standby_of(primary)), tmp_path_factory.mktemp("home"), held)


def claim_of(key: object) -> Callable[[State], Claimed[Phase1Lease] | Skipped]:
    return lambda state: state.phase1_jobs.try_claim(key, owner=OTHER, source_updated_at=now(), lease=LEASE)


def test_a_standby_serves_reads_that_may_be_stale_and_refuses_every_write(pair: Pair) -> None:
    thread, other = add_threads(pair.on_primary, 2)
    lease = claim(pair.on_primary, user_key(thread))
    pair.catch_up()
    standby = pair.opened_to_read()

    def token(state: State) -> str | None:
        job = state.phase1_jobs.get(lease.key)
        return None if job is None else job.ownership_token

    def listed(state: State) -> set[UUID]:
        return {found.id for found in state.threads.list(ThreadQuery(limit=50)).items}

    assert standby.run_read(token) == lease.token
    assert standby.run_read(listed) == {thread.id, other.id}

    _asked(pair.standby, "SELECT pg_wal_replay_pause()")
    with pair.on_primary.begin() as state:
        assert state.threads.delete(other.id)
    assert standby.run_read(listed) == {thread.id, other.id}
    _asked(pair.standby, "SELECT pg_wal_replay_resume()")
    pair.catch_up()
    assert standby.run_read(listed) == {thread.id}

    for refused in (
        lambda state: state.threads.set_name(thread.id, "new"),
        claim_of(user_key(thread)),
        lambda state: state.phase1_jobs.claim_candidates(owner=OTHER, lease=LEASE),
        lambda state: state.phase1_jobs.renew(lease),
        lambda state: state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None),
    ):
        for opened in (standby.begin, standby.autocommit, standby.read):
            with pytest.raises(DatabaseReadOnlyError), opened() as state:
                refused(state)
        with pytest.raises(DatabaseReadOnlyError, match="a standby"):
            standby.run(refused)
    with pytest.raises(DatabaseReadOnlyError, match="a standby"):
        run_phase1(standby, lambda _thread: ExtractedMemory("raw", "summary"), owner=OTHER)


def test_a_read_that_replay_ended_is_run_again(pair: Pair) -> None:
    """The server ends what looks at rows that the primary has removed, and calls it a conflict."""
    removed, other = add_threads(pair.on_primary, 2)
    pair.catch_up()
    standby = pair.opened_to_read()
    found: list[bool] = []

    def read(state: State) -> bool:
        found.append(state.threads.get(removed.id) is not None)
        if len(found) == 1:
            with pair.on_primary.autocommit() as primary:
                assert primary.threads.delete(removed.id)
                primary.session.connection().execute(text("VACUUM threads"))
                assert primary.threads.set_name(other.id, "what the standby is sent, with all before it")
            pair.catch_up()
        return state.threads.get(removed.id) is not None

    assert standby.run_read(read) is False
    assert found == [True, False]


def test_workers_go_on_by_themselves_on_a_promoted_standby_and_what_it_had_not_received_is_lost_together(
    pair: Pair,
) -> None:
    """L2: a holder whose grant is lost is refused, one whose finish is lost may finish again."""
    finished, granted, next_one = add_threads(pair.on_primary, 3)
    urls = [make_url(server.url) for server in (pair.primary, pair.standby)]
    hosts = [str(url.query["host"]) for url in urls]
    either = urls[0].update_query_dict(
        {"host": ",".join(hosts), "port": "5432,5432", "target_session_attrs": "read-write"}
    )
    workers = pair.opened(either.render_as_string(hide_password=False))

    first = claim(workers, user_key(finished))
    pair.catch_up()
    pair.part()
    with workers.begin() as state:
        assert state.thread_memories.upsert_if_owner(first, "raw", "summary")
        assert state.phase1_jobs.succeed(first, raw_memory_path=None, summary_hash=None) is HolderWrite.APPLIED
    second = claim(workers, user_key(granted))

    killed = threading.Event()
    with ThreadPoolExecutor() as pool:

        def go_on() -> object:
            assert killed.wait(60)
            return workers.run(claim_of(user_key(next_one)))

        going_on = pool.submit(go_on)
        pair.primary.kill(signal.SIGKILL)
        killed.set()
        time.sleep(1)
        pair.fail_over()
        assert isinstance(going_on.result(60), Claimed)

    # The memory and the finish were one transaction, and are lost as one.
    assert workers.run_read(lambda state: state.thread_memories.get(finished.id)) is None
    assert workers.run(claim_of(first.key)) == Skipped(SkipReason.RUNNING)
    assert workers.run(lambda state: state.phase1_jobs.succeed(first, raw_memory_path=None, summary_hash=None))

    assert workers.run(lambda state: state.phase1_jobs.renew(second)) is HolderWrite.LEASE_LOST
    with workers.begin() as state:
        assert not state.thread_memories.upsert_if_owner(second, "late", "late")
    assert isinstance(workers.run(claim_of(second.key)), Claimed)
    with workers.begin() as state:
        outcome = state.phase1_jobs.succeed(second, raw_memory_path=None, summary_hash=None)
    assert outcome is HolderWrite.LEASE_LOST
