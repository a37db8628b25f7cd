"""Transaction modes: what commits, what doesn't, and what a reader sees (laws L5 and L6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import UUID

import pytest
from sqlalchemy import QueuePool
from sqlmodel import Session

from codex_state.database import Database
from codex_state.errors import DatabaseReadOnlyError, IntegrityViolationError, InvalidInputError
from codex_state.models import Thread, ThreadQuery
from codex_state.runtime import State
from codex_state.testing.samples import a_thread, a_tool

_SECONDS = 60


@pytest.mark.usefixtures("clock")
class TestTransactionModes:
    """``Database.begin``, ``read`` and ``autocommit``, and a service's own sessions."""

    def test_a_transaction_keeps_all_of_its_writes(self, database: Database) -> None:
        first, second = a_thread(), a_thread()
        with database.begin() as session:
            State(session).threads.upsert(first)
            State(session).threads.upsert(second)
        assert _ids(database) == {first.id, second.id}

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_transaction_that_raises_leaves_nothing(self, database: Database, error: type[BaseException]) -> None:
        """L5."""
        with pytest.raises(error), database.begin() as session:  # noqa: PT012 - the block is the transaction
            State(session).threads.upsert(a_thread())
            raise error
        assert _ids(database) == set()

    def test_a_refused_statement_takes_the_whole_transaction_with_it(self, database: Database) -> None:
        """L5."""
        with pytest.raises(IntegrityViolationError), database.begin() as session:  # noqa: PT012
            State(session).threads.upsert(a_thread())
            State(session).dynamic_tools.persist([a_tool(a_thread())])
        assert _ids(database) == set()

    def test_in_autocommit_every_statement_is_kept_by_itself(self, database: Database) -> None:
        thread = a_thread()
        with pytest.raises(RuntimeError), database.autocommit() as session:  # noqa: PT012
            State(session).threads.upsert(thread)
            raise RuntimeError
        assert _ids(database) == {thread.id}

    def test_in_autocommit_a_refused_statement_takes_nothing_with_it(self, database: Database) -> None:
        first, second = a_thread(), a_thread()
        with database.autocommit() as session:
            state = State(session)
            state.threads.upsert(first)
            with pytest.raises(IntegrityViolationError):
                state.dynamic_tools.persist([a_tool(a_thread())])
            state.threads.upsert(second)
        assert _ids(database) == {first.id, second.id}

    def test_in_autocommit_there_is_nothing_to_go_back_in(self, database: Database) -> None:
        """L6."""
        with database.autocommit() as session, pytest.raises(InvalidInputError):  # noqa: PT012
            session.begin_nested()
            State(session).threads.upsert(a_thread())
        assert _ids(database) == set()

    @pytest.mark.parametrize("sessions", [Database.read, lambda database: Session(database.read_engine)])
    def test_a_reader_cannot_write(
        self, database: Database, sessions: Callable[[Database], AbstractContextManager[Session]]
    ) -> None:
        """L6."""
        with sessions(database) as session, pytest.raises(DatabaseReadOnlyError):
            State(session).threads.upsert(a_thread())
        assert _ids(database) == set()

    def test_who_comes_after_a_reader_can_write(self, database: Database) -> None:
        """The reader's connection is used again."""
        with database.read() as session:
            assert State(session).threads.list_ids(ThreadQuery(limit=1)) == []
        thread = _stored(database)
        assert _ids(database) == {thread.id}

    def test_a_reader_sees_one_snapshot(self, database: Database) -> None:
        """L6."""
        first = _stored(database)
        writer = threading.Thread(target=_stored, args=(database,))
        with database.read() as session:
            assert set(State(session).threads.list_ids(ThreadQuery(limit=9))) == {first.id}
            writer.start()
            if _has_many_connections(database):
                # Nobody holds up the writer. A database that is its one connection makes it wait.
                writer.join(_SECONDS)
                assert not writer.is_alive()
            assert set(State(session).threads.list_ids(ThreadQuery(limit=9))) == {first.id}
        writer.join(_SECONDS)
        assert len(_ids(database)) == 2

    def test_a_services_own_session_commits_when_the_service_says_so(self, database: Database) -> None:
        kept, given_up = a_thread(), a_thread()
        with Session(database.engine) as session:
            State(session).threads.upsert(kept)
            session.commit()
            State(session).threads.upsert(given_up)
        assert _ids(database) == {kept.id}


def _has_many_connections(database: Database) -> bool:
    pool = database.engine.pool
    return isinstance(pool, QueuePool) and pool.size() > 1


def _stored(database: Database) -> Thread:
    thread = a_thread()
    with database.begin() as session:
        State(session).threads.upsert(thread)
    return thread


def _ids(database: Database) -> set[UUID]:
    with database.read() as session:
        return set(State(session).threads.list_ids(ThreadQuery(limit=100)))
