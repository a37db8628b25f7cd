"""Keeping log lines within bounds (law L10): in small steps, so that nobody waits long for the database.

No statement here deletes more than a batch, whose size follows how long the last one took. Between two batches the
database is free for others. What deleted lines took is given back to the file system, a few pages at a time.

Which lines go is decided by segments: whoever has inserted about a megabyte adds up the lines since the last segment,
once, and notes their number, their size and the time in a row of ``log_segments``. The total is then the sum of a
hundred rows, and the age of a line, since its insertion, is that of its segment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Dialect,
    Executable,
    String,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import insert

from codex_state.database.errors import raised_as_ours
from codex_state.database.execute import atomically, execute
from codex_state.database.sql import among, byte_length, server_now
from codex_state.models import LogEntry, LogSegment
from codex_state.models.base import table_of
from codex_state.models.columns import whole_seconds

_logs = table_of(LogEntry)
_segments = table_of(LogSegment)
_number = BigInteger()

TURN_SECONDS = 0.025
"""How long the lines of one unit of work may take to be deleted within it. The rest goes after its commit."""

_GAP_SECONDS = 0.001
"""Between two batches: whoever waits for the database looks for it more often."""

_FEW_LINES, _MANY_LINES = 32, 4096
_FAST_SECONDS, _SLOW_SECONDS = 0.01, 0.025
_PAGES_AT_ONCE = 64
_PAGES_LEFT = 512
"""So many free pages of an SQLite file are kept for the next lines, 2 MiB: giving back costs as much as filling."""

_WAL_BYTES = 8 * 1024 * 1024
"""A longer write-ahead log is cut by force."""
_WAL_PATIENCE_SECONDS = 0.5
_WAL_RETRY_SECONDS = 0.000_2

_LINES_AT_ONCE = 1000
_PAGE_BYTES = 4096
_LINES_ADDED_UP = 200
_SEGMENT_LINES = 4000
_SEGMENT_BYTES = 1024 * 1024
_SEGMENTS_WANTED = 64
_SEGMENT_SECONDS = 3600
"""A smaller segment is closed when the last one is so old, so that lines have an age where few are written."""

_ROOM = 2
"""One of so many parts of the bound in bytes is left free: for the log of SQLite, and what is inserted meanwhile."""

_AFTER_ALL = 2**63 - 1

UNFINISHED = "codex_state_unfinished_sweeps"
"""Where a session of the runtime's keeps what is to be deleted after its commit."""

_UPKEEP = "codex_state_log_upkeep"


_empty = literal_column("''", String())
_thread_bytes = byte_length(func.coalesce(_logs.c.thread_id, _empty)).label("thread_bytes")
_text_bytes = sum(
    (
        byte_length(func.coalesce(_logs.c[name], _empty))
        for name in ("message", "level", "target", "module_path", "file")
    ),
    literal_column("0", _number),
).label("text_bytes")


def size_of(text_bytes: int, thread_bytes: int) -> int:
    """What a line takes in an SQLite file, its entries in the indexes included, in bytes and from above."""
    cell = text_bytes + thread_bytes + 32
    # A page takes whole cells. A line that is longer than a page has pages of its own.
    in_table = _PAGE_BYTES // ((_PAGE_BYTES - 8) // cell) if cell < _PAGE_BYTES - 32 else cell + _PAGE_BYTES
    return in_table + 48 + 2 * thread_bytes


def _batch(condition: Any, *order: Any) -> Executable:
    # Skipping what another deletes just now: nobody waits for anybody, and no two wait for each other.
    batch = select(_logs.c.id).where(condition).order_by(*order).limit(bindparam("lines", type_=_number))
    return delete(_logs).where(among(_logs.c.id, batch.with_for_update(skip_locked=True))).returning(_logs.c.id)


_UP_TO = _batch(_logs.c.id <= bindparam("last_id", type_=_number), _logs.c.id)
_BEFORE = _batch(_logs.c.ts < bindparam("cutoff", type_=_number), _logs.c.ts, _logs.c.ts_nanos, _logs.c.id)
_OLDER_THAN = _batch(
    _logs.c.ts < server_now() - bindparam("age_seconds", type_=_number), _logs.c.ts, _logs.c.ts_nanos, _logs.c.id
)
_FIRST_BEYOND_ROWS = (
    select(_logs.c.id).order_by(_logs.c.id.desc()).limit(1).offset(bindparam("max_rows", type_=_number))
)
_SIZES_BEFORE = (
    select(_logs.c.id, _text_bytes, _thread_bytes)
    .where(_logs.c.id < bindparam("id", type_=_number))
    .order_by(_logs.c.id.desc())
    .limit(_LINES_AT_ONCE)
)
_next_lines = (
    select(_logs.c.id, _text_bytes, _thread_bytes)
    .where(_logs.c.id > bindparam("id", type_=_number))
    .order_by(_logs.c.id)
    .limit(_LINES_ADDED_UP)
    .subquery()
)
_SIZE_OF_NEXT = select(
    func.max(_next_lines.c.id).label("last_id"),
    func.count().label("lines"),
    func.sum(_next_lines.c.text_bytes).label("text_bytes"),
    func.sum(_next_lines.c.thread_bytes).label("thread_bytes"),
)

_last_closed = func.coalesce(select(func.max(_segments.c.last_id)).scalar_subquery(), 0)
_last_closed_at = func.coalesce(select(func.max(_segments.c.closed_at)).scalar_subquery(), 0)
_LAST_SEGMENT = select(_last_closed.label("last_id"), (server_now() - _last_closed_at).label("age"))
_CLOSE = (
    insert(_segments)
    .from_select(
        ["last_id", "lines", "size", "closed_at"],
        select(
            bindparam("last_id", type_=_number),
            bindparam("line_count", type_=_number),
            bindparam("size", type_=_number),
            server_now(),
        ).where(_last_closed == bindparam("after", type_=_number)),
    )
    .on_conflict_do_nothing()
    .returning(_segments.c.last_id)
)
_SEGMENTS = select(
    _segments.c.last_id,
    _segments.c.lines,
    _segments.c.size,
    (server_now() - func.coalesce(_segments.c.closed_at, 0)).label("age"),
).order_by(_segments.c.last_id)
_first_line = select(func.min(_logs.c.id)).scalar_subquery()
_is_empty = or_(_first_line.is_(None), _segments.c.last_id < _first_line)
_FORGET_EMPTY = delete(_segments).where(_is_empty).returning(_segments.c.last_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBounds:
    """What the logs may be at most; ``None`` is no bound."""

    max_bytes: int | None = None
    """What lines take in an SQLite file, with their index entries, and with SQLite's own log."""
    max_rows: int | None = None
    max_age: timedelta | None = None
    """Since their insertion, by the database's clock."""


@dataclass(slots=True, kw_only=True)
class Sweep:
    """Lines that somebody wants deleted, and how far that has come."""

    max_age: timedelta | None = None
    """By the lines' own times."""
    max_rows: int | None = None
    max_bytes: int | None = None
    before: int | None = None
    up_to_id: int | None = None
    _bytes_from: int = _AFTER_ALL
    _bytes_seen: int = 0

    def run(self, connection: Connection, until: float | None = None) -> Iterator[int]:
        """Delete in batches, and give the number of lines in each. Stops after ``until``, by the monotonic clock.

        A batch follows the one before when the caller asks for it, so a transaction of the caller's can end between.
        """
        pace = _Pace()
        if self.up_to_id is not None:
            yield from pace.batches(connection, _UP_TO, {"last_id": self.up_to_id}, until)
        if self.before is not None:
            yield from pace.batches(connection, _BEFORE, {"cutoff": self.before}, until)
        if self.max_age is not None:
            yield from pace.batches(connection, _OLDER_THAN, {"age_seconds": whole_seconds(self.max_age)}, until)
        if self.max_rows is not None:
            for row in execute(connection, _FIRST_BEYOND_ROWS, {"max_rows": max(self.max_rows, 0)}):
                yield from pace.batches(connection, _UP_TO, {"last_id": row.id}, until)
        if self.max_bytes is not None:
            last_id = self._first_beyond_bytes(connection, max(self.max_bytes, 0), until)
            if last_id is not None:
                yield from pace.batches(connection, _UP_TO, {"last_id": last_id}, until)
        if not is_over(until):
            execute(connection, _FORGET_EMPTY, {})

    def _first_beyond_bytes(self, connection: Connection, max_bytes: int, until: float | None) -> int | None:
        while self._bytes_seen <= max_bytes and not is_over(until):
            rows = execute(connection, _SIZES_BEFORE, {"id": self._bytes_from})
            if not rows:
                return None
            for row in rows:
                self._bytes_seen += size_of(row.text_bytes, row.thread_bytes)
                self._bytes_from = row.id
                if self._bytes_seen > max_bytes:
                    break
        return self._bytes_from if self._bytes_seen > max_bytes else None


class _Pace:
    """How many lines go at once: as many as take about ten milliseconds."""

    def __init__(self) -> None:
        self._lines = _FEW_LINES * 4

    def batches(
        self, connection: Connection, statement: Executable, parameters: dict[str, Any], until: float | None
    ) -> Iterator[int]:
        while not is_over(until):
            begun = time.monotonic()
            wanted = self._lines
            deleted = len(execute(connection, statement, parameters | {"lines": wanted}))
            took = time.monotonic() - begun
            if took < _FAST_SECONDS:
                self._lines = min(wanted * 2, _MANY_LINES)
            elif took > _SLOW_SECONDS:
                self._lines = max(wanted // 2, _FEW_LINES)
            if deleted:
                yield deleted
            if deleted < wanted:
                return


class LogUpkeep:
    """Keeps the logs of one database within bounds, in turns of whoever has just written to it."""

    def __init__(self, bounds: LogBounds) -> None:
        self.bounds = bounds
        step = _SEGMENT_BYTES if bounds.max_bytes is None else bounds.max_bytes // _SEGMENTS_WANTED
        self._segment_bytes = max(1, min(step, _SEGMENT_BYTES))
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what is under way: in the child of a fork."""
        self._lock = Lock()
        self._written = 0
        self._due_at = time.monotonic() + _SEGMENT_SECONDS

    def watch(self, dialect: Dialect) -> None:
        """Be told of what is inserted through engines of this dialect."""
        dialect.__dict__[_UPKEEP] = self

    def note(self, size: int) -> None:
        """That lines of about so many bytes were inserted."""
        self._written += size

    @property
    def is_due(self) -> bool:
        """Whether it is time to look: something was written, and either much of it or long ago."""
        return self._written >= self._segment_bytes or (self._written > 0 and is_over(self._due_at))

    @property
    def has_news(self) -> bool:
        """Whether anything was written since the last look."""
        return self._written > 0

    def keep(self, connection: Connection) -> None:
        """Take a turn, on a connection on which every statement commits by itself.

        It is as long as what was written since the last one deserves, so that the caller isn't kept by what others
        left behind.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            patience = 4 * TURN_SECONDS * (1 + self._written / _SEGMENT_BYTES)
            self._written, self._due_at = 0, time.monotonic() + _SEGMENT_SECONDS
            until = time.monotonic() + patience
            for _batch_of_lines in keep_within(connection, self.bounds, until):
                time.sleep(_GAP_SECONDS)
            if is_over(until):
                self._written = self._segment_bytes  # the next one goes on
            cut_wal(connection)
        finally:
            self._lock.release()

    def keep_all(self, connection: Connection) -> int:
        """Delete all that is beyond the bounds, however long it takes. Returns how many lines went."""
        deleted = 0
        with self._lock:
            for lines in keep_within(connection, self.bounds):
                deleted += lines
                time.sleep(_GAP_SECONDS)
        return deleted


def upkeep_of(connection: Connection) -> LogUpkeep | None:
    """Who keeps the logs behind a connection within bounds; nobody does on an engine that isn't ours."""
    upkeep: LogUpkeep | None = connection.dialect.__dict__.get(_UPKEEP)
    return upkeep


def finish(connection: Connection, sweep: Sweep) -> int:
    """Go on with a sweep to its end, on a connection on which every statement commits by itself."""
    deleted = 0
    for lines in sweep.run(connection):
        deleted += lines
        time.sleep(_GAP_SECONDS)
    for _step in give_back(connection, _PAGES_LEFT):
        time.sleep(_GAP_SECONDS)
    return deleted


def keep_within(connection: Connection, bounds: LogBounds, until: float | None = None) -> Iterator[int]:
    """Delete what is beyond the bounds, in batches, and give the space back. Gives the number of lines in each.

    Args:
        connection: one on which every statement commits by itself.
        bounds: what may stay.
        until: when to stop at the latest, by the monotonic clock.
    """
    size = bounds.max_bytes
    step = _SEGMENT_BYTES if size is None else max(1, min(size // _SEGMENTS_WANTED, _SEGMENT_BYTES))
    _close_segments(connection, step, until)
    doomed = _last_doomed(connection, bounds)
    if doomed is not None:
        yield from Sweep(up_to_id=doomed).run(connection, until)
    if bounds.max_rows is not None:
        yield from Sweep(max_rows=bounds.max_rows).run(connection, until)
    yield from (0 for _step in give_back(connection, _PAGES_LEFT, until))


def sizes(connection: Connection) -> Iterator[tuple[int, int]]:
    """The id and the size of every line, the newest first."""
    before = _AFTER_ALL
    while rows := execute(connection, _SIZES_BEFORE, {"id": before}):
        for row in rows:
            yield row.id, size_of(row.text_bytes, row.thread_bytes)
        before = rows[-1].id


def _close_segments(connection: Connection, step: int, until: float | None) -> None:
    """Note the lines that belong to no segment yet, but for a rest that is still too small for one.

    They are added up without the write lock. Of several who do so at once, each segment is closed by one.
    """
    (last,) = execute(connection, _LAST_SEGMENT, {})
    after = last_id = last.last_id
    lines = size = 0
    while True:
        (following,) = execute(connection, _SIZE_OF_NEXT, {"id": last_id})
        if following.lines:
            # As if all of them were as long: adding up each by itself would cost a sixth of its insertion.
            lengths = (int(total) // following.lines for total in (following.text_bytes, following.thread_bytes))
            lines, last_id = lines + following.lines, following.last_id
            size += following.lines * size_of(*lengths)
            if size >= step or lines >= _SEGMENT_LINES:
                if not _close(connection, after, last_id, lines, size) or is_over(until):
                    return
                after, lines, size = last_id, 0, 0
        if following.lines < _LINES_ADDED_UP:
            break
    if lines and last.age >= _SEGMENT_SECONDS and after == last.last_id:
        _close(connection, after, last_id, lines, size)


def _close(connection: Connection, after: int, last_id: int, lines: int, size: int) -> bool:
    values = {"last_id": last_id, "line_count": lines, "size": size, "after": after}
    return bool(execute(connection, _CLOSE, values))


def _last_doomed(connection: Connection, bounds: LogBounds) -> int | None:
    segments = execute(connection, _SEGMENTS, {})
    total = sum(segment.size for segment in segments)
    allowed = None if bounds.max_bytes is None else bounds.max_bytes - bounds.max_bytes // _ROOM
    age = None if bounds.max_age is None else whole_seconds(bounds.max_age)
    doomed = None
    for segment in segments:
        if not (allowed is not None and total > allowed) and not (age is not None and segment.age > age):
            break
        total -= segment.size
        doomed = segment.last_id
    return doomed


def give_back(connection: Connection, pages_left: int, until: float | None = None) -> Iterator[int]:
    """Give free pages of an SQLite file back to the file system, a few at a time; their number in each step.

    PostgreSQL's autovacuum makes the space of deleted rows free for new ones by itself.
    """
    if connection.dialect.name != "sqlite":
        return
    driver: Any = connection.connection.driver_connection
    with raised_as_ours(connection.engine.url), closing(driver.cursor()) as cursor:

        def free_pages() -> int:
            (pages,) = cursor.execute("PRAGMA freelist_count").fetchone()
            return int(pages)

        at_first = free = free_pages()
        while free > pages_left and not is_over(until):
            before, turn_over = free, time.monotonic() + _FAST_SECONDS
            with atomically(connection):
                # One at a time, whatever number it is given: Python's driver makes one step of such a statement.
                while free > pages_left and not is_over(turn_over):
                    for _page in range(min(free - pages_left, _PAGES_AT_ONCE)):
                        cursor.execute("PRAGMA incremental_vacuum(1)")
                    free = free_pages()
            if free >= before:
                break  # a file that was made without
            yield before - free
    if free < at_first:
        cut_wal(connection, limit=0)  # it is the checkpoint that cuts the file


def cut_wal(connection: Connection, limit: int = _WAL_BYTES) -> None:
    """Take SQLite's write-ahead log into the file and cut it, when it is longer than ``limit`` bytes.

    SQLite does so by itself once nobody writes for a moment. Several who write without a pause never leave it one, and
    the log would grow for ever. The first checkpoint keeps no writer waiting, and leaves little for the second.
    """
    name = connection.engine.url.database
    if connection.dialect.name != "sqlite" or not name or name == ":memory:":
        return
    try:
        if Path(f"{name}-wal").stat().st_size <= limit:
            return
    except OSError:
        return
    driver: Any = connection.connection.driver_connection
    until = time.monotonic() + _WAL_PATIENCE_SECONDS
    with raised_as_ours(connection.engine.url), closing(driver.cursor()) as cursor:
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        while not is_over(until):
            ((is_busy, _frames, _taken),) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if not is_busy:
                return
            time.sleep(_WAL_RETRY_SECONDS)


def is_over(moment: float | None) -> bool:
    """Whether a moment of the monotonic clock has come."""
    return moment is not None and time.monotonic() >= moment
