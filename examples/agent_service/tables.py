"""The service's own tables, beside the state's in the same database."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.schema import CreateTable
from sqlmodel import Field, Session, SQLModel

from codex_state import thread_key


class Message(SQLModel, table=True):
    """What was said in a thread."""

    thread_id: UUID = thread_key(primary_key=True)
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


def create_tables(session: Session) -> None:
    """Create the tables, unless another process just did."""
    for model in (Message, Worker, Notebook):
        table = model.metadata.tables[str(model.__tablename__)]
        session.connection().execute(CreateTable(table, if_not_exists=True))
