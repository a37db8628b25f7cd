"""Stores beside the model of the leases: each is asked the same, and must answer the same and hold the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine, invariant, multiple
from sqlmodel import Session

from codex_state.database import Database
from codex_state.models import Claimed, Skipped
from codex_state.models.columns import to_epoch_seconds
from codex_state.runtime import State
from codex_state.testing import lease_model as model
from codex_state.testing.clock import ManualClock
from codex_state.testing.emptying import empty
from codex_state.testing.processes import ManualProcesses
from codex_state.testing.samples import NOON
from codex_state.testing.stored_rows import StoredRows, read_rows


@dataclass(slots=True)
class Store:
    """A database under test, with the clock that was installed in it."""

    database: Database
    clock: ManualClock
    tokens: dict[str, str] = field(default_factory=dict)
    """The store's own random tokens, and what the model calls them."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One claim that was granted: the model's token for it, and the lease that each store gave."""

    token: str
    key: Any
    leases: tuple[Any, ...]


class StoresBesideModel(RuleBasedStateMachine):
    """A state machine's stores, and the rows that the model says they have. It has no rules of its own."""

    stores: ClassVar[Sequence[Store]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.now = to_epoch_seconds(NOON)
        self.grants = 0
        self.rows = StoredRows()
        self.processes = ManualProcesses()
        self.process = self.processes.this()
        """The process at work."""
        self.dead: set[str] = set()
        self.open = ExitStack()
        self.sessions: list[Session] = []

    def teardown(self) -> None:
        """Close the sessions."""
        self.open.close()

    def start_afresh(self) -> None:
        """Empty the tables, and make it noon."""
        self.open.enter_context(self.processes.installed(*(store.database for store in self.stores)))
        for store in self.stores:
            store.tokens.clear()
            store.clock.set(NOON)
            empty(store.database)
            # Held, as a worker holds it: opening one for every step would cost more than the steps.
            self.sessions.append(self.open.enter_context(store.database.autocommit()))

    def ask(self, verb: Callable[[State, int], Any]) -> list[Any]:
        """The answers of all stores to one verb, which gets the store's number as well."""
        return [verb(State(session), number) for number, session in enumerate(self.sessions)]

    def agree(self, expected: object, verb: Callable[[State, int], Any]) -> None:
        """Every store must answer what the model expects."""
        for answer in self.ask(verb):
            assert answer == expected, f"the model says {expected!r}, a store {answer!r}"

    def claim(self, key: Any, expected: model.ClaimOutcome, token: str, verb: Callable[[State, int], Any]) -> Any:
        """Every store must grant or refuse as the model does. Returns the grant for a bundle."""
        answers = self.ask(verb)
        for answer in answers:
            outcome = answer.reason if isinstance(answer, Skipped) else model.GRANTED
            assert outcome == expected, f"the model says {expected!r}, a store {outcome!r}"
        if expected != model.GRANTED:
            return multiple()
        granted = tuple(answer.lease if isinstance(answer, Claimed) else answer for answer in answers)
        for store, lease in zip(self.stores, granted, strict=True):
            assert lease.token not in store.tokens, "a token was given twice"
            store.tokens[lease.token] = token
        return Grant(token, key, granted)

    def new_token(self) -> str:
        """What the model calls the next grant."""
        self.grants += 1
        return f"grant {self.grants}"

    @staticmethod
    def keep(rows: dict[Any, Any], key: Any, row: Any) -> None:
        """Note what the model says of a row; ``None`` is no row."""
        if row is None:
            rows.pop(key, None)
        else:
            rows[key] = row

    @invariant()
    def every_row_agrees(self) -> None:
        """Every store holds exactly the model's rows."""
        for store, session in zip(self.stores, self.sessions, strict=True):
            stored = read_rows(session, store.tokens)
            assert stored == self.rows, f"the model holds {self.rows}, a store {stored}"
