"""docs/reference.md is what the code says now: `make reference` writes it."""

from __future__ import annotations

from reference import PAGE, reference

import codex_state


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make reference`"


def test_every_public_name_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in codex_state.__all__ if f"\n### {name}\n" not in text] == []
