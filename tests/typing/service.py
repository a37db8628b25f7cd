"""What a service writes, for type checkers: `mypy --strict` and pyright have nothing to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_type
from uuid import UUID, uuid4

from sqlalchemy.orm import selectinload
from sqlmodel import Field, Session, SQLModel, col, select

from codex_state import (
    AsyncStateRuntime,
    Claimed,
    DynamicTool,
    MemoryScope,
    Phase1Key,
    Phase1Lease,
    State,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadMemory,
    ThreadQuery,
    hold,
    thread_key,
)


class Note(SQLModel, table=True):
    """A table of the service."""

    id: int | None = Field(default=None, primary_key=True)
    thread_id: UUID = thread_key(ondelete="CASCADE")
    about_id: UUID | None = thread_key(nullable=True)
    text: str


def entities() -> Thread:
    thread = Thread(id=uuid4(), source="cli", cwd=Path("/code"))
    assert_type(thread.id, UUID)
    assert_type(thread.archived_at, datetime | None)
    assert_type(thread.dynamic_tools, list[DynamicTool])
    assert_type(thread.memories, list[ThreadMemory])
    assert_type(thread.parent, Thread | None)
    assert_type(thread.children, list[Thread])
    assert_type(Thread.model_validate_json("{}"), Thread)
    return thread


def queries(runtime: StateRuntime) -> Sequence[Thread]:
    with Session(runtime.engine) as session:
        session.add(Note(thread_id=uuid4(), text="a note"))
        statement = select(Thread).where(Thread.archived).options(selectinload(Thread.dynamic_tools))
        found = session.exec(statement).all()
        assert_type(found, Sequence[Thread])
        joined = (
            select(Note.text, Thread.name).join(Thread, col(Thread.id) == Note.thread_id).where(~col(Thread.archived))
        )
        session.exec(joined.where(Thread.dynamic_tools.any(col(DynamicTool.name) == "one"))).all()
        State(session).threads.set_name(found[0].id, "a name")
        return found


def rename(state: State, thread_id: UUID, name: str) -> bool:
    return state.threads.set_name(thread_id, name)


def units(home: Path, thread: Thread) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        assert_type(runtime.run(rename, thread.id, "a name"), bool)
        assert_type(runtime.run_read(lambda state: state.threads.get(thread.id)), Thread | None)
        with runtime.autocommit() as state:
            page = state.threads.list(ThreadQuery(limit=5, sources={"cli"}, providers=["openai"]))
            assert_type(list(page.items), list[Thread])
            key = Phase1Key(thread.id, MemoryScope.user())
            outcome = state.phase1_jobs.try_claim(
                key, owner=uuid4(), source_updated_at=thread.updated_at, lease=timedelta(minutes=5)
            )
            match outcome:
                case Claimed(lease):
                    assert_type(lease, Phase1Lease)
                case skipped:
                    print(skipped.reason)


async def async_units(home: Path, thread: Thread) -> None:
    async with AsyncStateRuntime.open(StateSettings(codex_home=home)) as runtime:
        assert_type(await runtime.run(rename, thread.id, "a name"), bool)
        assert_type(await runtime.read(lambda state: state.threads.get(thread.id)), Thread | None)


def leased(runtime: StateRuntime) -> None:
    with hold(runtime, lambda state: state.named_locks.try_claim("nightly", lease=timedelta(minutes=5))) as work:
        if work is not None:
            print(work.lease)
