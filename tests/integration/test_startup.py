"""Opening a state whose index is complete."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rollout_files import rollout_path, thread_id, write, write_rollout

from codex_state import BackfillStatus, BackfillTimeoutError, Claimed, StateRuntime, StateSettings, ThreadQuery
from codex_state.repositories import BackfillRepository
from codex_state.rollout import open_state

MODIFIED = 1_767_400_000

Opened = Callable[[StateSettings], StateRuntime]


def short(settings: StateSettings, **changes: object) -> StateSettings:
    return settings.model_copy(update={"backfill_wait": timedelta(seconds=1)} | changes)


def test_the_index_is_complete_before_the_state_is_returned(settings: StateSettings) -> None:
    write_rollout(settings.codex_home, 1)
    with open_state(settings) as runtime, runtime.read() as state:
        assert state.threads.get(thread_id(1)) is not None
        assert state.backfill.is_complete(runtime.home)


def test_opening_only_never_backfills(settings: StateSettings, opened: Opened) -> None:
    write_rollout(settings.codex_home, 1)
    with opened(settings).read() as state:
        assert state.threads.get(thread_id(1)) is None
        assert all(each.status is BackfillStatus.PENDING for each in state.backfill.list())


def test_opening_takes_in_what_is_new_and_writes_nothing_when_nothing_is(settings: StateSettings) -> None:
    open_state(settings).close()
    write_rollout(settings.codex_home, 1, modified=MODIFIED)
    with open_state(settings) as runtime, runtime.read() as state:
        assert state.threads.get(thread_id(1)) is not None
    claimed = []

    def claim(*_arguments: object, **_options: object) -> None:
        claimed.append(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BackfillRepository, "try_claim", claim)
        open_state(settings).close()
    assert claimed == []


def test_an_index_that_was_complete_is_used_while_another_process_freshens_it(
    settings: StateSettings, opened: Opened
) -> None:
    write_rollout(settings.codex_home, 1)
    open_state(settings).close()
    write_rollout(settings.codex_home, 2)
    other = opened(settings)
    with other.autocommit() as state:
        assert isinstance(state.backfill.try_claim(other.home, lease=timedelta(hours=1), refresh=True), Claimed)
    with open_state(settings) as runtime, runtime.read() as state:
        assert state.threads.get(thread_id(1)) is not None
        assert state.threads.get(thread_id(2)) is None


def test_a_missing_home_is_made_and_complete_at_once(tmp_path: Path) -> None:
    with open_state(StateSettings(codex_home=tmp_path / "new")) as runtime, runtime.read() as state:
        assert state.backfill.is_complete()


def test_rollouts_that_cannot_be_indexed_do_not_keep_it_shut(settings: StateSettings) -> None:
    write(rollout_path(settings.codex_home, 1), b"")
    with open_state(settings) as runtime, runtime.read() as state:
        assert state.backfill.is_complete(runtime.home)


def test_it_waits_for_another_workers_backfill(settings: StateSettings, opened: Opened) -> None:
    write_rollout(settings.codex_home, 1)
    other = opened(settings)
    with other.autocommit() as state:
        claim = state.backfill.try_claim(other.home, owner="other", lease=timedelta(seconds=900))
    assert isinstance(claim, Claimed)
    finishing = threading.Timer(0.7, _complete, (other, claim))
    finishing.start()
    began = time.monotonic()
    open_state(settings.model_copy(update={"backfill_wait": timedelta(seconds=20)})).close()
    assert 0.5 < time.monotonic() - began < 15
    finishing.join()


def _complete(runtime: StateRuntime, claim: Claimed[object]) -> None:
    with runtime.autocommit() as state:
        state.backfill.complete(claim.lease, "sessions/x")  # type: ignore[arg-type]


def test_a_stuck_backfill_is_an_error_that_says_who_holds_it_since_when(
    settings: StateSettings, opened: Opened
) -> None:
    other = opened(settings)
    with other.autocommit() as state:
        state.backfill.try_claim(other.home, owner="laptop", lease=timedelta(seconds=900))
    began = time.monotonic()
    with pytest.raises(BackfillTimeoutError, match="timed out waiting 1 s for the backfill") as caught:
        open_state(short(settings))
    assert 0.9 < time.monotonic() - began < 15
    assert f"process {os.getpid()} (laptop) works on it since 20" in str(caught.value)
    assert "codex-state backfill" in str(caught.value)


def test_a_dead_workers_backfill_is_taken_over_when_its_lease_is_over(settings: StateSettings, opened: Opened) -> None:
    write_rollout(settings.codex_home, 1)
    other = opened(settings)
    with other.autocommit() as state:
        state.backfill.try_claim(other.home, owner="dead", lease=timedelta(seconds=2))
    patient = settings.model_copy(
        update={"backfill_lease": timedelta(seconds=1), "backfill_wait": timedelta(seconds=20)}
    )
    with open_state(patient) as runtime, runtime.read() as state:
        assert state.threads.get(thread_id(1)) is not None


def test_many_who_start_at_once_all_get_the_complete_index(settings: StateSettings) -> None:
    for number in range(1, 30):
        write_rollout(settings.codex_home, number)
    found: list[int] = []

    def start() -> None:
        with open_state(settings) as runtime, runtime.read() as state:
            found.append(len(state.threads.list(ThreadQuery(limit=100)).items))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [29] * 6
