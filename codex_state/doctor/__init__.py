"""What is wrong with a state, and mending it."""

from codex_state.doctor.checks import Finding, Severity, check_file, check_state
from codex_state.doctor.salvaging import Salvaged, salvage

__all__ = ["Finding", "Salvaged", "Severity", "check_file", "check_state", "salvage"]
