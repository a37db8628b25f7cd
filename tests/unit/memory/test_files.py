"""The memories of a scope as files, for agents to read."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from memory_support import CWD, add_threads

from codex_state import MemoryFilesError, MemoryScope, StateRuntime, Thread, ThreadMemory, memory_root
from codex_state.memory import files

SCOPE = MemoryScope.cwd(CWD)


def remember(runtime: StateRuntime, threads: Sequence[Thread], text: str = "first", scope: MemoryScope = SCOPE) -> None:
    with runtime.begin() as state:
        for thread in threads:
            state.thread_memories.upsert_for_scope(thread.id, scope, f"{text}\nof {thread.id}", f"{text} summary")
        state.memory_scopes.mark_dirty(scope)


def newest(runtime: StateRuntime, scope: MemoryScope = SCOPE) -> list[ThreadMemory]:
    with runtime.read() as state:
        return list(state.thread_memories.last_n_for_scope(scope, 64))


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "raw_memories").iterdir()}


def test_roots_are_named_by_the_digest_of_the_working_directory_and_by_user() -> None:
    home = Path("/home/me/.codex")
    digest = sha256(b"/code/gr\xc3\xb6\xc3\x9fer").hexdigest()[:16]
    assert memory_root(home, MemoryScope.cwd(Path("/code/größer"))) == home / "memories" / digest / "memory"
    assert memory_root(home, MemoryScope.user()) == home / "memories" / "user" / "memory"


def test_scopes_of_different_kinds_never_share_a_root() -> None:
    scopes = [MemoryScope("cwd", "user"), MemoryScope("team", "user"), MemoryScope("user", "user")]
    assert len({memory_root(Path("/h"), scope) for scope in scopes}) == 3


def test_rendering_writes_each_raw_memory_and_one_summary(sqlite_runtime: StateRuntime) -> None:
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    root = files.render(sqlite_runtime, SCOPE)
    (memory,) = newest(sqlite_runtime)
    moment = memory.updated_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert root == memory_root(sqlite_runtime.codex_home, SCOPE)
    assert files.raw_memory_path(root, thread.id).read_text() == (
        f"thread_id: {thread.id}\nupdated_at: {moment}\n\nfirst\nof {thread.id}\n"
    )
    assert (root / "memory_summary.md").read_text() == (
        f"# Memories of {CWD}\n\n- first summary (thread {thread.id}, {moment})\n"
    )


def test_the_summary_lists_the_newest_first_and_names_the_user(sqlite_runtime: StateRuntime) -> None:
    for thread in add_threads(sqlite_runtime, 3):
        remember(sqlite_runtime, [thread], str(thread.id), MemoryScope.user())
    summary = (files.render(sqlite_runtime, MemoryScope.user()) / "memory_summary.md").read_text()
    order = [str(memory.thread_id) for memory in newest(sqlite_runtime, MemoryScope.user())]
    assert summary.startswith("# Memories of the user\n\n- ")
    assert [line.split()[1] for line in summary.splitlines()[2:]] == order


def test_a_scope_without_memories_has_an_empty_summary(sqlite_runtime: StateRuntime) -> None:
    root = files.render(sqlite_runtime, SCOPE)
    assert (root / "memory_summary.md").read_text() == f"# Memories of {CWD}\n\n"
    assert names(root) == set()


def test_only_the_newest_64_are_kept_as_files_and_other_peoples_files_stay(sqlite_runtime: StateRuntime) -> None:
    threads = add_threads(sqlite_runtime, 70)
    remember(sqlite_runtime, threads[:40])
    root = files.render(sqlite_runtime, SCOPE)
    raw = root / "raw_memories"
    (raw / "notes.md").write_text("mine")
    (raw / f"{UUID(int=1)}.txt").write_text("mine")
    (root / "MEMORY.md").write_text("consolidated")
    remember(sqlite_runtime, threads[40:])
    files.render(sqlite_runtime, SCOPE)
    expected = {f"{memory.thread_id}.md" for memory in newest(sqlite_runtime)}
    assert len(expected) == 64
    assert names(root) == expected | {"notes.md", f"{UUID(int=1)}.txt"}
    assert (root / "MEMORY.md").read_text() == "consolidated"


def test_an_invalidated_memory_loses_its_file(sqlite_runtime: StateRuntime) -> None:
    gone, stays = add_threads(sqlite_runtime, 2)
    remember(sqlite_runtime, [gone, stays])
    root = files.render(sqlite_runtime, SCOPE)
    with sqlite_runtime.begin() as state:
        state.thread_memories.invalidate(gone.id, SCOPE, "wrong")
    files.render(sqlite_runtime, SCOPE)
    assert names(root) == {f"{stays.id}.md"}
    assert str(gone.id) not in (root / "memory_summary.md").read_text()


def test_what_a_killed_process_left_half_written_is_cleared_away(sqlite_runtime: StateRuntime) -> None:
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    root = files.render(sqlite_runtime, SCOPE)
    for directory in (root / "raw_memories", root, root.parent):
        (directory / f".half.12345678{files._TEMPORARY}").write_text("half")
    files.render(sqlite_runtime, SCOPE)
    assert list(root.parent.rglob(f"*{files._TEMPORARY}")) == []


def test_unchanged_files_are_not_written_again(sqlite_runtime: StateRuntime) -> None:
    old, new = add_threads(sqlite_runtime, 2)
    remember(sqlite_runtime, [old, new])
    root = files.render(sqlite_runtime, SCOPE)
    before = {path.name: path.stat().st_ino for path in (root / "raw_memories").iterdir()}
    remember(sqlite_runtime, [new], "second")
    files.render(sqlite_runtime, SCOPE)
    after = {path.name: path.stat().st_ino for path in (root / "raw_memories").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {f"{new.id}.md"}


def test_files_that_show_the_mark_are_good_enough(sqlite_runtime: StateRuntime) -> None:
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    with sqlite_runtime.read() as state:
        mark = state.memory_scopes.get(SCOPE)
    assert mark is not None
    root = files.render(sqlite_runtime, SCOPE, at_least=mark.updated_at)
    (root / "memory_summary.md").unlink()
    files.render(sqlite_runtime, SCOPE, at_least=mark.updated_at)
    assert not (root / "memory_summary.md").exists()
    remember(sqlite_runtime, [thread], "second")
    with sqlite_runtime.read() as state:
        mark = state.memory_scopes.get(SCOPE)
    assert mark is not None
    files.render(sqlite_runtime, SCOPE, at_least=mark.updated_at)
    assert "second summary" in (root / "memory_summary.md").read_text()


def test_a_rendering_that_was_overtaken_renders_again(
    sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process paused between reading and writing must not leave old texts behind."""
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    original = files._write_all

    def paused(root: Path, scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
        monkeypatch.setattr(files, "_write_all", original)
        remember(sqlite_runtime, [thread], "second")
        original(root, scope, memories)

    monkeypatch.setattr(files, "_write_all", paused)
    root = files.render(sqlite_runtime, SCOPE)
    assert "second" in files.raw_memory_path(root, thread.id).read_text()
    assert "second summary" in (root / "memory_summary.md").read_text()


def test_a_crash_while_writing_leaves_the_old_text(
    sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    root = files.render(sqlite_runtime, SCOPE)
    before = files.raw_memory_path(root, thread.id).read_text()
    remember(sqlite_runtime, [thread], "second")

    def full(_self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(MemoryFilesError, match="No space left on device; they are safe in the database"):
            files.render(sqlite_runtime, SCOPE)
    assert files.raw_memory_path(root, thread.id).read_text() == before
    assert names(root) == {f"{thread.id}.md"}


def test_a_file_in_the_way_is_named(sqlite_runtime: StateRuntime) -> None:
    (sqlite_runtime.codex_home / "memories").write_text("in the way")
    with pytest.raises(MemoryFilesError, match=f"can't write the memories of cwd {CWD} under"):
        files.render(sqlite_runtime, SCOPE)


def test_one_process_renders_at_a_time_and_the_others_do_not_wait_for_ever(
    sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.1)
    root = files.render(sqlite_runtime, SCOPE)
    descriptor = os.open(root.parent / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(MemoryFilesError, match="another process has been writing"):
            files.render(sqlite_runtime, SCOPE)
    finally:
        os.close(descriptor)
    files.render(sqlite_runtime, SCOPE)


def test_dirty_scopes_whose_files_are_behind_are_rendered(
    sqlite_runtime: StateRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    remember(sqlite_runtime, [thread], scope=MemoryScope.user())
    files.render_dirty(sqlite_runtime)
    for scope in (SCOPE, MemoryScope.user()):
        assert "first summary" in (memory_root(sqlite_runtime.codex_home, scope) / "memory_summary.md").read_text()
    assert caplog.records == []


def test_scopes_that_cannot_be_rendered_are_logged(
    sqlite_runtime: StateRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    (sqlite_runtime.codex_home / "memories").write_text("in the way")
    (thread,) = add_threads(sqlite_runtime)
    remember(sqlite_runtime, [thread])
    with caplog.at_level(logging.WARNING):
        files.render_dirty(sqlite_runtime)
    assert "can't write the memories" in caplog.text
