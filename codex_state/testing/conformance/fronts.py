"""The doors through which the suite's tests reach the database: a held session, or ``AsyncStateRuntime``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from sqlmodel import Session

from codex_state.database import Database
from codex_state.runtime import AsyncStateRuntime, State, StateRuntime
from codex_state.settings import StateSettings

AsyncFront = Literal["asyncio", "trio"]
Front = Literal["direct"] | AsyncFront

Unit = Callable[[Callable[[State], Any]], Any]
"""Runs a unit of work, in which every statement commits by itself."""


@contextmanager
def state_through(front: Front, database: Database, home: Path) -> Iterator[State]:
    """All repositories of ``database``, on which every verb commits by itself.

    Args:
        front: ``direct`` for one held session; ``asyncio`` or ``trio`` for an ``AsyncStateRuntime`` on that event
            loop, where each verb is a unit of its own. These two need anyio.
        database: stays open afterwards.
        home: an existing directory, for the async runtime's settings.
    """
    if front == "direct":
        with database.autocommit() as session:
            yield State(session)
        return
    with units_through(front, database, home) as unit, state_of(unit, database) as state:
        yield state


@contextmanager
def units_through(front: AsyncFront, database: Database, home: Path) -> Iterator[Unit]:
    """What runs units of work on ``database`` through an ``AsyncStateRuntime``. Needs anyio.

    An event loop and its threads cost more than most tests: tests that share a database may share this as well.
    """
    from anyio.from_thread import start_blocking_portal

    runtime = _Borrowing(StateSettings(codex_home=home), database)
    with (
        start_blocking_portal(front) as portal,
        portal.wrap_async_context_manager(
            AsyncStateRuntime.open(runtime.settings, opener=lambda _: runtime)
        ) as async_runtime,
    ):
        yield lambda work: portal.call(async_runtime.autocommit, work)


@contextmanager
def state_of(unit: Unit, database: Database) -> Iterator[State]:
    """All repositories of ``database``. Each of their verbs is a unit of work of its own."""
    with ExitStack() as held:
        yield cast("State", _StateOfUnits(unit, database, held))


class _Borrowing(StateRuntime):
    """A runtime that leaves the database to whoever opened it."""

    def close(self) -> None:
        """The database stays open."""


class _StateOfUnits:
    """Looks like a state. Each verb of its repositories is a unit of work of its own."""

    def __init__(self, unit: Unit, database: Database, held: ExitStack) -> None:
        self._unit = unit
        self._database = database
        self._held = held

    @cached_property
    def session(self) -> Session:
        """A session beside the units, for rows that no verb would write."""
        return self._held.enter_context(self._database.autocommit())

    def __getattr__(self, repository: str) -> _VerbsOfUnits:
        return _VerbsOfUnits(self._unit, repository)


class _VerbsOfUnits:
    """Looks like a repository."""

    def __init__(self, unit: Unit, repository: str) -> None:
        self._unit = unit
        self._repository = repository

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            return self._unit(lambda state: getattr(getattr(state, self._repository), verb)(*arguments, **options))

        return call
