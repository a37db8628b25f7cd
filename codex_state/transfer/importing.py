"""Taking over what only the original's own databases know: names, pins, memory modes, memories, their use.

Databases are read from the newest to the oldest, and what is here stays unless the original's is newer. So an import
can be run at any time, also while the original runs, and a second one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from codex_state.errors import ConfigurationError, ForeignSchemaError, StateError
from codex_state.models import MemoryMode
from codex_state.original import (
    OriginalDatabase,
    OriginalName,
    goal_databases,
    memory_databases,
    names_in,
    second_of,
    state_databases,
    text_of,
    uuid_of,
)
from codex_state.repositories.imports import GivenJob, GivenMemory, ImportOutcome, ImportRepository, Outcomes
from codex_state.rollout.files import is_directory
from codex_state.runtime import State, StateRuntime

MAX_NAMED = 1000
"""How many threads a report names; all are counted (law L10)."""

PINNED_SECTION = "01984de2-8f74-7c91-a3b2-5c5e937cf318"
"""The section of pinned threads; its id is the same in every home."""

_AT_ONCE = 500
_MEMORIES_AT_ONCE = 50

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ImportKind(StrEnum):
    """What is taken over."""

    NAMES = "names"
    PINS = "pins"
    MEMORY_MODES = "memory_modes"
    PREVIEWS = "previews"
    """What a list shows of a thread without a first message: its goal, or a text from its parent."""
    MEMORIES = "memories"
    USES = "uses"
    """How often a memory was used, and when last."""
    JOBS = "jobs"
    """Finished extractions, which needn't be made again."""


@dataclass(slots=True)
class ImportedDatabase:
    """What one database of the original's gave."""

    path: Path
    counts: dict[ImportKind, dict[ImportOutcome, int]] = field(default_factory=dict)
    """How many of each kind it knows, by what became of them; kinds that it knows nothing of are left out."""
    problem: StateError | None = None
    """Why it could not be read, or not to its end: what was read before was taken over."""

    @property
    def is_foreign(self) -> bool:
        """Whether it only bears the name of one of the original's databases. It was passed over."""
        return isinstance(self.problem, ForeignSchemaError)


@dataclass(slots=True)
class ImportReport:
    """What an import found and did."""

    home: Path
    databases: list[ImportedDatabase] = field(default_factory=list)
    unknown_threads: dict[UUID, list[ImportKind]] = field(default_factory=dict)
    """The first threads without a row here, and what is known of them: their rollouts aren't indexed, or are gone."""

    @property
    def complete(self) -> bool:
        """Whether every database of the original's could be read."""
        return all(database.problem is None or database.is_foreign for database in self.databases)

    @property
    def changed(self) -> bool:
        """Whether anything was taken over."""
        return any(self.total(kind, ImportOutcome.TAKEN) for kind in ImportKind)

    def total(self, kind: ImportKind, outcome: ImportOutcome) -> int:
        """How many of a kind ended like this, in all databases."""
        return sum(database.counts.get(kind, {}).get(outcome, 0) for database in self.databases)


def import_original(runtime: StateRuntime, home: Path | None = None) -> ImportReport:
    """Take over what only the original's own databases know of threads that have a row here.

    They are read only, of every version, also while the original runs. Nothing newer here is overwritten, and a
    database that can't be read is named in the report while the others go on.

    Args:
        runtime: the state to take it into. Index the rollouts first: what is known of other threads is left.
        home: the Codex home whose databases are read; the runtime's own by default.

    Raises:
        ConfigurationError: ``home`` is no directory.
        DatabaseError: the state can't be written.
    """
    home = runtime.codex_home if home is None else home.expanduser().absolute()
    if not is_directory(home):
        raise ConfigurationError(f"there is no Codex home at {home}")
    found = home, runtime.settings.sqlite_home if home == runtime.codex_home else None
    # It holds our own locks, whatever its name is.
    own = runtime.database.path
    work = _Import(runtime, home)
    work.read_states(state_databases(*found, own=own))
    for path in memory_databases(*found, own=own):
        work.read(path, "stage1_outputs")
    for path in goal_databases(*found, own=own):
        work.read(path, "thread_goals")
    return work.report


class _Reading:
    """One database while it is read. What can't be read ends it there."""

    def __init__(self, database: OriginalDatabase, imported: ImportedDatabase) -> None:
        self.database = database
        self.imported = imported

    def names(self) -> Iterator[list[OriginalName]]:
        yield from self._until_it_fails(names_in(self.database))

    def pages(
        self,
        table: str,
        columns: Sequence[str],
        where: str = "",
        *,
        needs: Sequence[str] | None = None,
        size: int = _AT_ONCE,
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of a table, the rowid first; none if this version has no such table, or lacks columns."""
        if not self.database.has(table, *(columns if needs is None else needs)):
            return
        condition = f"({where}) AND " if where else ""
        query = f"SELECT rowid, {', '.join(columns)} FROM {table} WHERE {condition}rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608
        yield from self._until_it_fails(self.database.pages(query, size=size))

    def _until_it_fails(self, pages: Iterator[ItemT]) -> Iterator[ItemT]:
        if self.imported.problem is None:
            try:
                yield from pages
            except StateError as error:
                self.imported.problem = error


class _Import:
    def __init__(self, runtime: StateRuntime, home: Path) -> None:
        self.report = ImportReport(home)
        self._runtime = runtime
        self._decided: set[UUID] = set()
        """Threads of the newer state databases, of which an older one's names, pins and modes are past."""

    def read_states(self, paths: Sequence[Path]) -> None:
        for index, path in enumerate(paths):
            self.read(path, "threads", has_older=index + 1 < len(paths))

    def read(self, path: Path, must_hold: str, *, has_older: bool = False) -> None:
        imported = ImportedDatabase(path)
        try:
            database = OriginalDatabase.open(path, wait=self._runtime.settings.busy_timeout.total_seconds())
        except StateError as error:
            imported.problem = error
            self.report.databases.append(imported)
            return
        with database:
            if database.is_ours:
                return
            self.report.databases.append(imported)
            if database.is_the_originals(must_hold):
                self._take_all(_Reading(database, imported), has_older=has_older)
            else:
                imported.problem = ForeignSchemaError("it is not a database of Codex")

    def _take_all(self, reading: _Reading, *, has_older: bool) -> None:
        # Memories in one database, and extractions that are done only if all of its memories could be read.
        self._take_threads(reading)
        self._take_memories(reading)
        self._take_jobs(reading)
        if has_older:
            for rows in reading.pages("threads", ("id",)):
                self._decided.update(thread for row in rows if (thread := uuid_of(row[1])) is not None)

    def _take_threads(self, reading: _Reading) -> None:
        for names in reading.names():
            undecided = [name for name in names if name.thread_id not in self._decided]
            self._take(reading, ImportKind.NAMES, undecided, ImportRepository.take_names)

        in_sections = reading.database.has("threads", "thread_section_id")
        pinned = f"thread_section_id = '{PINNED_SECTION}'" if in_sections else "is_pinned = 1"
        needed = () if in_sections else ("is_pinned",)
        for rows in reading.pages("threads", ("id",), pinned, needs=needed):
            pins = [thread for row in rows if (thread := self._undecided(row[1])) is not None]
            self._take(reading, ImportKind.PINS, pins, ImportRepository.take_pins)

        # The default needs no choice, so it says nothing of one.
        chosen = f"memory_mode NOT IN ('', '{MemoryMode.ENABLED.value}')"
        for rows in reading.pages("threads", ("id", "memory_mode", "updated_at"), chosen):
            modes = [
                (thread, text_of(row[2]), second_of(row[3]) or 0)
                for row in rows
                if (thread := self._undecided(row[1])) is not None
            ]
            self._take(reading, ImportKind.MEMORY_MODES, modes, ImportRepository.take_memory_modes)

        for table, columns, where in (
            ("threads", ("id", "preview"), "preview <> '' AND first_user_message = ''"),
            ("thread_goals", ("thread_id", "objective"), "objective <> ''"),
        ):
            for rows in reading.pages(table, columns, where):
                previews = [(thread, text_of(row[2])) for row in rows if (thread := uuid_of(row[1])) is not None]
                self._take(reading, ImportKind.PREVIEWS, previews, ImportRepository.take_previews)

    def _take_memories(self, reading: _Reading) -> None:
        columns = ("thread_id", "raw_memory", "rollout_summary", "generated_at", "source_updated_at")
        for rows in reading.pages("stage1_outputs", columns, size=_MEMORIES_AT_ONCE):
            memories = [memory for row in rows if (memory := _memory_of(row)) is not None]
            outcomes, jobs = self._runtime.run(_taking(ImportRepository.take_memories, memories))
            self._count(reading, ImportKind.MEMORIES, outcomes)
            self._count(reading, ImportKind.JOBS, jobs)

        used = "coalesce(usage_count, 0) > 0 OR last_usage IS NOT NULL"
        for rows in reading.pages("stage1_outputs", ("thread_id", "usage_count", "last_usage"), used):
            uses = [
                (thread, row[2] if isinstance(row[2], int) else 0, second_of(row[3]))
                for row in rows
                if (thread := uuid_of(row[1])) is not None
            ]
            self._take(reading, ImportKind.USES, uses, ImportRepository.take_uses)

    def _take_jobs(self, reading: _Reading) -> None:
        done = "coalesce(last_success_watermark, CASE WHEN status = 'done' THEN input_watermark END)"
        where = f"kind = 'memory_stage1' AND {done} IS NOT NULL"
        if reading.database.has("stage1_outputs", "thread_id", "source_updated_at"):
            # Those came with their memories.
            where += (
                " AND NOT EXISTS (SELECT 1 FROM stage1_outputs"  # noqa: S608 - constants
                f" WHERE thread_id = job_key AND source_updated_at >= {done})"
            )
        columns = ("job_key", done, "started_at", "finished_at")
        needs = ("kind", "job_key", "status", "input_watermark", "last_success_watermark", "started_at", "finished_at")
        for rows in reading.pages("jobs", columns, where, needs=needs):
            jobs = [
                GivenJob(thread, source, second_of(row[3]), second_of(row[4]))
                for row in rows
                if (thread := uuid_of(row[1])) is not None and (source := second_of(row[2])) is not None
            ]
            self._take(reading, ImportKind.JOBS, jobs, ImportRepository.take_jobs)

    def _undecided(self, spelled: Any) -> UUID | None:
        thread = uuid_of(spelled)
        return None if thread in self._decided else thread

    def _take(
        self,
        reading: _Reading,
        kind: ImportKind,
        rows: Sequence[Any],
        verb: Callable[[ImportRepository, Any], Outcomes],
    ) -> None:
        if rows:
            self._count(reading, kind, self._runtime.run(_taking(verb, rows)))

    def _count(self, reading: _Reading, kind: ImportKind, outcomes: Outcomes) -> None:
        counts = reading.imported.counts.setdefault(kind, dict.fromkeys(ImportOutcome, 0))
        for thread, outcome in outcomes.items():
            counts[outcome] += 1
            if outcome is ImportOutcome.WITHOUT_THREAD:
                self._name(thread, kind)

    def _name(self, thread: UUID, kind: ImportKind) -> None:
        named = self.report.unknown_threads
        if thread in named or len(named) < MAX_NAMED:
            kinds = named.setdefault(thread, [])
            if kind not in kinds:
                kinds.append(kind)


def _taking(verb: Callable[[ImportRepository, Any], ResultT], rows: Sequence[Any]) -> Callable[[State], ResultT]:
    return lambda state: verb(ImportRepository(state.session), rows)


def _memory_of(row: tuple[Any, ...]) -> GivenMemory | None:
    _, spelled, raw, summary, generated_at, source_updated_at = row
    thread, source = uuid_of(spelled), second_of(source_updated_at)
    raw, summary = text_of(raw).strip(), text_of(summary).strip()
    if thread is None or source is None or not (raw or summary):
        return None
    # Versions with memories_v2 keep a summary alone.
    generated = second_of(generated_at)
    return GivenMemory(thread, raw or summary, summary, source if generated is None else generated, source)
