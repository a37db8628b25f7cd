"""Metadata extraction on one core, against reading the same bytes and counting newlines."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.measure import interleaved
from benchmarks.rollouts import make_home
from codex_state.rollout.fold import extract

_COUNT, _SIZE = 400, 109_000


def count_newlines(paths: list[str]) -> int:
    lines = 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the floor is the plainest way
            while chunk := file.read(1 << 17):
                lines += chunk.count(b"\n")
    return lines


def run() -> None:
    with tempfile.TemporaryDirectory() as directory:
        size = make_home(Path(directory), _COUNT, _SIZE)
        paths = sorted(str(path) for path in Path(directory).rglob("*.jsonl"))

        def extract_all() -> None:
            for path in paths:
                extract(path, "openai")

        seconds = interleaved(
            {"read and count newlines": lambda: count_newlines(paths), "extract": extract_all}, calls=1, rounds=7
        )
    floor = seconds["read and count newlines"]
    print(f"\nMetadata extraction, {_COUNT} rollouts, {size / 1e6:.0f} MB, one core")
    for name, value in seconds.items():
        print(f"  {name:<28}{size / value / 1e6:>8.0f} MB/s   share of the floor {floor / value:.2f}")
    print("  budget: a share of at least 0.35")
