"""The page about differences from the original names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_difference_names_its_test() -> None:
    page = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| ")][1:]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) >= 9
    for row in rows:
        cell = row.rstrip("| ").split("|")[-1]
        names = re.findall(r"`([^`]+)`", cell)
        assert names, row
        for name in names:
            assert (ROOT / name).is_file() if name.startswith("tests/") else f"def {name}(" in sources, name
