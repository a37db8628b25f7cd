"""Reading both sides of a copy again, and comparing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from sqlalchemy import Connection

from codex_state.errors import CopyMismatchError
from codex_state.transfer.reports import spelled
from codex_state.transfer.tables import Key, Row, StoredTable

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
        found = table.at(target, [table.key_of(row) for row in rows])
        there = [found.get(table.key_of(row)) for row in rows]
        if _digest(rows) != _digest(there):
            raise CopyMismatchError(_difference(table, rows, there))
        checksum.update(_digest(there))
        checked += len(there)
    return checked, checksum.hexdigest()


def _digest(rows: Sequence[Row | None]) -> bytes:
    # Stored values are numbers, texts, bytes and None, for which Python's spelling is one and only one.
    return blake2b("\n".join(map(repr, rows)).encode("utf-8"), digest_size=_DIGEST_BYTES).digest()


def _difference(table: StoredTable, expected: Sequence[Row], there: Sequence[Row | None]) -> str:
    key: Key
    for row, found in zip(expected, there, strict=True):
        if repr(row) != repr(found):
            key = table.key_of(row)
            break
    what = "is missing" if found is None else "differs"
    return (
        f"after the copy, {table.name} {spelled(key)} {what} in the target; "
        "if somebody writes there, stop them and copy again"
    )
