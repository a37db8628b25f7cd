"""A web service in async code: one open state for all requests, each unit of work one hop to a worker thread.

pip install fastapi uvicorn
uvicorn --app-dir examples async_service:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from codex_state import Anchor, AsyncStateRuntime, InvalidInputError, State, StateError, ThreadQuery, rollout


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the state once, with a complete index. At the end, units in flight are waited for."""
    async with AsyncStateRuntime.open(opener=rollout.open_state) as runtime:
        app.state.runtime = runtime
        yield


def the_runtime(request: Request) -> AsyncStateRuntime:
    """The open state."""
    runtime: AsyncStateRuntime = request.app.state.runtime
    return runtime


Runtime = Annotated[AsyncStateRuntime, Depends(the_runtime)]

app = FastAPI(lifespan=lifespan)


@app.exception_handler(StateError)
async def tell(_request: Request, error: StateError) -> JSONResponse:
    """Every error of the state says what to do; none is a bug of the service."""
    return JSONResponse({"detail": str(error)}, status_code=422 if isinstance(error, InvalidInputError) else 503)


@app.get("/threads")
async def threads(runtime: Runtime, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
    """One page of threads, newest first."""
    anchor = None if cursor is None else Anchor.parse(cursor)
    page = await runtime.read(lambda state: state.threads.list(ThreadQuery(limit=limit, anchor=anchor)))
    return {
        "threads": [
            {"id": thread.id, "name": thread.display_name, "updated_at": thread.updated_at} for thread in page.items
        ],
        "next": page.next_anchor and page.next_anchor.cursor(),
    }


@app.put("/threads/{thread_id}")
async def change(runtime: Runtime, thread_id: UUID, name: str, memory: Literal["enabled", "disabled"]) -> None:
    """Name a thread and say whether it is remembered: both or neither, also when the request is cancelled."""

    def both(state: State) -> bool:
        return state.threads.set_name(thread_id, name) and state.threads.set_memory_mode(thread_id, memory)

    if not await runtime.run(both):
        raise HTTPException(404, f"no thread {thread_id}")
