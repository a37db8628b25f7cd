"""The same homes give the same rows as the original runtime's own backfill, but for the differences that are meant.

Every difference here stands in ``docs/differences.md``, with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from original import DEFAULT_PROVIDER, NAMES, Original, edge_id, parsed, unpack

from codex_state.errors import RolloutError
from codex_state.models import LOCAL_HOME, DynamicTool, Thread
from codex_state.models.columns import path_to_text, to_epoch_seconds
from codex_state.rollout.backfilling import backfill
from codex_state.rollout.files import walk_rollouts
from codex_state.rollout.metadata import extract_metadata
from codex_state.rollout.progress import BackfillOutcome
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

NOT_UTF8 = edge_id(11)

ADDITIONAL_THREADS = {"edge": {NOT_UTF8}}
"""Threads that only we have: in the original one byte that isn't UTF-8 spoils the whole file."""

CREATED_BEFORE_2020 = {
    edge_id(110): -2,
    edge_id(112): 1_483_228_799,
    edge_id(500): 1_577_836_799,
    edge_id(503): 1_000_000_000,
}
"""The original stores these times in milliseconds in a column of seconds."""

RELATIVE_TO_THE_WORKING_DIRECTORY = edge_id(151)
"""Its ``cwd`` is ``.``, which the original resolved against the directory that it was started in: ``/tmp``."""

LINKED_BIN = {edge_id(155), edge_id(373)}
"""Their ``cwd`` is ``/bin``, which was a link to ``/usr/bin``."""


@pytest.fixture(scope="module", params=NAMES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    return unpack(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def runtime(original: Original, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateRuntime]:
    settings = StateSettings(
        codex_home=original.home,
        sqlite_home=tmp_path_factory.mktemp("state"),
        default_provider=DEFAULT_PROVIDER,
    )
    with StateRuntime.open(settings) as runtime, pytest.MonkeyPatch.context() as patch:
        if Path("/tmp").is_dir():
            patch.chdir("/tmp")
        report = backfill(runtime, workers=0)
        assert report.status is BackfillOutcome.COMPLETE
        yield runtime


def stored_form(thread: Thread, home: Path) -> dict[str, Any]:
    """A thread as the original's answers spell it."""
    values = {name: getattr(thread, name) for name in thread.column_names()}
    assert values.pop("home") == LOCAL_HOME
    for name in ("created_at", "updated_at", "archived_at"):
        values[name] = None if values[name] is None else to_epoch_seconds(values[name])
    return {name: parsed(value) for name, value in values.items()} | {
        "id": str(thread.id),
        "rollout_path": thread.rollout_path.relative_to(home).as_posix(),
        "cwd": path_to_text(thread.cwd),
        "archived": int(thread.archived),
        "first_user_message": thread.first_user_message or "",
    }


def expected_form(original: Original, thread_id: str) -> dict[str, Any]:
    answer = {name: parsed(value) for name, value in original.threads[thread_id].items()}
    answer["first_user_message"] = answer["first_user_message"] or ""
    if original.name == "edge":
        answer["created_at"] = CREATED_BEFORE_2020.get(thread_id, answer["created_at"])
        if thread_id in LINKED_BIN:
            answer["cwd"] = os.path.realpath("/bin")
        if thread_id == RELATIVE_TO_THE_WORKING_DIRECTORY:
            answer["cwd"] = os.path.realpath("/tmp")
    return answer


def test_every_thread_agrees_in_every_column(original: Original, runtime: StateRuntime) -> None:
    compared = 0
    with runtime.read() as state:
        for thread_id in original.threads:
            thread = state.threads.get(UUID(thread_id))
            assert thread is not None, thread_id
            assert stored_form(thread, original.home) == expected_form(original, thread_id)
            compared += 1
    assert compared >= 44


def test_no_other_thread_has_a_row(original: Original, runtime: StateRuntime) -> None:
    with runtime.read() as state:
        rows = {str(row[0]) for row in state.session.connection().exec_driver_sql("SELECT id FROM threads")}
    assert rows - set(original.threads) == ADDITIONAL_THREADS.get(original.name, set())


def test_every_dynamic_tool_agrees(original: Original, runtime: StateRuntime) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    with runtime.read() as state:
        for thread_id in original.threads:
            tools = state.dynamic_tools.get(UUID(thread_id))
            if tools is not None:
                found[thread_id] = [_tool_form(tool) for tool in tools]
    assert found == original.dynamic_tools


def test_the_watermark_is_the_originals(original: Original, runtime: StateRuntime) -> None:
    with runtime.read() as state:
        stored = state.backfill.get()
    assert stored is not None
    last = max(file.watermark for file in walk_rollouts(original.home))
    assert stored.last_watermark == (original.last_watermark or last)


def test_the_files_without_a_row_are_the_originals(original: Original, runtime: StateRuntime) -> None:
    with runtime.read() as state:
        indexed = {row[0] for row in state.session.connection().exec_driver_sql("SELECT rollout_path FROM threads")}
    without = {
        path.relative_to(original.home).as_posix()
        for path in original.home.rglob("*")
        if "rollout-" in path.name.lower() and str(path) not in indexed and not _is_through_a_link(path, original.home)
    }
    assert without == {name for name in original.files_without_a_row if NOT_UTF8 not in name}


def test_extraction_alone_agrees_as_well(original: Original) -> None:
    """All that one rollout tells; what a row keeps from an earlier rollout of the same thread is the backfill's."""
    extracted: dict[str, dict[str, Any]] = {}
    for file in walk_rollouts(original.home):
        try:
            outcome = extract_metadata(Path(file.path), DEFAULT_PROVIDER)
        except RolloutError:
            continue
        extracted[str(outcome.thread.id)] = stored_form(outcome.thread, original.home)
    kept_by_the_row = {"cwd", "archived", "archived_at", "git_sha", "git_branch", "git_origin_url"}
    for thread_id in original.threads:
        expected = expected_form(original, thread_id)
        told = extracted[thread_id]
        assert {name: told[name] for name in expected if name not in kept_by_the_row} == {
            name: value for name, value in expected.items() if name not in kept_by_the_row
        }


def _tool_form(tool: DynamicTool) -> dict[str, Any]:
    return {name: getattr(tool, name) for name in tool.column_names() if name != "thread_id"}


def _is_through_a_link(path: Path, home: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(home))
