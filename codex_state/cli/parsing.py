"""Reading what people type: ids, moments, sources. Each refusal says what was expected."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import date, datetime, timedelta
from uuid import UUID

from codex_state.errors import InvalidInputError

PLAIN_SOURCES = ("cli", "vscode", "exec", "mcp", "unknown")

_BEGINNING = re.compile(r"[0-9a-f]{4,31}", re.ASCII)
_UNIX_SECONDS = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]+)?")
_AGO = re.compile(r"(?P<count>[0-9]{1,9})\s*(?P<unit>[smhdw])(?: ago)?", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}", re.ASCII)
_DAYS_AGO = {"today": 0, "yesterday": 1}
_BYTES = re.compile(r"(?P<count>[0-9]{1,12})\s*(?P<unit>[kmg]?)(?P<binary>i?)b?", re.ASCII | re.IGNORECASE)


def thread_id_of(text: str) -> UUID:
    """A thread's id, in any spelling of a UUID: with or without hyphens, in braces, as a URN, in upper case.

    Raises:
        InvalidInputError: it is none of these.
    """
    try:
        return UUID(text.strip())
    except ValueError:
        raise InvalidInputError(
            f"malformed thread id {text!r}; expected a UUID like 0198c0de-0000-7000-8000-000000000001, "
            "or at least its first four digits"
        ) from None


def thread_id_or_beginning(text: str) -> UUID | str:
    """A thread's id, or how it begins: four hexadecimal digits or more, in lower case and without hyphens.

    Raises:
        InvalidInputError: it is neither.
    """
    digits = text.strip().lower().replace("-", "")
    return digits if _BEGINNING.fullmatch(digits) else thread_id_of(text)


def epoch_seconds_of(text: str, *, end_of_day: bool = False) -> int:
    """A moment as whole epoch seconds: RFC 3339 with a zone, seconds since 1970, how long ago, like ``2h``, or a day.

    Days are local ones: ``today``, ``yesterday``, ``2026-11-01``; or a month, ``2026-11``.

    Args:
        text: what was typed.
        end_of_day: whether a day or a month means its last second, not its first.

    Raises:
        InvalidInputError: it is none of these.
    """
    spelled = text.strip()
    if (days := _days_of(spelled.lower())) is not None:
        edge = days[1] if end_of_day else days[0]
        return int(time.mktime(edge.timetuple())) - end_of_day
    if _UNIX_SECONDS.fullmatch(spelled):
        return int(spelled.partition(".")[0])
    if (ago := _AGO.fullmatch(spelled.lower())) is not None:
        return int(time.time()) - int(ago["count"]) * _UNIT_SECONDS[ago["unit"]]
    try:
        moment = datetime.fromisoformat(spelled.upper())
    except ValueError:
        raise InvalidInputError(
            f"malformed date {text!r}; expected RFC 3339 like 2026-01-31T08:00:00Z, a day like 2026-01-31 or "
            "yesterday, a month, unix seconds, or how long ago, like 2h or 7d"
        ) from None
    if moment.tzinfo is None:
        raise InvalidInputError(f"the date {text!r} has no zone; add Z for UTC, or an offset like +02:00")
    from codex_state.models.columns import to_epoch_seconds

    return to_epoch_seconds(moment)


def _days_of(text: str) -> tuple[date, date] | None:
    """A first day, and the one after the last."""
    if text in _DAYS_AGO:
        day = date.today() - timedelta(days=_DAYS_AGO[text])  # noqa: DTZ011 - the day that people have
        return day, day + timedelta(days=1)
    with suppress(ValueError, OverflowError):  # a day that no calendar has, or none after it
        if _DAY.fullmatch(text):
            day = date.fromisoformat(text)
            return day, day + timedelta(days=1)
        if _MONTH.fullmatch(text):
            first = date.fromisoformat(f"{text}-01")
            return first, (first + timedelta(days=31)).replace(day=1)
    return None


def bytes_of(text: str) -> int:
    """A size in bytes: a number, with ``k``, ``M`` or ``G`` (of 1,000) or ``KiB``, ``MiB`` or ``GiB`` (of 1,024).

    Raises:
        InvalidInputError: it is none.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["unit"]):
        raise InvalidInputError(f"malformed size {text!r}; expected bytes, or a number like 16MiB")
    base = 1024 if match["binary"] else 1000
    return int(match["count"]) * int(base ** " kmg".index(match["unit"].lower() or " "))


def source_of(text: str) -> str:
    """A thread's source as its row stores it: a plain word, or compact JSON with its fields in the stored order.

    Raises:
        InvalidInputError: it is neither a known word nor a JSON object that a rollout could hold.
    """
    import json

    from codex_state.models import SUBAGENT
    from codex_state.rollout.format import source_text

    spelled = text.strip()
    if spelled == SUBAGENT or spelled in PLAIN_SOURCES:
        return spelled
    try:
        source = json.loads(spelled)
    except (ValueError, RecursionError):
        source = None
    if not isinstance(source, dict) or len(source) != 1:
        raise InvalidInputError(
            f"malformed source {text!r}; expected one of {', '.join(PLAIN_SOURCES)}, {SUBAGENT}, or JSON like "
            '{"subagent":"review"}'
        )
    return source_text(source)
