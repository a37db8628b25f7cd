"""The Python of docs/leases.md runs as it stands."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from codex_state import HeldWork, NamedLease, State, StateRuntime, StateSettings, current_work, hold

PAGE = Path(__file__).parents[2] / "docs" / "leases.md"
THREADS, EXAMPLE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(tmp_path: Path, tidy: Callable[[Path], Awaitable[None]]) -> Any:
    names: dict[str, Any] = {"tidy": tidy, "__name__": "page"}
    exec(compile(EXAMPLE, str(PAGE), "exec"), names)
    return asyncio.run(names["tidy_alone"](tmp_path))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path))


def test_the_task_of_the_example_works_under_a_lock_and_releases_it(tmp_path: Path) -> None:
    held: list[str] = []

    async def tidy(root: Path) -> None:
        assert current_work() is not None
        with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
            held.extend(lock.name for lock in state.named_locks.list())
        assert root == tmp_path

    assert run(tmp_path, tidy) == "done"
    assert held == [f"tidy {tmp_path}"]
    with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
        assert state.named_locks.list() == []


def test_the_task_of_the_example_is_cancelled_when_its_lock_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codex_state import Claimed

    async def tidy(root: Path) -> None:
        with StateRuntime.open(StateSettings()) as runtime, runtime.autocommit() as state:
            taken = state.named_locks.try_claim(f"tidy {root}", lease=timedelta(0))
            assert isinstance(taken, Claimed)
        await asyncio.sleep(60)

    monkeypatch.setattr("codex_state.memory.leases._RENEWALS_PER_WINDOW", 1000)
    assert run(tmp_path, tidy) == "this work must stop: refused"


def test_the_loop_of_the_example_reports_alone_and_ends_by_sigterm(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(THREADS, str(PAGE), "exec"), names)
    reports: list[str] = []

    def write_report(work: HeldWork[NamedLease]) -> None:
        with StateRuntime.open(StateSettings()) as runtime, hold(runtime, claim) as other:
            assert other is None
            runtime.run(work.fence)
        reports.append(work.lease.key)
        signal.raise_signal(signal.SIGTERM)

    def claim(state: State) -> Any:
        return state.named_locks.try_claim("report", lease=timedelta(minutes=5))

    with pytest.raises(SystemExit) as ended:
        names["report_daily"](tmp_path, write_report)
    assert (ended.value.code, reports) == (128 + signal.SIGTERM, ["report"])
    with StateRuntime.open(StateSettings()) as runtime, runtime.read() as state:
        assert state.named_locks.list() == []
