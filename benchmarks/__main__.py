"""``python -m benchmarks [NAME …]``: run all measurements, or those named."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from importlib import import_module

NAMES = (
    "statements",
    "claims",
    "listings",
    "contention",
    "extraction",
    "backfill",
    "postgres",
    "queues",
    "storage",
    "copying",
    "search",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when none is given")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"unknown: {', '.join(unknown)}")
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    for name in names:
        import_module(f"benchmarks.{name}").run()


if __name__ == "__main__":
    main()
