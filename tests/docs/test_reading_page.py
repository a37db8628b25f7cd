"""The Python of docs/reading.md runs as it stands, and its command shows what the page shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_process import InProcess
from example_home import copy_of_the_example_home

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return copy_of_the_example_home(tmp_path / "home")


def test_the_example_reads_a_thread_and_a_file(home: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page", "home": home}
    exec(compile(block, str(PAGE), "exec"), names)
    assert names["questions"][-1] == "Go on with the rest."
    assert names["numbers"].turns == len(names["questions"]) == 2
    assert "pytest -q" in names["commands"]


@pytest.mark.usefixtures("in_utc")
def test_the_command_shows_what_the_page_shows(home: Path) -> None:
    ((command, shown),) = re.findall(r"^```console\n\$ codex-state (.*?)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert InProcess(home).ok(*command.split()).stdout == shown
