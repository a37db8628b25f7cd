"""Every error this package raises on purpose.

Two rules hold (law L8). What a caller can do about a problem decides its class, so ``except DatabaseBusyError`` is
useful and ``except StateError`` is enough. And refusals that belong to the protocol (a lease that somebody else
holds, a job that is up to date) are return values, never exceptions.

The database's errors derive from SQLAlchemy's as well and live in ``database.errors``. They can be imported from here,
and SQLAlchemy is imported only when one of them is: the commands that need no database, and the processes that only
read rollouts, start without it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

    from codex_state.database.errors import *  # noqa: F403 - see __getattr__


class StateError(Exception):
    """Base of everything this package raises on purpose. Its text says what, where and what to do.

    It is the same after pickling and copying, so that it crosses process pools and task queues. In a report that
    becomes JSON by pydantic it is its text.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> CoreSchema:
        """Of reports that have an error: pydantic takes it as it is."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls, serialization=core_schema.to_string_ser_schema())

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through the constructor, whose arguments need not be the text.
        return _rebuilt, (
            type(self),
            self.args,
            {k: v for k, v in vars(self).items() if k == "__notes__" or _portable(v)},
        )


def _rebuilt(kind: type[StateError], args: tuple[Any, ...], attributes: dict[str, Any]) -> StateError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _portable(value: Any) -> bool:
    """Whether a value can be pickled: a driver's error may hold a connection, and parameters anything."""
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 - what was just written
    except Exception:  # noqa: BLE001 - anything may be raised by a class's own way of being pickled
        return False
    return True


ValueT = TypeVar("ValueT")


def required(value: object, kind: type[ValueT]) -> ValueT:
    """The same value.

    Raises:
        InvalidInputError: it is of another kind.
    """
    if not isinstance(value, kind):
        raise InvalidInputError(f"expected a {kind.__name__}, not {value!r}")
    return value


def one_of(word: object, known: Iterable[str], what: str) -> str:
    """The same word.

    Raises:
        InvalidInputError: it isn't among the ``known``; the nearest is named.
    """
    words = list(known)
    if word not in words:
        raise InvalidInputError(f"no {what}: {word!r}; there are {', '.join(words)}{did_you_mean(word, words)}")
    return str(word)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The nearest of the ``known`` words, as the end of an error's text; an empty text when none is near."""
    near = get_close_matches(str(word), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class UsageError(StateError, RuntimeError):
    """A call that can't work however often it is tried: on a closed runtime, or on a ``State`` after its block."""


class ConfigurationError(StateError):
    """Settings or the home they point at can't be used."""


class InvalidInputError(StateError, ValueError):
    """A value given by the caller is malformed: an id, a cursor, a date, a text the database can't store."""


class InvalidRowError(StateError):
    """A stored value can't be read back: an unknown status, a malformed id, a time out of range."""


class ThreadNotFoundError(StateError, LookupError):
    """The thread that an operation is about has no row."""

    def __init__(self, thread_id: UUID) -> None:
        super().__init__(f"thread not found: {thread_id}")
        self.thread_id = thread_id


class RolloutError(StateError):
    """A rollout file can't be turned into a thread."""


class BackfillError(StateError):
    """The index could not be brought up to date."""


class BackfillTimeoutError(BackfillError):
    """Another worker's backfill did not finish within the time that the caller would wait."""


class WorkStoppedError(StateError):
    """Work under a lease must stop: the lease is lost, its time is over, or its caller gave up."""


class LeaseLost(WorkStoppedError):  # noqa: N818 - the field's word
    """A holder's write was refused, because another took over or the work is finished. Nothing was written."""


class MemoryFilesError(StateError):
    """A scope's memories can't be written as files. They are safe in the database."""


class RestoreRefusedError(StateError):
    """A backup isn't restored: it isn't whole or not of this state, or a state is in its place. Nothing was changed."""


class CopyMismatchError(StateError):
    """After a copy, the two databases don't hold the same. The text names the table and the first such row."""


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(import_module("codex_state.database.errors"), name)
