"""The example service, for real: two worker processes on loopback, one of which is killed at its work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from memory_support import OTHER, OWNER, add_threads, let_leases_end

from codex_state import (
    AsyncStateRuntime,
    ConsolidationOutcome,
    MemoryScope,
    StateRuntime,
    StateSettings,
    ThreadMemory,
    aconsolidate_memories,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
THREADS = 12


@pytest.fixture
def state(settings: StateSettings, tmp_path: Path) -> StateSettings:
    """On PostgreSQL as well, nobody's own home is meant."""
    return settings if settings.database_url is None else settings.model_copy(update={"codex_home": tmp_path / "home"})


class Service:
    """The running service."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        return self._answer(Request(f"{self._url}{path}?{urlencode(parameters)}"))

    def post(self, path: str, body: Any) -> Any:
        content = json.dumps(body).encode()
        return self._answer(Request(f"{self._url}{path}", content, {"Content-Type": "application/json"}))

    @staticmethod
    def _answer(request: Request) -> Any:
        with urlopen(request, timeout=30) as response:
            return json.load(response)

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if true():
                    return
            except HTTPError as error:
                with error:
                    if error.code != 404:
                        raise
            except (URLError, ConnectionError, HTTPException):
                pass  # the process that took the connection was killed
            time.sleep(0.1)
        pytest.fail("it did not happen")


def environment_of(settings: StateSettings) -> dict[str, str]:
    """What tells a process which state is meant."""
    url = settings.database_url
    there = {} if url is None else {"CODEX_STATE_DATABASE_URL": url.get_secret_value()}
    return os.environ | {"CODEX_HOME": str(settings.codex_home)} | there


def migrate(settings: StateSettings, *command: str) -> None:
    """Run the service's own Alembic history, as a deployment does."""
    alembic = [sys.executable, "-m", "alembic", "-c", str(EXAMPLES / "agent_service" / "alembic.ini")]
    subprocess.run([*alembic, *(command or ("upgrade", "head"))], env=environment_of(settings), check=True)


@contextmanager
def serving(state: StateSettings, workers: int, **settings: str) -> Iterator[Service]:
    log = state.codex_home.with_name("service.log")
    # The socket is ours, so no port is guessed; the service's processes inherit it.
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "agent_service.service:app"]
        environment = {f"AGENT_SERVICE_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen(
            [*command, "--fd", str(listener.fileno()), "--workers", str(workers)],
            env=environment_of(state) | environment,
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            service = Service(process, url)
            service.wait_until(lambda: len(service.get("/workers")) >= workers)
            yield service
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            sys.stderr.write(log.read_text())


def store_threads(service: Service) -> list[str]:
    return [
        service.post(
            "/threads",
            {"title": f"Thread {number}", "cwd": f"/code/{number % 3}", "messages": ["hello", f"wish {number}"]},
        )["id"]
        for number in range(THREADS)
    ]


def test_a_service_of_two_processes_finishes_every_job_once_although_one_is_killed(state: StateSettings) -> None:
    migrate(state)
    with serving(state, 2, lease_seconds="2", pause_seconds="0.2", concurrency="3", model_seconds="0.6") as service:
        ids = store_threads(service)

        before: list[dict[str, Any]] = []

        def at_work() -> bool:
            before[:] = service.get("/jobs")
            return {job["status"] for job in before} == {"running", "succeeded"}

        service.wait_until(at_work)
        ((victim, _),) = Counter(job["pid"] for job in before if job["status"] == "running").most_common(1)
        os.kill(victim, signal.SIGKILL)

        def all_done() -> bool:
            jobs = service.get("/jobs")
            return len(jobs) == 2 * THREADS and {job["status"] for job in jobs} == {"succeeded"}

        service.wait_until(all_done)
        after = {(job["thread_id"], job["scope"]): job for job in service.get("/jobs")}
        for job in before:
            if job["status"] == "succeeded":
                assert after[job["thread_id"], job["scope"]] == job, "what was finished was not done again"
        taken_over = [job for job in after.values() if job["attempt"] > 1]
        assert taken_over, "the killed process held jobs, and others took them over"
        assert victim not in {job["pid"] for job in taken_over}
        for number, thread_id in enumerate(ids):
            assert service.get(f"/threads/{thread_id}/memory") == {
                "summary": f"Thread {number}: wish {number}",
                "raw_memory": f"- asked: hello\n- asked: wish {number}",
            }

        def notebooks_are_complete() -> bool:
            texts = [service.get("/notebook", cwd=f"/code/{number}")["text"] for number in range(3)]
            return sorted(line for text in texts for line in text.splitlines()) == sorted(
                f"- Thread {number}: wish {number}" for number in range(THREADS)
            )

        service.wait_until(notebooks_are_complete)
        # The killed process is replaced; there may be no work left for the new one.
        service.wait_until(lambda: len(service.get("/workers")) == 3)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_service_that_is_told_to_stop_gives_its_jobs_back(state: StateSettings) -> None:
    """With a lease of ten minutes: the next one need not wait for its end."""
    migrate(state)
    migrate(state, "check")
    with serving(state, 1, pause_seconds="0.2", model_seconds="60") as service:
        store_threads(service)
        service.wait_until(lambda: any(job["status"] == "running" for job in service.get("/jobs")))
    assert service.process.returncode in {0, -signal.SIGTERM}
    with serving(state, 1, pause_seconds="0.2", model_seconds="0") as service:
        service.wait_until(lambda: [job["status"] for job in service.get("/jobs")] == ["succeeded"] * 2 * THREADS)


def test_a_paused_consolidator_does_not_overwrite_a_newer_notebook(
    settings: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scope is clean by then, so nobody would ever write the notebook again."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from agent_service.remembering import Remembering, Settings
    from agent_service.tables import Notebook

    scope = MemoryScope.user()

    def remember(runtime: StateRuntime, summary: str) -> None:
        (thread,) = add_threads(runtime)
        with runtime.begin() as state:
            state.thread_memories.upsert_for_scope(thread.id, scope, summary, summary)
            state.memory_scopes.mark_dirty(scope)

    async def main() -> None:
        async with AsyncStateRuntime.open(settings) as runtime:
            await runtime.run(lambda state: Notebook.metadata.tables["notebook"].create(state.session.connection()))
            await runtime.call(lambda sync: remember(sync, "older"))
            paused, successor = (Remembering(runtime, owner, Settings()) for owner in (OWNER, OTHER))

            async def consolidate(scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
                await runtime.call(lambda sync: remember(sync, "newer"))
                await runtime.call(lambda sync: let_leases_end(sync, 601))
                report = await aconsolidate_memories(runtime, successor.consolidate, owner=OTHER)
                assert report.count(ConsolidationOutcome.CLEAN) == 1
                await paused.consolidate(scope, memories)

            report = await aconsolidate_memories(runtime, consolidate, owner=OWNER)
            assert report.count(ConsolidationOutcome.LOST) == 1
            notebook = await runtime.read(lambda state: state.session.get(Notebook, (scope.kind, scope.key)))
            assert notebook is not None
            assert sorted(notebook.text.splitlines()) == ["- newer", "- older"]

    asyncio.run(main())
