"""Moving a state to another database: everything arrives, whatever interrupts it, and nothing that is there is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from copied_states import (
    LARGEST,
    MODELS,
    backfill_row,
    change,
    file_row,
    fill,
    held,
    job_row,
    keys_of,
    lock_row,
    log_row,
    memory_row,
    named_lock_row,
    put,
    replace_backfill,
    scope_row,
    thread_row,
    tool_row,
    with_home,
)
from stores import fresh_settings

from codex_state import (
    Claimed,
    CopyMismatchError,
    CopyProgress,
    CopyReport,
    CopyStage,
    InvalidInputError,
    MemoryScope,
    RowOutcome,
    StateRuntime,
    StateSettings,
    copy_state,
)
from codex_state.models import ThreadQuery, metadata
from codex_state.testing.samples import a_log_line, a_thread
from codex_state.transfer import tables

SCRIPT = Path(__file__).parent.parent / "copy_process.py"

_SCOPES = "memory_scope_dirty"

WAYS = [("sqlite", "postgresql"), ("postgresql", "sqlite"), ("sqlite", "sqlite"), ("postgresql", "postgresql")]

Opened = Callable[..., StateRuntime]


@pytest.fixture
def state_on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens empty states on a database, each with a home of its own, closed at the end."""
    with ExitStack() as opened:

        def open_on(dialect: str, name: str, **values: Any) -> StateRuntime:
            home = tmp_path / name
            home.mkdir()
            settings = opened.enter_context(fresh_settings(dialect, home, request, **values))
            return opened.enter_context(StateRuntime.open(settings))

        yield open_on


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PAGE_ROWS", 3)


def arrived(source: StateRuntime, target: StateRuntime) -> bool:
    """Whether the target holds the source's rows and no others, but for the row that migrations put there."""
    ours, theirs = with_home(held(source.database), {source.home: target.home}), held(target.database)
    claimed_at = MODELS["backfill_state"].column_names().index("claimed_at")
    for rows in (ours, theirs):
        rows["backfill_state"] = [row for row in rows["backfill_state"] if row[claimed_at] is not None]
    return ours == theirs


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize(("source_on", "target_on"), WAYS)
def test_every_row_of_every_table_arrives(state_on: Opened, source_on: str, target_on: str) -> None:
    source, target = state_on(source_on, "source"), state_on(target_on, "target")
    fill(source, home=source.home)
    before = held(source.database)
    report = copy_state(source, target)
    assert report.complete
    assert arrived(source, target)
    assert held(source.database) == before
    counts = {name: len(rows) for name, rows in before.items()}
    assert all(counts.values())
    assert {table.name: table.rows for table in report.tables} == counts
    assert {table.name: table.checked for table in report.tables} == counts
    assert report.total(RowOutcome.INSERTED) + report.total(RowOutcome.UPDATED) == report.rows
    again = copy_state(source, target)
    assert again.total(RowOutcome.UNCHANGED) == again.rows == report.rows
    assert [table.checksum for table in again.tables] == [table.checksum for table in report.tables]


def test_a_round_trip_gives_every_value_back(state_on: Opened) -> None:
    first, between, last = state_on("sqlite", "first"), state_on("postgresql", "between"), state_on("sqlite", "last")
    fill(first)
    there = copy_state(first, between)
    back = copy_state(between, last)
    assert there.complete
    assert back.complete
    assert held(last.database) == held(first.database)


def test_every_table_and_every_field_is_copied() -> None:
    stored = tables.stored_tables()
    copied = {name: model for name, model in MODELS.items() if name not in tables.OF_ONE_DATABASE}
    assert {table.name for table in stored} == copied.keys()
    assert {table.name: table.names for table in stored} == {
        name: model.column_names() for name, model in copied.items()
    }
    assert sum(len(table.names) for table in stored) == sum(len(model.model_fields) for model in copied.values())


def test_tables_are_copied_after_those_that_their_rows_speak_of() -> None:
    order = [table.name for table in tables.stored_tables()]
    for table in metadata.tables.values():
        for key in table.foreign_keys:
            assert order.index(key.column.table.name) < order.index(table.name)
    speaking = ["thread_memory", "memory_phase1_jobs", "memory_scope_dirty", "backfill_state"]
    assert sorted(speaking, key=order.index) == speaking
    assert set(tables._AFTER_THE_REST) <= set(order)


class InterruptedByTestError(Exception):
    """Raised by a test in the middle of a copy."""


def interrupted_after(batches: int) -> Callable[[CopyProgress], None]:
    seen = 0

    def stop(_progress: CopyProgress) -> None:
        nonlocal seen
        seen += 1
        if seen == batches:
            raise InterruptedByTestError

    return stop


def batches_of(source: StateRuntime, target: StateRuntime) -> int:
    seen: list[CopyProgress] = []
    copy_state(source, target, on_progress=seen.append)
    return len(seen)


def cleared(target: StateRuntime) -> None:
    for table in reversed(metadata.sorted_tables):
        change(target, f"DELETE FROM {table.name}")


def says_no_more_than_is_true(source: StateRuntime, target: StateRuntime) -> None:
    rows, whole = held(target.database), held(source.database)
    if rows["memory_phase1_jobs"] or rows["memory_scope_dirty"]:
        assert len(rows["thread_memory"]) == len(whole["thread_memory"])
    if any("complete" in row for row in rows["backfill_state"]):
        assert len(rows["threads"]) == len(whole["threads"])
        assert len(rows["thread_dynamic_tools"]) == len(whole["thread_dynamic_tools"])


def goes_on_in_the_source(source: StateRuntime) -> None:
    """What workers may do between two copies."""
    first, second = thread_row(1), thread_row(2)
    put(source, "threads", thread_row(50))
    put(source, "thread_memory", memory_row(thread_row(50)))
    put(source, "logs", log_row(5_000_000_001))
    change(source, "UPDATE threads SET updated_at = updated_at + 5, tokens_used = 77 WHERE id = :id", id=first["id"])
    change(source, "UPDATE threads SET name = 'by the user', name_at = name_at + 1 WHERE id = :id", id=second["id"])
    change(
        source,
        "UPDATE thread_memory SET updated_at = updated_at + 1, raw_memory = 'new' WHERE thread_id = :id",
        id=second["id"],
    )
    change(source, "UPDATE thread_memory SET used_count = used_count + 1 WHERE thread_id = :id", id=first["id"])
    change(source, "UPDATE memory_phase1_jobs SET attempt = attempt + 1, status = 'running', finished_at = NULL")
    change(source, "UPDATE memory_scope_dirty SET dirty = 1 - dirty, updated_at = updated_at + 5")
    change(source, "UPDATE memory_consolidation_locks SET updated_at = updated_at + 1")
    change(source, "UPDATE backfill_state SET updated_at = updated_at + 1, last_watermark = 'sessions/99.jsonl'")


@pytest.mark.parametrize("target_on", ["sqlite", "postgresql"])
def test_a_copy_interrupted_after_any_batch_is_finished_by_the_next(
    state_on: Opened, target_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second batch into either database, from a source as it was and from one that changed meanwhile in turn."""
    monkeypatch.setattr(tables, "PAGE_ROWS", 6)
    source, target = state_on("sqlite", "source"), state_on(target_on, "target")
    fill(source)
    pristine = tmp_path / "pristine.sqlite"
    batches = batches_of(source, target)
    assert batches > 25
    source.close()
    shutil.copy(source.settings.database_path, pristine)
    for batch in range(1 if target_on == "sqlite" else 2, batches + 1, 2):
        cleared(target)
        shutil.copy(pristine, source.settings.database_path)
        with StateRuntime.open(source.settings) as reopened:
            with pytest.raises(InterruptedByTestError):
                copy_state(reopened, target, on_progress=interrupted_after(batch))
            says_no_more_than_is_true(reopened, target)
            if batch // 2 % 2:
                goes_on_in_the_source(reopened)
            report = copy_state(reopened, target)
            assert report.complete, report.left
            assert arrived(reopened, target), batch
        Path(f"{source.settings.database_path}-wal").unlink(missing_ok=True)
        Path(f"{source.settings.database_path}-shm").unlink(missing_ok=True)


@pytest.mark.parametrize("target_on", ["sqlite", "postgresql"])
def test_a_copy_killed_at_any_time_is_finished_by_the_next(state_on: Opened, target_on: str) -> None:
    source, target = state_on("sqlite", "source"), state_on(target_on, "target")
    fill(source, threads=60, logs=120)
    urls = [runtime.engine.url.render_as_string(hide_password=False) for runtime in (source, target)]
    command = [sys.executable, str(SCRIPT), *urls, str(target.codex_home), "2"]
    progress = []
    for lines in (3, 40):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        says_no_more_than_is_true(source, target)
        progress.append(sum(map(len, held(target.database).values())))
    assert progress == sorted(progress)
    assert progress[0] < progress[-1]
    assert copy_state(source, target).complete
    assert arrived(source, target)


def test_what_is_written_meanwhile_is_left_to_the_next_copy(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target")
    fill(source)
    late = thread_row(60)

    def write_once(progress: CopyProgress) -> None:
        if progress.table == "threads" and progress.stage is CopyStage.COPYING:
            put(source, "threads", late)
            put(source, "thread_memory", memory_row(late))
            change(source, "UPDATE memory_scope_dirty SET updated_at = updated_at + 5 WHERE scope_kind = 'user'")

    assert copy_state(source, target, on_progress=write_once).complete
    assert (late["id"],) not in keys_of(held(target.database)["threads"], "threads")
    assert copy_state(source, target).complete
    assert arrived(source, target)


def test_two_homes_meet_in_one_database(state_on: Opened) -> None:
    first, second = state_on("sqlite", "first"), state_on("sqlite", "second")
    target = state_on("postgresql", "target", home="one")
    fill(first)
    assert copy_state(first, target).complete
    put(second, "threads", thread_row(501), thread_row(502))
    put(second, "thread_memory", memory_row(thread_row(501)))
    put(second, "memory_scope_dirty", scope_row(dirty=0, updated_at=1))
    put(second, "logs", log_row(1, message="of the second"))
    replace_backfill(second, last_watermark="sessions/2.jsonl")
    settings = StateSettings(**(target.settings.model_dump() | {"home": "two"}))
    with StateRuntime.open(settings) as other_door:
        report = copy_state(second, other_door)
        assert [str(row) for row in report.left] == [
            "logs 1: the target has a different row, and nothing tells which is newer"
        ]
        assert copy_state(second, other_door, logs=False).complete
    with target.read() as state:
        assert len(state.threads.list_ids(ThreadQuery(limit=100, home="two", archived=True, all=True))) == 2
        assert {state.backfill.get(name).last_watermark for name in ("one", "two")} == {  # type: ignore[union-attr]
            "sessions/9.jsonl",
            "sessions/2.jsonl",
        }
        # The first home had consolidated all that it knew of; now there is a memory that it hasn't seen.
        scope = state.memory_scopes.get(MemoryScope.user())
        assert scope is not None
        assert scope.dirty
    assert len(held(target.database)["threads"]) == len(held(first.database)["threads"]) + 2


def met(
    state_on: Opened, table: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[RowOutcome, dict[str, Any], CopyReport]:
    """What becomes of a row that the target has as well: the outcome, and the row that stands."""
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target", home="local")
    for runtime, row in ((source, ours), (target, theirs)):
        if table not in {"threads", "logs", "memory_scope_dirty", "memory_consolidation_locks", "backfill_state"}:
            put(runtime, "threads", thread_row(1))
        if table == "backfill_state":
            change(runtime, "DELETE FROM backfill_state")
        put(runtime, table, row)
    report = copy_state(source, target)
    (counts,) = [each for each in report.tables if each.name == table]
    (outcome,) = [each for each, count in counts.outcomes.items() if count]
    (standing,) = held(target.database, table)[table]
    return outcome, dict(zip(MODELS[table].column_names(), standing, strict=True)), report


def older_and_newer() -> list[Any]:
    thread = thread_row(1)
    pairs: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("thread", "threads", thread, thread_row(1, updated_at=thread["updated_at"] + 1, tokens_used=99)),
        ("memory", "thread_memory", memory_row(thread), memory_row(thread, updated_at=LARGEST, raw_memory="new")),
        ("used memory", "thread_memory", memory_row(thread), memory_row(thread, used_count=4)),
        ("invalid memory", "thread_memory", memory_row(thread, invalidated_at=None), memory_row(thread)),
        ("attempt", "memory_phase1_jobs", job_row(thread), job_row(thread, attempt=3, status="running")),
        ("finish", "memory_phase1_jobs", job_row(thread, status="running", finished_at=None), job_row(thread)),
        ("renewal", "memory_consolidation_locks", lock_row(), lock_row(updated_at=LARGEST)),
        ("named renewal", "codex_state_locks", named_lock_row(), named_lock_row(renewed_at=LARGEST)),
    ]
    return [pytest.param(*rest, id=name) for name, *rest in pairs]


@pytest.mark.parametrize(("table", "older", "newer"), older_and_newer())
@pytest.mark.parametrize("source_is_newer", [True, False])
def test_the_later_version_of_a_row_stands(
    state_on: Opened, table: str, older: dict[str, Any], newer: dict[str, Any], *, source_is_newer: bool
) -> None:
    ours, theirs = (newer, older) if source_is_newer else (older, newer)
    outcome, standing, report = met(state_on, table, ours, theirs)
    assert report.complete
    assert standing == newer
    assert outcome is (RowOutcome.UPDATED if source_is_newer else RowOutcome.KEPT)


def unclear() -> list[Any]:
    thread = thread_row(1)
    pairs = [
        ("threads", thread, thread_row(1, tokens_used=99)),
        ("threads", thread_row(1, name="mine"), thread_row(1, name="yours")),
        ("threads", thread_row(1, pinned=1), thread_row(1)),
        ("thread_dynamic_tools", tool_row(thread), tool_row(thread, name="other")),
        ("thread_memory", memory_row(thread), memory_row(thread, raw_memory="other")),
        ("memory_phase1_jobs", job_row(thread), job_row(thread, ownership_token="other")),
        ("backfill_state", {}, {"owner_name": "other"}),
        ("logs", log_row(1), log_row(1, message="other")),
    ]
    return [pytest.param(*pair, id=f"{pair[0]} {number}") for number, pair in enumerate(pairs)]


@pytest.mark.parametrize(("table", "ours", "theirs"), unclear())
def test_where_nothing_tells_which_row_is_newer_the_targets_stays_and_is_named(
    state_on: Opened, table: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    if table == "backfill_state":
        ours, theirs = backfill_row(**ours), backfill_row(**theirs)
    outcome, standing, report = met(state_on, table, ours, theirs)
    assert outcome is RowOutcome.CONFLICT
    assert standing == theirs
    assert not report.complete
    (named,) = report.left
    assert named.table == table
    assert named.key in keys_of([tuple(standing.values())], table)


@pytest.mark.parametrize("given_in", ["source", "target"])
@pytest.mark.parametrize("seconds", [-1, 0, 1])
@pytest.mark.parametrize(("column", "time"), [("name", "name_at"), ("memory_mode", "memory_mode_chosen_at")])
def test_what_a_user_gave_a_thread_last_is_never_lost(
    state_on: Opened, column: str, time: str, seconds: int, given_in: str
) -> None:
    before = thread_row(1, **{column: None if column == "name" else "disabled", time: None})
    given = before | {column: "polluted", time: 1, "updated_at": before["updated_at"] + seconds}
    ours, theirs = (given, before) if given_in == "source" else (before, given)
    _, standing, report = met(state_on, "threads", ours, theirs)
    assert report.complete
    assert standing == given | {"updated_at": before["updated_at"] + max(seconds, 0)}


def test_a_file_that_the_databases_know_differently_is_read_again(state_on: Opened) -> None:
    _, standing, report = met(state_on, "rollout_files", file_row(1), file_row(1, size=7))
    assert report.complete
    assert standing == file_row(1, size=7, mtime_ns=None)


@pytest.mark.parametrize("newer_in", ["source", "target"])
def test_of_two_names_the_newer_one_stands(state_on: Opened, newer_in: str) -> None:
    older, newer = thread_row(1), thread_row(1, name=None, name_at=1_770_000_051)
    ours, theirs = (newer, older) if newer_in == "source" else (older, newer)
    _, standing, report = met(state_on, "threads", ours, theirs)
    assert report.complete
    assert standing == newer


@pytest.mark.parametrize(
    ("ours", "theirs", "others", "stands"),
    [
        ((0, 10), (1, 5), True, (1, 10)),
        ((0, 10), (1, 5), False, (0, 10)),
        ((0, 10), (0, 5), True, (0, 10)),
        ((0, 5), (1, 5), False, (1, 5)),
        ((1, 5), (0, 5), False, (1, 5)),
        ((1, 5), (0, 10), False, (0, 10)),
    ],
)
def test_a_scope_is_clean_only_if_the_later_mark_says_so_and_knew_of_all_memories(
    state_on: Opened, ours: tuple[int, int], theirs: tuple[int, int], stands: tuple[int, int], *, others: bool
) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target", home="local")
    for runtime, (dirty, updated_at) in ((source, ours), (target, theirs)):
        put(runtime, "threads", thread_row(1), thread_row(2))
        put(runtime, "thread_memory", memory_row(thread_row(1)))
        put(runtime, "memory_scope_dirty", scope_row(dirty=dirty, updated_at=updated_at))
    if others:
        put(target, "thread_memory", memory_row(thread_row(2)))
    assert copy_state(source, target).complete
    assert held(target.database, _SCOPES)[_SCOPES] == [("user", "user", *stands)]


@pytest.mark.parametrize(("changed", "dirty"), [("updated_at", 1), ("invalidated_at", 1), ("used_count", 0)])
def test_a_memory_that_says_something_new_makes_its_scope_dirty_and_a_use_does_not(
    state_on: Opened, changed: str, dirty: int
) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target")
    put(source, "threads", thread_row(1))
    put(source, "thread_memory", memory_row(thread_row(1)))
    put(source, "memory_scope_dirty", scope_row(dirty=0, updated_at=5))
    assert copy_state(source, target).complete
    change(source, f"UPDATE thread_memory SET {changed} = {changed} + 1")
    assert copy_state(source, target).complete
    assert held(target.database, _SCOPES)[_SCOPES] == [("user", "user", dirty, 5 + dirty)]


def test_a_lock_that_somebody_took_in_the_target_stays_theirs(state_on: Opened) -> None:
    theirs = lock_row(ownership_token="theirs", updated_at=1)
    outcome, standing, report = met(state_on, "memory_consolidation_locks", lock_row(), theirs)
    assert (outcome, standing, report.complete) == (RowOutcome.KEPT, theirs, True)


@pytest.mark.parametrize("placeholder_in", ["source", "target"])
def test_a_backfill_that_nobody_claimed_gives_way_to_one_that_was(state_on: Opened, placeholder_in: str) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target", home="local")
    for runtime, name in ((source, "source"), (target, "target")):
        change(runtime, "DELETE FROM backfill_state")
        row = {"id": 1, "home": "local", "status": "complete", "updated_at": 5, "claimed_at": 4}
        if name == placeholder_in:
            row |= {"status": "pending", "updated_at": LARGEST, "claimed_at": None}
        put(runtime, "backfill_state", row)
    assert copy_state(source, target).complete
    with target.read() as state:
        backfill = state.backfill.get("local")
    assert backfill is not None
    assert backfill.status == "complete"


def test_a_file_whose_home_was_named_later_moves_as_one_home(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source", home="named"), state_on("postgresql", "target", home="z")
    put(source, "threads", thread_row(1, home="local"), thread_row(2, home="named"), thread_row(3, home="another"))
    put(source, "backfill_state", {"id": 1, "home": "named", "status": "complete", "updated_at": 5, "claimed_at": 4})
    assert copy_state(source, target).complete
    with target.read() as state:
        homes = [thread.home for number in (1, 2, 3) if (thread := state.threads.get(UUID(thread_row(number)["id"])))]
        backfill = state.backfill.get("z")
    assert homes == ["z", "z", "another"]
    assert backfill is not None
    assert backfill.status == "complete"


def test_rows_that_postgresql_cannot_hold_are_named_and_the_others_arrive(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target")
    put(
        source,
        "threads",
        *(thread_row(number) for number in range(1, 20)),
        thread_row(30, title="a NUL \x00"),
        thread_row(31, id="not an id"),
        thread_row(32, id="0195FD6C-6A00-7000-8000-0000000000AA"),
        thread_row(33, model=b"\xff\xfe"),
        thread_row(34, tokens_used=1.5),
    )
    put(source, "thread_dynamic_tools", tool_row(thread_row(30)), tool_row(thread_row(1)))
    report = copy_state(source, target)
    assert not report.complete
    refused = {row.table: row.reason for row in report.left}
    assert report.total(RowOutcome.REFUSED) == len(report.left) == 6
    assert refused.keys() == {"threads", "thread_dynamic_tools"}  # a tool without its thread
    reasons = " ".join(row.reason for row in report.left)
    for part in ("NUL", "'not an id'", "'0195FD6C", "model holds bytes", "tokens_used holds float"):
        assert part in reasons
    assert len(held(target.database)["threads"]) == 19
    assert len(held(target.database)["thread_dynamic_tools"]) == 1


def test_between_files_even_broken_values_arrive(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source"), state_on("sqlite", "target")
    put(source, "threads", thread_row(31, id="not an id", title="a NUL \x00", model=b"\xff\xfe", tokens_used=1.5))
    assert copy_state(source, target).complete
    assert arrived(source, target)


@pytest.mark.usefixtures("small_pages")
def test_new_lines_get_ids_after_the_copied_ones_also_when_the_copy_was_interrupted(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target")
    put(source, "logs", *(log_row(number) for number in range(1, 11)))

    def stop_in_the_logs(progress: CopyProgress) -> None:
        if progress.table == "logs":
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        copy_state(source, target, on_progress=stop_in_the_logs)
    with target.begin() as state:
        state.logs.insert_many([a_log_line("new")])
    assert copy_state(source, target).complete
    with target.begin() as state:
        state.logs.insert_many([a_log_line("newer")])
    assert {row[0] for row in held(target.database)["logs"]} == set(range(1, 13))


def test_logs_can_be_left_out(state_on: Opened) -> None:
    source, target = state_on("sqlite", "source"), state_on("postgresql", "target")
    fill(source)
    report = copy_state(source, target, logs=False)
    assert report.complete
    assert "logs" not in {table.name for table in report.tables}
    rows = held(target.database)
    assert rows.pop("logs") == []
    assert all(rows.values())


@pytest.mark.parametrize("table", sorted(metadata.tables.keys() - tables.OF_ONE_DATABASE))
@pytest.mark.parametrize(
    ("planted", "target_on"), [("changed", "sqlite"), ("changed", "postgresql"), ("deleted", "sqlite")]
)
def test_a_difference_that_is_planted_after_the_copy_is_found_and_named(
    state_on: Opened, table: str, planted: str, target_on: str
) -> None:
    source, target = state_on("sqlite", "source"), state_on(target_on, "target", home="local")
    fill(source)
    model = MODELS[table]
    key = [column.name for column in metadata.tables[table].primary_key]
    rows = held(source.database)[table]
    victim = dict(zip(model.column_names(), min(rows, key=repr), strict=True))
    column = [name for name, value in victim.items() if name not in key and value is not None][-1]
    where = " AND ".join(f"{name} = :{name}" for name in key)
    bound = {name: victim[name] for name in key}

    def plant(progress: CopyProgress) -> None:
        if (progress.stage, progress.table) != (CopyStage.COPYING, "logs"):
            return
        if planted == "deleted":
            change(target, f"DELETE FROM {table} WHERE {where}", **bound)
        else:
            kind = "'planted'" if isinstance(victim[column], str) else f"{column} + 1"
            change(target, f"UPDATE {table} SET {column} = {kind} WHERE {where}", **bound)

    with pytest.raises(
        CopyMismatchError, match=f"{table} .*{'differs' if planted == 'changed' else 'is missing'}"
    ) as error:
        copy_state(source, target, on_progress=plant)
    assert str(bound[key[0]]) in str(error.value)


def test_pages_end_before_long_texts_pile_up(state_on: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    source = state_on("sqlite", "source")
    put(source, "logs", *(log_row(number, message="x" * 400) for number in range(1, 11)))
    monkeypatch.setattr(tables, "PAGE_CHARACTERS", 1000)
    (logs,) = [table for table in tables.stored_tables() if table.name == "logs"]
    with source.read() as state:
        sizes = [len(page) for page in logs.pages(state.session.connection())]
    assert sizes == [3, 3, 3, 1]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_same_database_is_refused_under_any_name(state_on: Opened, dialect: str, tmp_path: Path) -> None:
    source = state_on(dialect, "source")
    if dialect == "sqlite":
        alias = tmp_path / "alias.sqlite"
        alias.symlink_to(source.settings.database_path)
        url = f"sqlite:///{alias}"
    else:
        url = source.engine.url.update_query_dict({"application_name": "other"}).render_as_string(hide_password=False)
    before = held(source.database)
    settings = StateSettings(codex_home=tmp_path / "other", database_url=url)
    with (
        StateRuntime.open(settings) as target,
        pytest.raises(InvalidInputError, match="the source and the target are the same database"),
    ):
        copy_state(source, target)
    assert held(source.database) == before


@pytest.mark.parametrize("target_on", ["sqlite", "postgresql"])
def test_a_job_that_is_replaced_by_one_of_an_older_version_is_found_by_batch_claims(
    state_on: Opened, target_on: str
) -> None:
    """L10: they may have passed over its thread for the job that was there."""
    source, target = state_on("sqlite", "source"), state_on(target_on, "target")
    thread = a_thread(updated_at=datetime.now(UTC).replace(microsecond=0))
    for runtime in (source, target):
        with runtime.begin() as state:
            state.threads.upsert(thread)
    with target.autocommit() as state:
        (lease,) = state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(hours=1), scope_kinds=["user"])
        state.phase1_jobs.succeed(lease, raw_memory_path=None, summary_hash=None)
    older = thread.updated_at - timedelta(seconds=1)
    with source.autocommit() as state:
        for _ in range(2):
            claim = state.phase1_jobs.try_claim(lease.key, owner=uuid4(), source_updated_at=older, lease=timedelta(0))
        assert isinstance(claim, Claimed)
        state.phase1_jobs.succeed(claim.lease, raw_memory_path=None, summary_hash=None)
    assert copy_state(source, target).total(RowOutcome.UPDATED) == 1
    with target.autocommit() as state:
        (again,) = state.phase1_jobs.claim_candidates(owner=uuid4(), lease=timedelta(hours=1), scope_kinds=["user"])
    assert (again.key, again.attempt) == (lease.key, 3)
