"""A small agent service: it stores threads, and its worker processes remember them in the background.

    pip install 'codex-state[postgres]' fastapi uvicorn
    alembic -c examples/agent_service/alembic.ini upgrade head
    uvicorn --app-dir examples agent_service.service:app --workers 2

The state is the one of `CODEX_HOME`, or the PostgreSQL database of `CODEX_STATE_DATABASE_URL`.

Any of the processes may be killed at any time. What it was working on is taken over by the others when its lease is
over, and each memory is stored once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

from agent_service.remembering import Remembering, Settings
from agent_service.tables import Message, Notebook, Worker
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlmodel import select

from codex_state import AsyncStateRuntime, InvalidInputError, State, StateError, Thread


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Open the state, remember in the background for as long as this process serves."""
    async with AsyncStateRuntime.open() as runtime:
        owner = uuid4()
        worker = Worker(id=owner, pid=os.getpid(), started_at=datetime.now(UTC))
        await runtime.run(lambda state: state.session.add(worker))
        app.state.runtime = runtime
        remembering = asyncio.create_task(Remembering(runtime, owner, Settings()).go_on())
        yield
        remembering.cancel()
        await asyncio.gather(remembering, return_exceptions=True)


def the_runtime(request: Request) -> AsyncStateRuntime:
    """The open state."""
    runtime: AsyncStateRuntime = request.app.state.runtime
    return runtime


Runtime = Annotated[AsyncStateRuntime, Depends(the_runtime)]

app = FastAPI(title="Agent service", lifespan=lifespan)


@app.exception_handler(StateError)
async def tell(_request: Request, error: StateError) -> JSONResponse:
    """Every error of the state says what to do; none is a bug of the service."""
    return JSONResponse({"detail": str(error)}, status_code=422 if isinstance(error, InvalidInputError) else 503)


class NewThread(BaseModel):
    """What a client sends to begin a thread."""

    title: str
    cwd: Path
    messages: list[str]


@app.post("/threads", status_code=201)
async def create(new: NewThread, runtime: Runtime) -> dict[str, UUID]:
    """Store a thread with its messages: all of it or nothing."""
    moment = datetime.now(UTC)
    thread = Thread(
        id=uuid4(),
        # It has no rollout: the messages are in a table of the service.
        created_at=moment,
        updated_at=moment,
        source="cli",
        model_provider="example",
        cwd=new.cwd,
        title=new.title,
        first_user_message=new.messages[0] if new.messages else None,
        sandbox_policy='{"type":"read-only"}',
        approval_mode="never",
    )

    def store(state: State) -> None:
        state.threads.upsert(thread)
        state.session.add_all(
            Message(thread_id=thread.id, position=position, role="user", text=text)
            for position, text in enumerate(new.messages)
        )

    await runtime.run(store)
    return {"id": thread.id}


@app.get("/threads/{thread_id}/memory")
async def memory(thread_id: UUID, runtime: Runtime) -> dict[str, str]:
    """What is remembered of a thread."""
    found = await runtime.read(lambda state: state.thread_memories.get(thread_id))
    if found is None:
        raise HTTPException(404, f"nothing is remembered of thread {thread_id} yet")
    return {"summary": found.memory_summary, "raw_memory": found.raw_memory}


@app.get("/notebook")
async def notebook(runtime: Runtime, cwd: Path) -> dict[str, str]:
    """The notebook of a working directory."""
    found = await runtime.read(lambda state: state.session.get(Notebook, ("cwd", str(cwd))))
    if found is None:
        raise HTTPException(404, f"nothing is remembered of {cwd} yet")
    return {"text": found.text}


@app.get("/jobs")
async def jobs(runtime: Runtime) -> list[dict[str, Any]]:
    """The extraction jobs, and which process has them."""

    def read(state: State) -> list[dict[str, Any]]:
        pids = {worker.id: worker.pid for worker in state.session.exec(select(Worker)).all()}
        return [
            {
                "thread_id": job.thread_id,
                "scope": job.scope_kind,
                "status": job.status,
                "attempt": job.attempt,
                "pid": None if job.owner_session_id is None else pids.get(job.owner_session_id),
            }
            for job in state.phase1_jobs.list(limit=1000)
        ]

    return await runtime.read(read)


@app.get("/workers")
async def workers(runtime: Runtime) -> list[int]:
    """The processes that have served so far, by their ids."""
    return await runtime.read(lambda state: [worker.pid for worker in state.session.exec(select(Worker)).all()])
