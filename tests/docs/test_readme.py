"""The README's Python runs as it stands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from codex_state import MemoryScope, Phase1Key, Phase1Status, StateRuntime, StateSettings

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the first example leaves, as pasted into an empty directory."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    run(BLOCKS[0], names)
    return names


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, str(README), "exec"), names)


def test_the_readme_has_three_python_examples() -> None:
    assert len(BLOCKS) == 3


def test_the_library_example_claims_a_job_and_finishes_it(names: dict[str, Any]) -> None:
    assert [thread.id for thread in names["page"].items] == [names["thread"].id]
    with StateRuntime.open(StateSettings(codex_home=names["home"])) as runtime, runtime.read() as state:
        job = state.phase1_jobs.get(Phase1Key(names["thread"].id, MemoryScope.cwd(Path("/code/one"))))
        assert job is not None
        assert job.status is Phase1Status.SUCCEEDED
        assert state.threads.get(names["thread"].id).name == "renamed"


def test_the_fastapi_example_renames_a_thread_in_the_services_own_session(names: dict[str, Any]) -> None:
    run(BLOCKS[1], names)
    try:
        with TestClient(names["app"]) as client:
            renamed = client.put(f"/threads/{names['thread'].id}/name", params={"name": "from the service"})
            unknown = client.put(f"/threads/{uuid4()}/name", params={"name": "nobody"})
        assert (renamed.status_code, unknown.status_code) == (200, 404)
        with names["runtime"].read() as state:
            assert state.threads.get(names["thread"].id).name == "from the service"
    finally:
        names["runtime"].close()


def test_the_async_example_lists_threads(names: dict[str, Any]) -> None:
    run(BLOCKS[2], names)
    assert asyncio.run(names["main"]()) == 1
