"""How SQLite answers the hot statements: by seeking in an index, in the order that is asked for (law L10)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from codex_state.database.log_bounds import Sweep
from codex_state.models import Anchor, LogQuery, MemoryScope, Phase1Key, Phase1Status, Product, SortKey, ThreadQuery
from codex_state.repositories.thread_listing import statement_of
from codex_state.runtime import State, StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.processes import ManualProcesses
from codex_state.testing.samples import NOON, a_log_line, a_thread

_OLD = timedelta(days=10_000)
_HOUR = timedelta(hours=1)
_ANCHOR = Anchor(NOON - timedelta(seconds=100), uuid4())
_KEY = Phase1Key(uuid4(), MemoryScope.user())


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateRuntime]:
    """A store as the migrations make it, with some rows and, like a store in use, without statistics."""
    with StateRuntime.open(StateSettings(codex_home=tmp_path_factory.mktemp("home"))) as runtime:
        with runtime.begin() as state:
            threads = [
                a_thread(
                    updated_at=NOON - timedelta(seconds=number),
                    source=("cli", "vscode", "exec")[number % 3],
                    model_provider=("openai", "azure")[number % 2],
                    archived_at=NOON if number % 10 == 0 else None,
                )
                for number in range(300)
            ]
            state.threads.upsert_many([a_thread(id=_KEY.thread_id), *threads])
            state.logs.insert_many([a_log_line(str(number)) for number in range(50)])
            for thread in threads[:50]:
                state.thread_memories.upsert(thread.id, "raw", "summary")
        yield runtime


@pytest.fixture
def state(runtime: StateRuntime) -> Iterator[State]:
    with runtime.autocommit() as state:
        yield state


def _plan_of(state: State, work: Callable[[State], Any]) -> list[str]:
    """The steps of the one statement that ``work`` runs first."""
    driver: Any = state.session.connection().connection.driver_connection
    statements: list[str] = []
    driver.set_trace_callback(statements.append)
    try:
        work(state)
    finally:
        driver.set_trace_callback(None)
    statement = next(each for each in statements if not each.startswith(("BEGIN", "COMMIT", "--")))
    return [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}")]


def _claim(state: State) -> Any:
    return state.phase1_jobs.try_claim(_KEY, owner=uuid4(), source_updated_at=NOON, lease=timedelta(0)).lease  # type: ignore[union-attr]


_FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "archived (archived=? AND <expr>=?"),
    ({"archived": True}, "archived (archived=? AND <expr>=?"),
    ({"home": "local"}, "archived (archived=? AND <expr>=?"),
    ({"sources": ["cli"]}, "source (source=? AND archived=? AND <expr>=?"),
    ({"providers": ["azure"]}, "provider (model_provider=? AND archived=? AND <expr>=?"),
    ({"providers": ["azure"], "archived": True}, "provider (model_provider=? AND archived=? AND <expr>=?"),
]


def _index_in_order(sort_key: SortKey, filtered: str) -> str:
    """How an index that has a page's filter and its order is told in a plan."""
    return f"idx_threads_{'created_at (archived=? AND <expr>=?' if sort_key is SortKey.CREATED_AT else filtered}"


@pytest.mark.parametrize("anchor", [None, _ANCHOR], ids=["first page", "later page"])
@pytest.mark.parametrize(("filters", "filtered"), _FILTERS)
@pytest.mark.parametrize("sort_key", SortKey)
def test_a_page_is_read_from_an_index_in_its_order(
    state: State, filters: dict[str, Any], filtered: str, sort_key: SortKey, anchor: Anchor | None
) -> None:
    (step,) = _plan_of(
        state, lambda state: state.threads.list(ThreadQuery(limit=50, sort_key=sort_key, anchor=anchor, **filters))
    )
    seek = f"SEARCH threads USING INDEX {_index_in_order(sort_key, filtered)}"
    assert step == f"{seek} AND ({sort_key.value},id)<(?,?))" if anchor else f"{seek})"


def test_the_directories_below_one_are_a_seek_each_and_so_are_their_threads(state: State) -> None:
    """L10."""
    query = ThreadQuery(limit=50, cwd="/code", anchor=_ANCHOR)
    found = _plan_of(state, lambda state: state.threads.list(query))
    seeks = [step for step in found if "threads" in step]
    assert seeks == [
        "SEARCH threads USING INDEX idx_threads_cwd (<expr>>? AND <expr><?)",
        "SEARCH threads USING INDEX idx_threads_cwd (<expr>>? AND <expr><?)",
    ]
    statement, parameters = statement_of(query, directories=["/code", "/code/a", "/code/b"])
    steps = _plan_of(state, lambda state: state.session.execute(statement, parameters))
    seek = "SEARCH threads USING INDEX idx_threads_cwd (<expr>=? AND archived=? AND <expr>=? AND (updated_at,id)<(?,?))"
    assert [step for step in steps if "threads" in step] == [seek] * 3


def test_more_filters_than_are_worth_a_branch_each_walk_the_threads_in_order(state: State) -> None:
    (step,) = _plan_of(state, lambda state: state.threads.list(ThreadQuery(limit=50, sources=list("abcdefghijklm"))))
    assert step == "SEARCH threads USING INDEX idx_threads_archived (archived=? AND <expr>=?)"


def test_all_threads_are_those_shown_and_the_others_each_by_one_seek(state: State) -> None:
    """L10."""
    steps = _plan_of(state, lambda state: state.threads.list(ThreadQuery(all=True, anchor=_ANCHOR)))
    seek = "SEARCH threads USING INDEX idx_threads_archived (archived=? AND <expr>=? AND (updated_at,id)<(?,?))"
    assert [step for step in steps if "threads" in step] == [seek] * 2


def test_what_is_not_shown_is_counted_by_one_seek(state: State) -> None:
    """L10."""
    steps = _plan_of(state, lambda state: state.threads.count_unshown(ThreadQuery(sources=["cli"])))
    seek = "SEARCH threads USING INDEX idx_threads_source (source=? AND archived=? AND <expr>=?)"
    assert [step for step in steps if "threads" in step] == [seek]


def test_several_sources_are_one_seek_each_and_only_their_pages_are_merged(state: State) -> None:
    steps = _plan_of(
        state,
        lambda state: state.threads.list(ThreadQuery(limit=50, sources=["cli", "vscode", "exec"], anchor=_ANCHOR)),
    )
    seeks = [step for step in steps if "threads" in step]
    seek = (
        "SEARCH threads USING INDEX idx_threads_source (source=? AND archived=? AND <expr>=? AND (updated_at,id)<(?,?))"
    )
    assert seeks == [seek] * 3


@pytest.mark.parametrize(
    ("work", "seek"),
    [
        (
            lambda state: state.threads.get(_KEY.thread_id),
            "SEARCH threads USING INDEX sqlite_autoindex_threads_1 (id=?)",
        ),
        (_claim, "SEARCH threads USING INDEX sqlite_autoindex_threads_1 (id=?)"),
        (
            lambda state: state.dynamic_tools.get(_KEY.thread_id),
            "SEARCH thread_dynamic_tools USING INDEX sqlite_autoindex_thread_dynamic_tools_1 (thread_id=?)",
        ),
        (lambda state: state.logs.query(LogQuery(after_id=5)), "SEARCH logs USING INTEGER PRIMARY KEY (rowid>?)"),
        (
            lambda state: state.logs.query(LogQuery(thread_ids=("a",), descending=True, limit=10)),
            "SEARCH logs USING INDEX idx_logs_thread_id (thread_id=?)",
        ),
        (lambda state: state.logs.max_id(), "SEARCH logs"),
    ],
)
def test_a_hot_statement_is_one_seek(state: State, work: Callable[[State], Any], seek: str) -> None:
    assert _plan_of(state, work) == [seek]


@pytest.mark.parametrize(
    ("work", "seek"),
    [
        (lambda state: state.logs.retain(max_age=_HOUR), "SEARCH logs USING COVERING INDEX idx_logs_ts (ts<?)"),
        (lambda state: state.logs.delete_before(1), "SEARCH logs USING COVERING INDEX idx_logs_ts (ts<?)"),
        (
            lambda state: sum(Sweep(up_to_id=1).run(state.session.connection())),
            "SEARCH logs USING INTEGER PRIMARY KEY (rowid<?)",
        ),
    ],
)
def test_a_batch_of_log_lines_is_one_seek_and_each_line_another(
    state: State, work: Callable[[State], Any], seek: str
) -> None:
    """L10."""
    assert _plan_of(state, work)[:3] == ["SEARCH logs USING INTEGER PRIMARY KEY (rowid=?)", "LIST SUBQUERY 1", seek]


def test_a_scopes_memories_are_one_seek_and_each_ones_thread_another(state: State) -> None:
    assert _plan_of(state, lambda state: state.thread_memories.last_n_for_cwd(Path("/code"), 64)) == [
        "SEARCH thread_memory USING INDEX idx_thread_memory_scope_updated_at (scope_kind=? AND scope_key=?)",
        "CORRELATED SCALAR SUBQUERY 1",
        "SEARCH threads USING INDEX sqlite_autoindex_threads_1 (id=?)",
    ]


def test_many_finished_jobs_are_one_seek_each(state: State) -> None:
    lease = replace(_claim(state), token="another's")
    plan = _plan_of(state, lambda state: state.phase1_jobs.succeed_many({lease: Product()}))
    assert plan[0].startswith("SCAN finished")
    assert plan[1].endswith("(thread_id=? AND scope_kind=? AND scope_key=?)")


def test_the_holders_writes_seek_their_job_by_its_key(state: State) -> None:
    lease = _claim(state)
    by_key = "sqlite_autoindex_memory_phase1_jobs_1 (thread_id=? AND scope_kind=? AND scope_key=?)"
    assert _plan_of(state, lambda state: state.phase1_jobs.renew(lease)) == [
        f"SEARCH memory_phase1_jobs USING INDEX {by_key}"
    ]
    assert _plan_of(state, lambda state: state.thread_memories.upsert_if_owner(lease, "r", "s")) == [
        f"SEARCH memory_phase1_jobs USING INDEX {by_key}",
        "SEARCH threads USING COVERING INDEX sqlite_autoindex_threads_1 (id=?)",
    ]
    assert _plan_of(state, lambda state: state.phase1_jobs.fail(lease, "broken")) == [
        f"SEARCH memory_phase1_jobs USING INDEX {by_key}"
    ]


def _plans_of(state: State, work: Callable[[State], Any]) -> list[list[str]]:
    """The steps of each statement that ``work`` runs."""
    driver: Any = state.session.connection().connection.driver_connection
    statements: list[str] = []
    driver.set_trace_callback(statements.append)
    try:
        work(state)
    finally:
        driver.set_trace_callback(None)
    return [
        [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}")]
        if statement not in ("BEGIN IMMEDIATE", "COMMIT")
        else []
        for statement in statements
    ]


@pytest.mark.parametrize("max_running", [None, 64])
@pytest.mark.parametrize(
    ("scope_kinds", "index"),
    [
        (("cwd", "user"), "idx_threads_open"),
        (("cwd",), "idx_threads_open_cwd"),
        (("user",), "idx_threads_open_user"),
    ],
)
def test_the_batch_claim_walks_the_open_threads_in_order_and_seeks_their_jobs(
    state: State, scope_kinds: tuple[str, ...], index: str, max_running: int | None
) -> None:
    """L10: what is finished isn't in the index that it walks."""
    begin, give_up, reopen, claim, *settle, holders, commit = _plans_of(
        state,
        lambda state: state.phase1_jobs.claim_candidates(
            owner=uuid4(),
            lease=_HOUR,
            max_threads=500,
            max_age=_OLD,
            max_running=max_running,
            scope_kinds=scope_kinds,
        ),
    )
    assert (begin, commit) == ([], [])
    open_threads = f"SEARCH threads USING INDEX {index} (archived=? AND updated_at>? AND updated_at<?)"
    by_id = {"SEARCH threads USING INDEX sqlite_autoindex_threads_1 (id=?)"}
    by_key = (
        "SEARCH memory_phase1_jobs USING INDEX sqlite_autoindex_memory_phase1_jobs_1 "
        "(thread_id=? AND scope_kind=? AND scope_key=?)"
    )
    status = "SEARCH memory_phase1_jobs USING INDEX idx_memory_phase1_jobs_status_finished_at"
    retry = "SEARCH memory_phase1_jobs USING INDEX idx_memory_phase1_jobs_retry_at"
    running = f"{status} (status=?)"
    assert _reads(give_up) == {by_key, running}
    reopened = {running, f"{retry} (status=? AND retry_at>? AND retry_at<?)"}
    # First the hints of threads whose job can be claimed again, at last of those that are settled by now.
    assert _reads(reopen) - by_id == reopened
    assert settle
    assert all(_reads(steps) - by_id == {open_threads, by_key} for steps in settle)
    expected = {open_threads, by_key}
    if max_running is not None:
        expected.add(running)
    assert _reads(claim) == expected
    # Then, as there was less than was wanted, the processes that hold jobs: the first one, and the next after each.
    of_process = "SEARCH memory_phase1_jobs USING INDEX idx_memory_phase1_jobs_owner_process"
    assert _reads(holders) == {f"{of_process} (status=? AND owner_process>? AND owner_process<?)"}
    # Only the leases that the statement returns are sorted: all at once, or each of its branches, two for each kind.
    assert claim.count("USE TEMP B-TREE FOR ORDER BY") in (1, 2 * len(scope_kinds))


def test_a_take_over_from_the_dead_reads_their_jobs_alone(runtime: StateRuntime, state: State) -> None:
    """L10."""
    processes = ManualProcesses()
    with processes.installed(runtime.database):
        state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(0), max_age=_OLD, max_threads=10)
        processes.kill(processes.this())
        processes.become(2)
        plans = _plans_of(
            state,
            lambda state: state.phase1_jobs.claim_candidates(owner=uuid4(), lease=_HOUR, max_age=_OLD, max_threads=200),
        )
        single = _plans_of(
            state,
            lambda state: state.phase1_jobs.try_claim(_KEY, owner=uuid4(), source_updated_at=NOON, lease=_HOUR),
        )
    of_process = (
        "SEARCH memory_phase1_jobs USING INDEX idx_memory_phase1_jobs_owner_process (status=? AND owner_process=?)"
    )
    assert [number for number, steps in enumerate(plans) if of_process in steps] == [len(plans) - 4]
    steps = {step for steps in (*plans, *single) for step in _reads(steps)}
    assert [step for step in steps if not step.startswith("SEARCH")] == []


def _reads(steps: list[str]) -> set[str]:
    """How a statement reads threads and jobs, whether or not the index has all that it needs."""
    return {
        step.removesuffix(" LEFT-JOIN").replace(" COVERING ", " ")
        for step in steps
        if " threads " in step or " memory_phase1_jobs " in step
    }


@pytest.mark.parametrize("status", Phase1Status)
def test_jobs_of_one_status_are_read_in_the_order_of_their_end(state: State, status: Phase1Status) -> None:
    steps = _plan_of(state, lambda state: state.phase1_jobs.list(status=status))
    assert steps[0] == "SEARCH memory_phase1_jobs USING INDEX idx_memory_phase1_jobs_status_finished_at (status=?)"
    # Renewals would have to change an index that had the order of running ones.
    sorted_part = "" if status is Phase1Status.RUNNING else "RIGHT PART OF "
    assert steps[1:] == [f"USE TEMP B-TREE FOR {sorted_part}ORDER BY"]


def test_dirty_scopes_are_found_without_looking_at_clean_ones(state: State) -> None:
    steps = _plan_of(state, lambda state: state.memory_scopes.list_dirty())
    assert steps[0] == "SEARCH memory_scope_dirty USING INDEX idx_memory_scope_dirty_dirty (dirty=?)"


def test_the_files_of_threads_and_the_homes_of_threads_are_each_found_by_an_index(state: State) -> None:
    """L10: what a batch of a backfill asks doesn't cost more, the more files there are."""
    ids = [str(uuid4()), str(uuid4())]
    assert _plan_of(state, lambda state: state.rollout_files.of_threads(ids))[0] == (
        "SEARCH rollout_files USING INDEX idx_rollout_files_thread (thread_id=?)"
    )
    assert _plan_of(state, lambda state: state.rollout_files.homes_of([uuid4()]))[0].startswith("SEARCH threads USING")
    assert _plan_of(state, lambda state: state.phase1_jobs.reopen_found(ids))[0].startswith(
        "SEARCH memory_phase1_jobs USING INDEX sqlite_autoindex_memory_phase1_jobs_1 (thread_id=?"
    )


def test_indexes_ascend_and_none_names_what_a_renewal_changes(state: State) -> None:
    """A descending one leaves its pages half empty, and PostgreSQL writes a row anew in each if one has to change."""
    rows = state.session.connection().exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    )
    definitions = {row.name: row.sql for row in rows}
    assert definitions
    assert [name for name, sql in definitions.items() if " DESC" in sql] == []
    jobs = [sql for name, sql in definitions.items() if name.startswith("idx_memory_phase1_jobs")]
    assert len(jobs) == 3
    assert [sql for sql in jobs if re.search(r"\b(started_at|lease_seconds|owner_name)\b", sql)] == []
