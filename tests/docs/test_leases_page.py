"""The Python of docs/leases.md runs as it stands."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from codex_state import StateRuntime, StateSettings, current_work

PAGE = Path(__file__).parents[2] / "docs" / "leases.md"
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(tmp_path: Path, tidy: Callable[[Path], Awaitable[None]]) -> Any:
    names: dict[str, Any] = {"tidy": tidy, "__name__": "page"}
    exec(compile(EXAMPLE, str(PAGE), "exec"), names)
    return asyncio.run(names["tidy_alone"](tmp_path))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path))


def test_the_task_of_the_example_works_under_a_lock_and_releases_it(tmp_path: Path) -> None:
    held: list[Path] = []

    async def tidy(root: Path) -> None:
        assert current_work() is not None
        with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
            held.extend(lock.cwd for lock in state.consolidation_locks.list())
        assert root == tmp_path

    assert run(tmp_path, tidy) == "done"
    assert held == [tmp_path]
    with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
        assert state.consolidation_locks.list() == []


def test_the_task_of_the_example_is_cancelled_when_its_lock_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from codex_state import Claimed

    async def tidy(root: Path) -> None:
        with StateRuntime.open(StateSettings()) as runtime, runtime.autocommit() as state:
            taken = state.consolidation_locks.try_claim(root, owner=uuid4(), lease=timedelta(0))
            assert isinstance(taken, Claimed)
        await asyncio.sleep(60)

    monkeypatch.setattr("codex_state.memory.leases._RENEWALS_PER_WINDOW", 1000)
    assert run(tmp_path, tidy) == "this work must stop: refused"
