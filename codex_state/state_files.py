"""The state files of a Codex home: making room for ours, and clearing away those of older versions (law L7)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from codex_state.errors import ConfigurationError
from codex_state.settings import STATE_DATABASE_NAME, STATE_DATABASE_VERSION

_log = logging.getLogger("codex_state")

_STATE_FILE = re.compile(rf"{STATE_DATABASE_NAME}(?:_(?P<version>[0-9]+))?\.sqlite(?:-wal|-shm|-journal)?", re.ASCII)


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, unless it is there.

    Raises:
        ConfigurationError: something that isn't a directory is in the way, or it can't be created.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{directory} is not a directory; set CODEX_HOME or CODEX_SQLITE_HOME to one"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"can't create the directory {directory}: {error.strerror}") from error


def remove_older_state_files(directory: Path) -> list[Path]:
    """Remove the state files of older versions, each with its side files, and return what was removed.

    Only regular files named ``state.sqlite`` or ``state_<n>.sqlite`` with n below ours count. A newer version's file
    is left alone with a warning: its program may still need it. Nothing here raises; what can't be removed is logged.
    """
    removed = []
    newer = set()
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        _log.warning("can't look for older state files in %s: %s", directory, error)
        return []
    for path in entries:
        match = _STATE_FILE.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_file():
            continue
        version = int(match["version"] or 0)
        if version > STATE_DATABASE_VERSION:
            newer.add(version)
        elif version < STATE_DATABASE_VERSION:
            try:
                path.unlink()
            except FileNotFoundError:
                continue  # another process that starts now was faster
            except OSError as error:
                _log.warning("can't remove the older state file %s: %s", path, error)
            else:
                removed.append(path)
                _log.info("removed the older state file %s", path)
    for version in sorted(newer):
        _log.warning("left the newer state_%d.sqlite in %s alone", version, directory)
    return removed
