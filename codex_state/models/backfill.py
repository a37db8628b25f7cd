"""How far the index has been built from the rollouts, and every rollout file of a home with what became of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, Column, Index
from sqlmodel import Field

from codex_state.models import columns
from codex_state.models.base import StateModel
from codex_state.models.thread import LOCAL_HOME


class BackfillStatus(StrEnum):
    """Where the backfill of a home stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"


class BackfillState(StateModel, table=True):
    """The one row per home that says how far its backfill is, and who works on it."""

    __tablename__ = "backfill_state"
    __table_args__ = (
        CheckConstraint("id = 1", name="singleton"),
        CheckConstraint(columns.one_of("status", BackfillStatus), name="status"),
    )

    id: int = Field(
        default=1, sa_column=Column(columns.big_integer, primary_key=True, autoincrement=False, server_default="1")
    )
    """Always 1: a home has one row."""
    home: str = Field(default=LOCAL_HOME, sa_column=Column(columns.text, primary_key=True, server_default=LOCAL_HOME))
    """Which home's index it is about."""
    status: BackfillStatus = Field(
        default=BackfillStatus.PENDING, sa_column=Column(columns.EnumText(BackfillStatus), nullable=False)
    )
    """Where it stands."""
    last_watermark: str | None = Field(default=None, sa_column=Column(columns.text))
    """Path, relative to the home and with ``/``, up to which every rollout has been handled."""
    last_success_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When the index was last complete, by the database's clock."""
    updated_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """When the state last moved, by the database's clock. A running backfill's lease is measured from here."""
    ownership_token: str | None = Field(default=None, sa_column=Column(columns.text))
    """The token of the grant, which guards every write of its holder."""
    claimed_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When its holder took it, by the database's clock."""
    owner_name: str | None = Field(default=None, sa_column=Column(columns.text))
    """Who works (or last worked) on it, for people: host, process, and what it says of itself."""
    owner_process: str | None = Field(default=None, sa_column=Column(columns.text))
    """The process that claimed it or last renewed it (``codex_state.processes``); ``None`` if nobody can judge it."""
    lease_seconds: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """For how long it was granted by the claim or the last renewal."""


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
