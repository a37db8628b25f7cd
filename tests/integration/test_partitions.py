"""A worker that is cut off from the database past its lease: it stops, another takes over, it changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from memory_support import OTHER, OWNER, add_threads, now, user_key
from relay import relay
from sqlalchemy import text

from codex_state import (
    Claimed,
    ExtractedMemory,
    Phase1Options,
    Phase1Outcome,
    StateRuntime,
    StateSettings,
    Thread,
    current_work,
    run_phase1,
    trust_clock,
)

LEASE = timedelta(seconds=3)
OPTIONS = Phase1Options(lease=LEASE, scope_kinds=("user",), write_files=False)

Open = Callable[[StateSettings], StateRuntime]


def rows(runtime: StateRuntime) -> list[tuple[object, ...]]:
    with runtime.read() as state:
        connection = state.session.connection()
        tables = ("memory_phase1_jobs", "thread_memory", "memory_scope_dirty")
        return [tuple(row) for table in tables for row in connection.execute(text(f"SELECT * FROM {table}"))]


def test_a_pass_that_is_cut_off_past_its_lease_stops_in_time_and_changes_nothing(
    postgres_settings: StateSettings, opened: Open
) -> None:
    """L2: nothing gets through either way; after the wire is mended, what was held back arrives."""
    assert postgres_settings.database_url is not None
    rival = opened(postgres_settings)
    thread = add_threads(rival)[0]
    with relay(postgres_settings.database_url.get_secret_value()) as wire:
        url = wire.url.render_as_string(hide_password=False)
        cut_off = opened(StateSettings(codex_home=postgres_settings.codex_home, database_url=url))
        begun = threading.Event()
        told: list[float] = []
        reports = []

        def extract(_thread: Thread) -> ExtractedMemory:
            work = current_work()
            assert work is not None
            begun.set()
            assert work.wait(60)
            told.append(trust_clock())
            return ExtractedMemory("too late", "too late")

        worker = threading.Thread(
            target=lambda: reports.append(run_phase1(cut_off, extract, owner=OWNER, options=OPTIONS))
        )
        worker.start()
        assert begun.wait(60)
        wire.freeze()
        won = None
        while won is None:
            with rival.autocommit() as state:
                claim = state.phase1_jobs.try_claim(user_key(thread), owner=OTHER, source_updated_at=now(), lease=LEASE)
            won = claim if isinstance(claim, Claimed) else None
        taken_at = trust_clock()
        with rival.autocommit() as state:
            assert state.thread_memories.upsert_if_owner(won.lease, "the rival's", "the rival's")
            assert state.phase1_jobs.succeed(won.lease, raw_memory_path=None, summary_hash=None)
        before = rows(rival)
        wire.thaw()
        worker.join(60)
        assert [result.outcome for result in reports[0].results] == [Phase1Outcome.LOST]
        assert told[0] < taken_at
        assert rows(rival) == before
