"""Reading both sides of a copy again, and comparing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from msgspec.msgpack import encode
from sqlalchemy import Connection

from codex_state.errors import CopyMismatchError
from codex_state.transfer.reports import spelled
from codex_state.transfer.statements import Row
from codex_state.transfer.tables import StoredTable

_DIGEST_BYTES = 16


def check_table(table: StoredTable, expected: Iterable[list[Row]], target: Connection) -> tuple[int, str]:
    """Compare what the target must hold with what it holds, page by page.

    Returns:
        How many rows were compared, and the checksum of the target's.

    Raises:
        CopyMismatchError: a row is missing or differs. The first one is named.
    """
    checked = 0
    checksum = blake2b(digest_size=_DIGEST_BYTES)
    for rows in expected:
        found = table.at(target, list(map(table.key_of, rows)))
        there = [found.get(table.key_of(row)) for row in rows]
        # Stored values are whole numbers, texts and the like, which are equal only when they are the same.
        if rows != there:
            raise CopyMismatchError(_difference(table, rows, there))
        checksum.update(encode(there))
        checked += len(there)
    return checked, checksum.hexdigest()


def _difference(table: StoredTable, expected: Sequence[Row], there: Sequence[Row | None]) -> str:
    row, found = next(pair for pair in zip(expected, there, strict=True) if pair[0] != pair[1])
    what = "is missing" if found is None else "differs"
    return (
        f"after the copy, {table.name} {spelled(table.key_of(row))} {what} in the target; "
        "if somebody writes there, stop them and copy again"
    )
