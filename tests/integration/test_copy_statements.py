"""The statements of a copy on PostgreSQL: they seek, lock what is decided about, and are repeated if they get lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from copied_states import change, fill, held, log_row, put
from sqlmodel import Session
from stores import fresh_settings

from codex_state import StateRuntime, StateSettings, copy_state
from codex_state.transfer.tables import StoredTable, stored_tables

_MANY = 30_000


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateRuntime]:
    with fresh_settings("postgresql", tmp_path, request) as settings, StateRuntime.open(settings) as runtime:
        yield runtime


@pytest.fixture
def source(tmp_path: Path) -> Iterator[StateRuntime]:
    with StateRuntime.open(StateSettings(codex_home=tmp_path / "source")) as runtime:
        yield runtime


def table_of(name: str) -> StoredTable:
    (table,) = [table for table in stored_tables() if table.name == name]
    return table


@pytest.mark.parametrize("locked", [False, True])
def test_rows_are_looked_up_by_their_keys_although_their_table_has_no_statistics(
    target: StateRuntime, locked: bool
) -> None:
    columns = ", ".join(log_row(1))
    values = ", ".join("number" if name == "id" else f":{name}" for name in log_row(1))
    # Nobody analyses the table between the lines.
    change(target, "ALTER TABLE logs SET (autovacuum_enabled = off)")
    change(
        target,
        f"INSERT INTO logs ({columns}) SELECT {values} FROM generate_series(1, {_MANY}) AS numbers (number)",
        **log_row(1),
    )
    logs = table_of("logs")
    with target.begin() as state:
        connection = state.session.connection()
        keys = [(number,) for number in range(1, 1001)]
        assert list(logs.at(connection, keys, locked=locked)) == keys
        statements: Any = logs._statements(connection)
        statement = statements._at_locked if locked else statements._at
        plan = "\n".join(
            connection.exec_driver_sql(f"EXPLAIN {statement}", ([key for (key,) in keys],)).scalars().all()
        )
    assert "Index Scan using pk_logs on logs" in plan
    assert "Seq Scan" not in plan


def test_rows_that_are_read_again_to_be_replaced_are_locked_until_the_end(target: StateRuntime) -> None:
    put(target, "logs", *(log_row(number) for number in range(1, 6)))
    with target.begin() as state, Session(target.engine) as other:
        assert len(table_of("logs").at(state.session.connection(), [(2,), (4,), (9,)], locked=True)) == 2
        free = other.connection().exec_driver_sql("SELECT id FROM logs ORDER BY id FOR UPDATE SKIP LOCKED")
        assert free.scalars().all() == [1, 3, 5]


def test_a_connection_that_is_lost_within_a_batch_is_made_again_and_the_batch_repeated(
    source: StateRuntime, target: StateRuntime
) -> None:
    fill(source)
    with target.begin() as state:
        connection = state.session.connection()
        connection.exec_driver_sql("CREATE SEQUENCE lines")
        connection.exec_driver_sql(
            "CREATE FUNCTION lose_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('lines') = 5 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER lose_it BEFORE INSERT ON logs FOR EACH ROW EXECUTE FUNCTION lose_it()"
        )
    assert copy_state(source, target).complete
    rows = len(held(source.database, "logs")["logs"])
    with target.read() as state:
        assert state.session.connection().exec_driver_sql("SELECT last_value FROM lines").scalar_one() == 5 + rows
    assert held(target.database, "logs") == held(source.database, "logs")
