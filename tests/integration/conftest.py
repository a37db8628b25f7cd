"""Fixtures of tests of whole states."""

from __future__ import annotations

from memory_support import (
    migrated_database,
    migrated_home,
    opened,
    postgres_settings,
    runtime,
    settings,
    sqlite_runtime,
    sqlite_settings,
)

__all__ = [
    "migrated_database",
    "migrated_home",
    "opened",
    "postgres_settings",
    "runtime",
    "settings",
    "sqlite_runtime",
    "sqlite_settings",
]
