"""Fixtures of the memory pipeline's tests."""

from __future__ import annotations

from memory_support import (
    migrated_home,
    opened,
    postgres_settings,
    runtime,
    settings,
    sqlite_runtime,
    sqlite_settings,
)

__all__ = [
    "migrated_home",
    "opened",
    "postgres_settings",
    "runtime",
    "settings",
    "sqlite_runtime",
    "sqlite_settings",
]
