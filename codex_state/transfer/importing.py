"""Taking over what only the original's own databases know: names, pins, memory modes, memories, their use.

Databases are read from the newest to the oldest, and what is here stays unless the original's is newer. So an import
can be run at any time, also while the original runs, and a second one changes nothing.

Each verb of the repository is one statement for many rows, guarded per row (law L1); a read afterwards tells what
became of the others. A thread without a row here is left out: its rollout isn't indexed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    and_,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from codex_state.database.execute import atomically
from codex_state.errors import ConfigurationError, ForeignSchemaError, StateError
from codex_state.models import SCOPE_CWD, MemoryMode, MemoryScope, Phase1Job, Thread, ThreadMemory
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, normal_path, text
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
from codex_state.repositories.base import Repository, given_rows, parameters_of, seconds_of, storable
from codex_state.repositories.job_claims import FAILED, SUCCEEDED, has_scope, key_of
from codex_state.repositories.memory_scopes import MemoryScopeRepository
from codex_state.repositories.threads import ThreadRepository
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
        ConfigurationError: ``home`` is no directory, or begins with ``~`` and its user has none.
        DatabaseError: the state can't be written.
    """
    home = runtime.codex_home if home is None else _absolute(home)
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


def _absolute(home: Path) -> Path:
    try:
        return home.expanduser().absolute()
    except RuntimeError as error:
        raise ConfigurationError(f"{home} can't be made absolute: {error}") from None


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


class ImportOutcome(StrEnum):
    """What became of something that another program knows of a thread."""

    TAKEN = "taken"
    ALREADY_HERE = "already_here"
    NEWER_HERE = "newer_here"
    """What is here is newer, or is being made, and stays."""
    WITHOUT_THREAD = "without_thread"
    """The thread has no row here."""
    WITHOUT_SCOPE = "without_scope"
    """A memory of a thread whose directory isn't known here."""


Outcomes = dict[UUID, ImportOutcome]
"""What became of the thread's row."""


@dataclass(frozen=True, slots=True)
class GivenMemory:
    """A memory of a thread and what it was made from. Times are epoch seconds."""

    thread_id: UUID
    raw_memory: str
    memory_summary: str
    updated_at: int
    source_updated_at: int
    """Which version of the thread it was extracted from."""


@dataclass(frozen=True, slots=True)
class GivenJob:
    """A finished extraction. Times are epoch seconds."""

    thread_id: UUID
    source_updated_at: int
    started_at: int | None
    finished_at: int | None


_threads = table_of(Thread)
_memories = table_of(ThreadMemory)
_jobs = table_of(Phase1Job)

_CWD = literal_column(f"'{SCOPE_CWD}'", text)
_EMPTY = literal_column("''", text)
_CWD_KEY = key_of(SCOPE_CWD, normal_path(_threads.c.cwd))
_HAS_SCOPE = has_scope(SCOPE_CWD, _threads.c.cwd)


def _told(*whens: tuple[ColumnElement[bool], ImportOutcome], otherwise: ImportOutcome) -> Select[Any]:
    """A query of threads and what became of what was given for them, given that it wasn't taken."""
    spelled = {outcome: literal_column(f"'{outcome.value}'", text) for outcome in ImportOutcome}
    outcome = case(*((when, spelled[told]) for when, told in whens), else_=spelled[otherwise]) if whens else None
    return select(_threads.c.id, (spelled[otherwise] if outcome is None else outcome).label("outcome"))


_name = given_rows(thread_id=UuidText(), name=text, name_at=BigInteger())
_TOLD_NAMES = _told(
    (_threads.c.name == _name.c.name, ImportOutcome.ALREADY_HERE), otherwise=ImportOutcome.NEWER_HERE
).where(_threads.c.id == _name.c.thread_id)

_pin = given_rows(thread_id=UuidText())
_TAKE_PINS = (
    update(_threads)
    .where(_threads.c.id == _pin.c.thread_id, _threads.c.pinned == literal_column("0"))
    .values(pinned=literal_column("1"))
    .returning(_threads.c.id)
)
_TOLD_PINS = _told(otherwise=ImportOutcome.ALREADY_HERE).where(_threads.c.id == _pin.c.thread_id)

_mode = given_rows(thread_id=UuidText(), memory_mode=text, chosen_at=BigInteger())
_TAKE_MEMORY_MODES = (
    update(_threads)
    .where(
        _threads.c.id == _mode.c.thread_id,
        _threads.c.memory_mode != _mode.c.memory_mode,
        or_(
            _threads.c.memory_mode_chosen_at.is_(None),
            seconds_of(_threads.c.memory_mode_chosen_at) < _mode.c.chosen_at,
        ),
    )
    .values(memory_mode=_mode.c.memory_mode, memory_mode_chosen_at=_mode.c.chosen_at)
    .returning(_threads.c.id)
)
_TOLD_MEMORY_MODES = _told(
    (_threads.c.memory_mode == _mode.c.memory_mode, ImportOutcome.ALREADY_HERE), otherwise=ImportOutcome.NEWER_HERE
).where(_threads.c.id == _mode.c.thread_id)

_preview = given_rows(thread_id=UuidText(), preview=text)
_TAKE_PREVIEWS = (
    update(_threads)
    .where(
        _threads.c.id == _preview.c.thread_id,
        _threads.c.first_user_message == _EMPTY,
        func.coalesce(_threads.c.preview, _EMPTY) == _EMPTY,
    )
    .values(preview=_preview.c.preview)
    .returning(_threads.c.id)
)
_TOLD_PREVIEWS = _told(otherwise=ImportOutcome.ALREADY_HERE).where(_threads.c.id == _preview.c.thread_id)

_memory = given_rows(thread_id=UuidText(), raw_memory=text, memory_summary=text, updated_at=BigInteger())
_insert_memory = insert(_memories)
_IS_MEMORY = and_(
    _memories.c.thread_id == _threads.c.id,
    _memories.c.scope_kind == _CWD,
    _memories.c.scope_key == _CWD_KEY,
)
_TAKE_MEMORIES = (
    _insert_memory.from_select(
        ["thread_id", "scope_kind", "scope_key", "raw_memory", "memory_summary", "updated_at"],
        select(_threads.c.id, _CWD, _CWD_KEY, _memory.c.raw_memory, _memory.c.memory_summary, _memory.c.updated_at)
        .where(_threads.c.id == _memory.c.thread_id, _HAS_SCOPE)
        # On PostgreSQL a thread that is being deleted is waited for, and then missed.
        .with_for_update(of=_threads, read=True, key_share=True),
    )
    .on_conflict_do_update(
        index_elements=["thread_id", "scope_kind", "scope_key"],
        set_={
            "raw_memory": _insert_memory.excluded.raw_memory,
            "memory_summary": _insert_memory.excluded.memory_summary,
            "updated_at": _insert_memory.excluded.updated_at,
            "invalidated_at": null(),
            "invalid_reason": null(),
        },
        where=and_(
            _memories.c.updated_at < _insert_memory.excluded.updated_at,
            # Whoever took an older text out of the listings since then did so knowing better.
            or_(_memories.c.invalidated_at.is_(None), _memories.c.invalidated_at < _insert_memory.excluded.updated_at),
        ),
    )
    .returning(_memories.c.thread_id.label("id"), _memories.c.scope_key)
)
_TOLD_MEMORIES = _told(
    (~_HAS_SCOPE, ImportOutcome.WITHOUT_SCOPE),
    (
        and_(_memories.c.raw_memory == _memory.c.raw_memory, _memories.c.memory_summary == _memory.c.memory_summary),
        ImportOutcome.ALREADY_HERE,
    ),
    otherwise=ImportOutcome.NEWER_HERE,
).select_from(_memory.join(_threads, _threads.c.id == _memory.c.thread_id).outerjoin(_memories, _IS_MEMORY))

_use = given_rows(thread_id=UuidText(), used_count=BigInteger(), last_used_at=BigInteger())
_last_used_at = seconds_of(_memories.c.last_used_at)
_IS_USED_LATER = and_(
    _use.c.last_used_at.is_not(None), or_(_last_used_at.is_(None), _last_used_at < _use.c.last_used_at)
)
_TAKE_USES = (
    update(_memories)
    .where(
        _threads.c.id == _use.c.thread_id, _IS_MEMORY, or_(_memories.c.used_count < _use.c.used_count, _IS_USED_LATER)
    )
    .values(
        used_count=case((_memories.c.used_count < _use.c.used_count, _use.c.used_count), else_=_memories.c.used_count),
        last_used_at=case((_IS_USED_LATER, _use.c.last_used_at), else_=_last_used_at),
    )
    .returning(_memories.c.thread_id.label("id"))
)
_TOLD_USES = _told((~_HAS_SCOPE, ImportOutcome.WITHOUT_SCOPE), otherwise=ImportOutcome.ALREADY_HERE).where(
    _threads.c.id == _use.c.thread_id
)

_job = given_rows(
    thread_id=UuidText(), source_updated_at=BigInteger(), started_at=BigInteger(), finished_at=BigInteger()
)
_insert_job = insert(_jobs)
_IS_JOB = and_(_jobs.c.thread_id == _threads.c.id, _jobs.c.scope_kind == _CWD, _jobs.c.scope_key == _CWD_KEY)
_NOT_OF_A_SUCCESS = (
    "owner_session_id", "failure_reason", "raw_memory_path", "summary_hash", "ownership_token", "retry_at"
)  # fmt: skip
_TAKE_JOBS = (
    _insert_job.from_select(
        ["thread_id", "scope_kind", "scope_key", "status", "source_updated_at", "started_at", "finished_at"],
        select(
            _threads.c.id,
            _CWD,
            _CWD_KEY,
            SUCCEEDED,
            _job.c.source_updated_at,
            _job.c.started_at,
            _job.c.finished_at,
        )
        .where(_threads.c.id == _job.c.thread_id, _HAS_SCOPE)
        .with_for_update(of=_threads, read=True, key_share=True),
    )
    .on_conflict_do_update(
        index_elements=["thread_id", "scope_kind", "scope_key"],
        set_={
            **{
                name: _insert_job.excluded[name]
                for name in ("status", "source_updated_at", "started_at", "finished_at")
            },
            **dict.fromkeys(_NOT_OF_A_SUCCESS, null()),
            "failures": literal_column("0"),
        },
        # A job that runs is its holder's, whatever it works on.
        where=or_(
            and_(_jobs.c.status == SUCCEEDED, _jobs.c.source_updated_at < _insert_job.excluded.source_updated_at),
            and_(_jobs.c.status == FAILED, _jobs.c.source_updated_at <= _insert_job.excluded.source_updated_at),
        ),
    )
    .returning(_jobs.c.thread_id.label("id"))
)
_TOLD_JOBS = _told(
    (~_HAS_SCOPE, ImportOutcome.WITHOUT_SCOPE),
    (
        and_(_jobs.c.status == SUCCEEDED, seconds_of(_jobs.c.source_updated_at) == _job.c.source_updated_at),
        ImportOutcome.ALREADY_HERE,
    ),
    otherwise=ImportOutcome.NEWER_HERE,
).select_from(_job.join(_threads, _threads.c.id == _job.c.thread_id).outerjoin(_jobs, _IS_JOB))


class ImportRepository(Repository):
    """Writes what another program knows into threads, memories and jobs. For a few hundred rows at once."""

    def take_names(self, names: Iterable[tuple[UUID, str, int]]) -> Outcomes:
        """Names that the original's database has, each with the thread's last change: ``take_original_names``."""
        given = {name[0]: (name[0], storable(name[1]), name[2]) for name in names}
        with atomically(self._connection):
            taken = ThreadRepository(self._session).take_original_names(given.values())
            return self._told(given, taken, _TOLD_NAMES)

    def take_pins(self, threads: Iterable[UUID]) -> Outcomes:
        """Threads that a user pinned."""
        return self._taken({thread: (thread,) for thread in threads}, _TAKE_PINS, _TOLD_PINS)

    def take_memory_modes(self, modes: Iterable[tuple[UUID, str, int]]) -> Outcomes:
        """Memory modes that somebody chose, each with the epoch second of the choice. A later choice here stays."""
        given = {mode[0]: (mode[0], storable(mode[1]), mode[2]) for mode in modes}
        return self._taken(given, _TAKE_MEMORY_MODES, _TOLD_MEMORY_MODES)

    def take_previews(self, previews: Iterable[tuple[UUID, str]]) -> Outcomes:
        """What a list can show of a thread, if it has neither a first message nor a preview."""
        given = {preview[0]: (preview[0], storable(preview[1])) for preview in previews}
        return self._taken(given, _TAKE_PREVIEWS, _TOLD_PREVIEWS)

    def take_memories(self, memories: Sequence[GivenMemory]) -> tuple[Outcomes, Outcomes]:
        """Memories, in the scope of each thread's directory, and that their extraction is done (law L5).

        A memory that is as new here stays, and one that was invalidated since. Scopes that have news are marked.

        Returns:
            What became of the memories, and of the jobs.
        """
        given = {
            memory.thread_id: (
                memory.thread_id, storable(memory.raw_memory), storable(memory.memory_summary), memory.updated_at
            )
            for memory in memories
        }  # fmt: skip
        jobs = [GivenJob(each.thread_id, each.source_updated_at, None, each.updated_at) for each in memories]
        with atomically(self._connection):
            rows = self._all(_TAKE_MEMORIES, parameters_of(given.values()))
            scopes = MemoryScopeRepository(self._session)
            for key in sorted({row.scope_key for row in rows}):
                scopes.mark_dirty(MemoryScope(SCOPE_CWD, key))
            return self._told(given, {row.id for row in rows}, _TOLD_MEMORIES), self.take_jobs(jobs)

    def take_uses(self, uses: Iterable[tuple[UUID, int, int | None]]) -> Outcomes:
        """How often memories were used, and in which epoch second last. Neither ever decreases."""
        return self._taken({use[0]: use for use in uses}, _TAKE_USES, _TOLD_USES)

    def take_jobs(self, jobs: Iterable[GivenJob]) -> Outcomes:
        """Finished extractions, so that they aren't made again. A running job stays, and one of a newer version."""
        given = {job.thread_id: (job.thread_id, job.source_updated_at, job.started_at, job.finished_at) for job in jobs}
        return self._taken(given, _TAKE_JOBS, _TOLD_JOBS)

    def _taken(self, given: dict[UUID, Any], take: Executable, told: Executable) -> Outcomes:
        with atomically(self._connection):
            taken = {row.id for row in self._all(take, parameters_of(given.values()))}
            return self._told(given, taken, told)

    def _told(self, given: dict[UUID, Any], taken: set[UUID], told: Executable) -> Outcomes:
        outcomes = dict.fromkeys(given, ImportOutcome.WITHOUT_THREAD)
        if len(taken) < len(given):
            rows = self._all(told, parameters_of(given.values()))
            outcomes |= {row.id: ImportOutcome(row.outcome) for row in rows}
        return outcomes | dict.fromkeys(taken, ImportOutcome.TAKEN)
