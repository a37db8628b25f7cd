"""Where the checks run: databases that are made once, however many mutants are tried on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_state import StateRuntime, StateSettings
from codex_state.runtime import State
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON
from tests import stores
from tests.chaos.worlds import World


@dataclass(frozen=True)
class Check:
    """Something that fails when a law is broken."""

    name: str
    run: Callable[[Bench], None]


class Bench:
    """Where checks run: databases that are made once, however many mutants are tried on them."""

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self.directory = directory
        self._held = held
        self._template = stores.sqlite_template(directory)
        self.memory = held.enter_context(stores.in_memory())
        self._clock = held.enter_context(ManualClock(directory / "clock", NOON))
        self._clock.install(self.memory)
        self._files = 0

    @contextmanager
    def session(self) -> Iterator[tuple[State, ManualClock]]:
        """All repositories in one transaction on empty tables, at noon; nothing of it is kept."""
        self._clock.set(NOON)
        # A writer's from the beginning, so that no planted bug begins and commits a transaction of its own.
        with self.memory.begin() as session:
            try:
                yield State(session), self._clock
            finally:
                session.rollback()

    @contextmanager
    def world(self) -> Iterator[World]:
        """A file without rows that several connections can open, at noon."""
        self._files += 1
        directory = self.directory / f"world {self._files}"
        with (
            stores.opened(stores.copy_of(self._template, directory)) as database,
            ManualClock(directory / "clock", NOON) as clock,
        ):
            clock.install(database)
            yield World(str(database.engine.url), directory / "clock", database, clock)

    @contextmanager
    def runtime(self, **settings: Any) -> Iterator[StateRuntime]:
        """An open state in a home of its own."""
        self._files += 1
        home = self.directory / f"home {self._files}"
        with StateRuntime.open(StateSettings(codex_home=home, **settings)) as runtime:
            yield runtime


@contextmanager
def bench(directory: Path) -> Iterator[Bench]:
    """A bench in an empty directory."""
    with ExitStack() as held:
        yield Bench(directory, held)
