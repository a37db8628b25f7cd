"""Reading the original's databases as a guest: what is read, and that nothing is changed (law L12)."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from uuid import UUID

import pytest

from codex_state import original
from codex_state.errors import DatabaseBusyError, DatabaseCorruptError, NotADatabaseError, StateError
from codex_state.original import OriginalDatabase, names_in, original_database_stamp, original_names
from tests.original_databases import VERSIONS, changed, contents, held, unpacked

FROM_THE_TERMINAL = "01a21edd-f5a8-7832-a37d-9ff15fca1e08"
NAMES_OF_0_171 = [
    (FROM_THE_TERMINAL, "A name from the terminal", 1795814197),
    ("01a21ede-2b50-7792-8f10-715fdac941de", "SLOW terminal prompt that is interrupted", 1795814210),
    ("01a21ede-5158-78e2-be02-3e572c780237", "Name of a thread without a message", 1795814216),
    ("01a21ede-5167-7331-ae9a-17b62f59ed58", "Second näme 🙂", 1795814216),
    ("01a21ede-5287-76d1-9fd1-d8b2ac6aaa53", "Early name", 1795814216),
    ("01a21ede-52ec-7673-a729-0e4720356da7", "Base named after forking", 1795814236),
    ("01a21ede-5473-7ab1-a109-9198475e2e48", "Forked name", 1795814216),
    ("01a21ede-5532-7982-9d7d-4168b3c723d4", "Forked name", 1795814217),
    ("01a21ede-586a-7ff1-9768-0bb8ce3f167a", "Archived with a name", 1795814217),
]
RENAME = f"UPDATE threads SET name = 'Renamed' WHERE id = '{FROM_THE_TERMINAL}'"
WAL = "PRAGMA journal_mode = WAL"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return unpacked("0.171.0", tmp_path / "home")


@pytest.fixture
def state(home: Path) -> Path:
    return home / "state_5.sqlite"


def names(home: Path) -> list[tuple[str, str, int]]:
    return [(str(name.thread_id), name.name, name.at) for name in original_names(home, on_problem=_fail)]


def name_of(home: Path) -> str:
    return {thread: name for thread, name, _ in names(home)}[FROM_THE_TERMINAL]


def _fail(path: Path, error: StateError) -> None:
    raise AssertionError(f"{path}: {error}")


def problems(home: Path) -> list[tuple[str, type[StateError]]]:
    found: list[tuple[str, type[StateError]]] = []
    assert list(original_names(home, on_problem=lambda path, error: found.append((path.name, type(error))))) == []
    return found


def test_names_are_those_of_the_database(home: Path) -> None:
    assert names(home) == NAMES_OF_0_171


def test_names_of_versions_that_had_them_elsewhere_are_none(tmp_path: Path) -> None:
    found = {version: len(names(unpacked(version, tmp_path / version))) for version in VERSIONS}
    assert found == dict.fromkeys(VERSIONS, 0) | {"0.147.0": 1, "0.171.0": 9}
    assert names(tmp_path / "0.147.0") == [
        ("01a21ee2-0e76-7040-9cab-5bf961e450ee", "A name from the terminal", 1795814466)
    ]


def test_a_home_without_databases_has_no_names_and_no_stamp(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "missing"):
        assert names(home) == []
        assert original_database_stamp(home) is None


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_reading_leaves_the_home_as_it_was(home: Path, state: Path, mode: str) -> None:
    changed(state, f"PRAGMA journal_mode = {mode}")
    before = contents(home)
    assert names(home) == NAMES_OF_0_171
    assert contents(home) == before


def test_what_a_running_program_has_committed_is_read_and_no_more(home: Path, state: Path) -> None:
    changed(state, WAL)
    uncommitted = f"UPDATE threads SET name = 'Not yet' WHERE id = '{FROM_THE_TERMINAL}'"
    with held(state, RENAME, "BEGIN", uncommitted):
        before = contents(home)
        assert before.keys() >= {"state_5.sqlite-wal", "state_5.sqlite-shm"}
        assert name_of(home) == "Renamed"
        assert contents(home) == before


def test_what_a_killed_program_had_committed_is_read(home: Path, state: Path) -> None:
    changed(state, WAL)
    with held(state, RENAME):
        pass
    before = contents(home)
    assert name_of(home) == "Renamed"
    assert contents(home) == before


def test_a_program_that_writes_while_its_files_are_copied_is_read_whole(
    home: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(state, WAL)
    writer = sqlite3.connect(state, isolation_level=None)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("UPDATE threads SET title = title || ' '")
    copy, copies = shutil.copyfile, []

    def copied(source: Path, target: Path) -> None:
        copy(source, target)
        copies.append(Path(source).name)
        if copies == ["state_5.sqlite"]:
            # Both halves of this must be seen, or none: the file was copied before, the WAL that has it is gone.
            writer.execute("UPDATE threads SET name = 'both' WHERE name IS NOT NULL")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            writer.execute("UPDATE threads SET title = title || ' ' WHERE name IS NULL")

    monkeypatch.setattr(shutil, "copyfile", copied)
    assert [name for _, name, _ in names(home)] == ["both"] * 9
    assert copies.count("state_5.sqlite") == 2
    writer.close()


def test_a_program_that_never_pauses_is_busy(home: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(state, WAL)
    writer = sqlite3.connect(state, isolation_level=None)
    writer.execute("UPDATE threads SET title = title || ' '")
    copy = shutil.copyfile

    def copied(source: Path, target: Path) -> None:
        copy(source, target)
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        writer.execute("UPDATE threads SET title = title || ' '")

    monkeypatch.setattr(shutil, "copyfile", copied)
    monkeypatch.setattr(original, "_PAUSE", 0)
    assert problems(home) == [("state_5.sqlite", DatabaseBusyError)]
    writer.close()


def test_a_program_that_starts_meanwhile_is_noticed(state: Path) -> None:
    changed(state, WAL)
    query = "SELECT rowid, name FROM threads WHERE name IS NOT NULL AND rowid > ? ORDER BY rowid LIMIT ?"
    with OriginalDatabase.open(state) as database:
        pages = database.pages(query, size=1)
        (_, first), *_ = next(pages)
        with held(state, "UPDATE threads SET name = 'later' WHERE name IS NOT NULL"):
            rest = [name for page in pages for _, name in page]
    assert first == "A name from the terminal"
    assert rest == ["later"] * 8


def test_half_a_transaction_of_a_killed_program_is_rolled_back_in_a_copy(home: Path, state: Path) -> None:
    unfinished = ("PRAGMA cache_size = 1", "BEGIN", "UPDATE threads SET name = 'half' WHERE name IS NOT NULL",
                  "UPDATE threads SET title = hex(zeroblob(5000))")  # fmt: skip
    with held(state, *unfinished):
        assert (home / "state_5.sqlite-journal").stat().st_size > 0
    before = contents(home)
    assert names(home) == NAMES_OF_0_171
    assert contents(home) == before


def test_a_locked_database_is_busy(home: Path, state: Path) -> None:
    with held(state, "BEGIN EXCLUSIVE"):
        assert problems(home) == [("state_5.sqlite", DatabaseBusyError)]


def test_a_damaged_database_is_named(home: Path, state: Path) -> None:
    with state.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (state.stat().st_size - 4096))
    ((name, kind),) = problems(home)
    assert name == "state_5.sqlite"
    assert issubclass(kind, DatabaseCorruptError)


def test_a_file_that_is_no_database_is_named_and_names_of_older_ones_are_not_taken(home: Path) -> None:
    (home / "state_6.sqlite").write_text("not a database")
    assert problems(home) == [("state_6.sqlite", NotADatabaseError)]


def test_other_programs_files_and_ours_are_passed_over(home: Path, tmp_path: Path) -> None:
    changed(
        home / "state_9.sqlite", "CREATE TABLE threads (id, name, updated_at)", "INSERT INTO threads VALUES (1, 2, 3)"
    )
    changed(
        home / "state_8.sqlite", "CREATE TABLE codex_state_version (version_num)", "CREATE TABLE threads (id, name)"
    )
    (home / "state_7.sqlite").touch()
    (home / "state_6.sqlite").mkdir()
    for name in ("state_5.sqlite.bak", "state_05x.sqlite", "mystate_99.sqlite"):
        (home / name).write_text("something else")
    assert names(home) == NAMES_OF_0_171


def test_the_state_file_that_this_process_has_open_is_never_opened_again(home: Path, state: Path) -> None:
    assert list(original_names(home, own=state, on_problem=_fail)) == []
    assert original_database_stamp(home, own=state) is None


def test_rows_that_no_version_writes_cost_no_other(home: Path, state: Path) -> None:
    changed(
        state,
        "UPDATE threads SET updated_at = 'soon' WHERE name = 'Early name'",
        "UPDATE threads SET name = CAST(x'ff41' AS TEXT) WHERE name = 'Archived with a name'",
        "UPDATE threads SET name = x'00' WHERE name = 'Forked name' AND title = 'message in the fork'",
        "UPDATE threads SET name = ' ' WHERE name = 'Forked name'",
        "UPDATE threads SET id = 'no id' WHERE name = 'Second näme 🙂'",
    )
    found = {name: at for _, name, at in names(home)}
    assert found["Early name"] == 0
    assert found["\ufffdA"] == 1795814217
    assert found.keys().isdisjoint({"Forked name", "Second näme 🙂"})


def test_the_database_lies_where_the_configuration_says(home: Path, tmp_path: Path) -> None:
    elsewhere = unpacked("0.147.0", tmp_path / "elsewhere")
    assert names(home) == NAMES_OF_0_171
    (home / "config.toml").write_text(f'sqlite_home = "{elsewhere}"\n')
    assert len(names(home)) == 1
    assert [name.name for name in original_names(home / "none", elsewhere)] == ["A name from the terminal"]
    (home / "config.toml").write_text("sqlite_home = \n")
    assert names(home) == NAMES_OF_0_171


def test_a_link_to_a_database_is_followed_with_what_lies_beside_it(home: Path, state: Path, tmp_path: Path) -> None:
    changed(state, WAL)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "state_5.sqlite").symlink_to(state)
    with held(state, RENAME):
        assert name_of(linked) == "Renamed"


def test_the_stamp_changes_with_every_commit_and_not_without(home: Path, state: Path) -> None:
    changed(state, WAL)
    stamps = [original_database_stamp(home)]
    names(home)
    assert original_database_stamp(home) == stamps[0]
    with held(state, RENAME):
        stamps.append(original_database_stamp(home))
        changed(state, "UPDATE threads SET name = 'Again' WHERE name = 'Renamed'")
        stamps.append(original_database_stamp(home))
    assert len(set(stamps)) == 3


def test_many_names_come_in_pages(home: Path, state: Path) -> None:
    changed(
        state,
        "CREATE TEMP TABLE one AS SELECT * FROM threads WHERE name = 'Early name'",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)"
        " INSERT INTO threads (id, rollout_path, created_at, updated_at, source, model_provider, cwd, title,"
        " sandbox_policy, approval_mode, name) SELECT printf('00000000-0000-7000-8000-%012d', i), '', 0, 0, '', '', '',"
        " '', '', '', 'name ' || i FROM n",
    )
    with OriginalDatabase.open(state) as database:
        sizes = [len(page) for page in names_in(database)]
    assert sum(sizes) == 1209
    assert max(sizes) == 500
    assert len({thread for thread, *_ in names(home)}) == 1209
    assert str(UUID(int=0x7000 << 64 | 0x8000 << 48 | 1)) in {thread for thread, *_ in names(home)}
