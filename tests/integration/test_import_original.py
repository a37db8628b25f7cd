"""Taking over what only the original's databases know, on both databases. All values were read off those files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from copied_states import held as rows_of
from memory_support import OWNER, add_threads, cwd_key, now
from sqlalchemy import text

from codex_state import (
    Claimed,
    ConfigurationError,
    DatabaseBusyError,
    ForeignSchemaError,
    ImportKind,
    ImportOutcome,
    ImportReport,
    MemoryScope,
    Phase1Key,
    Phase1Status,
    Skipped,
    SkipReason,
    StateRuntime,
    StateSettings,
    Thread,
    import_original,
)
from codex_state.transfer import importing
from tests.original_databases import VERSIONS, changed, contents, held, unpacked

TAKEN, ALREADY_HERE, NEWER_HERE, WITHOUT_THREAD, WITHOUT_SCOPE = ImportOutcome
PLAIN = Path("/srv/projects/plain")
REPO = Path("/srv/projects/repo")

NAMED = UUID("01a21ede-52ec-7673-a729-0e4720356da7")
NAMED_AT = 1795814236
DISABLED = UUID("01a21ede-7c11-7660-ad1b-4bcf4522e4c7")
DISABLED_AT = 1795814227
FORKED = UUID("01a21ede-5445-72c0-bf9b-516e6ad256d8")
WITH_A_GOAL = UUID("01a21ede-7d43-7ce2-ba4d-f44d584ed415")
ONLY_A_GOAL = UUID("01a21ede-7dbd-7d80-b4c9-9af11430fc54")
SECTIONED = UUID("01a21ede-7f05-7602-996d-14dcffc1d113")

REMEMBERED = {
    # version: (thread, source_updated_at, generated_at, raw memory)
    "memories-0.129.0": ("01a21ee5-4340-7ca2-91fe-7d28bc8815b6", 1795641901, 1795815491, "mock raw_memory number 10"),
    "memories-0.147.0": ("01a21ee5-4340-7ca2-91fe-7d28bc8815b6", 1795641901, 1795815469, "mock raw_memory number 10"),
    "memories-0.171.0": (
        "01a21ee0-a3a5-7202-8caa-fcc5a4c34214", 1795641586, 1795815427, "mock rollout_summary number 15"
    ),
}  # fmt: skip
FAILED_IN_0_171 = UUID("01a21ee0-d48f-7372-bf8e-484119d3d770")
"""Its extraction failed in the original."""


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def add(runtime: StateRuntime, *threads: UUID | str, **values: object) -> None:
    defaults: dict[str, object] = {"cwd": REPO, "updated_at": at(1795641586), "first_user_message": None, "title": ""}
    for thread in threads:
        add_threads(runtime, id=UUID(str(thread)), **(defaults | values))


def thread_of(runtime: StateRuntime, thread: UUID) -> Thread:
    with runtime.read() as state:
        found = state.threads.get(thread)
    assert found is not None
    return found


def change(runtime: StateRuntime, statement: str) -> None:
    with runtime.begin() as state:
        state.session.connection().execute(text(statement))


def counted(report: ImportReport) -> dict[str, dict[str, int]]:
    """What there is to count."""
    return {
        kind.value: counts
        for kind in ImportKind
        if (counts := {o.value: n for o in ImportOutcome if (n := report.total(kind, o))})
    }


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return unpacked("0.171.0", tmp_path / "original")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read_and_a_second_run_changes_nothing(
    runtime: StateRuntime, tmp_path: Path, version: str
) -> None:
    home = unpacked(version, tmp_path / "original")
    before = contents(home)
    threads = {
        "0.129.0": ["01a21ee4-9b66-78a0-91b5-40da64f591e2", "01a21ee4-9ca4-7712-9556-52ef452e80fd"],
        "0.147.0": ["01a21ee2-0e76-7040-9cab-5bf961e450ee", "01a21ee2-ba2d-7372-9a27-9ae50ace012b",
                    "01a21ee2-bbc9-7990-aea1-0ffd72b0179c"],
        "0.171.0": [NAMED, DISABLED, FORKED, ONLY_A_GOAL],
    }.get(version, [REMEMBERED[version][0]] if version in REMEMBERED else [])  # fmt: skip
    add(runtime, *threads)
    expected = {
        "0.101.0": {},
        "0.129.0": {
            "memory_modes": {"taken": 1},
            "previews": {"taken": 1, "without_thread": 1},
        },
        "0.147.0": {
            "names": {"taken": 1},
            "memory_modes": {"taken": 1},
            "previews": {"taken": 1, "already_here": 1, "without_thread": 1},
        },
        "0.171.0": {
            "names": {"taken": 1, "without_thread": 8},
            "memory_modes": {"taken": 1},
            "previews": {"taken": 2, "already_here": 1, "without_thread": 1},
        },
        "memories-0.129.0": {
            "memories": {"taken": 1, "without_thread": 14},
            "jobs": {"taken": 1, "without_thread": 14},
        },
        "memories-0.147.0": {
            "memories": {"taken": 1, "without_thread": 14},
            "jobs": {"taken": 1, "without_thread": 14},
        },
        "memories-0.171.0": {
            "memories": {"taken": 1, "without_thread": 14},
            "jobs": {"taken": 1, "without_thread": 14},
            "previews": {"without_thread": 2},
        },
    }[version]  # fmt: skip

    first = import_original(runtime, home)
    assert counted(first) == expected
    assert first.complete
    assert first.changed is bool(threads)
    rows = rows_of(runtime.database)

    again = import_original(runtime, home)
    assert not again.changed
    assert again.complete
    for kind, counts in counted(again).items():
        there = expected[kind].get("taken", 0) + expected[kind].get("already_here", 0)
        assert counts.get("already_here", 0) == there
    assert rows_of(runtime.database) == rows
    assert contents(home) == before


def test_threads_get_their_names_modes_and_previews(runtime: StateRuntime, original: Path) -> None:
    add(runtime, NAMED, DISABLED, FORKED, WITH_A_GOAL, ONLY_A_GOAL, SECTIONED)
    add(runtime, "01a21ede-5167-7331-ae9a-17b62f59ed58", first_user_message="message of a named thread")
    import_original(runtime, original)

    named = thread_of(runtime, NAMED)
    assert (named.name, named.name_at, named.original_name) == (
        "Base named after forking", at(NAMED_AT), "Base named after forking"
    )  # fmt: skip
    assert thread_of(runtime, UUID("01a21ede-5167-7331-ae9a-17b62f59ed58")).name == "Second näme 🙂"
    disabled = thread_of(runtime, DISABLED)
    assert (disabled.memory_mode, disabled.memory_mode_chosen_at) == ("disabled", at(DISABLED_AT))
    assert thread_of(runtime, FORKED).preview == "base first message"
    assert thread_of(runtime, WITH_A_GOAL).preview == "finish the ünï index"
    assert thread_of(runtime, ONLY_A_GOAL).preview == "a goal and no message"
    assert not thread_of(runtime, SECTIONED).pinned, "a section of the user's own"


def test_pins_are_the_threads_of_the_section_for_it(runtime: StateRuntime, original: Path, tmp_path: Path) -> None:
    pinned = f"UPDATE threads SET thread_section_id = '01984de2-8f74-7c91-a3b2-5c5e937cf318' WHERE id = '{NAMED}'"
    changed(original / "state_5.sqlite", pinned, f"UPDATE threads SET is_pinned = 1 WHERE id = '{DISABLED}'")
    add(runtime, NAMED, DISABLED)
    assert import_original(runtime, original).total(ImportKind.PINS, TAKEN) == 1
    assert thread_of(runtime, NAMED).pinned
    assert not thread_of(runtime, DISABLED).pinned, "what an earlier version noted, and a later one moved to sections"
    assert counted(import_original(runtime, original))["pins"] == {"already_here": 1}


def test_pins_of_the_version_before_sections_are_flags(runtime: StateRuntime, tmp_path: Path) -> None:
    home = unpacked("0.129.0", tmp_path / "original")
    add(runtime, thread := UUID("01a21ee4-9b66-78a0-91b5-40da64f591e2"))
    changed(
        home / "state_5.sqlite",
        "ALTER TABLE threads ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0",
        f"UPDATE threads SET is_pinned = 1 WHERE id = '{thread}'",
    )
    import_original(runtime, home)
    assert thread_of(runtime, thread).pinned


@pytest.mark.parametrize("version", REMEMBERED)
def test_memories_come_to_the_scope_of_the_threads_directory_and_are_not_extracted_again(
    runtime: StateRuntime, tmp_path: Path, version: str
) -> None:
    spelled, source, generated, raw = REMEMBERED[version]
    thread = UUID(spelled)
    add(runtime, thread, updated_at=at(source), cwd=REPO)
    import_original(runtime, unpacked(version, tmp_path / "original"))
    with runtime.read() as state:
        (memory,) = state.thread_memories.last_n_for_cwd(REPO, 10)
        job = state.phase1_jobs.get(Phase1Key(thread, MemoryScope.cwd(REPO)))
        (dirty,) = state.memory_scopes.list_dirty()
    assert (memory.thread_id, memory.raw_memory, memory.updated_at) == (thread, raw, at(generated))
    assert memory.memory_summary == "mock rollout_summary number 15"
    assert (memory.used_count, memory.last_used_at) == (0, None)
    assert job is not None
    assert (job.status, job.source_updated_at, job.finished_at) == (Phase1Status.SUCCEEDED, at(source), at(generated))
    assert dirty.scope_key == "/srv/projects/repo"
    with runtime.begin() as state:
        again, later = (
            state.phase1_jobs.try_claim(
                Phase1Key(thread, MemoryScope.cwd(REPO)),
                owner=OWNER,
                source_updated_at=at(source + more),
                lease=timedelta(hours=1),
            )
            for more in (0, 1)
        )
    assert again == Skipped(SkipReason.UP_TO_DATE)
    assert isinstance(later, Claimed)


def test_an_extraction_that_failed_in_the_original_is_left_to_us(runtime: StateRuntime, tmp_path: Path) -> None:
    add(runtime, FAILED_IN_0_171)
    report = import_original(runtime, unpacked("memories-0.171.0", tmp_path / "original"))
    assert not report.changed
    with runtime.read() as state:
        assert state.phase1_jobs.get(Phase1Key(FAILED_IN_0_171, MemoryScope.cwd(REPO))) is None


def test_an_extraction_that_found_nothing_is_finished_too(runtime: StateRuntime, tmp_path: Path) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    changed(home / "memories_1.sqlite", f"DELETE FROM stage1_outputs WHERE thread_id = '{thread}'")
    add(runtime, thread)
    report = import_original(runtime, home)
    assert (report.total(ImportKind.MEMORIES, TAKEN), report.total(ImportKind.JOBS, TAKEN)) == (0, 1)
    with runtime.read() as state:
        job = state.phase1_jobs.get(Phase1Key(thread, MemoryScope.cwd(REPO)))
    assert job is not None
    assert (job.source_updated_at, job.started_at, job.finished_at) == (at(1795641901), at(1795815468), at(1795815469))


def test_uses_are_counted_on_and_never_back(runtime: StateRuntime, tmp_path: Path) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    used = "UPDATE stage1_outputs SET usage_count = {}, last_usage = {} WHERE thread_id = '" + str(thread) + "'"
    changed(home / "memories_1.sqlite", used.format(3, 1795900000))
    add(runtime, thread)
    assert counted(import_original(runtime, home))["uses"] == {"taken": 1}

    def uses() -> tuple[int, datetime | None]:
        with runtime.read() as state:
            memory = state.thread_memories.get(thread)
        assert memory is not None
        return memory.used_count, memory.last_used_at

    assert uses() == (3, at(1795900000))
    changed(home / "memories_1.sqlite", used.format(2, 1795900009))
    assert counted(import_original(runtime, home))["uses"] == {"taken": 1}
    assert uses() == (3, at(1795900009))
    changed(home / "memories_1.sqlite", used.format(5, "NULL"))
    assert counted(import_original(runtime, home))["uses"] == {"taken": 1}
    assert uses() == (5, at(1795900009))
    changed(home / "memories_1.sqlite", used.format(1, 1795900000))
    assert counted(import_original(runtime, home))["uses"] == {"already_here": 1}
    assert uses() == (5, at(1795900009))


def test_a_name_given_here_later_stays_and_an_old_one_is_no_news(runtime: StateRuntime, original: Path) -> None:
    add(runtime, NAMED)
    import_original(runtime, original)
    change(runtime, f"UPDATE threads SET name = 'Ours', name_at = {NAMED_AT + 10}")
    assert counted(import_original(runtime, original))["names"] == {"newer_here": 1, "without_thread": 8}
    # The thread goes on in the original, under the name that was there before.
    goes_on = f"UPDATE threads SET updated_at = {NAMED_AT + 20} WHERE id = '{NAMED}'"
    changed(original / "state_5.sqlite", goes_on)
    import_original(runtime, original)
    assert thread_of(runtime, NAMED).name == "Ours"
    changed(original / "state_5.sqlite", f"UPDATE threads SET name = 'Theirs' WHERE id = '{NAMED}'")
    assert import_original(runtime, original).total(ImportKind.NAMES, TAKEN) == 1
    assert (thread_of(runtime, NAMED).name, thread_of(runtime, NAMED).name_at) == ("Theirs", at(NAMED_AT + 20))


def test_a_name_of_the_originals_is_replaced_by_its_next_whatever_the_time(
    runtime: StateRuntime, original: Path
) -> None:
    add(runtime, NAMED)
    import_original(runtime, original)
    changed(original / "state_5.sqlite", f"UPDATE threads SET name = 'Theirs' WHERE id = '{NAMED}'")
    import_original(runtime, original)
    assert (thread_of(runtime, NAMED).name, thread_of(runtime, NAMED).name_at) == ("Theirs", at(NAMED_AT))


def test_names_with_times_are_taken_if_they_are_newer(runtime: StateRuntime) -> None:
    add(runtime, NAMED, DISABLED)
    with runtime.begin() as state:
        assert state.threads.take_names([(NAMED, "b", 20), (NAMED, "a", 10), (FORKED, "none", 20)]) == 1
        assert state.threads.take_names([(NAMED, "tie", 20), (NAMED, "older", 19)]) == 0
        assert state.threads.take_names([(DISABLED, "nul \0 and half \ud83d", 5)]) == 1
        assert state.threads.take_names([]) == 0
    assert (thread_of(runtime, NAMED).name, thread_of(runtime, NAMED).name_at) == ("b", at(20))
    assert thread_of(runtime, DISABLED).name == "nul \ufffd and half ?"


def test_a_memory_mode_chosen_here_later_stays(runtime: StateRuntime, original: Path) -> None:
    add(runtime, DISABLED, memory_mode="polluted", memory_mode_chosen_at=at(DISABLED_AT))
    assert counted(import_original(runtime, original))["memory_modes"] == {"newer_here": 1}
    assert thread_of(runtime, DISABLED).memory_mode == "polluted"
    change(runtime, f"UPDATE threads SET memory_mode_chosen_at = {DISABLED_AT - 1}")
    assert counted(import_original(runtime, original))["memory_modes"] == {"taken": 1}
    assert thread_of(runtime, DISABLED).memory_mode == "disabled"


def test_a_preview_is_for_threads_that_show_nothing_else(runtime: StateRuntime, original: Path) -> None:
    add(runtime, WITH_A_GOAL, first_user_message="hello")
    add(runtime, ONLY_A_GOAL, preview="something")
    report = import_original(runtime, original)
    assert report.total(ImportKind.PREVIEWS, ALREADY_HERE) == 3
    assert thread_of(runtime, WITH_A_GOAL).preview is None
    assert thread_of(runtime, ONLY_A_GOAL).preview == "something"


@pytest.mark.parametrize(
    ("memory", "outcome"),
    [
        ("raw_memory = 'ours', updated_at = 1795815469", NEWER_HERE),
        ("raw_memory = 'ours', updated_at = 1795815470", NEWER_HERE),
        ("raw_memory = 'ours', updated_at = 1795815468", TAKEN),
        ("raw_memory = 'ours', updated_at = 1795815400, invalidated_at = 1795815469", NEWER_HERE),
        ("raw_memory = 'ours', updated_at = 1795815400, invalidated_at = 1795815468, invalid_reason = 'old'", TAKEN),
        ("updated_at = 1795815470", ALREADY_HERE),
        ("invalidated_at = 1795815470", ALREADY_HERE),
    ],
)
def test_a_memory_that_is_newer_here_stays(
    runtime: StateRuntime, tmp_path: Path, memory: str, outcome: ImportOutcome
) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    add(runtime, UUID(REMEMBERED["memories-0.147.0"][0]))
    import_original(runtime, home)
    change(runtime, f"UPDATE thread_memory SET {memory}")
    before = rows_of(runtime.database, "thread_memory", "memory_scope_dirty")
    assert import_original(runtime, home).total(ImportKind.MEMORIES, outcome) == 1
    after = rows_of(runtime.database, "thread_memory", "memory_scope_dirty")
    if outcome is TAKEN:
        assert "'mock raw_memory number 10'" in repr(after["thread_memory"])
        assert "'old'" not in repr(after["thread_memory"])
        assert after["memory_scope_dirty"] != before["memory_scope_dirty"]
    else:
        assert after == before


@pytest.mark.parametrize(
    ("job", "outcome"),
    [
        ("status = 'running', source_updated_at = 1795641900", NEWER_HERE),
        ("status = 'succeeded', source_updated_at = 1795641902", NEWER_HERE),
        ("status = 'succeeded', source_updated_at = 1795641900", TAKEN),
        ("status = 'failed', failure_reason = 'x', source_updated_at = 1795641902", NEWER_HERE),
        ("status = 'failed', failure_reason = 'x', retry_at = 1, failures = 2, attempt = 3", TAKEN),
    ],
)
def test_a_job_that_runs_or_is_done_for_a_newer_version_stays(
    runtime: StateRuntime, tmp_path: Path, job: str, outcome: ImportOutcome
) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    add(runtime, thread)
    import_original(runtime, home)
    change(runtime, f"UPDATE memory_phase1_jobs SET ownership_token = 'token', {job}")
    before = rows_of(runtime.database, "memory_phase1_jobs")
    assert import_original(runtime, home).total(ImportKind.JOBS, outcome) == 1
    if outcome is NEWER_HERE:
        assert rows_of(runtime.database, "memory_phase1_jobs") == before
        return
    with runtime.read() as state:
        found = state.phase1_jobs.get(Phase1Key(thread, MemoryScope.cwd(REPO)))
    assert found is not None
    assert (found.status, found.source_updated_at) == (Phase1Status.SUCCEEDED, at(1795641901))
    assert (found.failure_reason, found.retry_at, found.failures, found.ownership_token) == (None, None, 0, None)
    assert found.attempt == (3 if "attempt" in job else 0)


def test_a_holder_whose_job_runs_finishes_it(runtime: StateRuntime, tmp_path: Path) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    add(runtime, thread)
    key = cwd_key(thread_of(runtime, thread))
    with runtime.begin() as state:
        claimed = state.phase1_jobs.try_claim(key, owner=OWNER, source_updated_at=now(), lease=timedelta(hours=1))
    assert isinstance(claimed, Claimed)
    assert import_original(runtime, home).total(ImportKind.JOBS, NEWER_HERE) == 1
    with runtime.begin() as state:
        assert state.phase1_jobs.succeed(claimed.lease, raw_memory_path=None, summary_hash=None)


def test_threads_without_a_row_are_counted_and_named_up_to_a_bound(
    runtime: StateRuntime, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = import_original(runtime, original)
    assert report.total(ImportKind.NAMES, WITHOUT_THREAD) == 9
    assert report.unknown_threads[ONLY_A_GOAL] == [ImportKind.PREVIEWS]
    assert len(report.unknown_threads) == 13
    monkeypatch.setattr(importing, "MAX_NAMED", 3)
    bounded = import_original(runtime, original)
    assert bounded.total(ImportKind.NAMES, WITHOUT_THREAD) == 9
    assert len(bounded.unknown_threads) == 3


def test_a_memory_of_a_thread_whose_directory_is_not_known_belongs_to_no_scope(
    runtime: StateRuntime, tmp_path: Path
) -> None:
    add(runtime, UUID(REMEMBERED["memories-0.147.0"][0]), cwd=Path())
    report = import_original(runtime, unpacked("memories-0.147.0", tmp_path / "original"))
    assert report.total(ImportKind.MEMORIES, WITHOUT_SCOPE) == report.total(ImportKind.JOBS, WITHOUT_SCOPE) == 1
    assert not report.changed


def test_of_two_state_databases_the_newer_decides_and_the_older_fills_in(runtime: StateRuntime, original: Path) -> None:
    older = original / "state_4.sqlite"
    older.write_bytes((original / "state_5.sqlite").read_bytes())
    changed(older, "UPDATE threads SET name = 'past', memory_mode = 'polluted'")
    changed(original / "state_5.sqlite", f"DELETE FROM threads WHERE id = '{FORKED}'")
    add(runtime, NAMED, DISABLED, FORKED)
    import_original(runtime, original)
    assert thread_of(runtime, NAMED).name == "Base named after forking"
    assert thread_of(runtime, NAMED).memory_mode == "enabled"
    assert thread_of(runtime, DISABLED).memory_mode == "disabled"
    forked = thread_of(runtime, FORKED)
    assert (forked.name, forked.memory_mode, forked.preview) == ("past", "polluted", "base first message")
    assert not import_original(runtime, original).changed


def test_it_is_read_while_the_original_runs(runtime: StateRuntime, tmp_path: Path) -> None:
    home = unpacked("memories-0.171.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.171.0"][0])
    add(runtime, thread)
    names = f"UPDATE threads SET name = 'Just now' WHERE id = '{thread}'"
    with (
        held(home / "state_5.sqlite", "PRAGMA journal_mode = WAL", names, "BEGIN", "DELETE FROM threads"),
        held(
            home / "memories_v2_1.sqlite",
            "PRAGMA journal_mode = WAL",
            "UPDATE stage1_outputs SET raw_memory = 'whole'",
            "BEGIN IMMEDIATE",
        ),
    ):
        before = contents(home)
        report = import_original(runtime, home)
        assert contents(home) == before
    assert report.complete
    assert thread_of(runtime, thread).name == "Just now"
    with runtime.read() as state:
        memory = state.thread_memories.get(thread)
    assert memory is not None
    assert (memory.raw_memory, memory.memory_summary) == ("whole", "mock rollout_summary number 15")


def test_a_database_that_cannot_be_read_is_named_and_the_others_go_on(
    settings: StateSettings, original: Path, tmp_path: Path
) -> None:
    memories = unpacked("memories-0.147.0", tmp_path / "memories") / "memories_1.sqlite"
    (original / "memories_1.sqlite").write_bytes(memories.read_bytes())
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    (original / "goals_1.sqlite").write_text("not a database")
    (original / "memories_v2_1.sqlite").unlink()
    changed(original / "memories_v2_1.sqlite", "CREATE TABLE stage1_outputs (thread_id)")
    with (
        StateRuntime.open(settings.model_copy(update={"busy_timeout": timedelta(0)})) as runtime,
        held(original / "state_5.sqlite", "BEGIN EXCLUSIVE"),
    ):
        add(runtime, thread, NAMED)
        report = import_original(runtime, original)
        assert thread_of(runtime, NAMED).name is None
        with runtime.read() as state:
            assert state.thread_memories.get(thread) is not None
    found = {database.path.name: database for database in report.databases}
    assert isinstance(found["state_5.sqlite"].problem, DatabaseBusyError)
    assert "not an SQLite database" in str(found["goals_1.sqlite"].problem)
    assert isinstance(found["memories_v2_1.sqlite"].problem, ForeignSchemaError)
    assert found["memories_v2_1.sqlite"].is_foreign
    assert found["memories_1.sqlite"].problem is None
    assert not report.complete


def test_extractions_are_not_called_done_when_their_memories_cannot_be_read(
    runtime: StateRuntime, tmp_path: Path
) -> None:
    home = unpacked("memories-0.147.0", tmp_path / "original")
    thread = UUID(REMEMBERED["memories-0.147.0"][0])
    add(runtime, thread)
    path = home / "memories_1.sqlite"
    changed(path, f"UPDATE stage1_outputs SET raw_memory = printf('%.20000c', 'Z') WHERE thread_id = '{thread}'")
    pages = path.read_bytes()
    size = 4096
    long = [start for start in range(0, len(pages), size) if pages[start + 4 : start + size] == b"Z" * (size - 4)]
    assert long
    with path.open("r+b") as file:
        for start in long:
            file.seek(start)
            file.write(b"\xff" * 4)  # where the text goes on
    report = import_original(runtime, home)
    assert not report.complete
    assert not report.changed
    with runtime.read() as state:
        assert state.phase1_jobs.get(Phase1Key(thread, MemoryScope.cwd(REPO))) is None


def test_our_own_state_file_is_never_taken_for_the_originals(sqlite_settings: StateSettings, tmp_path: Path) -> None:
    with StateRuntime.open(sqlite_settings) as runtime:
        add(runtime, NAMED)
        assert import_original(runtime).databases == []
        other = tmp_path / "other"
        other.mkdir()
        changed(sqlite_settings.database_path, f"VACUUM INTO '{other / 'state_4.sqlite'}'")
        assert import_original(runtime, other).databases == []


def test_the_own_homes_databases_lie_where_the_settings_say(sqlite_settings: StateSettings, tmp_path: Path) -> None:
    elsewhere = unpacked("0.171.0", tmp_path / "elsewhere")
    with StateRuntime.open(sqlite_settings.model_copy(update={"sqlite_home": elsewhere})) as runtime:
        add(runtime, NAMED)
        import_original(runtime)
        assert thread_of(runtime, NAMED).name == "Base named after forking"


def test_a_home_of_a_user_that_does_not_exist_is_refused(runtime: StateRuntime) -> None:
    with pytest.raises(ConfigurationError, match="~nobody-of-this-name can't be made absolute"):
        import_original(runtime, Path("~nobody-of-this-name"))


def test_a_home_that_is_not_there_is_refused(runtime: StateRuntime, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no Codex home at .*missing"):
        import_original(runtime, tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    assert import_original(runtime, tmp_path).databases == []
