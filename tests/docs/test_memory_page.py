"""The Python of docs/memory.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from codex_state import StateRuntime, StateSettings
from codex_state.testing.samples import a_thread

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_extracts_and_consolidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memory_support import now

    monkeypatch.setenv("CODEX_HOME", str(tmp_path))
    with StateRuntime.open(StateSettings()) as runtime, runtime.begin() as state:
        state.threads.upsert_many([a_thread(updated_at=now()) for _ in range(3)])
    (example,) = BLOCKS
    exec(
        compile(example, str(PAGE), "exec"),
        {"my_model": lambda _path: SimpleNamespace(text="raw", one_line="a summary"), "__name__": "page"},
    )
    assert capsys.readouterr().out == "6 0 0\n"
    with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
        assert state.memory_scopes.list_dirty() == []
