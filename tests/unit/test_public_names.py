"""The names that the packages show, which are imported when they are first used."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import ModuleType

import pytest
from pydantic import TypeAdapter

import codex_state
import codex_state.rollout

_PACKAGES = pytest.mark.parametrize("package", [codex_state, codex_state.rollout], ids=lambda package: package.__name__)


@_PACKAGES
def test_every_name_that_is_listed_is_there(package: ModuleType) -> None:
    assert package.__all__
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


@_PACKAGES
def test_a_name_that_is_not_listed_is_no_attribute(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"{package.__name__} .*StateRuntimes"):
        _ = package.StateRuntimes


def test_importing_a_package_loads_none_of_what_it_lists() -> None:
    program = (
        "import sys, codex_state, codex_state.rollout\n"
        "ours = [name for name in sys.modules if name.startswith('codex_state')]\n"
        "sys.exit(ours != ['codex_state', 'codex_state.rollout'] or 'sqlalchemy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


DATACLASSES = [name for name in codex_state.__all__ if dataclasses.is_dataclass(getattr(codex_state, name))]

NOT_FOR_PYDANTIC: frozenset[str] = frozenset()
"""Dataclasses that can be no field, body or answer of FastAPI's, each for a reason."""


@pytest.mark.parametrize("name", sorted({*DATACLASSES} - NOT_FOR_PYDANTIC))
def test_pydantic_takes_every_dataclass(name: str) -> None:
    TypeAdapter(getattr(codex_state, name))
