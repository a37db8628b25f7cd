"""Log lines, and the segments by which they are kept bounded."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import Column, Index
from sqlmodel import Field

from codex_state.errors import required
from codex_state.models import columns
from codex_state.models.base import StateModel

LEVELS = {"WARNING": "WARN"}
"""The original's names of levels, where Python's differ."""


def level_of(level: str | int) -> str:
    """The level by the original's name, which lines have, from any of Python's names and numbers.

    Raises:
        InvalidInputError: it is neither a text nor a number.
    """
    name = logging.getLevelName(level) if isinstance(level, int) else required(level, str)
    return LEVELS.get(name.upper(), name)


class LogEntry(StateModel, table=True):
    """One log line.

    ``ts`` and ``ts_nanos`` are the two halves of one moment, kept as the integers they are stored as.
    """

    __tablename__ = "logs"
    __table_args__ = (
        Index("idx_logs_ts", "ts", "ts_nanos", "id"),
        Index("idx_logs_thread_id", "thread_id"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(columns.big_integer, primary_key=True, autoincrement=True))
    """Grows with every line; given by the database."""
    ts: int = Field(sa_column=Column(columns.big_integer, nullable=False))
    """Whole epoch seconds."""
    ts_nanos: int = Field(sa_column=Column(columns.big_integer, nullable=False))
    """Nanoseconds within the second."""
    level: str = Field(sa_column=Column(columns.text, nullable=False))
    """``ERROR``, ``WARN``, ``INFO``, ``DEBUG`` or ``TRACE``."""
    target: str = Field(sa_column=Column(columns.text, nullable=False))
    """Which part of a program says it."""
    message: str | None = Field(default=None, sa_column=Column(columns.text))
    """What it says."""
    module_path: str | None = Field(default=None, sa_column=Column(columns.text))
    """The module of the program."""
    file: str | None = Field(default=None, sa_column=Column(columns.text))
    """The file of its source."""
    line: int | None = Field(default=None, sa_column=Column(columns.big_integer))
    """The line in that file."""
    thread_id: str | None = Field(default=None, sa_column=Column(columns.text))
    """The thread it belongs to, without a foreign key: logs outlive threads."""

    @property
    def timestamp(self) -> datetime:
        """The moment as an aware UTC time, to the microsecond."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.ts, microseconds=self.ts_nanos // 1000)


class LogSegment(StateModel, table=True):
    """A stretch of log lines that were inserted one after the other: what is kept and deleted as one.

    A segment is all lines up to ``last_id`` that no earlier one holds. Lines bear no time of their insertion, and
    adding up all of them at each insert would cost too much: segments know both.
    """

    __tablename__ = "log_segments"

    last_id: int = Field(sa_column=Column(columns.big_integer, primary_key=True, autoincrement=False))
    """The id of its last line."""
    lines: int = Field(sa_column=Column(columns.big_integer, nullable=False))
    """How many lines it has."""
    size: int = Field(sa_column=Column(columns.big_integer, nullable=False))
    """What the lines take in a file, in bytes, estimated from above."""
    closed_at: datetime = Field(sa_column=Column(columns.EpochSeconds(), nullable=False))
    """When it was closed, by the database's clock: its lines were inserted before."""
