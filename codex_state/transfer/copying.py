"""Copying a whole state: from one snapshot of the source, in batches, so that it can be run again at any time.

Where both databases have a row for the same key, the later version wins where a row carries one. Where nothing tells,
the target's row stays and is named. Afterwards both sides are read again and compared.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from itertools import compress
from typing import Any, NamedTuple

from msgspec.msgpack import encode
from sqlalchemy import Connection, func, select, text

from codex_state import migrations
from codex_state.database.errors import SchemaTooNewError, place_of
from codex_state.errors import CopyMismatchError, IntegrityViolationError, InvalidInputError
from codex_state.models import LOCAL_HOME, BackfillStatus
from codex_state.runtime import State, StateRuntime
from codex_state.transfer.tables import Key, Row, StoredTable, stored_tables

MAX_NAMED = 1000
"""How many rows a report names; all are counted (law L10)."""


class RowOutcome(StrEnum):
    """What became of a row of the source."""

    INSERTED = "inserted"
    UPDATED = "updated"
    """The target had an older version, or one that lacked something."""
    UNCHANGED = "unchanged"
    """The target had the same row."""
    KEPT = "kept"
    """The target has a newer version, or its row stands by the table's rule."""
    CONFLICT = "conflict"
    """Nothing tells which version is newer, so the target's was left alone."""
    REFUSED = "refused"
    """The target can't store the row."""


@dataclass(frozen=True, slots=True)
class NamedRow:
    """A row of the source that isn't in the target."""

    table: str
    key: tuple[Any, ...]
    """Its primary key."""
    reason: str

    def __str__(self) -> str:
        return f"{self.table} {spelled(self.key)}: {self.reason}"


@dataclass(slots=True)
class TableCopy:
    """What became of one table's rows. Every row of the source counts once."""

    name: str
    rows: int = 0
    """How many the source has."""
    outcomes: dict[RowOutcome, int] = field(default_factory=lambda: dict.fromkeys(RowOutcome, 0))
    checked: int = 0
    """How many rows were read back and are the same on both sides."""
    checksum: str = ""
    """Of those rows, as the target holds them; the source's was the same."""


@dataclass(slots=True)
class CopyReport:
    """What a copy did."""

    tables: list[TableCopy] = field(default_factory=list)
    left: list[NamedRow] = field(default_factory=list)
    """The first rows that are in conflict or were refused; the tables count all."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything of the source is in the target, or something newer of it."""
        return not self.total(RowOutcome.CONFLICT) and not self.total(RowOutcome.REFUSED)

    @property
    def rows(self) -> int:
        """How many rows the source has."""
        return sum(table.rows for table in self.tables)

    def total(self, outcome: RowOutcome) -> int:
        """How many rows of all tables ended like this."""
        return sum(table.outcomes[outcome] for table in self.tables)


class CopyStage(StrEnum):
    """What a copy is doing."""

    COPYING = "copying"
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """Where a copy stands after a batch. Each stage goes over all rows once."""

    stage: CopyStage
    table: str
    rows_done: int
    rows_total: int


OnCopyProgress = Callable[[CopyProgress], None]


def spelled(key: tuple[Any, ...]) -> str:
    """A key for people."""
    return " ".join(map(str, key))


_PUT_IDS_AFTER = text(
    "SELECT setval(ids, :last)"
    " FROM (SELECT pg_get_serial_sequence('logs', 'id')::regclass AS ids) AS logs_ids"
    " WHERE coalesce(pg_sequence_last_value(ids), 0) < :last"
)
_SCOPES = "memory_scope_dirty"
_MEMORIES = "thread_memory"
_JOBS = "memory_phase1_jobs"
# Batch claims may have passed over the thread for the job that was there.
_LOOK_AGAIN = text("UPDATE threads SET cwd_settled_for = NULL, user_settled_for = NULL WHERE id = :of_thread")
_OF_SCOPE = "WHERE scope_kind = :of_kind AND scope_key = :of_key"
# Strictly later, so that a consolidation which is under way doesn't declare it clean (law L4).
_MARK_SCOPE = text(f"UPDATE {_SCOPES} SET dirty = 1, updated_at = updated_at + 1 {_OF_SCOPE}")  # noqa: S608
_MEMORIES_OF_SCOPE = text(
    f"SELECT thread_id, updated_at, invalidated_at FROM {_MEMORIES} {_OF_SCOPE} ORDER BY thread_id"  # noqa: S608
)
_LOCK_ON_SOURCE = text("SELECT pg_advisory_xact_lock(:key)")
_IS_FREE_ON_TARGET = text("SELECT pg_try_advisory_xact_lock(:key)")


class _Settled(NamedTuple):
    outcome: RowOutcome
    is_whole: bool
    """Whether the target now holds exactly the source's row."""
    reason: str = ""


_INSERTED = _Settled(RowOutcome.INSERTED, is_whole=True)
_UNCHANGED = _Settled(RowOutcome.UNCHANGED, is_whole=True)
_KEPT = _Settled(RowOutcome.KEPT, is_whole=False)
_CONFLICT = _Settled(
    RowOutcome.CONFLICT, is_whole=False, reason="the target has a different row, and nothing tells which is newer"
)


def copy_state(
    source: StateRuntime, target: StateRuntime, *, logs: bool = True, on_progress: OnCopyProgress | None = None
) -> CopyReport:
    """Copy every row of ``source`` into ``target``, then read both sides again and compare them.

    The source is read from one snapshot and never written. Whatever stops a copy, run it again: rows that are there
    are skipped. Workers of both sides should be stopped; what is written to the source meanwhile isn't in the snapshot.

    Args:
        source: the state to copy.
        target: the state to copy into. Rows of the source's home become rows of the target's home.
        logs: whether log lines are copied.
        on_progress: called after each batch. What it raises ends the copy there.

    Raises:
        InvalidInputError: both are the same database.
        SchemaTooNewError: the source has a newer schema, with more than this version knows.
        CopyMismatchError: the two sides differ after the copy.
        DatabaseError: one of the databases failed.
    """
    started = time.monotonic()
    with source.database.read() as session:
        connection = session.connection()
        _refuse_newer(connection)
        _refuse_same(source, connection, target)
        tables = [table for table in stored_tables() if logs or table.name != "logs"]
        copy = _Copy(source, target, connection, on_progress)
        copy.report.tables = [TableCopy(table.name, table.count(connection)) for table in tables]
        for table, counts in zip(tables, copy.report.tables, strict=True):
            copy.copy_table(table, counts)
        copy.check(tables)
    copy.report.seconds = time.monotonic() - started
    return copy.report


class _Copy:
    def __init__(
        self, source: StateRuntime, target: StateRuntime, connection: Connection, on_progress: OnCopyProgress | None
    ) -> None:
        self.report = CopyReport()
        self._target = target
        self._connection = connection
        self._on_progress = on_progress
        self._done = 0
        self._to_postgresql = target.database.dialect == "postgresql"
        self._homes = {source.home: target.home}
        if source.database.dialect == "sqlite":
            # Whatever the setting says now: it may be there for the target's sake.
            self._homes[LOCAL_HOME] = target.home
        self._whole: dict[str, bytearray] = {}
        """For each row of a table's snapshot, in order, whether the target must hold exactly this."""

    def copy_table(self, table: StoredTable, counts: TableCopy) -> None:
        whole = self._whole[table.name] = bytearray()
        if table.name == "logs" and self._to_postgresql:
            self._keep_ids_free(table)
        places: dict[Key, int] = {}
        for page in table.pages(self._connection):
            rows = self._mapped(table, page)
            if table.has_home_in_key:
                settled = self._store_each(table, rows, whole, places)
            else:
                settled = self._store(table, rows)
                whole.extend(row.is_whole for row in settled)
            self._note(table, counts, rows, settled)
            self._tell(CopyStage.COPYING, table, len(page))

    def check(self, tables: Sequence[StoredTable]) -> None:
        self._done = 0
        for table, counts in zip(tables, self.report.tables, strict=True):
            with self._target.database.read() as session:
                pages = self._checked_pages(table)
                counts.checked, counts.checksum = check_table(table, pages, session.connection())

    def _checked_pages(self, table: StoredTable) -> Iterator[list[Row]]:
        """What the target must hold, read once more from the source."""
        place = 0
        whole = self._whole[table.name]
        for page in table.pages(self._connection):
            yield self._mapped(table, compress(page, whole[place : place + len(page)]))
            place += len(page)
            self._tell(CopyStage.CHECKING, table, len(page))

    def _mapped(self, table: StoredTable, rows: Iterable[Row]) -> list[Row]:
        at = table.home_at
        if at is None:
            return list(rows)
        return [(*row[:at], self._homes.get(row[at], row[at]), *row[at + 1 :]) for row in rows]

    def _store_each(
        self, table: StoredTable, rows: Sequence[Row], whole: bytearray, places: dict[Key, int]
    ) -> list[_Settled]:
        """Store rows one by one: two of them may have the same key now that their homes are mapped."""
        settled = []
        for row in rows:
            (one,) = self._store(table, [row])
            if one.is_whole:
                before = places.setdefault(table.key_of(row), len(whole))
                if before < len(whole):
                    whole[before] = 0
                    places[table.key_of(row)] = len(whole)
            whole.append(one.is_whole)
            settled.append(one)
        return settled

    def _store(self, table: StoredTable, rows: list[Row]) -> list[_Settled]:
        if not self._to_postgresql:
            return self._store_storable(table, rows)
        reasons = [table.why_not_on_postgresql(row) for row in rows]
        storable = self._store_storable(
            table, [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        )
        settled = iter(storable)
        return [next(settled) if reason is None else _refused(reason) for reason in reasons]

    def _store_storable(self, table: StoredTable, rows: list[Row]) -> list[_Settled]:
        """Write a batch in one transaction; if the target refuses it, in halves, until the refused row is alone."""
        if not rows:
            return []
        try:
            return self._target.run(lambda state: _write(state, self._connection, table, rows))
        except (InvalidInputError, IntegrityViolationError) as error:
            if len(rows) == 1:
                return [_refused(str(error))]
        middle = len(rows) // 2
        return self._store_storable(table, rows[:middle]) + self._store_storable(table, rows[middle:])

    def _keep_ids_free(self, table: StoredTable) -> None:
        # Before the lines: whoever logs into the target from now on must not be given their ids.
        last = table.largest(self._connection, "id")
        if isinstance(last, int) and last > 0:
            with self._target.begin() as state:
                state.session.connection().execute(_PUT_IDS_AFTER, {"last": last})

    def _note(self, table: StoredTable, counts: TableCopy, rows: Sequence[Row], settled: Sequence[_Settled]) -> None:
        for outcome, count in Counter(each.outcome for each in settled).items():
            counts.outcomes[outcome] += count
        for row, each in zip(rows, settled, strict=True):
            if each.reason and len(self.report.left) < MAX_NAMED:
                self.report.left.append(NamedRow(table.name, table.key_of(row), each.reason))

    def _tell(self, stage: CopyStage, table: StoredTable, rows: int) -> None:
        self._done += rows
        if self._on_progress is not None:
            self._on_progress(CopyProgress(stage, table.name, self._done, self.report.rows))


def _refused(reason: str) -> _Settled:
    return _Settled(RowOutcome.REFUSED, is_whole=False, reason=reason)


def _write(state: State, source: Connection, table: StoredTable, rows: Sequence[Row]) -> list[_Settled]:
    """Write a batch into the target and tell what became of each row."""
    connection = state.session.connection()
    wanted = {table.key_of(row): row for row in rows}
    there = table.at(connection, list(wanted))
    # Those that differ are read again, so that nobody changes them between the decision and the write.
    there |= table.at(connection, [key for key, row in there.items() if row != wanted[key]], locked=True)
    missing = [row for key, row in wanted.items() if key not in there]
    replacing: dict[Key, Row] = {}
    settled: list[_Settled] = []
    for key, row in wanted.items():
        theirs = there.get(key)
        if theirs is None:
            settled.append(_INSERTED)
        elif theirs == row:
            settled.append(_UNCHANGED)
        else:
            stands = _standing(source, connection, table, row, theirs)
            settled.append(_settled_by(stands, row, theirs))
            if stands is not None and stands != theirs:
                replacing[key] = stands
    table.insert(connection, missing)
    table.replace(connection, list(replacing.values()))
    if table.name == _JOBS and replacing:
        connection.execute(
            _LOOK_AGAIN, [{"of_thread": thread} for thread in dict.fromkeys(key[0] for key in replacing)]
        )
    if table.name == _MEMORIES:
        news = (table.values_of(row) for key, row in replacing.items() if _is_news(table, there[key], row))
        _mark_scopes(connection, [*map(table.values_of, missing), *news])
    return settled


def _standing(source: Connection, target: Connection, table: StoredTable, row: Row, theirs: Row) -> Row | None:
    """The row that stands by the table's rule; ``None`` when nothing tells."""
    ours = table.values_of(row)
    if table.name == _SCOPES:
        ours[SAME_MEMORIES] = _memories_of(source, ours) == _memories_of(target, ours)
    stands = rule_of(table.name)(ours, table.values_of(theirs))
    return None if stands is None else table.row_of(stands)


def _settled_by(stands: Row | None, row: Row, theirs: Row) -> _Settled:
    if stands is None:
        return _CONFLICT
    if stands == theirs:
        return _KEPT
    return _Settled(RowOutcome.UPDATED, is_whole=stands == row)


def _is_news(table: StoredTable, before: Row, after: Row) -> bool:
    """Whether a memory says something else than before. That it was used doesn't count."""
    old, new = table.values_of(before), table.values_of(after)
    return any(old[name] != new[name] for name in ("updated_at", "invalidated_at"))


def _mark_scopes(connection: Connection, memories: Sequence[Values]) -> None:
    """A scope that the target already speaks of has news now; the source's own word on it comes later."""
    scopes = sorted({(memory["scope_kind"], memory["scope_key"]) for memory in memories})
    if scopes:
        connection.execute(_MARK_SCOPE, [{"of_kind": kind, "of_key": key} for kind, key in scopes])


def _memories_of(connection: Connection, scope: Values) -> Sequence[tuple[Any, ...]]:
    of_scope = {"of_kind": scope["scope_kind"], "of_key": scope["scope_key"]}
    return [tuple(map(str, row)) for row in connection.execute(_MEMORIES_OF_SCOPE, of_scope)]


def _refuse_newer(connection: Connection) -> None:
    """A newer schema that this version can use holds more than this version would copy."""
    revision = migrations.current_revision(connection)
    if revision is not None and revision > migrations.HEAD:
        raise SchemaTooNewError(
            f"{place_of(connection.engine.url)} is at revision {revision!r}, which holds more than this version of "
            "codex-state can copy; upgrade codex-state. Nothing was changed"
        )


def _refuse_same(source: StateRuntime, connection: Connection, target: StateRuntime) -> None:
    if source.database.dialect != target.database.dialect:
        return
    if source.database.dialect == "sqlite":
        paths = source.database.path, target.database.path
        same = source is target or (paths[0] is not None and paths[1] is not None and paths[0].samefile(paths[1]))
    else:
        # Whatever the URLs look like: a lock that is taken there is seen only in the same database.
        key = {"key": secrets.randbits(62)}
        connection.execute(_LOCK_ON_SOURCE, key)
        schema = select(func.current_schema())
        with target.begin() as state:
            there = state.session.connection()
            same = not there.execute(_IS_FREE_ON_TARGET, key).scalar_one() and (
                connection.execute(schema).scalar_one() == there.execute(schema).scalar_one()
            )
    if same:
        raise InvalidInputError("the source and the target are the same database; name another target")


Values = dict[str, Any]

SAME_MEMORIES = "same_memories"
"""What is told of a scope of the source beside its columns: whether the target has its memories, and no others."""

Rule = Callable[[Values, Values], Values | None]
"""Given the source's and the target's row, the one that shall stand; ``None`` when nothing tells."""


def _later(*version: str) -> Rule:
    def rule(source: Values, target: Values) -> Values | None:
        ours, theirs = (tuple(_number(row[name]) for name in version) for row in (source, target))
        if ours == theirs:
            return None
        return source if ours > theirs else target

    return rule


def _number(value: Any) -> int:
    # SQLite's columns can hold anything, but only numbers have an order that means something here.
    return value if isinstance(value, int) else -1


_later_thread = _later("updated_at")
# What a use of a memory counts, and that it was invalidated, doesn't move its time.
_later_memory = _later("updated_at", "used_count", "last_used_at", "invalidated_at")
# One attempt moves on from running to finished.
_later_job = _later("attempt", "finished_at", "started_at")
_later_row = _later("updated_at")


_GIVEN = {"name_at": "name", "memory_mode_chosen_at": "memory_mode"}
"""What somebody gave a thread, by the column that says when: it isn't in the rollouts and moves no other time."""


def _thread(source: Values, target: Values) -> Values | None:
    """The later rollout's row, with the name and the memory mode that were given last."""
    given: Values = {}
    for given_at, value in _GIVEN.items():
        ours, theirs = _number(source[given_at]), _number(target[given_at])
        if ours != theirs:
            later = source if ours > theirs else target
            given |= {given_at: later[given_at], value: later[value]}
        elif source[given_at] is not None and source[value] != target[value]:
            return None
    source, target = source | given, target | given
    return target if source == target else _later_thread(source, target)


def _scope(source: Values, target: Values) -> Values | None:
    """The target may have memories that the source doesn't know, so the source can't declare its scope clean."""
    if _number(source["updated_at"]) < _number(target["updated_at"]):
        return target
    if source["updated_at"] != target["updated_at"] and source[SAME_MEMORIES]:
        return source
    return source | {"dirty": max(_number(source["dirty"]), _number(target["dirty"]))}


def _lock(renewed_at: str) -> Rule:
    """A lock that somebody else took in the target since is theirs."""
    later = _later(renewed_at)

    def rule(source: Values, target: Values) -> Values | None:
        return later(source, target) if source["ownership_token"] == target["ownership_token"] else target

    return rule


def _backfill(source: Values, target: Values) -> Values | None:
    """Migrations insert a row that nobody has claimed yet, with the time of the migration."""
    placeholders = [row["status"] == BackfillStatus.PENDING and row["claimed_at"] is None for row in (source, target)]
    if placeholders[0] != placeholders[1]:
        return target if placeholders[0] else source
    return target if placeholders[0] else _later_row(source, target)


def _file(_source: Values, target: Values) -> Values | None:
    """What is known of a file can be read again from it."""
    return target | {"mtime_ns": None}


def _nothing_tells(_source: Values, _target: Values) -> Values | None:
    return None


_RULES: dict[str, Rule] = {
    "threads": _thread,
    "thread_memory": _later_memory,
    "memory_phase1_jobs": _later_job,
    "memory_scope_dirty": _scope,
    "memory_consolidation_locks": _lock("updated_at"),
    "codex_state_locks": _lock("renewed_at"),
    "backfill_state": _backfill,
    "rollout_files": _file,
}


def rule_of(table: str) -> Rule:
    """The rule of a table. Tools and log lines are written once, so nothing tells which of two is newer."""
    return _RULES.get(table, _nothing_tells)


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
