"""Writes down the calls of one process while it makes them."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import select
from sqlmodel import Session

from codex_state.database.sql import server_now
from codex_state.models.columns import to_epoch_seconds
from tests.history.calls import ANY_KEY, APPLIED, READ, Answer, Kind


class Pending:
    """A call that is being made."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        """What it answered. ``None``: nobody knows whether it happened."""

    def answered(self, answer: Answer) -> None:
        """Note what it answered."""
        self.answer = answer


class Recorder:
    """The record of one worker, as lines of a file.

    Each call is written twice: before anything is sent, and when the answer is there. A line is one write to the
    operating system, so what was written outlives a killed process. Threads may share a recorder, and processes may
    share a file, but a recorder that is inherited by a fork must not be used in both.
    """

    def __init__(self, path: Path, worker: str) -> None:
        """Record into ``path``, which is made if it is missing and added to otherwise.

        Args:
            path: the file.
            worker: the worker's name in the record.
        """
        self._worker = worker
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._numbers = itertools.count(1)

    @contextmanager
    def call(self, kind: Kind, key: str, verb: str, **arguments: Any) -> Iterator[Pending]:
        """Record the call that is made in the block.

        The block must hold all of it: open and commit its transaction inside. When it raises, or ends without
        ``answered``, the call may or may not have happened.

        Args:
            kind: what it is about; the kind lists the verbs and their arguments.
            key: which job, lock or backfill.
            verb: what is asked.
            arguments: what it is asked with.
        """
        pending = Pending()
        identity = self._begin(kind, key, verb, arguments, time.monotonic_ns())
        yield pending
        if pending.answer is not None:
            self._end(identity, pending.answer, time.monotonic_ns())

    @contextmanager
    def calls(self, kind: Kind, verb: str) -> Iterator[list[tuple[str, dict[str, Any], Answer]]]:
        """Record one call on several keys, which are known by its answer only.

        The block adds them to the list: the key, the arguments, the answer. Until the last of them is written down,
        the call may have changed any key.
        """
        start = time.monotonic_ns()
        on_any_key = self._begin(kind, ANY_KEY, verb, {}, start)
        answers: list[tuple[str, dict[str, Any], Answer]] = []
        yield answers
        end = time.monotonic_ns()
        for key, arguments, answer in answers:
            self._end(self._begin(kind, key, verb, arguments, start), answer, end)
        self._end(on_any_key, Answer(READ), end)

    def read_clock(self, session: Session) -> int:
        """Ask for the database's time, in epoch seconds, and record it.

        The more often any answer tells the time, the better the checker knows what it was in between.
        """
        with self.call(Kind.CLOCK, "", "read") as pending:
            seconds: int = session.connection().execute(select(server_now())).scalar_one()
            pending.answered(Answer(READ, seconds=seconds))
        return seconds

    @contextmanager
    def set_clock(self, moment: datetime) -> Iterator[None]:
        """Record that the block sets a clock that only moves by hand. Also record the time that it shows first."""
        with self.call(Kind.CLOCK, "", "set", seconds=to_epoch_seconds(moment)) as pending:
            yield
            pending.answered(Answer(APPLIED))

    @contextmanager
    def death(self, worker: str) -> Iterator[None]:
        """Record that the process of a worker of this host dies in the block, as by a kill."""
        with self.call(Kind.WORKER, worker, "die") as pending:
            yield
            pending.answered(Answer(APPLIED))

    def _begin(self, kind: Kind, key: str, verb: str, arguments: dict[str, Any], start: int) -> str:
        identity = f"{self._name}-{next(self._numbers)}"
        about = {"worker": self._worker, "kind": kind, "key": key, "verb": verb, "arguments": arguments}
        self._write({"id": identity, "start": start, **about})
        return identity

    def _end(self, identity: str, answer: Answer, end: int) -> None:
        told = {name: value for name, value in asdict(answer).items() if value is not None}
        self._write({"id": identity, "end": end, "answer": told})

    def _write(self, event: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
