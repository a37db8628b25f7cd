"""Logs stay bounded (law L10): by bytes, lines and age, in small steps, and the space is given back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import Session

from codex_state import LogEntry, LogQuery, StateRuntime, StateSettings
from codex_state.database import log_bounds
from codex_state.repositories.logs import LogRepository
from codex_state.testing.clock import ManualClock
from codex_state.testing.samples import NOON, a_log_line
from tests import scripts

MIB = 1024 * 1024


def lines(count: int, size: int = 1000) -> list[LogEntry]:
    return [a_log_line("x" * size)] * count


def write(runtime: StateRuntime, units: int, size: int = 1000) -> None:
    for _ in range(units):
        runtime.run(lambda state: state.logs.insert_many(lines(MIB // size, size)))


def space(runtime: StateRuntime) -> int:
    """The bytes of the file and of SQLite's log."""
    path = runtime.database.path
    assert path is not None
    return sum(each.stat().st_size for each in (path, path.with_name(path.name + "-wal")) if each.exists())


def count(runtime: StateRuntime) -> int:
    with runtime.read() as state:
        return state.logs.stats().lines


@pytest.fixture
def small(settings: StateSettings) -> Iterator[StateRuntime]:
    """A state, on either database, that keeps 4 MiB of logs."""
    with StateRuntime.open(settings.model_copy(update={"log_max_bytes": 4 * MIB})) as runtime:
        yield runtime


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_whoever_writes_keeps_the_logs_within_their_bytes(small: StateRuntime) -> None:
    write(small, units=12)
    with small.read() as state:
        stats = state.logs.stats()
        (newest,) = state.logs.query(LogQuery(limit=1, descending=True))
    assert stats.size <= 4 * MIB
    assert stats.lines > 1000
    assert newest.id == 12 * (MIB // 1000)


def test_so_does_whoever_writes_in_a_session_of_its_own_as_soon_as_the_runtime_works(small: StateRuntime) -> None:
    for _ in range(8):
        with Session(small.engine) as session:
            LogRepository(session).insert_many(lines(1000))
            session.commit()
    for _ in range(20):  # each takes a short turn
        small.run(lambda state: state.logs.max_id())
    with small.read() as state:
        assert state.logs.stats().size <= 4 * MIB


def test_and_whoever_writes_by_statements_that_commit_by_themselves(small: StateRuntime) -> None:
    with small.autocommit() as state:
        for _ in range(8):
            state.logs.insert_many(lines(1000))
        assert state.logs.stats().size <= 4 * MIB


@pytest.mark.parametrize("size", [20, 1400, 5000])
def test_the_file_and_its_log_stay_below_the_bound_whatever_the_lines_size(home: Path, size: int) -> None:
    bound = 12 * MIB
    with StateRuntime.open(StateSettings(codex_home=home, log_max_bytes=bound)) as runtime:
        empty = space(runtime)
        for _ in range(15):
            runtime.run(lambda state: state.logs.insert_many(lines(MIB // (size + 100), size)))
        path = runtime.database.path
        assert path is not None
        # SQLite's log has 16 MiB of its own, which the rest of the bound leaves room for from 64 MiB on.
        assert path.stat().st_size - empty < bound
        assert space(runtime) - path.stat().st_size < 20 * MIB
        assert runtime.run_read(lambda state: state.logs.stats().size) > bound // 4


_WRITE = """
import sys
from codex_state import StateRuntime, StateSettings
from codex_state.testing.samples import a_log_line
home, (bound, units, count, size) = sys.argv[1], map(int, sys.argv[2:])
with StateRuntime.open(StateSettings(codex_home=home, log_max_bytes=bound)) as runtime:
    for _ in range(units):
        runtime.run(lambda state: state.logs.insert_many([a_log_line("x" * size)] * count))
"""


def test_several_processes_keep_one_bound(home: Path) -> None:
    bound = 4 * MIB
    with StateRuntime.open(StateSettings(codex_home=home, log_max_bytes=bound)) as runtime:
        programs = [scripts.start(_WRITE, home, bound, 4, 1000, 1000) for _ in range(3)]
        assert {program.wait() for program in programs} == {scripts.Finished(0, "", "")}
        assert runtime.run_read(lambda state: state.logs.stats().size) <= bound


def test_the_write_ahead_log_is_bounded_while_several_write_without_a_pause(home: Path) -> None:
    """L10: SQLite's own checkpoints never find a moment in which nobody reads or writes."""
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        programs = [scripts.start(_WRITE, home, runtime.settings.log_max_bytes, 300, 60, 2000) for _ in range(3)]
        longest = 0
        while not all(program.has_ended() for program in programs):
            longest = max(longest, space(runtime))
            time.sleep(0.01)
        assert {program.wait() for program in programs} == {scripts.Finished(0, "", "")}
        assert longest < 64 * MIB


def test_the_number_of_lines_is_bounded_exactly(settings: StateSettings) -> None:
    with StateRuntime.open(settings.model_copy(update={"log_max_rows": 100})) as runtime:
        runtime.run(lambda state: state.logs.insert_many(lines(5000, 300)))
        for _ in range(50):  # a turn ends after a time, whatever is left; a busy machine needs a few
            if count(runtime) == 100:
                break
            runtime.run(lambda state: state.logs.insert_many(lines(100, 300)))
        assert count(runtime) == 100


def test_age_counts_from_the_insertion_not_from_the_lines_own_time(tmp_path: Path) -> None:
    """What is copied from an old log stays for as long as what is written now."""
    settings = StateSettings(codex_home=tmp_path / "home", log_max_age=timedelta(days=14))
    with StateRuntime.open(settings) as runtime:
        clock = ManualClock(tmp_path / "clock", NOON)
        clock.install(runtime.database)
        runtime.run(lambda state: state.logs.insert_many([a_log_line("x" * 1000, ts=1) for _ in range(2000)]))
        assert count(runtime) == 2000
        clock.set(NOON + timedelta(days=13))
        runtime.run(lambda state: state.logs.insert_many(lines(2000)))
        assert count(runtime) == 4000
        clock.set(NOON + timedelta(days=15))
        runtime.run(lambda state: state.logs.insert_many(lines(2000)))
        assert 2000 < count(runtime) < 5000


def test_a_line_has_an_age_also_where_few_are_written(tmp_path: Path) -> None:
    settings = StateSettings(codex_home=tmp_path / "home", log_max_age=timedelta(days=14))
    clock = ManualClock(tmp_path / "clock", NOON)
    for day in range(30):
        clock.set(NOON + timedelta(days=day))
        with StateRuntime.open(settings) as runtime:
            clock.install(runtime.database)
            runtime.run(lambda state: state.logs.insert(a_log_line(ts=1)))
    with StateRuntime.open(settings) as runtime:
        assert 14 <= count(runtime) <= 16


def test_only_what_is_beyond_the_bounds_goes(small: StateRuntime) -> None:
    small.run(lambda state: state.logs.insert_many(lines(100)))
    small.database._keep_logs()
    assert count(small) == 100


def test_a_copy_keeps_every_line_and_its_bounds_begin_with_it(tmp_path: Path) -> None:
    from codex_state import copy_state

    source = StateSettings(codex_home=tmp_path / "home", log_max_bytes=None)
    target = StateSettings(codex_home=tmp_path / "home", database_url=f"sqlite:///{tmp_path / 't'}", log_max_bytes=MIB)
    with StateRuntime.open(source) as first, StateRuntime.open(target) as second:
        write(first, units=3)
        assert copy_state(first, second).complete
        assert count(second) == count(first)


def test_deleting_much_takes_many_small_transactions(small: StateRuntime) -> None:
    """Other writers get their turn in between, so nobody waits for all of it."""
    with Session(small.engine) as session:
        for _ in range(3):
            LogRepository(session).insert_many(lines(4000, 50))
        session.commit()
    deleted_at_once: list[int] = []

    @event.listens_for(small.engine, "after_cursor_execute")
    def heard(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM logs"):
            deleted_at_once.append(cursor.rowcount)

    with small.begin() as state:
        state.logs.retain(max_rows=1)
    assert count(small) == 1
    assert len(deleted_at_once) > 3
    assert max(deleted_at_once) <= log_bounds._MANY_LINES


def test_a_unit_that_fails_deletes_nothing_later(small: StateRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    small.run(lambda state: state.logs.insert_many(lines(1000)))
    monkeypatch.setattr("codex_state.repositories.logs.TURN_SECONDS", 0.0)  # nothing goes within the unit

    def work(state: Any) -> None:
        assert state.logs.retain(max_rows=1) == 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        small.run(work)
    assert count(small) == 1000
    small.run(lambda state: state.logs.retain(max_rows=1))
    assert count(small) == 1


def test_the_space_is_given_back_also_while_another_has_the_file_open(home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        write(runtime, units=20)
        path = runtime.database.path
        assert path is not None
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT count(*) FROM logs").fetchone()
            assert path.stat().st_size > 10 * MIB
            runtime.run(lambda state: state.logs.retain(max_rows=10))
            assert space(runtime) < 4 * MIB
            assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_upkeep_that_fails_costs_the_writer_nothing(
    small: StateRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with small.begin() as state:
        state.session.connection().exec_driver_sql("DROP TABLE log_segments")
    write(small, units=2)
    assert count(small) == 2 * (MIB // 1000)


def test_one_in_a_process_keeps_the_logs_at_a_time(small: StateRuntime) -> None:
    upkeep = small.database._log_upkeep
    with upkeep._lock:
        write(small, units=8)  # none of them waits
    assert count(small) == 8 * (MIB // 1000)
