"""The Python of docs/search.md runs as it stands, and its command finds what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_process import InProcess
from example_home import copy_of_the_example_home

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return copy_of_the_example_home(tmp_path / "home")


def test_the_example_finds_a_thread(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("CODEX_HOME", str(home))
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    assert "01a1f871-1d08-7e74-89ac-0b451812b675 Importer: all or nothing" in capsys.readouterr().out


def test_the_command_finds_what_the_page_shows(home: Path) -> None:
    ((command, shown),) = re.findall(r"^```console\n\$ codex-state (.*?)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    done = InProcess(home).on_terminal(*command.split(), columns=120)
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
    titled = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert titled[0] in seen
    assert titled[1].split()[0] in seen
    assert titled[-1] in seen + done.stderr
    for snippet in re.findall(r"^ +(?:user|agent)  (.*)$", shown, re.MULTILINE):
        assert snippet[:60] in seen
