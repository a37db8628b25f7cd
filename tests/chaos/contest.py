"""The contest: eight processes go for the same thousands of jobs, through the package and through plain ``sqlite3``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from codex_state import StateRuntime, StateSettings
from codex_state.models import Phase1Status
from codex_state.testing.grants import thread_id_of
from codex_state.testing.samples import a_thread
from tests.chaos.processes import Worker, WorkerHost
from tests.chaos.verdict import Verdict

PROCESSES = 8


def contest(host: WorkerHost, url: str, directory: Path, jobs: int) -> Verdict:
    """Have every process try every job, and finish those that it gets."""
    verdict = Verdict()
    settings = StateSettings(codex_home=directory / "ours", database_url=url)
    _prepare(settings, jobs)
    answers = _raced(
        [
            host.start("tests.chaos.races:finish_all", url=url, clock=None, jobs=jobs, position=position)
            for position in range(PROCESSES)
        ]
    )
    finished = Counter(number for answer in answers for number in answer["finished"])
    verdict.problems += [
        f"job {number} was finished {finished[number]} times" for number in finished if finished[number] > 1
    ]
    verdict.problems += [f"{jobs - len(finished)} jobs were not finished"] if len(finished) < jobs else []
    with StateRuntime.open(settings) as runtime, runtime.read() as state:
        stored = Counter((job.status, job.attempt) for job in state.phase1_jobs.list(limit=jobs + 1))
    if stored != {(Phase1Status.SUCCEEDED, 1): jobs}:
        verdict.problems.append(f"the rows tell otherwise: {stored}")
    verdict.figures[f"{PROCESSES} processes x {jobs} jobs"] = _told(answers)
    if url.startswith("sqlite"):
        verdict.figures["the same by sqlite3 alone"] = _told(_floor(host, directory, jobs))
    return verdict


def _prepare(settings: StateSettings, jobs: int) -> None:
    with StateRuntime.open(settings) as runtime, runtime.begin() as state:
        state.threads.upsert_many(a_thread(id=thread_id_of(str(number))) for number in range(jobs))


def _floor(host: WorkerHost, directory: Path, jobs: int) -> list[dict[str, Any]]:
    settings = StateSettings(codex_home=directory / "floor")
    _prepare(settings, jobs)
    return _raced(
        [
            host.start("tests.chaos.races:finish_all_raw", path=settings.database_path, jobs=jobs, position=position)
            for position in range(PROCESSES)
        ]
    )


def _raced(workers: list[Worker]) -> list[dict[str, Any]]:
    for worker in workers:
        worker.receive()
    for worker in workers:
        worker.send("go")
    answers = [worker.receive() for worker in workers]
    for worker in workers:
        worker.wait()
        worker.close()
    return answers


def _told(answers: list[dict[str, Any]]) -> str:
    claims = sum(answer["claims"] for answer in answers)
    seconds = max(answer["seconds"] for answer in answers)
    worst = max(answer["worst"] for answer in answers)
    return f"{claims / seconds:.0f} claims/s, worst wait {worst * 1e3:.0f} ms"
