"""Reading what people type: ids, moments, sources. Each refusal says what was expected."""

from __future__ import annotations

import re
from datetime import datetime
from uuid import UUID

from codex_state.errors import InvalidInputError

PLAIN_SOURCES = ("cli", "vscode", "exec", "mcp", "unknown")

_UNIX_SECONDS = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]+)?")


def thread_id_of(text: str) -> UUID:
    """A thread's id, in any spelling of a UUID: with or without hyphens, in braces, as a URN, in upper case.

    Raises:
        InvalidInputError: it is none of these.
    """
    try:
        return UUID(text.strip())
    except ValueError:
        raise InvalidInputError(
            f"malformed thread id {text!r}; expected a UUID like 0198c0de-0000-7000-8000-000000000001"
        ) from None


def epoch_seconds_of(text: str) -> int:
    """A moment as whole epoch seconds: RFC 3339 with a zone, or seconds since 1970.

    Raises:
        InvalidInputError: it is neither.
    """
    spelled = text.strip()
    if _UNIX_SECONDS.fullmatch(spelled):
        return int(spelled.partition(".")[0])
    try:
        moment = datetime.fromisoformat(spelled.upper())
    except ValueError:
        raise InvalidInputError(
            f"malformed date {text!r}; expected RFC 3339 like 2026-01-31T08:00:00Z, or unix seconds"
        ) from None
    if moment.tzinfo is None:
        raise InvalidInputError(f"the date {text!r} has no zone; add Z for UTC, or an offset like +02:00")
    from codex_state.models.columns import to_epoch_seconds

    return to_epoch_seconds(moment)


def source_of(text: str) -> str:
    """A thread's source as its row stores it: a plain word, or compact JSON with its fields in the stored order.

    Raises:
        InvalidInputError: it is neither a known word nor a JSON object that a rollout could hold.
    """
    import json

    from codex_state.rollout.format import source_text

    spelled = text.strip()
    if spelled in PLAIN_SOURCES:
        return spelled
    try:
        source = json.loads(spelled)
    except (ValueError, RecursionError):
        source = None
    if not isinstance(source, dict) or len(source) != 1:
        raise InvalidInputError(
            f"malformed source {text!r}; expected one of {', '.join(PLAIN_SOURCES)}, or JSON like "
            '{"subagent":"review"}'
        )
    return source_text(source)
