"""The head of a rollout: whose it is, without reading the rest."""

from __future__ import annotations

from pathlib import Path

from codex_state.errors import RolloutError
from codex_state.rollout.format import GitInfo, ResponseItem, SessionMeta, decode_tolerantly
from codex_state.rollout.reading import Lines, open_rollout, skip_blank_lines, unreadable


def read_session_meta(path: Path) -> SessionMeta:
    """The session_meta that a rollout begins with.

    Lines that can't be read, turn contexts and events may come before it; a response item may not.

    Raises:
        RolloutError: the file can't be read, or doesn't start with a session_meta.
    """
    return _read(path)[0]


def owner_of(path: Path) -> str | None:
    """Whose rollout it is by its content; ``None`` when it doesn't say, or can't be read.

    When something before the first session_meta can't be read, that may be a parent's, and the thread's own is lost.
    """
    try:
        meta, is_first = _read(path)
    except RolloutError:
        return None
    return meta.id if is_first else None


def git_of(path: Path, thread_id: str) -> GitInfo | None:
    """Where the thread's repository stood by this rollout of it, if it says so."""
    try:
        meta, _ = _read(path)
    except RolloutError:
        return None
    return meta.git if meta.id == thread_id else None


def _read(path: Path) -> tuple[SessionMeta, bool]:
    with open_rollout(str(path))[0] as file:
        try:
            head, is_first = _head_of(file)
        except OSError as error:
            raise unreadable(str(path), error) from error
    if isinstance(head, SessionMeta):
        return head, is_first
    if head is None:
        raise RolloutError(f"the rollout {path} is empty: it holds no session metadata")
    raise RolloutError(f"the rollout {path} does not start with session metadata")


def _head_of(lines: Lines) -> tuple[SessionMeta | ResponseItem | None, bool]:
    whole = True
    for line in lines:
        if line.isspace():
            skip_blank_lines(lines)
            continue
        salvaged = decode_tolerantly(line)
        for record in salvaged.lines:
            if isinstance(record.payload, SessionMeta | ResponseItem):
                return record.payload, whole and not salvaged.broken
        whole = whole and not salvaged.broken
    return None, whole
