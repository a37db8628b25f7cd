"""docs/settings.md lists every setting, with the variable that sets it and what it is by default."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from codex_state import StateSettings

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)}

EXAMPLES = {
    "int": "7000000",
    "bool": "true",
    "timedelta": "7",
    "Path": "/seven",
    "SecretStr": "sqlite:///seven",
    "str": "seven",
}


def test_every_setting_is_on_the_page() -> None:
    assert list(ROWS) == list(StateSettings.model_fields)


@pytest.mark.parametrize("name", ROWS)
def test_a_setting_is_as_the_page_says(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    variable, default, _ = ROWS[name]
    given = StateSettings.model_fields[name].default
    if isinstance(given, timedelta):
        assert default == f"{int(given.total_seconds())} s"
    elif isinstance(given, bool | int):
        assert default == str(given).lower()
    kind = str(StateSettings.__annotations__[name]).partition(" |")[0]
    before = getattr(StateSettings(), name)
    monkeypatch.setenv(variable, "false" if before is True else EXAMPLES[kind])
    assert getattr(StateSettings(), name) != before
