"""The front door, for synchronous and ``async`` code: open a state, run units of work on it.

Drivers that await every statement cost several hops for each; here a whole unit of work runs on a worker thread, with
the very code that synchronous callers use, so the laws hold in both worlds by construction (law L9). Works under
asyncio and trio.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

from sqlalchemy import Engine, QueuePool
from sqlmodel import Session

from codex_state import migrations, telemetry
from codex_state.database import Access, Database, file_of, prepare_sqlite_file, state_files
from codex_state.database.errors import (
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
    SchemaOutdatedError,
    ServerUnavailableError,
    StorageError,
)
from codex_state.database.patience import Patience, waiting
from codex_state.database.write_queue import working_for
from codex_state.errors import ConfigurationError, StateError, UsageError
from codex_state.models import LOCAL_HOME, Lease
from codex_state.models.columns import a_duration
from codex_state.repositories import (
    BackfillRepository,
    ConsolidationLockRepository,
    DynamicToolRepository,
    HomeRepository,
    LeaseRepository,
    LogRepository,
    MemoryScopeRepository,
    NamedLockRepository,
    Phase1JobRepository,
    RolloutFileRepository,
    ThreadMemoryRepository,
    ThreadRepository,
    WorkRepository,
)
from codex_state.repositories.base import require_session
from codex_state.settings import StateSettings

_log = logging.getLogger("codex_state")

ResultT = TypeVar("ResultT")
Arguments = TypeVarTuple("Arguments")
LeaseT = TypeVar("LeaseT", bound=Lease[Any])

_RETRY_BASE_SECONDS = 0.01
_RETRY_MAX_SECONDS = 0.5


class State:
    """All repositories over one session: the runtime's, or a service's own (``State(session)``)."""

    def __init__(self, session: Session) -> None:
        """Work on ``session``, which its opener commits and closes.

        Raises:
            UsageError: it isn't a session for synchronous code.
        """
        require_session(session)
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
    def named_locks(self) -> NamedLockRepository:
        """Who does what a service has given a name."""
        return NamedLockRepository(self.session)

    @cached_property
    def work(self) -> WorkRepository:
        """Who holds what and how jobs stand, for people who watch."""
        return WorkRepository(self.session)

    @cached_property
    def backfill(self) -> BackfillRepository:
        """How far each home's index has been built."""
        return BackfillRepository(self.session)

    @cached_property
    def logs(self) -> LogRepository:
        """Log lines."""
        return LogRepository(self.session)

    def leases_like(self, lease: LeaseT) -> LeaseRepository[Any, LeaseT]:
        """The repository that keeps leases of this one's kind."""
        repository: LeaseRepository[Any, LeaseT] = getattr(self, lease.kind)
        return repository


class StateRuntime:
    """An open state. Safe to share between threads; after a fork each process opens connections of its own."""

    def __init__(self, settings: StateSettings, database: Database) -> None:
        """Use ``StateRuntime.open``, which also migrates."""
        self.settings = settings
        self.database = database

    @classmethod
    def open(cls, settings: StateSettings | None = None, *, for_reading: bool = False) -> Self:
        """Open the state, creating and migrating it as needed. It doesn't backfill: see ``codex_state.open_state``.

        Args:
            settings: where and how; read from the environment when not given.
            for_reading: the caller changes nothing but the index. Then no home is created and no older file is removed,
                and a state that can't be written, because of its permissions, its medium or a full disk, is opened all
                the same: read-only if its schema is current, in memory if there is none yet. See ``is_read_only`` and
                ``in_memory``.

        Raises:
            ConfigurationError: the home or a setting can't be used.
            SchemaError: the database is newer than this version, or another program's; or it is older and can't be
                written.
            DatabaseError: it can't be opened, is damaged, or is held by somebody for the whole busy timeout.
        """
        settings = StateSettings() if settings is None else settings
        if not isinstance(settings, StateSettings):
            raise ConfigurationError(
                f"a {type(settings).__name__} in place of settings; give StateSettings(codex_home={str(settings)!r})"
                if isinstance(settings, str | os.PathLike)
                else f"a {type(settings).__name__} in place of settings; give a StateSettings"
            )
        try:
            runtime, created = cls._open(settings, for_reading)
        except StateError:
            telemetry.count(telemetry.DB_INIT, status="open_error")
            raise
        telemetry.count(telemetry.DB_INIT, status="opened")
        if created:
            telemetry.count(telemetry.DB_INIT, status="created")
        return runtime

    @classmethod
    def _open(cls, settings: StateSettings, for_reading: bool) -> tuple[Self, bool]:  # noqa: FBT001
        if for_reading:
            if settings.database_url is None:
                state_files.require_home(settings.codex_home)
            path = file_of(settings)
            if path is not None:
                return cls._open_for_reading(settings, path)
        else:
            state_files.make_directory(settings.codex_home)
        return cls._open_to_write(settings, for_reading=for_reading)

    @classmethod
    def _open_for_reading(cls, settings: StateSettings, path: Path) -> tuple[Self, bool]:
        if not state_files.can_be_written(path):
            return cls._open_unwritable(settings, path), False
        try:
            return cls._open_to_write(settings, for_reading=True)
        except (DatabaseFullError, StorageError) as error:
            # Whoever may write begins a log, and for that, and for its index, there is no room.
            try:
                runtime = cls._open_unwritable(settings, path)
            except StateError:
                raise error from None
            _log.warning("the state can only be read: %s", error)
            return runtime, False

    @classmethod
    def _open_to_write(cls, settings: StateSettings, *, for_reading: bool) -> tuple[Self, bool]:
        if settings.database_url is None:
            state_files.make_directory(settings.database_path.parent)
        database = Database.of(settings)
        created = database.path is not None and state_files.is_missing(database.path)
        runtime = cls(settings, database)
        try:
            if database.path is not None:
                # Before the file's settings are touched: one that isn't ours stays as it is (L7).
                with database.autocommit() as session:
                    migrations.usable_revision(session.connection())
                prepare_sqlite_file(database)
            migrations.ensure_current(database.engine, migrate=settings.migrate)
            runtime._take_in_unnamed_rows()
            if settings.database_url is None and not for_reading:
                # Last: a home whose state this version can't use keeps what an older one may still read (L7).
                state_files.remove_older_state_files(settings.database_path.parent)
        except BaseException:
            database.close()
            raise
        return runtime, created

    @classmethod
    def _open_unwritable(cls, settings: StateSettings, path: Path) -> Self:
        if state_files.is_missing(path):
            return cls._open_in_memory(settings)
        database = Database.of(settings, Access.READ_ONLY)
        advice = f"{path} can't be written; set CODEX_SQLITE_HOME to a directory that can, and try again"
        try:
            with database.autocommit() as session:
                revision = migrations.usable_revision(session.connection())
        except DatabaseUnavailableError as error:
            database.close()
            raise DatabaseUnavailableError(f"the state can't be read where it is ({error}): {advice}") from error
        except BaseException:
            database.close()
            raise
        if migrations.is_usable(revision):
            return cls(settings, database)
        database.close()
        if revision is None:
            return cls._open_in_memory(settings)
        raise SchemaOutdatedError(
            f"the state is at revision {revision!r}, this version of codex-state needs {migrations.HEAD!r}, and "
            f"{advice}, or run `codex-state db upgrade` where it can be written"
        )

    @classmethod
    def _open_in_memory(cls, settings: StateSettings) -> Self:
        database = Database.open("sqlite://", busy_timeout=settings.busy_timeout)
        try:
            migrations.ensure_current(database.engine)
        except BaseException:
            database.close()
            raise
        return cls(settings, database)

    def _take_in_unnamed_rows(self) -> None:
        """Give this home the threads of its own that were stored in a shared file before homes had names there."""
        if self.database.dialect != "sqlite" or self.has_own_database:
            return
        # As they are stored: the path of the home that the settings name, and where links lead.
        homes = dict.fromkeys([self.codex_home, self.codex_home.resolve()])
        with self.read() as state:
            if not any(HomeRepository(state.session).has_unnamed(self.home, home) for home in homes):
                return
        with self.begin() as state:
            for home in homes:
                HomeRepository(state.session).name(self.home, home)

    @property
    def codex_home(self) -> Path:
        """The home whose rollouts this state indexes."""
        return self.settings.codex_home

    @cached_property
    def home(self) -> str:
        """The name under which this home's threads and backfill are kept: the setting ``home``, if it is given.

        Else it is the same constant in every database that is one home's alone, so that a home keeps its rows when it
        is moved or copied. An SQLite file outside of the home may serve several, which are told apart by their
        paths, and a PostgreSQL database homes of many machines, by host and path.
        """
        if self.settings.home is not None:
            return self.settings.home
        if self.has_own_database:
            return LOCAL_HOME
        if self.database.dialect == "sqlite":
            return str(self.codex_home.resolve())
        return f"{socket.gethostname()}:{self.codex_home}"

    @property
    def has_own_database(self) -> bool:
        """Whether the database is this home's alone: an SQLite file inside the home, or one in memory."""
        if self.database.dialect != "sqlite":
            return False
        path = self.database.path
        return path is None or path.resolve().is_relative_to(self.codex_home.resolve())

    @property
    def in_memory(self) -> bool:
        """Whether what is stored is gone when the state is closed.

        So it is when ``sqlite://`` is the database, or ``for_reading`` met no state and no place for one.
        """
        return self.database.dialect == "sqlite" and self.database.path is None

    @property
    def is_read_only(self) -> bool:
        """Whether every write would fail: a state that can't be written, opened ``for_reading``; a standby."""
        if self.database.dialect == "sqlite":
            return self.database.access is Access.READ_ONLY
        with self.autocommit() as state:
            answer = state.session.connection().exec_driver_sql("SHOW transaction_read_only").scalar_one()
        return str(answer) == "on"

    @property
    def default_provider(self) -> str:
        """The provider of threads that name none."""
        return self.settings.provider

    @property
    def engine(self) -> Engine:
        """For a service's own sessions, which read what is committed and become writers with their first write."""
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
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a whole unit of work in one write transaction, again when the database says "try again".

        A server that is away for a while, because it restarts, is waited for. Wrong credentials and a missing database
        are told at once.

        Args:
            work: called with a fresh state each time, so it must not keep what it read in an earlier attempt.
            args: what else ``work`` is called with.
            attempts: how many times at most it is begun. Connections that could not be made don't count.
            retry_for: how long a server that is away is waited for, in total; ``settings.retry_for`` by default.

        Raises:
            UnknownCommitOutcomeError: the connection broke during the commit. Only the caller can know whether
                repeating is safe.
            ServerUnavailableError: the server was away for longer than ``retry_for``. Nothing was kept.
            DatabaseError: the last attempt's error.
            UsageError: ``work`` is an ``async`` function, or this is called inside of a write.
        """
        return self._again(lambda: self._unit(self.begin, work, args), attempts, retry_for)

    def run_autocommit(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """Run guarded statements that each commit by themselves. None is run again, as the others are kept."""
        return self._unit(self.autocommit, work, args)

    def run_read(
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a unit of work on one read-only snapshot, again as ``run`` does. See there."""
        return self._again(lambda: self._unit(self.read, work, args), attempts, retry_for)

    @staticmethod
    def _unit(
        opened: Callable[[], AbstractContextManager[State]], work: Callable[..., ResultT], args: Sequence[Any]
    ) -> ResultT:
        if not callable(work):
            raise UsageError(f"a unit of work is a function that gets a State, not {work!r}")
        with opened() as state:
            return ordinary(work(state, *args))

    def _again(self, unit: Callable[[], ResultT], attempts: int, retry_for: timedelta | None) -> ResultT:
        patience = Patience(self.settings.retry_for if retry_for is None else a_duration(retry_for, "retry_for"))
        if attempts < 1:
            raise UsageError(f"a unit of work is begun at least once: attempts={attempts}")
        attempt = 1
        while True:
            try:
                with waiting(patience):
                    return unit()
            except ServerUnavailableError as error:
                # It never began, so it can't be what brings the server down: no need to count how often it was tried.
                # The patience of its connection is over, or a pooler is there and its server isn't.
                if not patience.outlasts(error):
                    raise
            except DatabaseError as error:
                if not error.retryable or attempt >= attempts:
                    raise
                _log.info("unit of work is tried again after attempt %d: %s", attempt, error)
                # Full jitter, so that those who collided don't meet again. Bounded before the power.
                longest = min(_RETRY_MAX_SECONDS, _RETRY_BASE_SECONDS * (1 << min(attempt, 16)))
                time.sleep(random.uniform(0, longest))  # noqa: S311
                attempt += 1

    def close(self) -> None:
        """Close every connection. The runtime can't be used afterwards."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def ordinary(result: ResultT) -> ResultT:
    """What an ordinary function returned.

    Raises:
        UsageError: it is an ``async`` function's promise, or a generator.
    """
    if isinstance(result, GeneratorType):
        result.close()
        raise UsageError("a unit of work is an ordinary function: a generator would run after its transaction")
    if not isinstance(result, Awaitable):
        return result
    if isinstance(result, Coroutine):
        result.close()  # nothing of it has run
    raise UsageError(
        "a unit of work is an ordinary function: an async one would go on after its transaction; await what it needs "
        "before, and run the rest with `await AsyncStateRuntime.run(...)`"
    )


@contextmanager
def _state_over(sessions: AbstractContextManager[Session]) -> Iterator[State]:
    with sessions as session:
        yield State(session)


class AsyncStateRuntime:
    """An open state for ``async`` callers.

    A caller may be cancelled at any moment: there is no half unit and no leaked connection. A unit of work that still
    waits for a thread never starts. One in flight is waited for until it has been committed or rolled back; then the
    cancellation goes on. Under asyncio the unit's answer is lost with it, and a lease that it claimed runs out like
    any other. Under trio, whose cancellation waits for the next checkpoint, the answer arrives.
    """

    def __init__(self, runtime: StateRuntime, executor: ThreadPoolExecutor) -> None:
        """Use ``AsyncStateRuntime.open``."""
        self.sync = runtime
        """The runtime underneath, for code that runs in ``call``."""
        self._executor = executor

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: StateSettings | None = None,
        *,
        opener: Callable[[StateSettings | None], StateRuntime] = StateRuntime.open,
    ) -> AsyncIterator[Self]:
        """Open the state for the block and close it afterwards.

        Args:
            settings: where and how; read from the environment when not given.
            opener: ``codex_state.open_state`` to bring the index up to date first.

        Raises:
            StateError: see ``StateRuntime.open``.
        """
        settings = StateSettings() if settings is None else settings
        # Kept here, not in an answer that a cancelled caller wouldn't get.
        opened: list[StateRuntime] = []
        executors: list[ThreadPoolExecutor] = []
        opening = ThreadPoolExecutor(1, thread_name_prefix="codex-state-open")

        def close() -> None:
            # First the units that others have in flight: a connection is closed only when it is back in the pool.
            for executor in executors:
                executor.shutdown()
            for runtime in opened:
                runtime.close()

        try:
            await in_executor(opening, lambda: opened.append(opener(settings)))
            executors.append(ThreadPoolExecutor(_connections_of(opened[0]), thread_name_prefix="codex-state"))
            yield cls(opened[0], executors[0])
        finally:
            await in_executor(opening, close, may_be_cancelled=False)
            opening.shutdown(wait=False)

    async def run(
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a unit of work in one write transaction, again when the database says "try again".

        See ``StateRuntime.run``. ``work`` is an ordinary function and runs on a worker thread.
        """
        return await self.call(lambda runtime: runtime.run(work, *args, attempts=attempts, retry_for=retry_for))

    async def run_read(
        self,
        work: Callable[[State, *Arguments], ResultT],
        /,
        *args: *Arguments,
        attempts: int = 5,
        retry_for: timedelta | None = None,
    ) -> ResultT:
        """Run a unit of work on one read-only snapshot, again as ``run`` does."""
        return await self.call(lambda runtime: runtime.run_read(work, *args, attempts=attempts, retry_for=retry_for))

    async def read(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """``run_read``, under a short name."""
        return await self.run_read(work, *args)

    async def run_autocommit(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """Run guarded statements that each commit by themselves. None is run again, as the others are kept."""
        return await self.call(lambda runtime: runtime.run_autocommit(work, *args))

    async def autocommit(self, work: Callable[[State, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """``run_autocommit``, under a short name."""
        return await self.run_autocommit(work, *args)

    async def call(self, function: Callable[[StateRuntime, *Arguments], ResultT], /, *args: *Arguments) -> ResultT:
        """Run anything that takes a runtime on a worker thread, for example a backfill.

        Raises:
            UsageError: the runtime's block has ended, or ``function`` is an ``async`` one.
        """
        self.sync.database.refuse_when_closed()
        return await in_executor(self._executor, lambda: ordinary(function(self.sync, *args)))


def _connections_of(runtime: StateRuntime) -> int:
    """As many threads as connections: a unit never waits for a connection that another unit holds."""
    pool = runtime.engine.pool
    return pool.size() if isinstance(pool, QueuePool) else runtime.settings.pool_size


async def in_executor(
    executor: ThreadPoolExecutor, function: Callable[[], ResultT], *, may_be_cancelled: bool = True
) -> ResultT:
    """What ``function`` returns on a thread of ``executor``, under asyncio or trio.

    A function that has begun is waited for; then a cancellation goes on. One that hasn't never begins, unless it must.
    """
    context = contextvars.copy_context()
    try:
        task: object = asyncio.current_task()
    except RuntimeError:
        import trio

        context.run(working_for.set, trio.lowlevel.current_task())
        return await _under_trio(lambda: executor.submit(context.run, function), may_be_cancelled)
    context.run(working_for.set, task)
    return await _under_asyncio(executor.submit(context.run, function), may_be_cancelled)


async def _under_asyncio(unit: Future[ResultT], may_be_cancelled: bool) -> ResultT:  # noqa: FBT001
    future = asyncio.wrap_future(unit)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # Unlike awaiting it, this doesn't cancel the future, which would only hide from us how the unit ends.
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if may_be_cancelled and unit.cancel():
                raise
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # asyncio warns of one that nobody looked at
    raise cancelled


async def _under_trio(submit: Callable[[], Future[ResultT]], may_be_cancelled: bool) -> ResultT:  # noqa: FBT001
    import trio

    if may_be_cancelled:
        await trio.lowlevel.checkpoint_if_cancelled()
    unit = submit()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def wake(_unit: Future[ResultT]) -> None:
        if not unit.cancelled():
            token.run_sync_soon(trio.lowlevel.reschedule, task)

    def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
        given_up = may_be_cancelled and unit.cancel()
        return trio.lowlevel.Abort.SUCCEEDED if given_up else trio.lowlevel.Abort.FAILED

    unit.add_done_callback(wake)
    await trio.lowlevel.wait_task_rescheduled(abort)
    return unit.result()
