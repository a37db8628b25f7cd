"""Trying the checks on each mutant."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.mutants.bench import Bench, Check
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.planted import PlantedMutant
from tests.mutants.statements import SqlMutant

Mutant = SqlMutant | PlantedMutant


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    NOT_MET = "NOT MET"
    """No check ever ran the changed code."""
    EQUIVALENT = "equivalent"
    """It can't be told from the original, for a stated reason."""
    NOT_EQUIVALENT = "KILLED, BUT LISTED AS EQUIVALENT"


GOOD = {Verdict.KILLED, Verdict.EQUIVALENT}


@dataclass(frozen=True)
class Result:
    """One mutant's fate."""

    mutant: str
    verdict: Verdict
    by: str
    """The check that noticed it, or why it is equivalent."""
    seconds: float


def broken_checks(bench: Bench, checks: Sequence[Check]) -> list[str]:
    """Checks that fail although nothing was planted: they would kill everything and prove nothing."""
    return [check.name for check in checks if not _passes(bench, check)]


def fates(bench: Bench, mutants: Sequence[Mutant], checks: Sequence[Check]) -> Iterator[Result]:
    """Try the checks on each mutant until one notices it; those first that have noticed its siblings."""
    noticed: Counter[tuple[str, str]] = Counter()
    for mutant in mutants:
        started = time.monotonic()
        family = mutant.name.partition(" ")[0]
        ordered = sorted(checks, key=lambda check: (-noticed[family, check.name], -_kinship(mutant, check)))
        with mutant.planted() as was_met:
            killer = next((check.name for check in ordered if not _passes(bench, check)), None)
            met = was_met()
        if killer is not None:
            noticed[family, killer] += 1
        yield Result(mutant.name, *_verdict(mutant.name, killer, met), time.monotonic() - started)


def _verdict(name: str, killer: str | None, met: bool) -> tuple[Verdict, str]:
    if name in EQUIVALENT:
        return (Verdict.EQUIVALENT, EQUIVALENT[name]) if killer is None else (Verdict.NOT_EQUIVALENT, killer)
    if killer is not None:
        return Verdict.KILLED, killer
    return (Verdict.SURVIVED if met else Verdict.NOT_MET), ""


_FAMILIES = {
    "jobs.claim": "TestClaims",
    "jobs.give_up": "TestCrashes",
    "jobs.begin": "TestCrashes",
    "jobs": "TestJobs",
    "job_claims": "TestCandidates",
    "thread_memories": "TestThreadMemories",
    "memory_scopes": "TestMemoryScopes",
    "locks.claim_name": "TestNamedLocks",
    "locks.renew_name": "TestNamedLocks",
    "locks.release_name": "TestNamedLocks",
    "locks": "TestConsolidationLocks",
    "backfills": "TestBackfills",
}


def _kinship(mutant: Mutant, check: Check) -> int:
    """Whether a check is about the mutant's table, so that it is tried first."""
    for beginning, family in _FAMILIES.items():
        if mutant.name.startswith(beginning):
            return int(check.name.startswith(family))
    return int(not check.name.startswith("Test"))


def _passes(bench: Bench, check: Check) -> bool:
    try:
        check.run(bench)
    except Exception:
        logging.getLogger(__name__).debug("%s", check.name, exc_info=True)
        return False
    except BaseException as error:
        if type(error).__module__.startswith("_pytest"):  # pytest.raises that didn't see its exception
            return False
        raise
    return True
