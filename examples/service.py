"""A web service with tables of its own that lists threads and names them, in its own transactions.

pip install fastapi uvicorn
uvicorn --app-dir examples service:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlmodel import Field, Session, SQLModel

from codex_state import (
    Anchor,
    InvalidInputError,
    State,
    StateError,
    StateRuntime,
    ThreadQuery,
    rollout,
    thread_key,
)


class NameChange(SQLModel, table=True):
    """The service's own table: who gave which thread which name."""

    id: int | None = Field(default=None, primary_key=True)
    thread_id: UUID = thread_key()
    name: str
    changed_at: datetime


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the state once, with a complete index, for all requests."""
    with rollout.open_state() as runtime:
        SQLModel.metadata.create_all(
            runtime.engine
        )  # only the service's tables: the state's have metadata of their own
        app.state.runtime = runtime
        yield


def the_runtime(request: Request) -> StateRuntime:
    """The open state."""
    runtime: StateRuntime = request.app.state.runtime
    return runtime


def own_session(runtime: Annotated[StateRuntime, Depends(the_runtime)]) -> Iterator[Session]:
    """A write transaction of the service: its own rows and the state's commit together, or not at all."""
    with Session(runtime.engine) as session, session.begin():
        yield session


app = FastAPI(lifespan=lifespan)


@app.exception_handler(StateError)
async def tell(_request: Request, error: StateError) -> JSONResponse:
    """Every error of the state says what to do; none is a bug of the service."""
    return JSONResponse({"detail": str(error)}, status_code=422 if isinstance(error, InvalidInputError) else 503)


@app.get("/threads")
def threads(
    runtime: Annotated[StateRuntime, Depends(the_runtime)], cursor: str | None = None, limit: int = 50
) -> dict[str, Any]:
    """One page of threads, newest first."""
    anchor = None if cursor is None else Anchor.parse(cursor)
    with runtime.read() as state:
        page = state.threads.list(ThreadQuery(limit=limit, anchor=anchor))
    return {
        "threads": [
            {"id": thread.id, "name": thread.display_name, "updated_at": thread.updated_at} for thread in page.items
        ],
        "next": page.next_anchor and page.next_anchor.cursor(),
    }


@app.put("/threads/{thread_id}/name")
def rename(thread_id: UUID, name: str, session: Annotated[Session, Depends(own_session, scope="function")]) -> None:
    """Name a thread, and note it in the service's own table."""
    if not State(session).threads.set_name(thread_id, name):
        raise HTTPException(404, f"no thread {thread_id}")
    session.add(NameChange(thread_id=thread_id, name=name, changed_at=datetime.now(UTC)))
