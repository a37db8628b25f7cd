"""Homes of the original runtime, and what its own backfill answered for them."""

from __future__ import annotations

import json
import os
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("real-0.99.0", "real-0.129.0", "edge")

DEFAULT_PROVIDER = "mock"
"""What ``model_provider`` of those homes' ``config.toml`` was."""


class Original(NamedTuple):
    """A home, and the original's answers for it."""

    name: str
    home: Path
    threads: dict[str, dict[str, Any]]
    dynamic_tools: dict[str, list[dict[str, Any]]]
    last_watermark: str | None
    """Not recorded for the edge cases."""
    files_without_a_row: list[str]


def unpack(name: str, home: Path) -> Original:
    """Unpack a fixture, with the exact modification times and the names that are not UTF-8."""
    with tarfile.open(FIXTURES / name / "home.tar.gz", encoding="utf-8", errors="surrogateescape") as archive:
        # The default of Python 3.14; until then its absence is a warning. It keeps names, links and times.
        archive.extractall(home, filter="tar")
        for member in archive.getmembers():
            if member.isreg():
                # A float would lose nanoseconds, and with them the second that a time is in.
                nanoseconds = int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 10**9)
                os.utime(home / member.name, ns=(nanoseconds, nanoseconds))
    answers = json.loads((FIXTURES / name / "expected.json").read_text(encoding="utf-8"))
    return Original(
        name,
        home,
        answers["threads"],
        answers["dynamic_tools"],
        answers.get("backfill_state", {}).get("last_watermark"),
        answers.get("files_without_a_row", []),
    )


def edge_id(case: int) -> str:
    """The thread id of an edge case, by its number in the original's list."""
    return f"{case:08d}-0000-7000-8000-{case:012d}"


def parsed(value: Any) -> Any:
    """A stored text as the value that its JSON means, because the order of keys doesn't count."""
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
