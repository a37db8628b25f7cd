"""A backfill from start to end: time against the read floor, and memory against the number of rollouts."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.extraction import count_newlines
from benchmarks.rollouts import make_home
from codex_state import StateRuntime, StateSettings, backfill


def measure(count: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        total = make_home(home, count, size)
        paths = sorted(str(path) for path in home.rglob("*.jsonl"))
        floors, seconds, memory = [], [], 0.0
        for _ in range(3):
            start = time.perf_counter()
            count_newlines(paths)
            floors.append(time.perf_counter() - start)
            for file in home.glob("codex_state_*"):
                file.unlink()
            child = subprocess.run(
                [sys.executable, "-m", "benchmarks.backfill", "--one", directory],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            elapsed, peak, rows = map(float, child.stdout.split())
            assert rows == count
            seconds.append(elapsed)
            memory = max(memory, peak)
    floor, best = sorted(floors)[1], sorted(seconds)[1]
    print(
        f"  {count:>6} x {size / 1000:>4.0f} KB  {best:6.2f} s  {total / best / 1e6:5.0f} MB/s  "
        f"{count / best:6.0f} threads/s  {best / floor:4.1f} x the floor  {memory:4.0f} MB of memory"
    )


def _one(home: str) -> None:
    with StateRuntime.open(StateSettings(codex_home=Path(home), default_provider="openai")) as runtime:
        start = time.perf_counter()
        report = backfill(runtime)
        elapsed = time.perf_counter() - start
    print(elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, report.upserted)


def run() -> None:
    print("\nBackfill from start to end (medians of 3; budget: 3 x the floor of reading and counting, 5 x for 5 KB)")
    measure(1_000, 100_000)
    measure(10_000, 109_000)
    measure(20_000, 5_000)
    measure(1_000, 5_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", required=True)
    _one(parser.parse_args().one)
