"""The Python of docs/testing.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codex_state.testing import conformance

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENGINE, FRONTS, CLOCK, DEATH, MACHINE, MODEL = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def run(block: str, **names: Any) -> None:
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page", **names})


def tried(directory: Path, url: str, *modules: str, selection: str) -> str:
    """What pytest says of a folder with this page's modules, which knows nothing of our own tests."""
    directory.mkdir()
    (directory / "test_engine.py").write_text("\n".join(modules), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", selection, "."],
        cwd=directory,
        env=os.environ | {"ENGINE_UNDER_TEST": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.proof
def test_an_engine_is_put_through_the_suite_by_one_fixture_and_through_the_lease_machine_by_one_call(
    postgres_url: str, tmp_path: Path
) -> None:
    machine = MACHINE.replace("examples=100", "examples=10")
    selection = "TestTransactionModes or TestConsolidationLocks or my_engine"
    said = tried(tmp_path / "tests", postgres_url, ENGINE, machine, selection=selection)
    assert re.search(r" 2\d passed, \d{3} deselected", said), said
    assert re.search(r"::test_my_engine_follows_the_rules_of_leases PASSED", said), said


@pytest.mark.proof
def test_the_repositories_go_through_every_front_that_is_named(tmp_path: Path) -> None:
    said = tried(
        tmp_path / "tests", f"sqlite:///{tmp_path}/engine.sqlite", ENGINE, FRONTS, selection="starts_without_a_mark"
    )
    assert "3 passed" in said


def test_the_page_says_what_every_class_of_the_suite_is_for() -> None:
    classes = {name for name in conformance.__all__ if name.startswith("Test")}
    assert set(re.findall(r"`(Test\w+)`", TEXT)) == classes


def test_the_clock_ends_a_lease(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(CLOCK, home=tmp_path)
    assert capsys.readouterr().out == "Claimed lease_lost\n"


def test_a_death_ends_a_lease(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(DEATH, home=tmp_path)
    assert capsys.readouterr().out == "Skipped Claimed\n"


def test_the_model_answers_by_itself() -> None:
    run(MODEL)
