"""Databases that the original wrote, and programs that hold them as it does."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.archives import unpack_archive

_DATABASES = Path(__file__).parent / "fixtures" / "databases"

VERSIONS = (
    "0.101.0", "0.129.0", "0.147.0", "0.171.0", "memories-0.129.0", "memories-0.147.0", "memories-0.171.0"
)  # fmt: skip

_PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("held", flush=True)
sys.stdin.read()
"""


def unpacked(version: str, home: Path) -> Path:
    """The databases of one version in a home."""
    home.mkdir(parents=True, exist_ok=True)
    with tarfile.open(_DATABASES / f"{version}.tar.gz") as archive:
        unpack_archive(archive, home)
    return home


def changed(database: Path, *statements: str) -> None:
    """Run statements and close the database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def held(database: Path, *statements: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has run these statements and keeps its connection; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, database, *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "held\n"
            yield program
        finally:
            program.kill()


def contents(home: Path) -> dict[str, bytes]:
    """Every file of a home, with what is in it."""
    return {path.name: path.read_bytes() for path in home.iterdir()}
