"""The page about differences from the original names the test of each, and it exists."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def _sources() -> Iterator[Path]:
    for folder in ("tests", "codex_state/testing"):
        yield from (ROOT / folder).rglob("*.py")


def test_every_difference_names_its_test() -> None:
    page = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    rows = [
        row
        for row, following in itertools.pairwise([*lines, ""])
        if row.startswith("| ") and not following.startswith("|---")  # not the head of a table
    ]
    sources = "".join(path.read_text(encoding="utf-8") for path in _sources())
    assert len(rows) >= 20
    for row in rows:
        cell = row.rstrip("| ").split("|")[-1]
        names = re.findall(r"`([^`]+)`", cell)
        assert names, row
        for name in names:
            assert (ROOT / name).is_file() if name.startswith("tests/") else f"def {name}(" in sources, name
