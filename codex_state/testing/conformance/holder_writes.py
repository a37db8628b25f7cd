"""Every write that the holder of a lease makes counts while the lease is held, and changes nothing afterwards (L2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import pytest
from sqlalchemy import select

from codex_state.database import Database
from codex_state.models import metadata
from codex_state.testing.clock import ManualClock
from codex_state.testing.grants import GRANTS, add_thread, take
from codex_state.testing.holder_writes import HOLDER_WRITES, RegisteredWrite

_LEASE = timedelta(seconds=60)
_WORK = "work"

_Mode = Literal["autocommit", "begin"]


@pytest.mark.parametrize("mode", ["autocommit", "begin"])
@pytest.mark.parametrize("write", HOLDER_WRITES, ids=lambda write: write.name)
class TestHolderWrites:
    """The registry of holder writes, by sessions that commit by themselves and in transactions."""

    def test_who_holds_the_lease_may_write(
        self, database: Database, clock: ManualClock, write: RegisteredWrite[Any], mode: _Mode
    ) -> None:
        lease = _held(database, write)
        clock.advance(_LEASE / 2)
        before = _rows(database)
        assert _written(database, write, lease, mode) != write.refused
        assert _rows(database) != before

    def test_whose_lease_was_taken_over_changes_nothing(
        self, database: Database, clock: ManualClock, write: RegisteredWrite[Any], mode: _Mode
    ) -> None:
        lease = _held(database, write)
        clock.advance(_LEASE)
        with database.autocommit() as session:
            rival = take(session, write.lease, _WORK, "rival", _LEASE)
        clock.advance(_LEASE / 2)
        before = _rows(database)
        assert _written(database, write, lease, mode) == write.refused
        assert _rows(database) == before
        # What was refused was the holder, not the write.
        assert _written(database, write, rival, mode) != write.refused

    def test_who_has_finished_changes_nothing_any_more(
        self, database: Database, clock: ManualClock, write: RegisteredWrite[Any], mode: _Mode
    ) -> None:
        lease = _held(database, write)
        with database.autocommit() as session:
            assert GRANTS[write.lease].finish(session, lease)
        clock.advance(_LEASE / 2)
        before = _rows(database)
        assert _written(database, write, lease, mode) == write.refused
        assert _rows(database) == before


def _held(database: Database, write: RegisteredWrite[Any]) -> Any:
    """The lease of a holder, with the rows that the write needs."""
    with database.begin() as session:
        add_thread(session, _WORK)
        write.arrange(session)
    with database.autocommit() as session:
        return take(session, write.lease, _WORK, "holder", _LEASE)


def _written(database: Database, write: RegisteredWrite[Any], lease: Any, mode: _Mode) -> object:
    with database.begin() if mode == "begin" else database.autocommit() as session:
        return write.call(session, lease)


def _rows(database: Database) -> Mapping[str, Sequence[Any]]:
    with database.read() as session:
        return {
            table.name: session.connection().execute(select(table).order_by(*table.primary_key)).all()
            for table in metadata.sorted_tables
        }
