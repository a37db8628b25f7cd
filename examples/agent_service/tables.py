"""The service's own tables, beside the state's in the same database. ``migrations/`` creates them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlmodel import Field, SQLModel

from codex_state import thread_key


class Message(SQLModel, table=True):
    """What was said in a thread."""

    thread_id: UUID = thread_key(primary_key=True, ondelete="CASCADE")
    position: int = Field(primary_key=True)
    role: str
    text: str


class Worker(SQLModel, table=True):
    """A process of the service. Its id is the owner of the jobs that it claims."""

    id: UUID = Field(primary_key=True)
    pid: int
    started_at: datetime


class Notebook(SQLModel, table=True):
    """What the consolidation made of a scope: the text that an agent gets to read."""

    scope_kind: str = Field(primary_key=True)
    scope_key: str = Field(primary_key=True)
    text: str
