"""Chaos: workers that are killed, paused and raced for minutes, and a verdict: ``python -m tests.chaos.run``.

The seed decides what is done to whom and when; how the machine schedules the processes is its own affair.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

# The helpers of tests import each other as tests do.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import postgres
from tests.chaos.agreement import agreement
from tests.chaos.conductor import Conductor
from tests.chaos.contest import contest
from tests.chaos.processes import WorkerHost
from tests.chaos.verdict import Verdict, judge

_SHOWN_PROBLEMS = 20

Part = Callable[[str, Path], Verdict]
Urls = Callable[[Path], AbstractContextManager[str]]


def main() -> int:
    """Run every part and print what came of it. The exit status is 1 when a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long workers are let loose, in all")
    parser.add_argument("--seed", type=int, default=None, help="repeats what was done to whom")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=8, help="how many processes at a time")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs of the contest")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the lease model beside the store")
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    warnings.simplefilter("error")
    print(f"chaos on {chosen.database}, seed {seed}", flush=True)
    started = time.monotonic()
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        urls = held.enter_context(_urls(chosen.database))
        host = held.enter_context(WorkerHost())
        problems = 0
        for number, (name, part) in enumerate(_parts(chosen, host, seed)):
            place = directory / str(number)
            place.mkdir()
            with urls(place) as url:
                problems += _show(name, part(url, place))
    print(f"\n{problems} problems in {time.monotonic() - started:.0f} s; seed {seed}")
    return 1 if problems else 0


def _parts(chosen: argparse.Namespace, host: WorkerHost, seed: int) -> Iterator[tuple[str, Part]]:
    """What is run, each on a database of its own. Both scenarios together take the minutes that were asked for."""
    seconds = chosen.minutes * 60 / 2

    def let_loose(name: str, *, manual: bool) -> tuple[str, Part]:
        def part(url: str, place: Path) -> Verdict:
            conductor = Conductor(host, url, place, manual=manual, seed=seed, workers=chosen.workers)
            return judge(conductor.run(name, seconds))

        return f"{chosen.workers} workers for {seconds:.0f} s, {name}", part

    yield "contest", lambda url, place: contest(host, url, place, chosen.jobs)
    yield "model", lambda url, place: agreement(url, place, chosen.steps, seed)
    yield let_loose("leases of 1 to 3 s by the real clock", manual=False)
    yield let_loose("a clock that jumps", manual=True)


@contextmanager
def _urls(database: str) -> Iterator[Urls]:
    """Gives a new, empty database for a directory."""
    if database == "sqlite":
        yield lambda place: nullcontext(f"sqlite:///{place / 'state.sqlite'}")
    else:
        with postgres.serve() as server:
            yield lambda _place: server.database()


def _show(name: str, verdict: Verdict) -> int:
    """Print one part's figures and problems. Answers how many problems there are."""
    print(f"\n{name}")
    for label, figure in verdict.figures.items():
        print(f"  {label:<36}{figure}")
    for problem in verdict.problems[:_SHOWN_PROBLEMS]:
        print(f"  BROKEN: {problem}")
    if len(verdict.problems) > _SHOWN_PROBLEMS:
        print(f"  … and {len(verdict.problems) - _SHOWN_PROBLEMS} more")
    sys.stdout.flush()
    return len(verdict.problems)


if __name__ == "__main__":
    sys.exit(main())
