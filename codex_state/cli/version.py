"""``codex-state version``."""

from __future__ import annotations

from codex_state.cli.options import Json
from codex_state.cli.output import write, write_json


def version(*, as_json: Json = False) -> None:
    """Print the versions of codex-state, its schema, Python and SQLite."""
    import platform
    import sqlite3
    from importlib.metadata import version as version_of

    from codex_state.migrations import HEAD

    versions = {
        "codex_state": version_of("codex-state"),
        "schema": HEAD,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    if as_json:
        write_json(versions)
        return
    write(f"codex-state {versions['codex_state']}\n")
    write(f"schema {versions['schema']}, Python {versions['python']}, SQLite {versions['sqlite']}\n")
