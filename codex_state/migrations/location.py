"""Where the migration scripts are: in the installed package, or beside it in a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from codex_state.errors import SchemaError

_PACKAGE = Path(__file__).parent


def scripts_directory() -> Path:
    """The directory of ``env.py`` and ``versions``.

    Raises:
        SchemaError: the installation is incomplete.
    """
    candidates = (_PACKAGE / "scripts", _PACKAGE.parent.parent / "alembic")
    for candidate in candidates:
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaError(f"no migration scripts in {candidates[0]} or {candidates[1]}; reinstall codex-state")


def configuration(connection: Connection | None = None) -> Config:
    """What Alembic's commands need to know, to run on ``connection``."""
    config = Config()
    # Alembic interpolates its options, so a path's percent signs are doubled.
    config.set_main_option("script_location", str(scripts_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def known_revisions() -> frozenset[str]:
    """Every revision that this version can migrate from."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions())
