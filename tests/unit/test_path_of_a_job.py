"""How far it is from a repository's verb to the driver. ``python -m tests.path_of_a_job`` tells more."""

from __future__ import annotations

from pathlib import Path

from codex_state import StateRuntime, StateSettings
from tests.path_of_a_job import frames_of_a_claim


def test_a_claim_is_six_calls_away_from_the_driver(tmp_path: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=tmp_path)) as runtime:
        frames = frames_of_a_claim(runtime)
    assert frames[0] == "try_claim"
    assert frames[-1] == "StateCursor.execute"
    assert len(frames) <= 6, frames
