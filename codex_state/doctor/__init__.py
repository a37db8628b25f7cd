"""What is wrong with a state, and mending it."""

from codex_state.doctor.checks import Finding, Severity, check_file, check_state
from codex_state.doctor.salvaging import Salvaged, backup, salvage

__all__ = ["Finding", "Salvaged", "Severity", "backup", "check_file", "check_state", "salvage"]
