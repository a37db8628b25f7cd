"""The migration scripts of an installed wheel, far from any checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from codex_state.migrations.environment import known_revisions

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path
import codex_state
from codex_state import migrations
from codex_state.database import Database
from codex_state.migrations.environment import known_revisions, scripts_directory

environment, url, revisions = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
assert Path(codex_state.__file__).is_relative_to(environment), codex_state.__file__
assert scripts_directory().is_relative_to(environment), scripts_directory()
assert known_revisions() == set(revisions), known_revisions()
database = Database.open(url)
migrations.upgrade(database.engine, revisions[0])
assert migrations.ensure_current(database.engine) == migrations.Migrated(revisions[0], migrations.HEAD)
with database.engine.connect() as connection:
    assert migrations.check(connection) == []
migrations.downgrade(database.engine, "base")
assert migrations.ensure_current(database.engine) == migrations.Migrated(None, migrations.HEAD)
database.close()
"""


def run(*command: str | Path, cwd: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CODEX_"))}
    answer = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel of its own, and with the dependencies of the one that runs the tests."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=directory)
    (packages,) = directory.glob("lib/python*/site-packages")
    # A path in a .pth file is searched after the environment's own packages, and its own .pth files are ignored: so the
    # checkout, which may be installed in editable mode there, isn't seen.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return directory


@pytest.mark.wheel
def test_an_installed_wheel_migrates_from_nothing_and_from_the_first_revision(
    environment: Path, tmp_path: Path
) -> None:
    """From each of the others, and on PostgreSQL, the same scripts do as they do from a checkout."""
    revisions = sorted(known_revisions())
    url = f"sqlite:///{tmp_path / 'state.sqlite'}"
    run(environment / "bin" / "python", "-c", PROGRAM, environment, url, *revisions, cwd=tmp_path)
    (installed,) = environment.glob("lib/python*/site-packages/codex_state/migrations/scripts/versions")
    assert texts(installed) == texts(ROOT / "alembic" / "versions")


def texts(directory: Path) -> dict[str, str]:
    return {script.name: script.read_text() for script in directory.glob("*.py")}
