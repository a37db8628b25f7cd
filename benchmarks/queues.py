"""Claim and finish against queues of others: PgQueuer on the same PostgreSQL server, huey on SQLite.

Everybody has the same number of jobs, which are nothing to do. Before the clock starts each worker has run its
statements once, on jobs that don't exist, so that connecting and compiling don't count. PgQueuer's dequeue has no
default of its own: its worker (``QueueManager.run``, ``pgq run``) calls it with a batch of 10. It runs on asyncpg, with
which its documentation starts. The budget is for those that take one job at a time: five times PgQueuer's batches of 10
would be more than two raw statements for each 64 jobs reach.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, make_url

from benchmarks.servers import serve
from benchmarks.statements import new_thread
from codex_state import MemoryScope, Phase1Key, Phase1Lease, Product, StateRuntime, StateSettings

_JOBS = 6400
_ENTRYPOINT = "job"
_BUDGET = 5
_ONE_AT_A_TIME = ("PgQueuer, dequeue 1", "huey's SqliteHuey")

Work = Callable[[str, int, Barrier], tuple[int, float]]


def _ours(url: str, batch: int, start: Barrier) -> tuple[int, float]:
    done, owner = 0, uuid4()
    settings = StateSettings(codex_home=Path(tempfile.gettempdir()), database_url=url)
    with StateRuntime.open(settings) as runtime, runtime.autocommit() as state:
        jobs = state.phase1_jobs

        def claim(*sources: str) -> list[Phase1Lease]:
            return jobs.claim_candidates(
                owner=owner, lease=timedelta(hours=1), limit=batch, scope_kinds=("user",), sources=sources
            )

        def finish(leases: list[Phase1Lease]) -> int:
            outcomes = jobs.succeed_many({lease: Product(None, "hash") for lease in leases})
            return sum(map(bool, outcomes.values()))

        claim("nobody", "nothing")
        finish([_nobodys_lease()])
        start.wait()
        began = time.perf_counter()
        while leases := claim("cli", "vscode"):
            done += finish(leases)
        return done, time.perf_counter() - began


def _nobodys_lease() -> Phase1Lease:
    now = datetime.now(UTC)
    key = Phase1Key(uuid4(), MemoryScope.user())
    return Phase1Lease(
        key=key,
        owner=uuid4(),
        token="nobody's",
        granted_at=now,
        duration=timedelta(hours=1),
        source_updated_at=now,
    )


def _pgqueuer(url: str, batch: int, start: Barrier) -> tuple[int, float]:
    return asyncio.run(_dequeue(url, batch, start))


async def _dequeue(url: str, batch: int, start: Barrier) -> tuple[int, float]:
    from pgqueuer.ports.repository import EntrypointExecutionParameter

    connection, queries = await _queries(url)
    done, worker = 0, uuid4()

    async def dequeue(entrypoint: str) -> list[Any]:
        entrypoints = {entrypoint: EntrypointExecutionParameter(concurrency_limit=0)}
        jobs: list[Any] = await queries.dequeue(batch, entrypoints, worker, None, timedelta(seconds=30))
        return jobs

    await dequeue("nothing")
    start.wait()
    began = time.perf_counter()
    while jobs := await dequeue(_ENTRYPOINT):
        await queries.log_jobs([(job, "successful", None) for job in jobs])
        done += len(jobs)
    seconds = time.perf_counter() - began
    await connection.close()
    return done, seconds


async def _queries(url: str) -> tuple[Any, Any]:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    parsed = make_url(url)
    connection = await asyncpg.connect(
        user=parsed.username,
        password=parsed.password or None,
        host=parsed.host or parsed.query.get("host"),
        port=parsed.port or 5432,
        database=parsed.database,
    )
    return connection, Queries(AsyncpgDriver(connection))


def _pgqueuer_worker(url: str, batch: int, start: Barrier) -> tuple[int, float]:
    return asyncio.run(_drain(url, batch, start))


async def _drain(url: str, batch: int, start: Barrier) -> tuple[int, float]:
    from pgqueuer import PgQueuer
    from pgqueuer.domain.types import QueueExecutionMode

    connection, queries = await _queries(url)
    worker, done = PgQueuer(queries.driver), 0

    @worker.entrypoint(_ENTRYPOINT)
    async def count(_job: Any) -> None:
        nonlocal done
        done += 1

    start.wait()
    began = time.perf_counter()
    await worker.run(mode=QueueExecutionMode.drain, batch_size=batch)
    seconds = time.perf_counter() - began
    await connection.close()
    return done, seconds


def _huey(path: str, _batch: int, start: Barrier) -> tuple[int, float]:
    huey, _ = _huey_of(path)
    done = 0
    huey.pending_count()
    start.wait()
    began = time.perf_counter()
    while task := huey.dequeue():
        huey.execute(task)
        done += 1
    return done, time.perf_counter() - began


def _huey_of(path: str) -> tuple[Any, Any]:
    from huey import SqliteHuey

    huey = SqliteHuey(filename=path, timeout=60)

    @huey.task()
    def nothing() -> None:
        """The job."""

    return huey, nothing


def _store_ours(url: str) -> None:
    now = int(time.time())
    threads = [new_thread(number) for number in range(_JOBS)]
    for number, thread in enumerate(threads):
        thread.updated_at = datetime.fromtimestamp(now - number, UTC)
    settings = StateSettings(codex_home=Path(tempfile.gettempdir()), database_url=url)
    with StateRuntime.open(settings) as runtime, runtime.begin() as state:
        state.threads.upsert_many(threads)


def _store_pgqueuers(url: str) -> None:
    async def store() -> None:
        connection, queries = await _queries(url)
        await queries.install()
        await queries.enqueue([_ENTRYPOINT] * _JOBS, [None] * _JOBS, [0] * _JOBS)
        await connection.close()

    asyncio.run(store())


def _store_hueys(path: str) -> None:
    _, nothing = _huey_of(path)
    for _ in range(_JOBS):
        nothing()


def _enter(results: Any, work: Work, url: str, batch: int, start: Barrier) -> None:
    try:
        results.put(work(url, batch, start))
    except BaseException as error:
        results.put((0, repr(error)))
        raise


def _rate(work: Work, url: str, batch: int, workers: int) -> float:
    """Jobs per second of so many processes that start together."""
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Barrier(workers)
    processes = [context.Process(target=_enter, args=(results, work, url, batch, start)) for _ in range(workers)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert sum(done for done, _ in answers) == _JOBS, answers
    return _JOBS / max(seconds for _, seconds in answers)


def run() -> None:
    with serve() as server:
        for setting in ("on", "off"):
            for workers in (1, 4):
                _side_by_side(
                    f"PostgreSQL, synchronous_commit = {setting}, {workers} workers",
                    workers,
                    _POSTGRESQL,
                    lambda setting=setting: server.database(setting),  # type: ignore[misc]
                    "codex_state, 64 at a time",
                )
    for workers in (1, 4):
        _side_by_side(f"SQLite, {workers} workers", workers, _SQLITE, _SqliteFile, "codex_state, 64 at a time")


_POSTGRESQL: dict[str, tuple[Callable[[str], None], Work, int]] = {
    "codex_state, 64 at a time": (_store_ours, _ours, 64),
    "PgQueuer, dequeue 1": (_store_pgqueuers, _pgqueuer, 1),
    "PgQueuer, dequeue 10 (its worker's default)": (_store_pgqueuers, _pgqueuer, 10),
    "PgQueuer, dequeue 64": (_store_pgqueuers, _pgqueuer, 64),
    "PgQueuer, its worker, batches of 10": (_store_pgqueuers, _pgqueuer_worker, 10),
}
_SQLITE: dict[str, tuple[Callable[[str], None], Work, int]] = {
    "codex_state, 64 at a time": (_store_ours, _ours, 64),
    "huey's SqliteHuey": (_store_hueys, _huey, 1),
}


class _SqliteFile:
    """A place for one queue's file."""

    def __enter__(self) -> URL:
        self._directory = tempfile.TemporaryDirectory()
        return URL.create("sqlite", database=f"{self._directory.name}/queue.sqlite")

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


def _side_by_side(title: str, workers: int, queues: Any, database: Any, ours: str) -> None:
    print(f"\nClaim + finish of {_JOBS} jobs, {title}")
    rates: dict[str, float] = {}
    for name, (store, work, batch) in queues.items():
        with database() as url:
            place = url.database if work is _huey else url.render_as_string(hide_password=False)
            store(place)
            rates[name] = _rate(work, place, batch, workers)
    for name, rate in rates.items():
        ratio = rates[ours] / rate
        note = "" if name == ours else f"   ours is {ratio:.1f}x"
        if name in _ONE_AT_A_TIME:
            note += f", budget {_BUDGET}x {'ok' if ratio >= _BUDGET else 'MISSED'}"
        print(f"  {name:<46}{rate:>9.0f}/s{note}", flush=True)
