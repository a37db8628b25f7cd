"""The example of a service in async code, also when its requests are cancelled."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from loops import Asyncio, Gate
from sqlalchemy import event

from codex_state import StateRuntime, StateSettings, Thread
from codex_state.testing.samples import a_thread

EXAMPLE = Path(__file__).parents[2] / "examples" / "async_service.py"


@pytest.fixture
def app(settings: StateSettings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("CODEX_HOME", str(settings.codex_home))
    monkeypatch.setenv("CODEX_STATE_POOL_SIZE", "1")
    if settings.database_url is not None:
        monkeypatch.setenv("CODEX_STATE_DATABASE_URL", settings.database_url.get_secret_value())
    spec = importlib.util.spec_from_file_location("async_service", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "async_service", module)
    spec.loader.exec_module(module)
    found: FastAPI = module.app
    return found


@pytest.fixture
def thread(settings: StateSettings, app: FastAPI) -> Thread:
    thread = a_thread(title="before", memory_mode="enabled")
    with StateRuntime.open(settings) as runtime, runtime.begin() as state:
        state.threads.upsert(thread)
    return thread


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://service") as client,
    ):
        yield client


def stored(settings: StateSettings, thread: Thread) -> tuple[str, str | None]:
    with StateRuntime.open(settings) as runtime, runtime.read() as state:
        found = state.threads.get(thread.id)
    assert found is not None
    return found.display_name, found.memory_mode


def test_it_lists_threads_and_changes_them(app: FastAPI, thread: Thread, settings: StateSettings) -> None:
    async def main() -> None:
        async with client_of(app) as client:
            listed = (await client.get("/threads")).json()
            changed = await client.put(f"/threads/{thread.id}", params={"name": "after", "memory": "disabled"})
            unknown = await client.put(f"/threads/{uuid4()}", params={"name": "after", "memory": "disabled"})
            malformed = await client.get("/threads", params={"cursor": "nonsense"})
        assert [(item["id"], item["name"]) for item in listed["threads"]] == [(str(thread.id), "before")]
        assert (changed.status_code, unknown.status_code, malformed.status_code) == (200, 404, 422)

    asyncio.run(main())
    assert stored(settings, thread) == ("after", "disabled")


def test_a_request_that_is_cancelled_while_it_commits_is_kept_whole(
    app: FastAPI, thread: Thread, settings: StateSettings
) -> None:
    """L5."""

    async def main() -> None:
        async with client_of(app) as client:
            gate = Gate()
            runtime = app.state.runtime
            event.listen(runtime.sync.engine, "commit", lambda _: None if gate.opened.is_set() else gate.wait())
            change = {"name": "after", "memory": "disabled"}
            async with Asyncio.started(lambda: client.put(f"/threads/{thread.id}", params=change)) as cancel:
                await gate.is_reached(Asyncio)
                cancel()
                gate.opened.set()
            assert runtime.sync.engine.pool.checkedout() == 0
            assert (await client.get("/threads")).json()["threads"][0]["name"] == "after"

    asyncio.run(main())
    assert stored(settings, thread) == ("after", "disabled")


def test_a_request_that_is_cancelled_before_its_turn_changes_nothing(
    app: FastAPI, thread: Thread, settings: StateSettings
) -> None:
    """L5."""

    async def main() -> None:
        async with client_of(app) as client:
            gate = Gate()
            runtime = app.state.runtime
            change = {"name": "after", "memory": "disabled"}
            async with Asyncio.started(lambda: runtime.run(lambda _: gate.wait())):
                await gate.is_reached(Asyncio)
                async with Asyncio.started(lambda: client.put(f"/threads/{thread.id}", params=change)) as cancel:
                    await asyncio.sleep(0.05)
                    cancel()
                gate.opened.set()
            assert runtime.sync.engine.pool.checkedout() == 0

    asyncio.run(main())
    assert stored(settings, thread) == ("before", "enabled")
