"""The background work of every worker process: extract memories, consolidate them, begin again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from agent_service.tables import Message, Notebook
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlmodel import col, select

from codex_state import (
    AsyncStateRuntime,
    ConsolidationOptions,
    ExtractedMemory,
    MemoryScope,
    Phase1Options,
    State,
    StateError,
    Thread,
    ThreadMemory,
    aconsolidate_memories,
    arun_phase1,
    fence,
)

log = logging.getLogger("uvicorn.error")


class Settings(BaseSettings):
    """How the background work runs: ``AGENT_SERVICE_LEASE_SECONDS`` and so on in the environment."""

    model_config = SettingsConfigDict(env_prefix="AGENT_SERVICE_")

    lease_seconds: int = 600
    """How long a process may be silent before the others take over its jobs. The same for all."""
    pause_seconds: float = 5
    """Between two passes."""
    concurrency: int = 8
    """How many threads one process extracts at the same time."""
    model_seconds: float = 2
    """How long the stand-in for the model thinks."""


class Remembering:
    """The passes of one worker process."""

    def __init__(self, runtime: AsyncStateRuntime, owner: UUID, settings: Settings) -> None:
        self._runtime = runtime
        self._owner = owner
        self._settings = settings

    async def go_on(self) -> None:
        """Run passes until it is cancelled; then every unfinished job is given back before this ends."""
        lease = timedelta(seconds=self._settings.lease_seconds)
        extraction = Phase1Options(lease=lease, concurrency=self._settings.concurrency)
        consolidation = ConsolidationOptions(lease=lease)
        while True:
            try:
                report = await arun_phase1(self._runtime, self.extract, owner=self._owner, options=extraction)
                await aconsolidate_memories(self._runtime, self.consolidate, owner=self._owner, options=consolidation)
            except StateError as error:
                log.warning("the memory pass is tried again later: %s", error)
            else:
                if report.claimed:
                    log.info("remembered %d of %d, %d lost", report.succeeded, report.claimed, report.lost)
            await asyncio.sleep(self._settings.pause_seconds)

    async def extract(self, thread: Thread) -> ExtractedMemory | None:
        """Ask "the model" what is to be remembered of a thread."""
        messages = await self._runtime.read(lambda state: messages_of(state, thread.id))
        await asyncio.sleep(self._settings.model_seconds)  # here a service awaits its model
        wishes = [message.text for message in messages if message.role == "user"]
        if not wishes:
            return None
        return ExtractedMemory("\n".join(f"- asked: {wish}" for wish in wishes), f"{thread.display_name}: {wishes[-1]}")

    async def consolidate(self, scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
        """Make one notebook of a scope's memories. The same memories give the same notebook, however often it runs."""
        text = "\n".join(f"- {memory.memory_summary}" for memory in memories)
        notebook = Notebook(scope_kind=scope.kind, scope_key=scope.key, text=text)

        def write(state: State) -> None:
            fence(state)  # a process that was paused past its lock must not overwrite what its successor wrote
            state.session.merge(notebook)

        await self._runtime.run(write)


def messages_of(state: State, thread_id: UUID) -> Sequence[Message]:
    """The messages of a thread, in order."""
    statement = select(Message).where(Message.thread_id == thread_id).order_by(col(Message.position))
    return state.session.exec(statement).all()
