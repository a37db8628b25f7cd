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
from tests.mutants.statements import SqlMutant, noting_statements

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


@dataclass(frozen=True)
class Sound:
    """A check that passes while nothing is planted."""

    check: Check
    seconds: float
    executed: frozenset[str]
    """The statements of the lease core, by name, that it came to."""


def sound_checks(bench: Bench, checks: Sequence[Check]) -> tuple[list[Sound], list[str]]:
    """Run each check once. The names are of those that fail: they would kill everything and prove nothing."""
    sound, broken = [], []
    for check in checks:
        started = time.monotonic()
        with noting_statements() as executed:
            passes = _passes(bench, check)
        if passes:
            sound.append(Sound(check, time.monotonic() - started, frozenset(executed)))
        else:
            broken.append(check.name)
    return sound, broken


def fates(bench: Bench, mutants: Sequence[Mutant], checks: Sequence[Sound]) -> Iterator[Result]:
    """Try the checks on each mutant until one notices it; those first that have noticed its siblings, then quick ones.

    A check that doesn't come to a statement can't notice a bug in it.
    """
    noticed: Counter[tuple[str, str]] = Counter()
    for mutant in mutants:
        started = time.monotonic()
        family = mutant.name.partition(" ")[0]
        tried = [each for each in checks if isinstance(mutant, PlantedMutant) or mutant.statement.name in each.executed]
        tried.sort(key=lambda each: (-noticed[family, each.check.name], -_kinship(mutant, each.check), each.seconds))
        ordered = [each.check for each in tried]
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
    """How close a check is to what the mutant changes, so that it is tried first."""
    if mutant.name.partition(" ")[0] in check.name:
        return 2
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
