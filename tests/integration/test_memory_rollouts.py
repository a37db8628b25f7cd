"""Extraction looks for a thread's rollout first: files move, and a file that is gone is nobody's failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import zstandard
from memory_support import OWNER, cwd_key
from rollout_files import thread_id, write_rollout

from codex_state import ExtractedMemory, Phase1Options, Phase1Outcome, StateRuntime, Thread, run_phase1
from codex_state.rollout.backfilling import backfill

RECENT = time.time() - 3600


def extract(thread: Thread) -> ExtractedMemory:
    assert thread.rollout_path is not None
    thread.rollout_path.read_bytes()
    return ExtractedMemory(f"raw of {thread.rollout_path.name}", "summary")


def extracted_by_a_pass(runtime: StateRuntime) -> dict[UUID, Phase1Outcome]:
    report = run_phase1(runtime, extract, owner=OWNER, options=Phase1Options(scope_kinds=("cwd",)))
    return {result.key.thread_id: result.outcome for result in report.results}


def to_another_date(home: Path, path: Path) -> None:
    target = home / "sessions/2026/08/31" / path.name
    target.parent.mkdir(parents=True)
    path.rename(target)


def to_the_archive(home: Path, path: Path) -> None:
    (home / "archived_sessions").mkdir()
    path.rename(home / "archived_sessions" / path.name)


def compressed(_home: Path, path: Path) -> None:
    target = path.with_name(path.name + ".zst")
    target.write_bytes(zstandard.compress(path.read_bytes()))
    os.utime(target, (RECENT, RECENT))
    path.unlink()


@pytest.fixture
def path(runtime: StateRuntime) -> Path:
    runtime.codex_home.mkdir(exist_ok=True)
    path = write_rollout(runtime.codex_home, modified=RECENT)
    backfill(runtime)
    return path


@pytest.mark.parametrize("move", [to_another_date, to_the_archive, compressed])
def test_a_rollout_that_moved_since_it_was_indexed_is_found(
    runtime: StateRuntime, path: Path, move: Callable[[Path, Path], None]
) -> None:
    move(runtime.codex_home, path)
    assert extracted_by_a_pass(runtime) == {thread_id(1): Phase1Outcome.SUCCEEDED}


def test_a_job_whose_rollout_is_gone_is_given_back_and_not_claimed_until_it_is_back(
    runtime: StateRuntime, path: Path
) -> None:
    content = path.read_bytes()
    path.unlink()
    assert extracted_by_a_pass(runtime) == {thread_id(1): Phase1Outcome.LOST}
    assert extracted_by_a_pass(runtime) == {}
    with runtime.read() as state:
        thread = state.threads.get(thread_id(1))
        assert thread is not None
        assert thread.gone_at is not None
        job = state.phase1_jobs.get(cwd_key(thread))
        assert job is not None
        assert job.retry_at is not None, "it failed for good"
    path.write_bytes(content)
    os.utime(path, (RECENT, RECENT))
    backfill(runtime, refresh=True)
    assert extracted_by_a_pass(runtime) == {thread_id(1): Phase1Outcome.SUCCEEDED}


def test_a_rollout_that_moves_while_it_is_to_be_read_fails_nothing(runtime: StateRuntime, path: Path) -> None:
    def too_late(thread: Thread) -> ExtractedMemory:
        to_another_date(runtime.codex_home, path)
        return extract(thread)

    report = run_phase1(runtime, too_late, owner=OWNER, options=Phase1Options(scope_kinds=("cwd",)))
    assert [result.outcome for result in report.results] == [Phase1Outcome.LOST]
    assert extracted_by_a_pass(runtime) == {thread_id(1): Phase1Outcome.SUCCEEDED}


def test_an_extractor_that_misses_a_file_of_its_own_fails_its_job(runtime: StateRuntime, path: Path) -> None:
    def careless(_thread: Thread) -> ExtractedMemory:
        Path("/nowhere/prompt.txt").read_text()
        raise AssertionError

    report = run_phase1(runtime, careless, owner=OWNER, options=Phase1Options(scope_kinds=("cwd",)))
    assert [result.outcome for result in report.results] == [Phase1Outcome.FAILED]


def test_a_rebuild_reopens_jobs_that_failed_because_their_file_was_not_where_the_row_said(
    runtime: StateRuntime, path: Path
) -> None:
    with runtime.read() as state:
        thread = state.threads.get(thread_id(1))
    assert thread is not None
    key = cwd_key(thread)
    with runtime.autocommit() as state:
        claim = state.phase1_jobs.try_claim(
            key, owner=OWNER, source_updated_at=thread.updated_at, lease=Phase1Options().lease
        )
        state.phase1_jobs.fail(claim.lease, "FileNotFoundError: [Errno 2] No such file or directory: 'x'")
    assert extracted_by_a_pass(runtime) == {}
    to_another_date(runtime.codex_home, path)
    backfill(runtime, refresh=True)
    assert extracted_by_a_pass(runtime) == {thread_id(1): Phase1Outcome.SUCCEEDED}


def test_other_failures_stay_failures_after_a_rebuild(runtime: StateRuntime, path: Path) -> None:
    def refuse(_thread: Thread) -> ExtractedMemory:
        raise ValueError("no model")

    run_phase1(runtime, refuse, owner=OWNER, options=Phase1Options(scope_kinds=("cwd",)))
    backfill(runtime, again=True)
    assert extracted_by_a_pass(runtime) == {}
