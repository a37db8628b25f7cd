"""What a guarded statement costs through us, against the same SQL on the standard library's ``sqlite3``."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from uuid import UUID, uuid4

from benchmarks.measure import interleaved, report
from codex_state import (
    Anchor,
    Claimed,
    LogEntry,
    MemoryScope,
    Phase1Key,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadQuery,
)
from codex_state.models import IS_SHOWN

_RENEW = (
    "UPDATE memory_phase1_jobs SET started_at = CAST(strftime('%s', 'now') AS INTEGER), owner_name = ?, "
    "owner_process = ?, lease_seconds = ? "
    "WHERE thread_id = ? AND scope_kind = ? AND scope_key = ? AND status = 'running' AND ownership_token = ? "
    "RETURNING started_at"
)
_LOG = (
    "INSERT INTO logs (ts, ts_nanos, level, target, message, module_path, file, line, thread_id) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _id_of(second: int) -> UUID:
    """An id as the original gives: of version 7, in the order of time."""
    return UUID(int=second * 1000 << 80 | 7 << 76 | 2 << 62 | random.getrandbits(62))


def new_thread(number: int) -> Thread:
    second = 1_770_000_000 + number
    moment = datetime.fromtimestamp(second, UTC)
    return Thread(
        id=_id_of(second),
        rollout_path=Path(f"/home/sessions/rollout-{number}.jsonl"),
        created_at=moment,
        updated_at=moment,
        source="cli",
        model_provider="openai",
        cwd=Path(f"/projects/{number % 50}"),
        title="fix the flaky test",
        sandbox_policy='{"type":"read-only"}',
        approval_mode="on-request",
        first_user_message="fix the flaky test",
    )


def raw_connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON", "wal_autocheckpoint = 4000"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def run() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime,
    ):
        path = runtime.settings.database_path
        thread, owner = new_thread(0), uuid4()
        key = Phase1Key(thread.id, MemoryScope.user())
        with runtime.begin() as state:
            state.threads.upsert(thread)
        raw = raw_connection(path)
        with runtime.autocommit() as state:
            jobs = state.phase1_jobs
            claim = jobs.try_claim(key, owner=owner, source_updated_at=thread.updated_at, lease=timedelta(hours=1))
            assert isinstance(claim, Claimed)
            lease = claim.lease
            job = jobs.get(key)
            assert job is not None
            values = (job.owner_name, job.owner_process, 3600, str(thread.id), "user", "user", lease.token)

            def renew_in_a_session_of_its_own() -> None:
                with runtime.autocommit() as own:
                    own.phase1_jobs.renew(lease)

            def renew_in_a_transaction_of_its_own() -> None:
                with runtime.begin() as own:
                    own.phase1_jobs.renew(lease)

            report(
                "A lease renewal on SQLite",
                interleaved(
                    {
                        "sqlite3": lambda: raw.execute(_RENEW, values).fetchall(),
                        "held session": lambda: jobs.renew(lease),
                        "session per call": renew_in_a_session_of_its_own,
                        "transaction per call": renew_in_a_transaction_of_its_own,
                    },
                    calls=500,
                ),
                "sqlite3",
                {"held session": 2.5, "session per call": 8},
            )
            _page_of_50(runtime, raw)
            _thousand_log_lines(runtime, raw)
        raw.close()


def _page_of_50(runtime: StateRuntime, raw: sqlite3.Connection) -> None:
    with runtime.begin() as state:
        state.threads.upsert_many([new_thread(number) for number in range(1, 20_000)])
    with runtime.read() as state:
        anchors = cycle(
            Anchor(thread.updated_at, thread.id) for thread in state.threads.list(ThreadQuery(limit=15_000)).items[::50]
        )
        query = (
            f"SELECT * FROM threads WHERE archived = 0 AND ({IS_SHOWN}) = true AND (updated_at, id) < (?, ?) "
            "ORDER BY updated_at DESC, id DESC LIMIT 51"
        )

        def values_of(anchor: Anchor) -> tuple[int, str]:
            return int(anchor.ts.timestamp()), str(anchor.id)

        report(
            "A page of 50 threads in the middle of 20,000",
            interleaved(
                {
                    "sqlite3, raw rows": lambda: raw.execute(query, values_of(next(anchors))).fetchall(),
                    "threads.list, entities": lambda: state.threads.list(ThreadQuery(limit=50, anchor=next(anchors))),
                },
                calls=200,
            ),
            "sqlite3, raw rows",
            {"threads.list, entities": 4},
        )


def _thousand_log_lines(runtime: StateRuntime, raw: sqlite3.Connection) -> None:
    rows = [(1_770_000_000, n, "INFO", "agent", f"line {n}", "agent::loop", "loop.py", n, None) for n in range(1000)]
    entries = [
        LogEntry(
            ts=ts, ts_nanos=nanos, level=level, target=target, message=message, module_path=module, file=file, line=line
        )
        for ts, nanos, level, target, message, module, file, line, _ in rows
    ]

    def raw_insert() -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(_LOG, rows)
        raw.execute("COMMIT")

    def insert_many() -> None:
        with runtime.begin() as state:
            state.logs.insert_many(entries)

    report(
        "1,000 log lines in one transaction",
        interleaved({"sqlite3 executemany": raw_insert, "logs.insert_many": insert_many}, calls=5),
        "sqlite3 executemany",
        {"logs.insert_many": 1.5},
    )
