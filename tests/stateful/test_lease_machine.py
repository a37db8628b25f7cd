"""The lease rules, by Hypothesis: model, SQLite and PostgreSQL agree on every answer and on every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stores

from codex_state.models import HolderWrite, SkipReason
from codex_state.processes import Owner
from codex_state.testing import lease_model
from codex_state.testing.lease_machine import KEYS, OWNERS, SCOPES, LeaseMachine, Store, check_leases, lease_machine
from codex_state.testing.processes import HERE


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    url = stores.copy_of(stores.sqlite_template(tmp_path), tmp_path / "sqlite")
    with stores.opened(url) as database, stores.clocked(database, tmp_path) as (_, clock):
        yield Store(database, clock)


@pytest.fixture
def both(sqlite: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Store]]:
    with ExitStack() as stack:
        server = request.getfixturevalue("postgres_server")
        database = stack.enter_context(stores.opened(stack.enter_context(stores.postgres_with_schema(server))))
        (tmp_path / "postgresql").mkdir()
        clock = stack.enter_context(stores.clocked(database, tmp_path / "postgresql")).clock
        yield [sqlite, Store(database, clock)]


@pytest.mark.proof
def test_model_sqlite_and_postgresql_agree_in_lockstep(both: list[Store]) -> None:
    check_leases(*both, examples=50)


def _refuses_at_the_very_end(
    job: lease_model.Job, source: int, lease: int, now: int, dead: Set[str]
) -> SkipReason | None:
    refusal = ORIGINAL_REFUSAL(job, source, lease, now, dead)
    at_the_end = job.status == lease_model.RUNNING and job.started_at == now - (job.lease_seconds or 0)
    return SkipReason.RUNNING if at_the_end else refusal


def _never_takes_over_from_the_dead(
    job: lease_model.Job, source: int, lease: int, now: int, dead: Set[str]
) -> SkipReason | None:
    return ORIGINAL_REFUSAL(job, source, lease, now)


def _renews_for_anybody(job: lease_model.Job | None, token: str, now: int, by: Owner) -> Any:
    if job is None:
        return None, HolderWrite.LEASE_LOST
    return replace(job, started_at=now, by=by), HolderWrite.APPLIED


def _repeats_a_mark(mark: lease_model.Mark | None, now: int) -> lease_model.Mark:
    return lease_model.Mark(dirty=True, updated_at=now)


ORIGINAL_REFUSAL = lease_model.refusal_of


def _takes_over(machine: LeaseMachine, *, dead: bool, after: int = 0) -> None:
    """Claims a job, has its holder die or its lease run out, and claims it again."""
    key, owner = KEYS[0], OWNERS[0]
    machine.claim_job(key, owner, 0, 10, 3)
    if dead:
        machine.die(2, HERE)
    machine.jump(after)
    machine.claim_job(key, OWNERS[1], 0, 10, 3)


def _is_lost_and_renewed(machine: LeaseMachine) -> None:
    grant = machine.claim_job(KEYS[0], OWNERS[0], 0, 10, 3)
    machine.jump(10)
    machine.claim_job(KEYS[0], OWNERS[1], 0, 10, 3)
    machine.renew_job(grant)


def _is_marked_twice(machine: LeaseMachine) -> None:
    for _ in range(2):
        machine.mark_dirty(SCOPES[0])


@pytest.mark.parametrize(
    ("name", "wrong", "steps"),
    [
        ("refusal_of", _refuses_at_the_very_end, partial(_takes_over, dead=False, after=10)),
        ("refusal_of", _never_takes_over_from_the_dead, partial(_takes_over, dead=True)),
        ("renew_job", _renews_for_anybody, _is_lost_and_renewed),
        ("mark_dirty", _repeats_a_mark, _is_marked_twice),
    ],
)
def test_a_model_and_a_store_that_disagree_are_told_apart(
    name: str, wrong: Any, steps: Callable[[LeaseMachine], None], sqlite: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play() -> None:
        machine = lease_machine([sqlite])()
        try:
            machine.begin()
            steps(machine)
            machine.every_row_agrees()
        finally:
            machine.teardown()

    play()
    monkeypatch.setattr(lease_model, name, wrong)
    with pytest.raises(AssertionError, match="the model"):
        play()
