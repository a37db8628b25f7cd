"""Plants bugs in the lease core, one at a time, and tells which check notices each: ``python -m tests.mutants``."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

# The checks are tests and import their helpers as tests do.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutants.bench import bench
from tests.mutants.checks import all_checks
from tests.mutants.planted import planted_mutants
from tests.mutants.running import GOOD, fates, sound_checks
from tests.mutants.statements import sql_mutants


def main() -> int:
    """Print each mutant's fate. The exit status is 1 when one survives."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("part", nargs="?", default="", help="only mutants whose name has this in it")
    arguments.add_argument("--core", action="store_true", help="only the guards, the stale comparison and the clock")
    chosen = arguments.parse_args()
    warnings.simplefilter("error")
    logging.getLogger("codex_state").addHandler(logging.NullHandler())
    mutants = [
        mutant
        for mutant in (*planted_mutants(), *sql_mutants())
        if chosen.part in mutant.name and (mutant.is_core or not chosen.core)
    ]
    checks = all_checks()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, bench(Path(directory)) as prepared:
        sound, broken = sound_checks(prepared, checks)
        if broken:
            print("These checks fail without any planted bug:", *broken, sep="\n  ")
            return 1
        counts: Counter[str] = Counter()
        for result in fates(prepared, mutants, sound):
            counts[result.verdict] += 1
            print(f"{result.verdict:<11} {result.mutant:<95} {result.seconds:5.1f} s  {result.by}", flush=True)
    print(f"\n{len(mutants)} mutants, {len(checks)} checks, {time.monotonic() - started:.0f} s:", _told(counts))
    return 0 if set(counts) <= GOOD and mutants else 1


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
