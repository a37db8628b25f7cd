"""What a guarded statement costs through us on PostgreSQL, against the same SQL by psycopg (autocommit, prepared)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import URL

from benchmarks.measure import interleaved, report, sent_by
from benchmarks.servers import serve
from benchmarks.statements import new_thread
from codex_state import Claimed, MemoryScope, Phase1Key, Phase1Lease, State, StateRuntime, StateSettings

_CALLS = 200
_SECOND = timedelta(seconds=1)


def run() -> None:
    with serve() as server:
        for setting in ("on", "off"):
            with server.database(setting) as url, tempfile.TemporaryDirectory() as home:
                settings = StateSettings(codex_home=Path(home), database_url=url.render_as_string(hide_password=False))
                with (
                    StateRuntime.open(settings) as runtime,
                    # Of its own, because an engine to which somebody has listened stays a little slower.
                    StateRuntime.open(settings) as heard,
                    closing(_psycopg(url)) as raw,
                ):
                    _measure(runtime, heard, raw, f"synchronous_commit = {setting}")


def _psycopg(url: URL) -> psycopg.Connection[Any]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, prepare_threshold=0)


def _measure(runtime: StateRuntime, heard: StateRuntime, raw: psycopg.Connection[Any], setting: str) -> None:
    ours, theirs = new_thread(0), new_thread(1)
    with runtime.begin() as state:
        state.threads.upsert_many([ours, theirs])
    with runtime.autocommit() as state, heard.autocommit() as other:
        worker, floor = _Worker(state, ours.id), _Worker(other, theirs.id)
        raw_claim = _sql_of(heard, floor.claim)
        raw_renew = _sql_of(heard, floor.renew)
        raw_memory = _sql_of(heard, floor.remember)
        raw_finish = _sql_of(heard, floor.finish)

        def by_psycopg(statement: str, parameters: dict[str, Any]) -> None:
            assert raw.execute(statement, parameters).fetchall(), "the guard refused it"

        def claim_by_psycopg() -> None:
            raw_claim[1]["new_source"] += 1
            by_psycopg(*raw_claim)

        def claim_and_finish_by_psycopg() -> None:
            claim_by_psycopg()
            by_psycopg(*raw_finish)

        def claim_and_finish() -> None:
            worker.claim()
            worker.finish()

        raw_claim[1]["new_lease_seconds"] = 0
        claim_by_psycopg()
        # The token of the captured statements is the one that the captured claim installs.
        for _, parameters in (raw_renew, raw_memory, raw_finish):
            parameters["token"] = raw_claim[1]["new_token"]

        def session_per_call() -> None:
            with runtime.autocommit() as own:
                own.phase1_jobs.renew(worker.lease)

        pairs: dict[str, dict[str, Callable[[], object]]] = {
            "a renewal": {
                "psycopg": lambda: by_psycopg(*raw_renew),
                "held session": worker.renew,
                "session per call": session_per_call,
                "run, a unit of work": lambda: runtime.run(lambda own: own.phase1_jobs.renew(worker.lease)),
            },
            "a memory of the holder": {"psycopg": lambda: by_psycopg(*raw_memory), "held session": worker.remember},
            "a claim": {"psycopg": claim_by_psycopg, "held session": worker.claim},
            "a claim and a finish": {"psycopg": claim_and_finish_by_psycopg, "held session": claim_and_finish},
        }
        worker.claim()
        for what, candidates in pairs.items():
            report(
                f"PostgreSQL, {setting}: {what}",
                interleaved(candidates, calls=_CALLS),
                "psycopg",
                {"held session": 2},
            )


class _Worker:
    """One worker on a held session, with one job."""

    lease: Phase1Lease

    def __init__(self, state: State, thread: Any) -> None:
        self._state, self._key, self._owner = state, Phase1Key(thread, MemoryScope.user()), uuid4()
        self._source = new_thread(0).updated_at

    def claim(self) -> None:
        """For a version of the thread that nobody has extracted yet."""
        self._source += _SECOND
        answer = self._state.phase1_jobs.try_claim(
            self._key, owner=self._owner, source_updated_at=self._source, lease=timedelta(0)
        )
        assert isinstance(answer, Claimed)
        self.lease = answer.lease

    def renew(self) -> None:
        assert self._state.phase1_jobs.renew(self.lease)

    def remember(self) -> None:
        assert self._state.thread_memories.upsert_if_owner(self.lease, "raw memory", "summary")

    def finish(self) -> None:
        assert self._state.phase1_jobs.succeed(self.lease, raw_memory_path=None, summary_hash="hash")


def _sql_of(runtime: StateRuntime, verb: Callable[[], None]) -> tuple[str, dict[str, Any]]:
    ((statement, parameters),) = sent_by(runtime, verb)
    return statement, dict(parameters)
