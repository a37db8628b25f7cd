"""The front door: open a state, run units of work on it."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import URL, Engine
from sqlmodel import Session

from codex_state import migrations, telemetry
from codex_state.database import Database, prepare_sqlite_file
from codex_state.errors import DatabaseError, ServerUnavailableError, StateError
from codex_state.models import LOCAL_HOME
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    DynamicToolRepository,
    LogRepository,
    MemoryScopeRepository,
    Phase1JobRepository,
    RolloutFileRepository,
    ThreadMemoryRepository,
    ThreadRepository,
)
from codex_state.settings import StateSettings
from codex_state.state_files import make_directory, remove_older_state_files

_log = logging.getLogger("codex_state")

ResultT = TypeVar("ResultT")

_RETRY_BASE_SECONDS = 0.01
_RETRY_MAX_SECONDS = 0.5

_UNAVAILABLE_MAX_SECONDS = 2.0
"""A server that is away for long is asked about once a second by each caller."""

_REFUSALS_AHEAD = 3
"""A restart takes longer than a conflict: the back-off begins that many steps later."""


def _backoff(step: int) -> float:
    # Bounded before the power: a caller may wait for a server for days.
    return _RETRY_BASE_SECONDS * (1 << min(step, 16))


class State:
    """All repositories over one session: the runtime's, or a service's own (``State(session)``)."""

    def __init__(self, session: Session) -> None:
        """Work on ``session``, which its opener commits and closes."""
        self.session = session

    @cached_property
    def threads(self) -> ThreadRepository:
        """The index of rollouts."""
        return ThreadRepository(self.session)

    @cached_property
    def rollout_files(self) -> RolloutFileRepository:
        """The inventory of rollout files."""
        return RolloutFileRepository(self.session)

    @cached_property
    def dynamic_tools(self) -> DynamicToolRepository:
        """The tools that threads were started with."""
        return DynamicToolRepository(self.session)

    @cached_property
    def thread_memories(self) -> ThreadMemoryRepository:
        """What was remembered of threads."""
        return ThreadMemoryRepository(self.session)

    @cached_property
    def phase1_jobs(self) -> Phase1JobRepository:
        """Who may extract which thread's memory."""
        return Phase1JobRepository(self.session)

    @cached_property
    def memory_scopes(self) -> MemoryScopeRepository:
        """Which scopes wait for their consolidation."""
        return MemoryScopeRepository(self.session)

    @cached_property
    def consolidation_locks(self) -> ConsolidationLockRepository:
        """Who consolidates which memory root."""
        return ConsolidationLockRepository(self.session)

    @cached_property
    def backfill(self) -> BackfillRepository:
        """How far each home's index has been built."""
        return BackfillRepository(self.session)

    @cached_property
    def logs(self) -> LogRepository:
        """Log lines."""
        return LogRepository(self.session)


class StateRuntime:
    """An open state. Safe to share between threads; after a fork each process opens connections of its own."""

    def __init__(self, settings: StateSettings, database: Database) -> None:
        """Use ``StateRuntime.open``, which also migrates."""
        self.settings = settings
        self.database = database

    @classmethod
    def open(cls, settings: StateSettings | None = None) -> Self:
        """Open the state, creating and migrating it as needed. It doesn't backfill: see ``codex_state.open_state``.

        Args:
            settings: where and how; read from the environment when not given.

        Raises:
            ConfigurationError: the home or a setting can't be used.
            SchemaError: the database is newer than this version, or another program's.
            DatabaseError: it can't be opened, is damaged, or is held by somebody for the whole busy timeout.
        """
        settings = settings or StateSettings()
        try:
            runtime, created = cls._open(settings)
        except StateError:
            telemetry.count(telemetry.DB_INIT, status="open_error")
            raise
        telemetry.count(telemetry.DB_INIT, status="opened")
        if created:
            telemetry.count(telemetry.DB_INIT, status="created")
        return runtime

    @classmethod
    def _open(cls, settings: StateSettings) -> tuple[Self, bool]:
        make_directory(settings.codex_home)
        if settings.database_url is not None:
            url: str | URL = settings.database_url.get_secret_value()
        else:
            make_directory(settings.database_path.parent)
            url = URL.create("sqlite", database=str(settings.database_path))
        database = Database.open(
            url,
            pool_size=settings.pool_size,
            busy_timeout=settings.busy_timeout,
            transaction_pooling=settings.transaction_pooling,
        )
        created = database.path is not None and not database.path.exists()
        try:
            if database.path is not None:
                # Before the file's settings are touched: one that isn't ours stays as it is (L7).
                with database.autocommit() as session:
                    migrations.verified_revision(session.connection())
                prepare_sqlite_file(database)
            migrations.ensure_current(database.engine, migrate=settings.migrate)
            if settings.database_url is None:
                # Last: a home whose state this version can't use keeps what an older one may still read (L7).
                remove_older_state_files(settings.database_path.parent)
        except BaseException:
            database.close()
            raise
        return cls(settings, database), created

    @property
    def codex_home(self) -> Path:
        """The home whose rollouts this state indexes."""
        return self.settings.codex_home

    @cached_property
    def home(self) -> str:
        """The name under which this home's threads and backfill are kept.

        An SQLite file serves one home, so it is the same constant in all of them. PostgreSQL may serve many: there it
        is the setting ``home``, else host and path.
        """
        if self.settings.home is not None:
            return self.settings.home
        if self.database.dialect == "sqlite":
            return LOCAL_HOME
        return f"{socket.gethostname()}:{self.codex_home}"

    @property
    def default_provider(self) -> str:
        """The provider of threads that name none."""
        return self.settings.provider

    @property
    def engine(self) -> Engine:
        """For a service's own sessions: ``Session(runtime.engine)`` writes under the same rules."""
        return self.database.engine

    @property
    def read_engine(self) -> Engine:
        """For a service's own sessions that only read: they see one snapshot, hold up no writer, and can't write."""
        return self.database.read_engine

    def begin(self) -> AbstractContextManager[State]:
        """One write transaction: committed at the end of the block, rolled back when it raises."""
        return _state_over(self.database.begin())

    def read(self) -> AbstractContextManager[State]:
        """One read-only snapshot. A write in it raises ``DatabaseReadOnlyError``."""
        return _state_over(self.database.read())

    def autocommit(self) -> AbstractContextManager[State]:
        """A held connection on which each guarded statement commits by itself: for workers and heartbeats."""
        return _state_over(self.database.autocommit())

    def run(
        self, work: Callable[[State], ResultT], *, attempts: int = 5, retry_for: timedelta | None = None
    ) -> ResultT:
        """Run a whole unit of work in one write transaction, again when the database says "try again".

        A server that is away for a while, because it restarts, is waited for. Wrong credentials and a missing database
        are told at once.

        Args:
            work: called with a fresh state each time, so it must not keep what it read in an earlier attempt.
            attempts: how many times at most it is begun. Connections that could not be made don't count.
            retry_for: how long a server that is away is waited for, in total; ``settings.retry_for`` by default.

        Raises:
            UnknownCommitOutcomeError: the connection broke during the commit. Only the caller can know whether
                repeating is safe.
            ServerUnavailableError: the server was away for longer than ``retry_for``. Nothing was kept.
            DatabaseError: the last attempt's error.
        """
        return self._again(lambda: self._unit(self.begin, work), attempts, retry_for)

    def run_read(
        self, work: Callable[[State], ResultT], *, attempts: int = 5, retry_for: timedelta | None = None
    ) -> ResultT:
        """Run a unit of work on one read-only snapshot, again as ``run`` does. See there."""
        return self._again(lambda: self._unit(self.read, work), attempts, retry_for)

    @staticmethod
    def _unit(opened: Callable[[], AbstractContextManager[State]], work: Callable[[State], ResultT]) -> ResultT:
        with opened() as state:
            return work(state)

    def _again(self, unit: Callable[[], ResultT], attempts: int, retry_for: timedelta | None) -> ResultT:
        patience = (self.settings.retry_for if retry_for is None else retry_for).total_seconds()
        attempt, refusals, deadline = 1, 0, None
        while True:
            try:
                return unit()
            except ServerUnavailableError as error:
                # It never began, so it can't be what brings the server down: no need to count how often it was tried.
                deadline = deadline or time.monotonic() + patience
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                refusals += 1
                longest = min(_UNAVAILABLE_MAX_SECONDS, left, _backoff(refusals + _REFUSALS_AHEAD))
                _log.info("the server is away; unit of work is tried again for %.1f s: %s", left, error)
            except DatabaseError as error:
                if not error.retryable or attempt >= attempts:
                    raise
                longest = min(_RETRY_MAX_SECONDS, _backoff(attempt))
                _log.info("unit of work is tried again after attempt %d: %s", attempt, error)
                attempt += 1
            # Full jitter, so that those who collided don't meet again, nor all come at once to a server that is back.
            time.sleep(random.uniform(0, longest))  # noqa: S311

    def close(self) -> None:
        """Close every connection. The runtime can't be used afterwards."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _state_over(sessions: AbstractContextManager[Session]) -> Iterator[State]:
    with sessions as session:
        yield State(session)
