"""The inventory: every rollout file of a home, and what became of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, Column, Index
from sqlmodel import Field

from codex_state.models import columns
from codex_state.models.base import StateModel
from codex_state.models.thread import LOCAL_HOME


class RolloutFileState(StrEnum):
    """What a file is to its thread."""

    INDEXED = "indexed"
    """The thread's row comes from this file."""
    SUPERSEDED = "superseded"
    """Another file of the same thread is newer, or is the proper one of several copies."""
    FAILED = "failed"
    """It can't be read; ``error`` says why."""
    GONE = "gone"
    """It was there once. Its thread has no other file."""


class RolloutFile(StateModel, table=True):
    """One file of a home, as it was when it was last read. All of it can be rebuilt from the files."""

    __tablename__ = "rollout_files"
    __table_args__ = (
        CheckConstraint(columns.one_of("state", RolloutFileState), name="state"),
        Index("idx_rollout_files_thread", "thread_id"),
    )

    home: str = Field(default=LOCAL_HOME, sa_column=Column(columns.text, primary_key=True))
    """The home that the file lies in."""
    path: str = Field(sa_column=Column(columns.text, primary_key=True))
    """Relative to the home, with ``/``: it holds wherever the home is moved or copied to."""
    thread_id: UUID | None = Field(default=None, sa_column=Column(columns.UuidText()))
    """Whose rollout it is; ``None`` when neither its name nor its content says so."""
    size: int = Field(sa_column=Column(columns.big_integer, nullable=False))
    """Bytes, before it was read."""
    mtime_ns: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """When it was last written, in nanoseconds, before it was read. ``None``: read it again, because it may have
    changed since without showing it, or because the reason that it failed may be over."""
    state: RolloutFileState = Field(sa_column=Column(columns.EnumText(RolloutFileState), nullable=False))
    """What it is to its thread."""
    error: str | None = Field(default=None, sa_column=Column(columns.text))
    """Why it failed; ``None`` when it didn't."""
    parse_errors: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """Lines that are no JSON or no line of a rollout; ``None`` when the file wasn't read."""
    unknown_lines: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """Lines of a kind that this version doesn't know, which is no fault of theirs."""


class FileRow(NamedTuple):
    """What the inventory knows of one file, as it is stored."""

    path: str
    size: int
    mtime_ns: int | None
    state: str
    thread_id: str | None
    error: str | None
