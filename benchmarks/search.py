"""A search beside grep and, where it is there, ripgrep, and an index by SQLite's FTS5, in one run, files in memory."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rollouts import make_home
from codex_state import StateRuntime, StateSettings, ThreadQuery, backfill, read_transcript, search

_COUNT, _SIZE, _RUNS = 10_000, 109_000, 5
_RARE = "zanzibar"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _first(runtime: StateRuntime, words: str) -> object:
    return next(search(runtime, words))


def _all(runtime: StateRuntime, words: str) -> int:
    return len(list(search(runtime, words, ThreadQuery(limit=_COUNT))))


def _report(name: str, seconds: list[float]) -> None:
    print(f"  {name:<52} {statistics.median(seconds):7.2f} s   {min(seconds):.2f} to {max(seconds):.2f}")


def run(count: int = _COUNT, size: int = _SIZE) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        total = make_home(home, count, size)
        paths = sorted(home.rglob("*.jsonl"))
        with paths[count // 2].open("ab") as file:
            file.write(b'{"timestamp":"2026-01-02T03:04:05Z","type":"event_msg",')
            file.write(b'"payload":{"type":"agent_message","message":"On to Zanzibar, as planned."}}\n')
        print(f"\nA rare word in {count:,} rollouts of {size / 1000:.0f} KB, {total / 1e6:,.0f} MB in memory")
        with StateRuntime.open(StateSettings(codex_home=home, default_provider="openai")) as runtime:
            backfill(runtime)
            contestants: dict[str, Callable[[], object]] = {
                "search, all": lambda: _all(runtime, _RARE),
                "search, all, a word that is nowhere": lambda: _all(runtime, "nosuchwordanywhere"),
                "search, the first": lambda: _first(runtime, _RARE),
                "search, the first of a common word": lambda: _first(runtime, "state"),
            }
            for program, arguments in (("rg", ["-il"]), ("grep", ["-ril"])):
                if shutil.which(program):
                    command = [program, *arguments, _RARE, str(home / "sessions")]
                    contestants[" ".join(command[:3])] = lambda command=command: subprocess.run(  # type: ignore[misc]
                        command, check=True, capture_output=True
                    )
            taken: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(_RUNS):
                for name, work in contestants.items():
                    taken[name].append(_seconds(work))
            for name, seconds in taken.items():
                _report(name, seconds)
        _index_by_hand(home, paths[:500])


def _index_by_hand(home: Path, paths: list[Path]) -> None:
    """What an index would cost: of what was said, and of everything."""
    size = sum(path.stat().st_size for path in paths)
    for name, kinds in (
        ("said", {"user", "agent", "reasoning"}),
        ("all", {"user", "agent", "reasoning", "command", "output"}),
    ):
        file = home / f"fts-{name}.sqlite"
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE VIRTUAL TABLE messages USING fts5(text, tokenize='trigram')")

            def build(kinds: set[str] = kinds, connection: sqlite3.Connection = connection) -> None:
                rows = ((item.text,) for path in paths for item in read_transcript(path) if item.kind in kinds)
                connection.executemany("INSERT INTO messages VALUES (?)", rows)
                connection.commit()

            built = _seconds(build)
            asked = [
                _seconds(
                    lambda: connection.execute(
                        "SELECT count(*) FROM messages WHERE messages MATCH ?", [_RARE]
                    ).fetchall()
                )
            ]
        _report(f"FTS5 (trigram), {name}: asked", asked)
        print(
            f"    built from {len(paths)} rollouts in {built:.1f} s, {built / len(paths) * 1e3:.1f} ms each; "
            f"{file.stat().st_size / size:.2f} of their size"
        )
