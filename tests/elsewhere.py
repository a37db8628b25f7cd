"""Another caller beside this one: on a thread of its own, or in a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sqlmodel import Session

from codex_state import State, StateRuntime

ResultT = TypeVar("ResultT")


def elsewhere(function: Callable[[], ResultT]) -> ResultT:
    """What ``function`` returns, or raises, on another thread."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


@contextmanager
def another_writer(runtime: StateRuntime) -> Iterator[State]:
    """A write transaction beside a unit of the same thread, in which a second unit is refused. For PostgreSQL."""
    with Session(runtime.engine, expire_on_commit=False) as session:
        yield State(session)
        session.commit()
