"""Chaos: workers that are killed, paused and raced for minutes, on servers that are killed, too, and a verdict.

``python -m tests.chaos.run`` lets them loose on SQLite, then on a PostgreSQL server that fails all the time.

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

from tests import pgbouncer, postgres
from tests.chaos.agreement import agreement
from tests.chaos.conductor import Conductor
from tests.chaos.contest import contest
from tests.chaos.outages import Killable, Outages
from tests.chaos.processes import WorkerHost
from tests.chaos.verdict import Verdict, judge
from tests.own_server import own_server

_SHOWN_PROBLEMS = 20
_DATABASES, _FAILING, _POOLED = ("sqlite", "postgresql"), "failing", "pooled"

_ASKS_AGAIN_SOON = "server_login_retry = 1"
"""By default PgBouncer waits for 15 s after a server refused it, longer than a short run is left alone at its end."""

Part = Callable[[str, Path], Verdict]
Urls = Callable[[Path], AbstractContextManager[str]]


def main() -> int:
    """Run every part and print what came of it. The exit status is 1 when a law was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long workers are let loose, in all")
    parser.add_argument("--seed", type=int, default=None, help="repeats what was done to whom")
    parser.add_argument(
        "--database",
        choices=(*_DATABASES, _FAILING, _POOLED),
        nargs="+",
        default=("sqlite", _FAILING),
        help=f"{_FAILING} is a PostgreSQL server that is killed and restarted all the time, {_POOLED} one behind a "
        f"PgBouncer in transaction mode, which is as well (default: sqlite and {_FAILING})",
    )
    parser.add_argument("--workers", type=int, default=8, help="how many processes at a time")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs of the contest")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the lease model beside the store")
    chosen = parser.parse_args()
    if _POOLED in chosen.database and pgbouncer.installed() is None:
        parser.error("pgbouncer isn't installed: apt-get install pgbouncer, or your system's package")
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    warnings.simplefilter("error")
    print(f"chaos on {' and '.join(chosen.database)}, seed {seed}", flush=True)
    started = time.monotonic()
    problems = 0
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        host = held.enter_context(WorkerHost())
        for number, (name, urls, part) in enumerate(_parts(chosen, host, seed)):
            place = directory / str(number)
            place.mkdir()
            with urls(place) as url:
                problems += _show(name, part(url, place))
    print(f"\n{problems} problems in {time.monotonic() - started:.0f} s; seed {seed}")
    return 1 if problems else 0


def _parts(chosen: argparse.Namespace, host: WorkerHost, seed: int) -> Iterator[tuple[str, Urls, Part]]:
    """What is run, each on a database of its own. The scenarios together take the minutes that were asked for."""
    scenarios = sum(2 if database in _DATABASES else 1 for database in chosen.database)
    seconds = chosen.minutes * 60 / scenarios
    many = f"{chosen.workers} workers for {seconds:.0f} s"

    def let_loose(what: str, *, manual: bool) -> tuple[str, Part]:
        def part(url: str, place: Path) -> Verdict:
            conductor = Conductor(host, url, place, manual=manual, seed=seed, workers=chosen.workers)
            return judge(conductor.run(what, seconds))

        return f"{many}, {what}", part

    def fail(what: str, *, pooled: bool) -> Part:
        def part(_url: str, place: Path) -> Verdict:
            with ExitStack() as held:
                server = held.enter_context(own_server())
                servers: list[Killable] = [server]
                through: str | None = None
                if pooled:
                    pooler = held.enter_context(pgbouncer.pooler(server.url, _ASKS_AGAIN_SOON))
                    servers.append(pooler)
                    through = pooler.url.render_as_string(hide_password=False)
                conductor = Conductor(
                    host,
                    server.url,
                    place,
                    manual=False,
                    seed=seed,
                    workers=chosen.workers,
                    outages=Outages(servers, seed, seconds),
                    pooler=through,
                )
                return judge(conductor.run(what, seconds))

        return part

    for database in _DATABASES:
        if database in chosen.database:
            with _urls(database) as urls:
                yield "contest", urls, lambda url, place: contest(host, url, place, chosen.jobs)
                yield "model", urls, lambda url, place: agreement(url, place, chosen.steps, seed)
                for name, part in (
                    let_loose("leases of 1 to 3 s by the real clock", manual=False),
                    let_loose("a clock that jumps", manual=True),
                ):
                    yield f"{name}, {database}", urls, part
    for database, what in (
        (_FAILING, "a PostgreSQL server that is killed and restarted"),
        (_POOLED, "a PgBouncer and its server that are killed and restarted"),
    ):
        if database in chosen.database:
            yield f"{many}, {what}", lambda _place: nullcontext(""), fail(what, pooled=database == _POOLED)


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
