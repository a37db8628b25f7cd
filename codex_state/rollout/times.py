"""The two forms of time that a rollout's session_meta may carry, in whole epoch seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_NAME_FORM = re.compile(r"(\d{1,4})-(\d{1,2})-(\d{1,2})T(\d{1,2})-(\d{1,2})-(\d{1,2})", re.ASCII)
_RFC_3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?:[Zz]|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_timestamp(text: str) -> int | None:
    """Whole epoch seconds, rounded down, of ``2026-01-02T03-04-05`` (UTC) or of an RFC 3339 time; ``None`` for others.

    ``datetime.fromisoformat`` isn't used, because it accepts much that the original refuses: dates without a zone,
    basic forms, ``24:00``.
    """
    if (match := _NAME_FORM.fullmatch(text)) is not None:
        return _seconds(match.group(1, 2, 3, 4, 5, 6), UTC)
    if (match := _RFC_3339.fullmatch(text)) is None:
        return None
    zone = UTC
    if match[7] is not None:
        hours, minutes = int(match[8]), int(match[9])
        if hours > 23 or minutes > 59:
            return None
        offset = timedelta(hours=hours, minutes=minutes)
        zone = timezone(offset if match[7] == "+" else -offset)
    return _seconds(match.group(1, 2, 3, 4, 5, 6), zone)


def _seconds(fields: tuple[str, ...], zone: timezone) -> int | None:
    year, month, day, hour, minute, second = map(int, fields)
    try:
        # A leap second counts as the second before it.
        moment = datetime(year, month, day, hour, minute, 59 if second == 60 else second, tzinfo=zone)
    except ValueError:
        return None
    return (moment - _EPOCH) // timedelta(seconds=1)
