"""Rows that only SQLite can hold: any bytes in any column, put there by another program or a damaged disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from codex_state import ExtractedMemory, Phase1Options, run_phase1, search
from codex_state.errors import InvalidRowError
from codex_state.models import SortKey, Thread, ThreadQuery, ThreadsPage
from codex_state.repositories import threads as module
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import NOON, a_thread

THREADS = [a_thread(updated_at=NOON - timedelta(seconds=number)) for number in range(6)]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=tmp_path)) as runtime:
        with runtime.begin() as state:
            state.threads.upsert_many(THREADS)
        yield runtime


def damage(runtime: StateRuntime, assignment: str, *victims: Thread) -> None:
    assert runtime.database.path is not None
    with closing(sqlite3.connect(runtime.database.path)) as connection, connection:
        for thread in victims:
            connection.execute(f"UPDATE threads SET {assignment} WHERE id = ?", (str(thread.id),))


def all_pages(runtime: StateRuntime, limit: int, sort_key: SortKey = SortKey.UPDATED_AT) -> list[ThreadsPage]:
    pages: list[ThreadsPage] = []
    query = ThreadQuery(limit=limit, sort_key=sort_key)
    with runtime.read() as state:
        while not pages or pages[-1].next_anchor is not None:
            anchor = pages[-1].next_anchor if pages else None
            pages.append(state.threads.list(ThreadQuery(limit=limit, sort_key=query.sort_key, anchor=anchor)))
    return pages


@pytest.mark.parametrize("limit", [1, 2, 4, 10])
@pytest.mark.parametrize(
    ("assignment", "key", "reason"),
    [
        ("updated_at = 'yesterday'", None, "stored time out of range: 'yesterday'"),
        ("updated_at = x'00'", None, "stored time out of range"),
        ("created_at = 1e300", None, "stored time out of range"),
        ("id = 'nobody'", "nobody", "stored id is not a UUID: 'nobody'"),
        ("title = CAST(x'ff41' AS TEXT)", None, "title is not UTF-8"),
        ("parent_thread_id = 'x'", None, "stored id is not a UUID"),
    ],
)
def test_a_row_that_can_not_be_read_is_named_and_costs_no_other(
    runtime: StateRuntime, assignment: str, key: str | None, reason: str, limit: int
) -> None:
    damage(runtime, assignment, THREADS[2])
    pages = all_pages(runtime, limit)
    listed = [thread.id for page in pages for thread in page.items]
    assert listed == [thread.id for thread in THREADS if thread is not THREADS[2]]
    named = {(row.key, row.reason) for page in pages for row in page.unreadable}
    ((found, why),) = named
    assert found == (key or str(THREADS[2].id))
    assert reason in why


def test_a_path_in_bytes_is_read_as_the_text_that_it_is(runtime: StateRuntime) -> None:
    damage(runtime, "rollout_path = CAST('/a' AS BLOB)", THREADS[0])
    (page,) = all_pages(runtime, 10)
    assert page.unreadable == ()
    assert [thread.id for thread in page.items] == [thread.id for thread in THREADS]
    assert page.items[0].rollout_path == Path("/a")


def test_so_many_rows_that_can_not_be_read_are_an_error_that_names_one(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L8, L10."""
    monkeypatch.setattr(module, "_MOST_UNREADABLE", 3)
    damage(runtime, "updated_at = 'x'", *THREADS[:3])
    assert [thread.id for page in all_pages(runtime, 1) for thread in page.items] == [
        thread.id for thread in THREADS[3:]
    ]
    damage(runtime, "updated_at = 'x'", THREADS[3])
    with runtime.read() as state, pytest.raises(InvalidRowError, match="more than 3 rows of threads can't be read"):
        state.threads.list(ThreadQuery(limit=1))


@pytest.mark.parametrize("assignment", ["updated_at = x'00'", "title = CAST(x'ff41' AS TEXT)", "archived_at = 1e300"])
def test_a_search_leaves_out_what_can_not_be_read(runtime: StateRuntime, assignment: str) -> None:
    damage(runtime, assignment, THREADS[2])
    found = [each.thread.id for each in search(runtime, THREADS[0].title or "", workers=0)]
    assert found == [thread.id for thread in THREADS if thread is not THREADS[2]]


@pytest.mark.parametrize("assignment", ["updated_at = CURRENT_TIMESTAMP", "updated_at = x'00'", "updated_at = 1e300"])
def test_extraction_goes_on_beside_what_can_not_be_read(runtime: StateRuntime, assignment: str) -> None:
    damage(runtime, assignment, THREADS[2])
    with runtime.begin() as state:
        claimed = state.phase1_jobs.claim_candidates(
            owner=uuid4(), lease=timedelta(hours=1), scope_kinds=("user",), max_age=timedelta(days=36_500)
        )
    assert [lease.key.thread_id for lease in claimed] == [t.id for t in THREADS if t is not THREADS[2]]


def test_a_pass_extracts_all_others_beside_what_can_not_be_read(runtime: StateRuntime) -> None:
    for thread, column in zip(THREADS, ("created_at", "name_at", "parent_thread_id"), strict=False):
        damage(runtime, f"{column} = 'yesterday'", thread)
    options = Phase1Options(scope_kinds=("user",), max_age=timedelta(days=36_500), write_files=False)
    report = run_phase1(runtime, lambda _thread: ExtractedMemory("m", "s"), owner=uuid4(), options=options)
    assert report.succeeded == 3
    assert max(result.reason or "" for result in report.results).startswith("InvalidRowError")
