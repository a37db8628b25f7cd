"""Check that the migrations end where the models are: ``alembic upgrade head`` and ``alembic check`` on both databases.

    python tests/check_migrations.py

PostgreSQL is the server of ``CODEX_STATE_TEST_DATABASE_URL``, else one of our own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import postgres

ROOT = Path(__file__).parent.parent


def check(url: str) -> bool:
    """Whether a new database, migrated to the head, has the schema of the models."""
    variables = {**os.environ, "CODEX_STATE_DATABASE_URL": url}
    commands = (["upgrade", "head"], ["check"])
    return all(
        subprocess.run([sys.executable, "-m", "alembic", *command], cwd=ROOT, env=variables, check=False).returncode
        == 0
        for command in commands
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, postgres.serve() as server, server.database() as postgresql:
        results = {"SQLite": check(f"sqlite:///{directory}/state.sqlite"), "PostgreSQL": check(postgresql)}
    for name, agrees in results.items():
        print(f"{name}: {'the migrations agree with the models' if agrees else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
