"""What a copy tells while it goes, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_NAMED = 1000
"""How many rows a report names; all are counted (law L10)."""


class RowOutcome(StrEnum):
    """What became of a row of the source."""

    INSERTED = "inserted"
    UPDATED = "updated"
    """The target had an older version, or one that lacked something."""
    UNCHANGED = "unchanged"
    """The target had the same row."""
    KEPT = "kept"
    """The target has a newer version, or its row stands by the table's rule."""
    CONFLICT = "conflict"
    """Nothing tells which version is newer, so the target's was left alone."""
    REFUSED = "refused"
    """The target can't store the row."""


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row of the source that isn't in the target."""

    table: str
    key: tuple[Any, ...]
    """Its primary key."""
    reason: str

    def __str__(self) -> str:
        return f"{self.table} {spelled(self.key)}: {self.reason}"


@dataclass(slots=True)
class TableCopy:
    """What became of one table's rows. Every row of the source counts once."""

    name: str
    rows: int = 0
    """How many the source has."""
    outcomes: dict[RowOutcome, int] = field(default_factory=lambda: dict.fromkeys(RowOutcome, 0))
    checked: int = 0
    """How many rows were read back and are the same on both sides."""
    checksum: str = ""
    """Of those rows, as the target holds them; the source's was the same."""


@dataclass(slots=True)
class CopyReport:
    """What a copy did."""

    tables: list[TableCopy] = field(default_factory=list)
    left: list[NamedRow] = field(default_factory=list)
    """The first rows that are in conflict or were refused; the tables count all."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything of the source is in the target, or something newer of it."""
        return not self.total(RowOutcome.CONFLICT) and not self.total(RowOutcome.REFUSED)

    @property
    def rows(self) -> int:
        """How many rows the source has."""
        return sum(table.rows for table in self.tables)

    def total(self, outcome: RowOutcome) -> int:
        """How many rows of all tables ended like this."""
        return sum(table.outcomes[outcome] for table in self.tables)


class CopyStage(StrEnum):
    """What a copy is doing."""

    COPYING = "copying"
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """Where a copy stands after a batch. Each stage goes over all rows once."""

    stage: CopyStage
    table: str
    rows_done: int
    rows_total: int


OnCopyProgress = Callable[[CopyProgress], None]


def spelled(key: tuple[Any, ...]) -> str:
    """A key for people."""
    return " ".join(map(str, key))
