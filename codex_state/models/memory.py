"""What was remembered of threads, and the jobs, marks and locks of the pipeline that remembers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, text
from sqlalchemy.orm import Mapped
from sqlmodel import Field

from codex_state.models import columns
from codex_state.models.base import StateModel
from codex_state.models.comparisons import FlagColumn
from codex_state.models.leases import MemoryScope, Phase1Key

if TYPE_CHECKING:
    from codex_state.models.thread import Thread


class ThreadMemory(StateModel, table=True):
    """What was extracted from one thread for one scope. Primary data: it isn't in the rollouts."""

    __tablename__ = "thread_memory"
    __table_args__ = (
        CheckConstraint("used_count >= 0", name="used_count"),
        Index(
            "idx_thread_memory_scope_last_used_at",
            "scope_kind",
            "scope_key",
            "last_used_at",
            "thread_id",
        ),
        Index(
            "idx_thread_memory_scope_updated_at",
            "scope_kind",
            "scope_key",
            "updated_at",
            "thread_id",
        ),
    )

    thread_id: UUID = Field(
        sa_column=Column(columns.UuidText(), ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True)
    )
    """The thread that it is from."""
    scope_kind: str = Field(sa_column=Column(columns.text, primary_key=True))
    """``cwd`` or ``user``: see ``scope``."""
    scope_key: str = Field(sa_column=Column(columns.text, primary_key=True))
    """The directory, or ``user``: see ``scope``."""
    raw_memory: str = Field(sa_column=Column(columns.text, nullable=False))
    """The notes, as a model made them."""
    memory_summary: str = Field(sa_column=Column(columns.text, nullable=False))
    """The same in a few words."""
    updated_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """Strictly increases with every write of the row (law L4), so it may run ahead of the clock."""
    last_used_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When it was last put before a model."""
    used_count: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """How often it was."""
    invalidated_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """Since when it counts as wrong; ``None`` while it doesn't."""
    invalid_reason: str | None = Field(default=None, sa_column=Column(columns.text))
    """Why it counts as wrong."""

    if TYPE_CHECKING:  # mapped by models.relations
        thread: ClassVar[Mapped[Thread]]
        """The thread that it belongs to."""

    @property
    def scope(self) -> MemoryScope:
        """What it is about."""
        return MemoryScope(self.scope_kind, self.scope_key)


class Phase1Status(StrEnum):
    """The state of an extraction job. There is no "pending": a job exists from its first claim on."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Phase1Job(StateModel, table=True):
    """The extraction of one thread's memory for one scope, and who holds it."""

    __tablename__ = "memory_phase1_jobs"
    __table_args__ = (
        CheckConstraint(columns.one_of("status", Phase1Status), name="status"),
        CheckConstraint("attempt >= 0", name="attempt"),
        CheckConstraint("failures >= 0", name="failures"),
        CheckConstraint("crashes >= 0", name="crashes"),
        # None names what a renewal changes: PostgreSQL writes it into the row's own page then, and into no index.
        Index("idx_memory_phase1_jobs_status_finished_at", "status", "finished_at"),
        Index(
            "idx_memory_phase1_jobs_retry_at",
            "status",
            "retry_at",
            sqlite_where=text("status = 'failed' AND retry_at IS NOT NULL"),
            postgresql_where=text("status = 'failed' AND retry_at IS NOT NULL"),
        ),
        Index(
            "idx_memory_phase1_jobs_owner_process",
            "status",
            "owner_process",
            sqlite_where=text("status = 'running' AND owner_process IS NOT NULL"),
            postgresql_where=text("status = 'running' AND owner_process IS NOT NULL"),
        ),
    )

    thread_id: UUID = Field(
        sa_column=Column(columns.UuidText(), ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True)
    )
    """The thread whose memory is extracted."""
    scope_kind: str = Field(sa_column=Column(columns.text, primary_key=True))
    """``cwd`` or ``user``: see ``scope``."""
    scope_key: str = Field(sa_column=Column(columns.text, primary_key=True))
    """The directory, or ``user``: see ``scope``."""
    status: Phase1Status = Field(sa_column=Column(columns.EnumText(Phase1Status), nullable=False))
    """Where it stands; ``running`` also after its lease is over, until another takes over."""
    owner_session_id: UUID | None = Field(default=None, sa_column=Column(columns.UuidText()))
    """Who holds it, or held it last."""
    started_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When the lease was granted or last renewed, by the database's clock. A lease is measured from here."""
    finished_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When it succeeded or failed, by the database's clock."""
    failure_reason: str | None = Field(default=None, sa_column=Column(columns.text))
    """Why it failed, in the holder's words."""
    source_updated_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """Which version of the thread is (or was) extracted: its ``updated_at`` at the claim."""
    raw_memory_path: Path | None = Field(default=None, sa_column=Column(columns.PathText()))
    """Where the holder has put the notes, if in a file."""
    summary_hash: str | None = Field(default=None, sa_column=Column(columns.text))
    """What tells one summary from another, in the holder's way."""
    ownership_token: str | None = Field(default=None, sa_column=Column(columns.text))
    """The token of the grant, which guards every write of its holder."""
    attempt: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """Grows by one with every claim: a fencing number for resources outside the database."""
    retry_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When a failed job may be claimed again; ``None`` makes the failure terminal."""
    failures: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """How many attempts for this version of the thread have failed; a retry policy counts them."""
    owner_name: str | None = Field(default=None, sa_column=Column(columns.text))
    """Where ``owner_session_id`` works (or last worked) on it, for people: host and process."""
    owner_process: str | None = Field(default=None, sa_column=Column(columns.text))
    """The process that claimed it or last renewed it (``codex_state.processes``); ``None`` if nobody can judge it."""
    lease_seconds: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """For how long it was granted by the claim or the last renewal: its lease is over when that time has passed."""
    begun_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When the holder's work began; ``None`` before. A lease that is over after that counts as a crash."""
    crashes: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """How often its work ended with its worker since it last succeeded or was requeued."""
    source_ns: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """Which of the versions within the second of ``source_updated_at``: the thread's ``updated_ns`` at the claim."""

    if TYPE_CHECKING:  # mapped by models.relations
        thread: ClassVar[Mapped[Thread]]
        """The thread that it belongs to."""

    @property
    def scope(self) -> MemoryScope:
        """Of which scope the memory is extracted."""
        return MemoryScope(self.scope_kind, self.scope_key)

    @property
    def key(self) -> Phase1Key:
        """What repositories call the job."""
        return Phase1Key(self.thread_id, self.scope)


class MemoryScopeDirty(StateModel, table=True):
    """Whether a scope has memories that its consolidation hasn't seen."""

    __tablename__ = "memory_scope_dirty"
    __table_args__ = (
        CheckConstraint("dirty IN (0, 1)", name="dirty"),
        Index("idx_memory_scope_dirty_dirty", "dirty", "updated_at"),
    )

    scope_kind: str = Field(sa_column=Column(columns.text, primary_key=True))
    """``cwd`` or ``user``: see ``scope``."""
    scope_key: str = Field(sa_column=Column(columns.text, primary_key=True))
    """The directory, or ``user``: see ``scope``."""
    dirty: bool = Field(sa_column=FlagColumn(columns.IntegerFlag(), nullable=False))
    """Whether it waits for its consolidation."""
    updated_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """Strictly increases while the scope is marked dirty again, so "nothing new since I read" is one comparison."""

    @property
    def scope(self) -> MemoryScope:
        """The scope itself."""
        return MemoryScope(self.scope_kind, self.scope_key)


class ConsolidationLock(StateModel, table=True):
    """Who consolidates one memory root."""

    __tablename__ = "memory_consolidation_locks"
    __table_args__ = (Index("idx_memory_consolidation_locks_updated_at", "updated_at"),)

    cwd: Path = Field(sa_column=Column(columns.PathText(), primary_key=True))
    """The memory root that is locked, as a path."""
    working_thread_id: UUID = Field(sa_column=Column(columns.UuidText(), nullable=False))
    """Who holds it, or held it last."""
    updated_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """When the lock was taken or last renewed, by the database's clock."""
    ownership_token: str = Field(sa_column=Column(columns.text, nullable=False))
    """The token of the grant, which guards every write of its holder."""
    owner_name: str | None = Field(default=None, sa_column=Column(columns.text))
    """Where ``working_thread_id`` works on it, for people: host and process."""
    owner_process: str | None = Field(default=None, sa_column=Column(columns.text))
    """The process that claimed it or last renewed it (``codex_state.processes``); ``None`` if nobody can judge it."""
    lease_seconds: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """For how long it was granted by the claim or the last renewal."""


class NamedLock(StateModel, table=True):
    """Who does what a service has given a name."""

    __tablename__ = "codex_state_locks"

    name: str = Field(sa_column=Column(columns.text, primary_key=True))
    """What a service calls it."""
    owner: str = Field(default="", sa_column=Column(columns.text, nullable=False, server_default=""))
    """What the holder says of itself, for people."""
    renewed_at: columns.Moment = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """When the lock was taken or last renewed, by the database's clock."""
    ownership_token: str = Field(sa_column=Column(columns.text, nullable=False))
    """The token of the grant, which guards every write of its holder."""
    owner_name: str | None = Field(default=None, sa_column=Column(columns.text))
    """Where the holder works, for people: host, process, and what it says of itself."""
    owner_process: str | None = Field(default=None, sa_column=Column(columns.text))
    """The process that claimed it or last renewed it (``codex_state.processes``); ``None`` if nobody can judge it."""
    lease_seconds: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """For how long it was granted by the claim or the last renewal."""
