"""Bugs planted in the lease core are noticed. The whole list: ``python -m tests.mutants``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.bench import Bench, Check, bench
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.planted import PlantedMutant, planted_mutants
from tests.mutants.running import Sound, Verdict, fates, sound_checks
from tests.mutants.statements import sql_mutants, statements

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
def test_every_bug_planted_in_the_core_of_the_leases_is_noticed() -> None:
    """L1 to L5. In a process of its own, since SQLAlchemy never quite forgets listeners to all engines."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.mutants", "--core"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("\nkilled") > 100


def test_every_guarded_statement_is_mutated() -> None:
    mutated = {mutant.statement.name for mutant in sql_mutants()}
    assert mutated == {statement.name for statement in statements()}
    assert {"jobs.claim", "jobs.renew", "job_claims.claim", "backfills.checkpoint"} <= mutated


def test_every_mutant_changes_its_statement() -> None:
    unchanged = [
        mutant.name for mutant in sql_mutants() if mutant.rewrite(mutant.statement.text) == mutant.statement.text
    ]
    assert unchanged == []


def test_mutants_have_names_of_their_own_and_the_equivalent_ones_exist() -> None:
    names = [mutant.name for mutant in (*planted_mutants(), *sql_mutants())]
    assert len(set(names)) == len(names)
    assert set(EQUIVALENT) <= set(names)


def _fail(_bench: Bench) -> None:
    raise AssertionError


def test_survivors_and_checks_that_prove_nothing_are_told(tmp_path: Path) -> None:
    harmless = PlantedMutant("harmless", lambda _held, met: met())
    unmet = PlantedMutant("unmet", lambda _held, _met: None)
    useless, broken = Check("useless", lambda _bench: None), Check("broken", _fail)
    with bench(tmp_path) as prepared:
        sound, failed = sound_checks(prepared, [useless, broken])
        assert [each.check.name for each in sound] == ["useless"]
        assert failed == ["broken"]
        verdicts = [result.verdict for result in fates(prepared, [harmless, unmet], sound)]
        assert verdicts == [Verdict.SURVIVED, Verdict.NOT_MET]
        noticing = [*sound, Sound(broken, 0, frozenset())]
        assert [result.by for result in fates(prepared, [harmless], noticing)] == ["broken"]
