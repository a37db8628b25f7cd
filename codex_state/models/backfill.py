"""How far the index has been built from the rollouts."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import CheckConstraint, Column
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
