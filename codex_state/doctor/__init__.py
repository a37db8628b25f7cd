"""What is wrong with a state, and mending it."""

from codex_state.doctor.checks import check_file, check_state
from codex_state.doctor.findings import Finding, Severity
from codex_state.doctor.salvaging import Salvaged, salvage

__all__ = ["Finding", "Salvaged", "Severity", "check_file", "check_state", "salvage"]
