"""The quick checks that must notice a planted bug."""

from __future__ import annotations

from tests.mutants.batches import batch_checks
from tests.mutants.bench import Check
from tests.mutants.candidates import candidate_checks
from tests.mutants.neighbours import neighbour_checks
from tests.mutants.rivals import rival_checks
from tests.mutants.suite import suite_checks
from tests.mutants.values import value_checks


def all_checks() -> tuple[Check, ...]:
    """Every check, the fast ones first."""
    return (
        *suite_checks(),
        *neighbour_checks(),
        *value_checks(),
        *rival_checks(),
        *candidate_checks(),
        *batch_checks(),
    )
