"""Working directories: as rows have them, and in which spellings they are asked for."""

from __future__ import annotations

import os
import platform
import re
from functools import cache

from codex_state.models.columns import normal_spelling

_WSL_DRIVE = re.compile(r"/mnt/[A-Za-z](/|$)")


def normalized_cwd_text(cwd: str, *, strict: bool = True) -> str:
    """A directory without links and ``..``, so that its threads are found whatever way it was spelled.

    A directory that doesn't exist (any more) stays as it is, and so does the empty text. On WSL, ``/mnt/<drive>`` paths
    are made lower case, because there case doesn't matter.

    Args:
        cwd: the path.
        strict: whether one that doesn't exist stays as it is; else as much of it is looked up as there is.
    """
    if not cwd:
        return cwd
    try:
        real = os.path.realpath(cwd, strict=strict)
    except (OSError, ValueError):
        real = cwd
    else:
        if cwd.startswith("//") and not cwd.startswith("///"):
            # POSIX leaves the meaning of exactly two slashes to the system, so they are kept.
            real = f"/{real}"
    if _is_wsl() and _WSL_DRIVE.match(real):
        return "".join(character.lower() if character.isascii() else character for character in real)
    return real


@cache
def _is_wsl() -> bool:
    return "microsoft" in platform.release().lower()


def spellings_of(directory: str) -> tuple[str, ...]:
    """The normal spellings in which rows may have a directory: as it is given, and where its links lead now.

    Rows have the second, unless the directory wasn't there when they were written. A path that isn't absolute here,
    as one of Windows, isn't looked up.
    """
    given = normal_spelling(directory)
    real = normal_spelling(normalized_cwd_text(directory, strict=False)) if directory.startswith("/") else given
    return (given,) if real == given else (given, real)
