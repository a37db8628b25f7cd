"""``StateLogHandler``: lines reach the state, and nothing of that reaches the caller."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codex_state import LogEntry, LogQuery, StateLogHandler, StateRuntime, StateSettings, log_thread
from codex_state.errors import DatabaseError


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(f"test.{uuid.uuid4()}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def handler(runtime: StateRuntime, logger: logging.Logger) -> StateLogHandler:
    handler = StateLogHandler(runtime)
    logger.addHandler(handler)
    return handler


def stored(runtime: StateRuntime) -> list[LogEntry]:
    return list(runtime.run_read(lambda state: state.logs.query(LogQuery())))


def test_a_record_is_a_line_of_the_state(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    logger.warning("%d of %s", 3, "five")
    handler.flush()
    (line,) = stored(runtime)
    assert (line.message, line.level, line.target, line.thread_id) == ("3 of five", "WARN", logger.name, None)
    assert (line.file, line.module_path) == (__file__, "test_log_handler")
    assert line.ts > 1_700_000_000


def test_an_exception_is_told_in_full(runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger) -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("failed")
    handler.flush()
    message = stored(runtime)[0].message or ""
    assert message.startswith("failed\nTraceback")
    assert message.endswith("ZeroDivisionError: division by zero")


def test_the_thread_is_that_of_the_block_or_of_the_record(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    thread, other = uuid.uuid4(), uuid.uuid4()
    with log_thread(thread):
        logger.info("in the block")
        logger.info("of the record", extra={"thread_id": other})
    logger.info("after it")
    handler.flush()
    assert [line.thread_id for line in stored(runtime)] == [str(thread), str(other), None]


@pytest.mark.parametrize(
    "text", ["nul \0 in it", "half \ud800 of a character", "x" * 1_000_000], ids=["NUL", "half a character", "long"]
)
def test_any_text_is_stored(runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger, text: str) -> None:
    # Not through the logger, on which pytest listens as well.
    handler.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 1, text, (), None))
    handler.flush()
    (line,) = stored(runtime)
    assert 0 < len(line.message or "") <= 256 * 1024
    assert handler.dropped == 0


class _Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


class _Unspeakable(_Unprintable):
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("%d", ("bob",), "%d (not formatted with 'bob': TypeError)"),
        ("%s", ("a", 2), "%s (not formatted with 'a', 2: TypeError)"),
        ("%(a)d", ({"a": "b"},), "%(a)d (not formatted with {'a': 'b'}: TypeError)"),
        ("%s", (_Unspeakable(),), "%s (not formatted with <_Unspeakable>: ZeroDivisionError)"),
        (_Unspeakable(), (1,), "<_Unspeakable> (not formatted with 1: ZeroDivisionError)"),
    ],
)
def test_what_cannot_be_formatted_is_stored_as_it_was_given(
    runtime: StateRuntime,
    handler: StateLogHandler,
    logger: logging.Logger,
    text: object,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    problem = ValueError("the problem")
    # Not through the logger, on which pytest listens as well.
    for information in (None, (ValueError, problem, None)):
        handler.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 1, text, arguments, information))
    handler.flush()
    assert [line.message for line in stored(runtime)] == [message, f"{message}\nValueError: the problem"]
    assert handler.dropped == 0


def test_what_the_handlers_own_formatter_cannot_format_is_stored(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    logger.info("outside of a request")
    logger.info("number %d", 5)
    handler.flush()
    assert [line.message for line in stored(runtime)] == [
        "outside of a request (not formatted: ValueError)",
        "number %d (not formatted with 5: ValueError)",
    ]


def test_a_record_of_which_nothing_can_be_read_is_counted_and_raises_nothing(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    handler.handle(logging.makeLogRecord({"msg": "no time", "created": "yesterday"}))
    handler.handle(logging.makeLogRecord({"msg": "no id", "thread_id": _Unspeakable()}))
    handler.handle(logging.makeLogRecord({"msg": "no name"}))
    handler.flush()
    assert handler.dropped == 2
    assert [(line.target, line.message) for line in stored(runtime)] == [
        ("None", "no name"),
        ("codex_state.log_handler", "2 log lines were dropped: their records could not be read"),
    ]


def test_lines_of_many_threads_all_arrive(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    def write(number: int) -> None:
        for line in range(200):
            logger.info("%d/%d", number, line)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.flush()
    messages = [line.message or "" for line in stored(runtime)]
    assert sorted(messages) == sorted(f"{number}/{line}" for number in range(8) for line in range(200))
    assert [message for message in messages if message.startswith("3/")] == [f"3/{line}" for line in range(200)]


def test_a_database_that_is_held_blocks_nobody_and_what_was_lost_is_told(
    runtime: StateRuntime, logger: logging.Logger
) -> None:
    handler = StateLogHandler(runtime, capacity=50)
    logger.addHandler(handler)
    let_go, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime.begin() as state:
            state.session.connection().exec_driver_sql("UPDATE backfill_state SET status = status")
            if runtime.database.dialect == "postgresql":
                state.session.connection().exec_driver_sql("LOCK TABLE logs IN ACCESS EXCLUSIVE MODE")
            begun.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(60)
    for number in range(1000):
        logger.info("line %d", number)  # none of them waits
    assert handler.dropped >= 1000 - 50 - 128 - 1
    let_go.set()
    holder.join()
    handler.flush()
    logger.info("the last")
    handler.flush()
    notes = [line.message or "" for line in stored(runtime) if line.target == "codex_state.log_handler"]
    assert sum(int(note.split()[0].replace(",", "")) for note in notes) == handler.dropped
    assert all(note.endswith("dropped: they came faster than they could be written") for note in notes)


def test_lines_that_cannot_be_written_are_counted_and_later_ones_are_written(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DatabaseError("refused by a test")

    with monkeypatch.context() as broken:
        broken.setattr(runtime, "run", refuse)
        logger.info("lost")
        handler.flush()
    logger.info("kept")
    handler.flush()
    assert handler.dropped == 1
    told = "1 log lines were dropped: the database could not be written to"
    assert [line.message for line in stored(runtime)] == ["kept", told]


def test_what_the_writing_itself_logs_is_not_written(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runtime.run

    def talkative(work: Any) -> Any:
        logger.info("a unit of work begins")
        return run(work)

    monkeypatch.setattr(runtime, "run", talkative)
    logger.info("one")
    handler.flush()
    handler.flush()
    assert [line.message for line in stored(runtime)] == ["one"]


def test_a_closed_handler_takes_nothing_more(
    runtime: StateRuntime, handler: StateLogHandler, logger: logging.Logger
) -> None:
    logger.info("before")
    handler.close()
    logger.info("after")
    handler.flush()
    assert [line.message for line in stored(runtime)] == ["before"]


_AT_EXIT = """
import logging, sys
from codex_state import StateLogHandler, StateRuntime, StateSettings
runtime = StateRuntime.open(StateSettings(codex_home=sys.argv[1]))
logging.getLogger("x").addHandler(StateLogHandler(runtime))
logging.getLogger("x").warning("at the very end")
"""


def test_the_end_of_the_interpreter_writes_what_waits(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_EXIT, tmp_path / "home"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    with StateRuntime.open(StateSettings(codex_home=tmp_path / "home")) as runtime:
        assert [line.message for line in stored(runtime)] == ["at the very end"]


_FORKING = """
import logging, os, sys
from codex_state import StateLogHandler, StateRuntime, StateSettings
runtime = StateRuntime.open(StateSettings(codex_home=sys.argv[1]))
handler = StateLogHandler(runtime)
log = logging.getLogger("x")
log.addHandler(handler)
log.warning("parent, before")
child = os.fork()
if child == 0:
    log.warning("child")
    logging.shutdown()
    os._exit(0)
log.warning("parent, after")
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_its_own_lines_and_none_of_its_parents(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKING, tmp_path / "home"], check=True)
    with StateRuntime.open(StateSettings(codex_home=tmp_path / "home")) as runtime:
        assert sorted(line.message or "" for line in stored(runtime)) == ["child", "parent, after", "parent, before"]
