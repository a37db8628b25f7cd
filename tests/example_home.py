"""The example home, for tests: a copy of it, or the generator itself."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"

# The examples import each other as scripts do, from their own directory.
sys.path.append(str(EXAMPLES))

import make_home  # noqa: E402

FILES = 48
"""One of them is damaged."""

THREADS = 46
"""One thread has two files: it was reverted."""

UNKNOWN_LINES = 27
"""Lines of kinds that aren't read."""

LISTED = 40
"""Threads that `threads list` shows: not archived, with a name, a message or a goal. One has none of them."""

ARCHIVED = 5


def copy_of_the_example_home(target: Path) -> Path:
    """A copy of the checked-in home with the modification times that its rollouts tell."""
    make_home.copy_home(make_home.HOME, target)
    return target
