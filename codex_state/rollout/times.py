"""The two forms of time that a rollout's session_meta may carry, in whole epoch seconds."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

_NAME_FORM = re.compile(r"(\d{1,4})-(\d{1,2})-(\d{1,2})T(\d{1,2})-(\d{1,2})-(\d{1,2})", re.ASCII)
_RFC_3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?:[Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_EPOCH = date(1970, 1, 1).toordinal()


def parse_timestamp(text: str) -> int | None:
    """Whole epoch seconds, rounded down, of ``2026-01-02T03-04-05`` (UTC) or of an RFC 3339 time; ``None`` for others.

    ``datetime.fromisoformat`` isn't used, because it accepts much that the original refuses: dates without a zone,
    basic forms, ``24:00``.
    """
    if (match := _RFC_3339.fullmatch(text)) is None:
        match = _NAME_FORM.fullmatch(text)
        return None if match is None else _seconds(match.group(1, 2, 3, 4, 5, 6))
    seconds = _seconds(match.group(1, 2, 3, 4, 5, 6))
    if match[7] is None or seconds is None:
        return seconds
    hours, minutes = int(match[8]), int(match[9])
    if hours > 23 or minutes > 59:
        return None
    offset = 3600 * hours + 60 * minutes
    return seconds - offset if match[7] == "+" else seconds + offset


def _seconds(fields: tuple[str, ...]) -> int | None:
    day = _day(*fields[:3])
    hour, minute, second = map(int, fields[3:])
    if day is None or hour > 23 or minute > 59 or second > 60:
        return None
    # A leap second counts as the second before it.
    return 86_400 * day + 3600 * hour + 60 * minute + min(second, 59)


@lru_cache(maxsize=64)
def _day(year: str, month: str, day: str) -> int | None:
    """How many days after the epoch's it is."""
    try:
        return date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
