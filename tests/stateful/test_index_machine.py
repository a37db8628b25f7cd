"""Whatever happens to a home's files, a refreshed index is that of a fresh rebuild, plus what only rows know.

The machine writes, copies, moves, compresses, damages and deletes real files, names and archives threads, moves the
whole home, and refreshes. After each refresh the rows and the inventory are those that an empty database gets from the
same home, and another refresh changes nothing.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import Raw
from rollout_files import (
    body,
    completed_message,
    goal_updated,
    history_base,
    line,
    name_updated,
    numbered,
    rollout_path,
    session_meta,
    settings_applied,
    thread_id,
    token_count,
    turn_context,
    user_message,
)

from codex_state import RolloutError, StateRuntime, StateSettings, ThreadNotFoundError
from codex_state.models import LOCAL_HOME
from codex_state.repositories.rollout_files import ROLLOUT_COLUMNS
from codex_state.rollout import BackfillOutcome, GitInfo, ToolSpec, archive_thread, backfill, unarchive_thread
from codex_state.rollout.backfilling import is_fresh
from codex_state.rollout.names import SESSION_INDEX

NUMBERS = (1, 2, 3)
TOOL = ToolSpec(name="t", description="d", input_schema=Raw(b"{}"))
NANOSECOND = 1_767_400_000_000_000_000
GIT = ("git_sha", "git_branch", "git_origin_url")
DAYS = ("2026-01-02T03-04-05", "2026-01-03T00-00-00", "2026-02-01T00-00-00")

numbers = st.sampled_from(NUMBERS)
pick = st.integers(0, 1000)
Row = dict[str, Any]


@functools.cache
def _migrated() -> tempfile.TemporaryDirectory[str]:
    """A directory with a state that has no rows, to be copied: migrating each time would take most of the time."""
    directory = tempfile.TemporaryDirectory(prefix="index-machine-")
    StateRuntime.open(StateSettings(codex_home=Path(directory.name))).close()
    return directory


def open_in(home: Path, directory: Path, **changes: Any) -> StateRuntime:
    """The home's state, in a database in ``directory``."""
    chosen = StateSettings(codex_home=home, sqlite_home=directory, home=LOCAL_HOME, **changes)
    if not chosen.database_path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        template = StateSettings(codex_home=Path(_migrated().name)).database_path
        shutil.copy(template, chosen.database_path)
    return StateRuntime.open(chosen)


def table(runtime: StateRuntime, name: str, *key: str) -> dict[Any, Row]:
    """All rows of a table as they are stored, by their key."""
    with runtime.read() as state:
        rows = state.session.connection().exec_driver_sql(f"SELECT * FROM {name}").mappings()
        found = [dict(row) for row in rows]
    return {tuple(row[column] for column in key) if len(key) > 1 else row[key[0]]: row for row in found}


class IndexMachine(RuleBasedStateMachine):
    """One home, what happens to it, and its index."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="index-machine-")
        self._root = Path(self._directory.name)
        self.home = self._root / "home-0"
        self.home.mkdir()
        self._moments = 0
        self._moves = 0
        self._trash: list[tuple[str, bytes, int]] = []
        self.runtime = open_in(self.home, self.home)

    def teardown(self) -> None:
        try:
            self.refresh_and_compare(batch_size=200)
        finally:
            self.runtime.close()
            self._directory.cleanup()

    # Time: every write has its own, long past, so that it tells the next write apart.

    def moment(self, step: int = 1_000_000_000) -> int:
        self._moments += 1
        return NANOSECOND + self._moments * step

    def put(self, path: Path, content: bytes, modified: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        when = self.moment() if modified is None else modified
        os.utime(path, ns=(when, when))

    def files(self) -> list[Path]:
        return sorted(path for path in self.home.rglob("rollout-*") if path.is_file())

    def one(self, choice: int) -> Path:
        files = self.files()
        return files[choice % len(files)]

    def has_files(self) -> bool:
        return bool(self.files())

    # What Codex does

    def head(self, number: int, **changes: Any) -> Any:
        values = {"dynamic_tools": [TOOL], "git": GitInfo(branch=f"branch-{self._moments}")} | changes
        return session_meta(number, **values)

    @initialize()
    def begin_with_an_index(self) -> None:
        self.write_a_rollout_of_old(number=1, day=DAYS[0], archived=False, mode=None)
        self.write_a_rollout_of_today(number=2, day=DAYS[0], begun="asked")
        self.write_a_rollout_of_old(number=3, day=DAYS[0], archived=True, mode="disabled")
        self.refresh(batch_size=200)

    @rule(number=numbers, day=st.sampled_from(DAYS), archived=st.booleans(), mode=st.sampled_from([None, "disabled"]))
    def write_a_rollout_of_old(self, number: int, day: str, archived: bool, mode: str | None) -> None:
        items = (
            self.head(number, memory_mode=mode),
            user_message(f"old {self._moments:03}"),
            turn_context(effort="low"),
            token_count(100 + self._moments),
        )
        self.put(rollout_path(self.home, number, archived=archived, time=day), body(*items))

    @rule(number=numbers, day=st.sampled_from(DAYS), begun=st.sampled_from(["asked", "goal", "nothing"]))
    def write_a_rollout_of_today(self, number: int, day: str, begun: str) -> None:
        first = {
            "asked": [completed_message(f"new {self._moments:03}")],
            "goal": [goal_updated("a goal")],
            "nothing": [],
        }
        items = (self.head(number), *first[begun], settings_applied(model="m"), token_count(100 + self._moments))
        self.put(rollout_path(self.home, number, time=day), body(*numbered(*items)))

    @rule(number=numbers, day=st.sampled_from(DAYS[1:]), end=st.integers(0, 5))
    def revert(self, number: int, day: str, end: int) -> None:
        head = self.head(number, history_base=history_base(number, end), git=None)
        items = numbered(head, completed_message(f"then {self._moments:03}"), start=end)
        segment = self._moments + 1
        self.put(rollout_path(self.home, number, time=day, segment=segment), body(*items))

    @precondition(has_files)
    @rule(choice=pick, broken=st.booleans())
    def append(self, choice: int, broken: bool) -> None:
        path = self.one(choice)
        added = b'{"timestamp":' if broken else line(token_count(1000 + self._moments))
        packed = path.suffix == ".zst"
        content = path.read_bytes()
        self.put(path, content + (zstandard.ZstdCompressor().compress(added + b"\n") if packed else added + b"\n"))

    @rule(number=numbers, name=st.sampled_from(["red", "green", "blue"]), is_later=st.booleans())
    def name_it_in_the_index(self, number: int, name: str, is_later: bool) -> None:
        path = self.home / SESSION_INDEX
        ago = timedelta(days=400) if is_later else timedelta(days=-200)
        at = datetime.now(UTC) + ago + timedelta(minutes=self._moments)
        entry = {"id": str(thread_id(number)), "thread_name": f"{name} {self._moments}", "updated_at": at.isoformat()}
        before = path.read_bytes() if path.exists() else b""
        self.put(path, before + json.dumps(entry).encode() + b"\n")

    @precondition(has_files)
    @rule(choice=pick, number=numbers)
    def name_it_in_a_rollout(self, choice: int, number: int) -> None:
        path = self.one(choice)
        if path.suffix == ".jsonl":
            at = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(minutes=self.moment() % 1_000_000_007 % 9999)
            event = line(name_updated(f"said {self._moments}", number), at.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
            self.put(path, path.read_bytes() + event + b"\n")

    # What people, synchronisers and file systems do

    @precondition(has_files)
    @rule(choice=pick)
    def rewrite_in_the_same_size_and_second(self, choice: int) -> None:
        path = self.one(choice)
        content, modified = path.read_bytes(), path.stat().st_mtime_ns
        changed = (
            content.replace(b"old 0", b"old 1").replace(b"new 0", b"new 1") if path.suffix == ".jsonl" else content
        )
        self.put(path, changed, modified + 1)

    @precondition(has_files)
    @rule(choice=pick, kind=st.sampled_from([".sync-conflict-20260301-101010-ABCDEFG", " (1)", " 2", "-copy"]))
    def copy(self, choice: int, kind: str) -> None:
        path = self.one(choice)
        name, dot, suffix = path.name.partition(".jsonl")
        self.put(path.with_name(f"{name}{kind}{dot}{suffix}"), path.read_bytes())

    @precondition(has_files)
    @rule(choice=pick, place=st.sampled_from(["sessions", "sessions/2026/03/03", "archived_sessions", "sessions/a/b"]))
    def move(self, choice: int, place: str) -> None:
        path = self.one(choice)
        target = self.home / place / path.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)

    @precondition(has_files)
    @rule(choice=pick, name=st.sampled_from(["rollout-odd.jsonl", rollout_path(Path(), 2).name]))
    def rename(self, choice: int, name: str) -> None:
        path = self.one(choice)
        if path.suffix == ".jsonl" and not path.with_name(name).exists():
            path.rename(path.with_name(name))

    @precondition(has_files)
    @rule(choice=pick, other=pick)
    def overwrite(self, choice: int, other: int) -> None:
        target, source = self.one(choice), self.one(other)
        if target.suffix == source.suffix:
            self.put(target, source.read_bytes())

    @precondition(has_files)
    @rule(choice=pick, keep=st.booleans())
    def compress(self, choice: int, keep: bool) -> None:
        path = self.one(choice)
        packed = path.with_name(f"{path.name}.zst")
        if path.suffix == ".jsonl" and not packed.exists():
            content = zstandard.ZstdCompressor().compress(path.read_bytes())
            self.put(packed, content, path.stat().st_mtime_ns)
            if not keep:
                path.unlink()

    @precondition(has_files)
    @rule(choice=pick, content=st.sampled_from([b"", b"\0" * 40, b"no rollout\n", b"\xff\xfe{\0"]))
    def damage(self, choice: int, content: bytes) -> None:
        self.put(self.one(choice), content)

    @precondition(has_files)
    @rule(choice=pick)
    def delete(self, choice: int) -> None:
        path = self.one(choice)
        self._trash.append((path.relative_to(self.home).as_posix(), path.read_bytes(), path.stat().st_mtime_ns))
        path.unlink()

    @precondition(lambda self: self._trash)
    @rule(choice=pick)
    def restore(self, choice: int) -> None:
        inside, content, modified = self._trash[choice % len(self._trash)]
        self.put(self.home / inside, content, modified)

    @rule()
    def move_the_home(self) -> None:
        self.runtime.close()
        self._moves += 1
        self.home = self.home.rename(self._root / f"home-{self._moves}")
        self.runtime = open_in(self.home, self.home)

    # What is done here

    @rule(number=numbers, move=st.sampled_from([archive_thread, unarchive_thread]))
    def archive(self, number: int, move: Callable[[StateRuntime, Any], Path]) -> None:
        with suppress(ThreadNotFoundError, RolloutError):  # it has no file, or two of the same name
            assert move(self.runtime, thread_id(number)).is_file()

    @rule(number=numbers, name=st.sampled_from(["mine", "yours", None]))
    def name_it_here(self, number: int, name: str | None) -> None:
        with self.runtime.begin() as state:
            state.threads.set_name(thread_id(number), name)

    @rule(number=numbers, mode=st.sampled_from(["enabled", "polluted"]))
    def choose_a_memory_mode(self, number: int, mode: str) -> None:
        with self.runtime.begin() as state:
            state.threads.set_memory_mode(thread_id(number), mode)

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        with self.runtime.begin() as state:
            connection = state.session.connection()
            connection.exec_driver_sql("UPDATE threads SET pinned = 1 WHERE id = ?", (str(thread_id(number)),))

    @rule(number=numbers)
    def delete_the_row(self, number: int) -> None:
        with self.runtime.begin() as state:
            state.threads.delete(thread_id(number))

    @rule(batch_size=st.sampled_from([1, 2, 200]))
    def refresh_in_part(self, batch_size: int) -> None:
        def interrupt(_progress: object) -> None:
            raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            self.refresh(batch_size, on_progress=interrupt)

    @rule(batch_size=st.sampled_from([1, 2, 200]))
    def refresh_and_compare(self, batch_size: int) -> None:
        before = table(self.runtime, "threads", "id")
        self.refresh(batch_size)
        self.compare(before)

    def refresh(self, batch_size: int, **options: Any) -> None:
        chosen = self.runtime.settings.model_copy(update={"backfill_batch_size": batch_size})
        report = backfill(StateRuntime(chosen, self.runtime.database), refresh=True, workers=0, **options)
        assert report.status is BackfillOutcome.COMPLETE

    # What must hold

    def compare(self, before: dict[str, Row]) -> None:
        rows = table(self.runtime, "threads", "id")
        inventory = table(self.runtime, "rollout_files", "path")
        with (
            tempfile.TemporaryDirectory(prefix="index-machine-") as directory,
            open_in(self.home, Path(directory)) as fresh,
        ):
            assert backfill(fresh, workers=0).status is BackfillOutcome.COMPLETE
            expected = table(fresh, "threads", "id")
            expected_inventory = table(fresh, "rollout_files", "path")
            expected_tools = table(fresh, "thread_dynamic_tools", "thread_id", "position")
        tools = table(self.runtime, "thread_dynamic_tools", "thread_id", "position")

        known = {path: row for path, row in inventory.items() if row["state"] != "gone"}
        assert known == expected_inventory
        unreadable = {row["thread_id"] for row in known.values() if row["state"] == "failed"}
        shown = {each: row for each, row in rows.items() if row["gone_at"] is None}
        assert shown.keys() - unreadable == expected.keys() - unreadable
        assert expected.keys() <= shown.keys()
        for each, row in expected.items():
            wanted = self.with_what_rows_know(row, before.get(each, {}), shown[each])
            found = {name: shown[each][name] for name in ROLLOUT_COLUMNS}
            assert {name: found[name] for name in found if found[name] != wanted[name]} == {}, wanted
        assert expected_tools.items() <= tools.items(), "tools that were stored once stay, whatever becomes of the head"
        for each, row in before.items():
            for column in ("pinned", "memory_mode_chosen_at"):
                assert rows[each][column] == row[column]

        self.refresh(200)
        assert table(self.runtime, "threads", "id") == rows
        assert table(self.runtime, "rollout_files", "path") == inventory
        assert is_fresh(self.runtime)

    def with_what_rows_know(self, fresh: Row, before: Row, now: Row) -> Row:
        """What a rebuild gives, with the names, modes and times that were given here and where the repository stood."""
        expected = {name: fresh[name] for name in ROLLOUT_COLUMNS}
        for name in GIT:
            # Of several files of a thread the one that came first into the row decides, and that is a batch's matter.
            came_first = now[name] if fresh[name] is not None else None
            expected[name] = before.get(name) or came_first
        if before.get("name_at") is not None and (fresh["name_at"] is None or before["name_at"] >= fresh["name_at"]):
            expected["name"], expected["name_at"] = before["name"], before["name_at"]
        if before.get("memory_mode_chosen_at") is not None:
            expected["memory_mode"] = before["memory_mode"]
        if fresh["archived"] and before.get("archived_at") not in (None, before.get("updated_at")):
            expected["archived_at"] = before["archived_at"]
        return expected


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=25, stateful_step_count=20)
