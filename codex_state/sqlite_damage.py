"""Whether an SQLite file is damaged, or only its storage failed to give back what is in it.

When a read fails in the middle, SQLite may see half of a page and call the file malformed. Nobody should set a file
aside for that. So the file is looked at again, by a connection that remembers nothing.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

_PATIENCE_SECONDS = 3.0
"""A large file isn't read to its end for this: then SQLite's first word holds."""

_LOOKS = 3
_STEPS = 10_000
_PAGE_BYTES = 4096
_STORAGE_WORDS = ("error code=", "unable to get the page", "failed to get page")

_known: set[tuple[int, int]] = set()


class Verdict(Enum):
    """What a second look at a file finds."""

    DAMAGED = auto()
    WHOLE = auto()
    STORAGE_FAILS = auto()
    """It can't be read at all just now."""


def examine(path: str) -> Verdict:
    """Look at a file that SQLite has just called malformed, or no database."""
    try:
        status = Path(path).stat()
    except OSError:
        return Verdict.STORAGE_FAILS
    if (status.st_dev, status.st_ino) in _known:
        return Verdict.DAMAGED
    # A failing read may make a look see damage, too: it counts when every look sees it.
    verdict = Verdict.DAMAGED
    for _attempt in range(_LOOKS):
        look = _look(path)
        if look is Verdict.WHOLE:
            return look
        verdict = look if look is Verdict.STORAGE_FAILS else verdict
    if verdict is Verdict.STORAGE_FAILS:
        return verdict
    _known.add((status.st_dev, status.st_ino))
    return Verdict.DAMAGED


def _look(path: str) -> Verdict:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    if _reads_fail(path, give_up) or _reads_fail(f"{path}-wal", give_up):
        return Verdict.STORAGE_FAILS
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True, timeout=0)
        ) as fresh:
            fresh.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS)
            (found,) = fresh.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        return Verdict.STORAGE_FAILS if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} else Verdict.DAMAGED
    if found == "ok":
        return Verdict.WHOLE
    return Verdict.STORAGE_FAILS if any(words in found for words in _STORAGE_WORDS) else Verdict.DAMAGED


def _reads_fail(path: str, give_up: float) -> bool:
    """Whether the storage fails while the file is read page by page, as SQLite would.

    SQLite calls a file malformed when one of its reads failed at certain places, so its own look can't tell.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        at = 0
        while os.pread(descriptor, _PAGE_BYTES, at) and time.monotonic() < give_up:
            at += _PAGE_BYTES
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
