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
    match = _RFC_3339.fullmatch(text) or _NAME_FORM.fullmatch(text)
    if match is None:
        return None
    year, month, day, *clock = match.groups("0")
    hour, minute, second = map(int, clock[:3])
    sign, zone_hours, zone_minutes = clock[3:] or ("+", "0", "0")
    zone = 3600 * int(zone_hours) + 60 * int(zone_minutes)
    days = _days(year, month, day)
    if days is None or hour > 23 or minute > 59 or second > 60 or int(zone_hours) > 23 or int(zone_minutes) > 59:
        return None
    # A leap second counts as the second before it.
    local = 86_400 * days + 3600 * hour + 60 * minute + min(second, 59)
    return local + zone if sign == "-" else local - zone


@lru_cache(maxsize=64)
def _days(year: str, month: str, day: str) -> int | None:
    """How many days after the epoch's it is."""
    try:
        return date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
