"""Homes that the original wrote, one of each era, and what its newest version's own backfill answers for them.

``real-…`` are homes of ten versions that were driven through the same conversations; ``compressed`` and ``migrated``
were rewritten by the newest; ``edge`` holds some two hundred cases made by hand. What the original itself tells the
model is replaced by ``(instructions)`` in all of them.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.archives import unpack_archive

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = tuple(sorted(path.parent.name for path in FIXTURES.glob("*/home.tar.gz")))

DEFAULT_PROVIDER = "mock"
"""The ``model_provider`` of the homes' ``config.toml``."""


@dataclass(frozen=True)
class Original:
    """A home, and the original's answers for it. Threads are known by their ids as texts, files by relative paths."""

    name: str
    home: Path
    threads: dict[str, dict[str, Any]]
    """The columns of each thread; in the edge cases what a reader makes of a line that the original refuses whole."""
    left_open: dict[str, list[str]]
    """Columns of edge cases that any reader may fill as it likes."""
    dynamic_tools: dict[str, list[dict[str, Any]]]
    """Of versions whose databases kept tools."""
    parents: dict[str, str]
    """The thread that spawned a sub-agent's."""
    listed: dict[bool, set[str]]
    """What its lists show, by whether it is archived."""
    names: dict[str, str]
    """What users called their threads, by ``session_index.jsonl``."""
    files_without_a_row: set[str]


def unpack(name: str, home: Path) -> Original:
    """Unpack a fixture, with the exact modification times and the names that are not UTF-8."""
    with tarfile.open(FIXTURES / name / "home.tar.gz", encoding="utf-8", errors="surrogateescape") as archive:
        # The default of Python 3.14; until then its absence is a warning. It keeps names, links and times.
        unpack_archive(archive, home)
        for member in archive.getmembers():
            if member.isreg():
                # A float would lose nanoseconds, and with them the second that a time is in.
                nanoseconds = int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 10**9)
                os.utime(home / member.name, ns=(nanoseconds, nanoseconds))
    (home / "config.toml").write_text(f'model_provider = "{DEFAULT_PROVIDER}"\n', encoding="utf-8")
    answers = json.loads(gzip.decompress((FIXTURES / name / "expected.json.gz").read_bytes()))
    meant = answers.get("meant", {})
    return Original(
        name,
        home,
        {thread_id: columns | meant.get(thread_id, {}) for thread_id, columns in answers["threads"].items()},
        answers.get("open", {}),
        answers["dynamic_tools"],
        {edge["child_thread_id"]: edge["parent_thread_id"] for edge in answers["spawn_edges"]},
        {
            archived: {item["id"] for item in answers["listed"]["archived" if archived else "active"]}
            for archived in (False, True)
        },
        _names_in(home / "session_index.jsonl"),
        set(answers["files_without_a_row"]),
    )


def _names_in(index: Path) -> dict[str, str]:
    """The last name of each thread that isn't blank."""
    lines = index.read_text(encoding="utf-8").splitlines() if index.exists() else []
    entries = [json.loads(line) for line in lines]
    return {entry["id"]: entry["thread_name"].strip() for entry in entries if entry["thread_name"].strip()}


def edge_id(case: int) -> str:
    """The thread id of an edge case, by its number."""
    return f"{case:08d}-0000-7000-8000-{case:012d}"


def parsed(value: Any) -> Any:
    """A stored text as the value that its JSON means, because the order of keys doesn't count."""
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
