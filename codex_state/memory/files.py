"""The memories of a scope as files, for agents to read.

Files are renderings of committed rows and never the other way round. One process at a time renders a scope, under a
kernel lock, and reads the rows while it holds that lock. So a worker that lost its lease has nothing to write: its row
was refused. One that was paused while rendering renders again when it finds that the rows have moved on. What a crash
leaves behind is mended by the next pass of either phase.

Under ``<home>/memories/<scope>/``:

=================================  ====================================================================
``memory/raw_memories/<id>.md``    the raw memory of each thread among the scope's newest 64
``memory/memory_summary.md``       their summaries, newest first
``.rendered``, ``.lock``           which version of the scope the files show; who may render
=================================  ====================================================================
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

from codex_state.database.state_files import make_private_directory, open_side_file
from codex_state.errors import DatabaseError, MemoryFilesError
from codex_state.models import SCOPE_CWD, SCOPE_USER, MemoryScope, ThreadMemory
from codex_state.runtime import StateRuntime

try:
    import fcntl
except ImportError:  # Windows: nothing orders the processes there, and the last rendering wins
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("codex_state")

MEMORIES_PER_SCOPE = 64
"""How many memories of a scope are rendered and consolidated: the newest."""

RAW_MEMORIES = "raw_memories"
MEMORY_SUMMARY = "memory_summary.md"

_LOCK, _RENDERED, _TEMPORARY = ".lock", ".rendered", ".codex-state-tmp"

_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.005


def memory_root(home: Path, scope: MemoryScope) -> Path:
    """The directory that holds a scope's memories, whether or not it exists.

    It is ``memories/user/memory`` under the home for the user, and ``memories/<digest>/memory`` for a working
    directory, where the digest is the first 16 hexadecimal digits of the SHA-256 of its normalised path. It is also the
    name of the scope's consolidation lock.
    """
    if scope.kind == SCOPE_USER:
        name = SCOPE_USER
    else:
        name = sha256((scope.key if scope.kind == SCOPE_CWD else f"{scope.kind}:{scope.key}").encode()).hexdigest()[:16]
    return home / "memories" / name / "memory"


def raw_memory_path(root: Path, thread_id: UUID) -> Path:
    """The file of one thread's raw memory."""
    return root / RAW_MEMORIES / f"{thread_id}.md"


def render(runtime: StateRuntime, scope: MemoryScope, *, at_least: datetime | None = None) -> Path:
    """Make the files of a scope show its newest memories, and return their root.

    Args:
        runtime: where the memories are, and the home that gets the files.
        scope: whose memories.
        at_least: a mark of the scope (``mark_dirty``): files that show it or a later one are good enough.

    Raises:
        MemoryFilesError: the files can't be written, or another process has been rendering for too long.
        DatabaseError: the memories can't be read.
    """
    root = memory_root(runtime.codex_home, scope)
    try:
        make_private_directory(root / RAW_MEMORIES)
        with _only_one(root.parent / _LOCK):
            if at_least is None or _rendered(root) < at_least.timestamp():
                _render_until_current(runtime, scope, root)
    except OSError as error:
        raise MemoryFilesError(
            f"can't write the memories of {scope.kind} {scope.key} under {root}: {error.strerror or error}; they are "
            "safe in the database and are written again by the next consolidation"
        ) from error
    return root


def render_dirty(runtime: StateRuntime) -> None:
    """Render the scopes that wait for their consolidation, where that hasn't been done. Failures are logged.

    This mends what a worker left behind that was killed between storing a memory and rendering it.
    """
    try:
        with runtime.read() as state:
            marks = state.memory_scopes.list_dirty()
        for mark in marks:
            try:
                render(runtime, MemoryScope(mark.scope_kind, mark.scope_key), at_least=mark.updated_at)
            except MemoryFilesError as error:
                _log.warning("%s", error)
    except DatabaseError as error:
        _log.warning("the files of dirty scopes are not all up to date: %s", error)


def _render_until_current(runtime: StateRuntime, scope: MemoryScope, root: Path) -> None:
    shown = None
    while True:
        with runtime.read() as state:
            mark = state.memory_scopes.get(scope)
            moment = 0.0 if mark is None else mark.updated_at.timestamp()
            if moment == shown:
                return
            memories = state.thread_memories.last_n_for_scope(scope, MEMORIES_PER_SCOPE)
        _write_all(root, scope, memories)
        _write(root.parent / _RENDERED, f"{moment:.0f}\n")
        shown = moment


def _write_all(root: Path, scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
    wanted = set()
    for memory in memories:
        path = raw_memory_path(root, memory.thread_id)
        wanted.add(path.name)
        header = _header_of(memory)
        if not _starts_with(path, header):
            _write(path, f"{header}{memory.raw_memory}\n")
    # Only what was written here: a file that somebody else put there stays.
    for path in (root / RAW_MEMORIES).glob("*.md"):
        if path.name not in wanted and _is_raw_memory(path):
            path.unlink(missing_ok=True)
    for directory in (root / RAW_MEMORIES, root, root.parent):
        for path in directory.glob(f".*{_TEMPORARY}"):  # left behind by a process that was killed
            path.unlink(missing_ok=True)
    _write(root / MEMORY_SUMMARY, _summary_of(scope, memories))


def _header_of(memory: ThreadMemory) -> str:
    return f"thread_id: {memory.thread_id}\nupdated_at: {_spelled(memory.updated_at)}\n\n"


def _summary_of(scope: MemoryScope, memories: Sequence[ThreadMemory]) -> str:
    title = "the user" if scope.kind == SCOPE_USER else scope.key
    lines = [
        f"- {' '.join(memory.memory_summary.split())} (thread {memory.thread_id}, {_spelled(memory.updated_at)})\n"
        for memory in memories
    ]
    return f"# Memories of {title}\n\n{''.join(lines)}"


def _spelled(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_raw_memory(path: Path) -> bool:
    try:
        return str(UUID(path.stem)) == path.stem
    except ValueError:
        return False


def _starts_with(path: Path, header: str) -> bool:
    expected = header.encode()
    try:
        with path.open("rb") as file:
            return file.read(len(expected)) == expected
    except FileNotFoundError:
        return False


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one, and a crash leaves one of them."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{_TEMPORARY}")
    try:
        # For its user alone: memories are drawn from conversations.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _rendered(root: Path) -> float:
    try:
        return float((root.parent / _RENDERED).read_text())
    except (FileNotFoundError, ValueError):
        return float("-inf")


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    descriptor = open_side_file(path)
    try:
        if fcntl is not None:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise MemoryFilesError(
                            f"another process has been writing beside {path} for {_LOCK_SECONDS:.0f} s; if it was "
                            "stopped, let it continue or end it"
                        ) from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
