"""Every test that a document names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DEFINED = {
    name
    for folder in ("tests", "codex_state/testing")
    for path in (ROOT / folder).rglob("*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8")))
    assert named <= DEFINED, f"{document.name} names tests that don't exist: {sorted(named - DEFINED)}"


def test_the_lease_page_names_its_tests() -> None:
    assert len(re.findall(r"`test_\w+`", (ROOT / "docs" / "leases.md").read_text(encoding="utf-8"))) > 15


@pytest.mark.parametrize("section", ["Durability", "Read replicas", "When the server is away", "PgBouncer"])
def test_a_section_about_what_may_fail_names_its_tests(section: str) -> None:
    page = (ROOT / "docs" / "postgres.md").read_text(encoding="utf-8")
    _before, text = page.split(f"\n## {section}\n")
    assert len(re.findall(r"`test_\w+`", text.split("\n## ")[0])) > 2
