"""The head of a rollout: whose it is, without reading the rest."""

from __future__ import annotations

from pathlib import Path

from codex_state.errors import RolloutError
from codex_state.rollout.lines import ResponseItem, SessionMeta, decode_line
from codex_state.rollout.reading import Lines, lines_of, open_rollout, unreadable


def read_session_meta(path: Path) -> SessionMeta:
    """The session_meta that a rollout begins with.

    Lines that can't be read, turn contexts and events may come before it; a response item may not.

    Raises:
        RolloutError: the file can't be read, or doesn't start with a session_meta.
    """
    file, status = open_rollout(str(path))
    with file:
        try:
            head = _head_of(lines_of(file, status))
        except OSError as error:
            raise unreadable(str(path), error) from error
    if isinstance(head, SessionMeta):
        return head
    if head is None:
        raise RolloutError(f"the rollout {path} is empty: it holds no session metadata")
    raise RolloutError(f"the rollout {path} does not start with session metadata")


def _head_of(lines: Lines) -> SessionMeta | ResponseItem | None:
    for line in lines:
        try:
            item = decode_line(line)
        except RolloutError:
            continue
        if isinstance(item, SessionMeta | ResponseItem):
            return item
    return None
