"""The head of a rollout: whose it is, without reading the rest."""

from __future__ import annotations

from pathlib import Path

from codex_state.errors import RolloutError
from codex_state.rollout.lines import ResponseItem, SessionMeta, decode_unchecked
from codex_state.rollout.reading import MAX_LINE_BYTES, open_lines, skip_rest_of_line, stat_rollout


def read_session_meta(path: Path) -> SessionMeta:
    """The session_meta that a rollout begins with.

    Lines that can't be read, turn contexts and events may come before it; a response item may not.

    Raises:
        RolloutError: the file can't be read, or doesn't start with a session_meta.
    """
    stat_rollout(str(path))
    with open_lines(str(path)) as readline:
        while line := readline(MAX_LINE_BYTES):
            try:
                line.decode()
                item = decode_unchecked(line).payload
            except (ValueError, RecursionError):
                if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
                    skip_rest_of_line(readline)
                continue
            if isinstance(item, SessionMeta):
                return item
            if isinstance(item, ResponseItem):
                raise RolloutError(f"the rollout {path} does not start with session metadata")
    raise RolloutError(f"the rollout {path} is empty: it holds no session metadata")
