"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """Something may go wrong, or costs more than it should."""
    PROBLEM = "problem"
    """Something is wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """The check's name, which stays the same between versions."""
    severity: Severity
    text: str
    advice: str = ""
    """What to do, if anything."""
    is_repairable: bool = False
    """Whether ``doctor --repair`` mends it."""
