"""Taking over what another program knows of threads, where nothing newer is here.

Each verb is one statement for many rows, guarded per row (law L1); a read afterwards tells what became of the others.
A thread without a row here is left out: its rollout isn't indexed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
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
from codex_state.database.sql import normal_path
from codex_state.models import SCOPE_CWD, MemoryScope, Phase1Job, Thread, ThreadMemory
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, text
from codex_state.repositories.base import Repository, seconds_of
from codex_state.repositories.given_rows import given_rows, parameters_of, storable
from codex_state.repositories.job_claims import FAILED, SUCCEEDED, has_scope, key_of
from codex_state.repositories.memory_scopes import MemoryScopeRepository
from codex_state.repositories.threads import ThreadRepository


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
