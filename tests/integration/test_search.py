"""Finding threads by what was said in them."""

from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import zstandard
from cli_process import InProcess
from original import NAMES, unpack
from rollout_files import (
    completed_message,
    event,
    history_base,
    numbered,
    record,
    session_meta,
    thread_id,
    user_message,
    write,
    write_rollout,
)

import codex_state.cli.output as output_module
from codex_state import InvalidInputError, StateRuntime, StateSettings, ThreadQuery
from codex_state.rollout import TranscriptKind, backfill, read_conversation, scanning, search, searching
from codex_state.rollout.pool import Pool


def agent_message(text: str) -> bytes:
    return event("agent_message", message=text)


def output(text: str) -> bytes:
    return record("response_item", {"type": "function_call_output", "call_id": "c", "output": text})


def conversation(home: Path, number: int, *said: str, **place: object) -> Path:
    items = [session_meta(number), user_message(said[0]), *map(agent_message, said[1:])]
    return write_rollout(home, number, *items, modified=1_700_000_000 + number, **place)  # type: ignore[arg-type]


def found(runtime: StateRuntime, words: str, *, limit: int = 50, **options: object) -> list[int]:
    """The numbers of the threads that are found, as they come."""
    numbers = {thread_id(number): number for number in range(100)}
    return [numbers[each.thread.id] for each in search(runtime, words, ThreadQuery(limit=limit), **options)]  # type: ignore[arg-type]


def test_threads_that_hold_every_word_come_newest_first(runtime: StateRuntime) -> None:
    home = runtime.codex_home
    conversation(home, 1, "Make the importer atomic", "One guarded update, and a test that KILLS it.")
    conversation(home, 2, "Something else")
    conversation(home, 3, "Kill the importer")
    backfill(runtime)
    assert found(runtime, "importer kill") == [3, 1]
    assert found(runtime, 'importer "guarded update"') == [1]
    assert found(runtime, "importer -atomic") == [3]
    assert found(runtime, "importer nowhere") == []
    (first, *_) = search(runtime, "kills", ThreadQuery())
    assert [(hit.kind, hit.snippet) for hit in first.hits] == [
        (TranscriptKind.AGENT, "One guarded update, and a test that KILLS it.")
    ]


def test_names_count_and_so_do_texts_without_a_rollouts(runtime: StateRuntime) -> None:
    conversation(runtime.codex_home, 1, "Hello", "World")
    backfill(runtime)
    runtime.run(lambda state: state.threads.set_name(thread_id(1), "Lantern release"))
    assert found(runtime, "lantern world") == [1]
    assert found(runtime, "world -lantern") == []


def test_the_message_with_most_of_the_words_is_shown_first(runtime: StateRuntime) -> None:
    conversation(
        runtime.codex_home, 1, "alpha", "beta " * 100, f"{'so ' * 90}alpha and beta{' on' * 90}", "alpha beta gamma"
    )
    backfill(runtime)
    (thread,) = search(runtime, "alpha beta gamma")
    assert [hit.snippet[:5] for hit in thread.hits] == ["alpha", "…so s", "alpha"]
    assert "alpha and beta" in thread.hits[1].snippet
    assert len(thread.hits[1].snippet) <= 161
    assert [hit.line for hit in thread.hits] == [5, 4, 2]


def test_only_what_was_said_is_looked_through_unless_told_otherwise(runtime: StateRuntime) -> None:
    write_rollout(runtime.codex_home, 1, session_meta(1), user_message("run it"), output("zebra"))
    backfill(runtime)
    assert found(runtime, "zebra") == []
    assert found(runtime, "zebra", kinds=["output"]) == [1]
    assert found(runtime, "cwd") == []  # it is in the file, and nobody said it
    with pytest.raises(InvalidInputError, match=r"no kind: 'outputt'.*output"):
        search(runtime, "zebra", kinds=["outputt"])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="nowhere to look"):
        search(runtime, "zebra", kinds=[])


def test_compressed_damaged_and_vanished_rollouts_cost_nothing_else(runtime: StateRuntime) -> None:
    home = runtime.codex_home
    packed = conversation(home, 1, "needle in a haystack")
    content = packed.read_bytes()
    packed.unlink()
    write(packed.with_name(packed.name + ".zst"), zstandard.compress(content))
    write_rollout(
        home, 2, session_meta(2), user_message("hay"), b"\0\0{broken", agent_message("a needle"), b"\xff\xfe needle"
    )
    gone = conversation(home, 3, "needle, too")
    backfill(runtime)
    gone.unlink()
    assert sorted(found(runtime, "needle")) == [1, 2, 3]
    (lost,) = [each for each in search(runtime, "needle") if each.thread.id == thread_id(3)]
    assert lost.hits == ()  # its title still says so
    assert "No such file" in str(lost.unreadable)


def test_earlier_segments_of_a_thread_are_looked_through_as_well(runtime: StateRuntime) -> None:
    first = numbered(session_meta(1), completed_message("The first ask"), completed_message("about walruses"))
    later = numbered(session_meta(1, history_base=history_base(1, 2)), completed_message("and penguins"), start=2)
    write_rollout(runtime.codex_home, 1, *first)
    write_rollout(runtime.codex_home, 1, *later, time="2026-01-03T00-00-00", segment=2)
    backfill(runtime)
    assert found(runtime, "first penguins") == [1]


def test_a_search_goes_on_where_the_last_one_ended(runtime: StateRuntime) -> None:
    for number in range(1, 8):
        conversation(runtime.codex_home, number, f"{'odd' if number % 2 else 'even'} thread")
    backfill(runtime)
    page = list(search(runtime, "odd", ThreadQuery(limit=2)))
    rest = list(search(runtime, "odd", ThreadQuery(limit=9, anchor=page[-1].anchor)))
    assert [each.thread.id for each in page + rest] == [thread_id(number) for number in (7, 5, 3, 1)]


def test_processes_find_what_one_finds_in_the_same_order(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 40):
        conversation(runtime.codex_home, number, f"thread {number % 3}")
    backfill(runtime)
    alone = found(runtime, '"thread 1"')
    monkeypatch.setattr(searching, "_ALONE_SECONDS", 0)
    monkeypatch.setattr(searching, "_START_SECONDS", 0)
    monkeypatch.setattr(searching, "_JOB_THREADS", 4)
    assert found(runtime, '"thread 1"', workers=2) == alone == [n for n in range(39, 0, -1) if n % 3 == 1]
    closed = []
    monkeypatch.setattr(searching.Pool, "close", lambda pool, close=searching.Pool.close: closed.append(close(pool)))
    everything = search(runtime, "thread", ThreadQuery(limit=30), workers=1)
    assert len(list(everything)) == 30
    assert closed == [None], "whoever has as many as asked for leaves no process running"


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_search_tells_how_many_threads_it_has_looked_through(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(searching, "_ALONE_SECONDS", seconds)
    monkeypatch.setattr(searching, "_START_SECONDS", seconds)
    for number in range(1, 6):
        conversation(runtime.codex_home, number, f"thread {number}")
    backfill(runtime)
    told: list[int] = []
    assert list(search(runtime, "nowhere", workers=1, on_progress=told.append)) == []
    assert told == sorted(told)
    assert told[-1] == 5


def test_what_children_had_not_finished_at_the_end_is_done_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends a search early would wait for as long as the rest of it takes."""
    begun, ended = threading.Event(), threading.Event()
    pool = Pool("codex_state.rollout.scanning", lambda job: pytest.fail("done here"), list[scanning.Scanned], 1)

    def run(_child: object, _job: object) -> None:
        begun.set()
        ended.wait(30)

    monkeypatch.setattr(type(pool._children[0]), "run", run)
    future = pool.submit(scanning.Scan("x", [], []))
    begun.wait(30)
    closing = threading.Thread(target=pool.close)
    closing.start()
    pool._children[0]._process.wait(30)
    ended.set()
    closing.join(30)
    assert isinstance(future.exception(), CancelledError)


def test_rollouts_longer_than_a_piece_are_looked_through_to_their_end(
    runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_PIECE_BYTES", 300)
    conversation(runtime.codex_home, 1, "alpha", *[f"line {number}" for number in range(20)], "omega")
    backfill(runtime)
    (thread,) = search(runtime, "alpha omega")
    assert [(hit.snippet, hit.line) for hit in thread.hits] == [("alpha", 2), ("omega", 23)]
    assert found(runtime, "alpha -omega") == []


@pytest.mark.parametrize("name", NAMES)
def test_every_message_of_every_version_finds_its_thread(tmp_path: Path, name: str) -> None:
    home = unpack(name, tmp_path).home
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        backfill(runtime)
        with runtime.read() as state:
            threads = state.threads.list(ThreadQuery(limit=500)).items
        for thread in threads[:12]:
            said = [item.text for item in read_conversation(runtime, thread.id) if item.kind in ("user", "agent")]
            for text in said[:3]:
                words = " ".join(text.replace('"', " ").split()[:6])
                if any(each.isalnum() for each in words):
                    matches = search(runtime, f'"{words}"', ThreadQuery(limit=500))
                    assert any(thread.id == each.thread.id for each in matches), (words, thread.rollout_path)


class TestTheCommand:
    @pytest.fixture
    def cli(self, tmp_path: Path) -> InProcess:
        home = tmp_path / "home"
        conversation(home, 1, "Make the importer atomic", "Done: one \x1b[31mguarded\x1b[0m update.")
        conversation(home, 2, "Something else")
        return InProcess(home)

    def test_what_is_to_be_copied_stands_on_one_line(self, cli: InProcess) -> None:
        shown = cli.on_terminal("search", "importer", columns=85).stdout.replace("\r", "")
        assert "\n`codex-state threads show ID` tells how to resume it" in shown

    def test_programs_get_a_page_of_threads_with_their_hits(self, cli: InProcess) -> None:
        answer = cli.ok("search", "importer", "guarded", "--json").json
        (item,) = answer["items"]
        assert (item["id"], item["title"], item["cwd"]) == (
            str(thread_id(1)),
            "Make the importer atomic",
            "/code-x/proj",
        )
        assert [hit["kind"] for hit in item["hits"]] == ["user", "agent"]
        assert answer["next_cursor"] is None
        assert cli.ok("search", "nowhere", "--json").json == {"items": [], "next_cursor": None}
        page = cli.ok("search", "e", "--limit", "1", "--json").json
        rest = cli.ok("search", "e", "--cursor", page["next_cursor"], "--json").json
        assert [item["id"] for item in page["items"] + rest["items"]] == [str(thread_id(2)), str(thread_id(1))]

    def test_pipes_get_a_line_for_each_thread(self, cli: InProcess) -> None:
        done = cli.ok("search", "importer", "--not", "nothing else")
        assert done.stdout.split("\t")[0] == str(thread_id(1))
        assert done.stdout.endswith("\tuser\tMake the importer atomic\n")
        assert "1 thread found" in done.stderr
        assert cli.ok("search", "importer", "--not", "guarded").stdout == ""

    def test_a_terminal_shows_where_and_what_without_commands_to_it(self, cli: InProcess) -> None:
        shown = cli.on_terminal("search", "guarded", columns=80).stdout
        assert "Make the importer atomic" in shown
        assert str(thread_id(1))[:8] in shown
        assert "\x1b[31m" not in shown

    def test_why_nothing_was_found_is_told(self, cli: InProcess) -> None:
        def said(*arguments: str) -> str:
            done = cli.ok("search", *arguments)
            assert done.stdout == ""
            return done.stderr

        assert said("nowhere") == "codex-state: nothing found in 2 threads\n"
        assert said("importer", "--not", "importer") == "codex-state: nothing found in 2 threads\n"
        assert said("importer", "--limit", "0") == "codex-state: nothing was asked for: --limit 0\n"
        end = cli.ok("search", "importer", "--limit", "1", "--json").json["next_cursor"]
        assert said("importer", "--cursor", end) == "codex-state: no more threads match\n"
        assert "nothing found: no threads match; no thread is on the branch 'x'" in said("importer", "--branch", "x")
        cli.ok("threads", "archive", str(thread_id(1)))
        assert "nothing found in 1 thread; --archived looks through archived ones" in said("guarded")
        cli.ok("threads", "archive", str(thread_id(2)))
        assert "no threads match; archived ones do: add --archived" in said("guarded")
        assert said("guarded", "--archived", "--not", "update") == "codex-state: nothing found in 2 threads\n"

    def test_a_word_with_a_minus_is_pointed_to_its_option(self, cli: InProcess) -> None:
        assert "what threads must not hold is told by --not WORD" in cli("search", "importer", "-draft").stderr
        assert "Missing argument" in cli("search").stderr

    def test_a_terminal_that_sees_nothing_for_a_while_is_told_how_far_it_is(
        self, monkeypatch: pytest.MonkeyPatch, cli: InProcess
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stderr", Terminal())
        with output_module.shown_looking() as looking:
            looking(7)
            assert sys.stderr.getvalue() == ""
            monkeypatch.setattr(output_module, "_SILENT_SECONDS", 0)
            looking.pause()
            looking(1234)
            looking.pause()
            assert "1,234 threads looked through" in sys.stderr.getvalue()

    @pytest.mark.parametrize(
        "arguments", [("-draft",), ("x", "--in", "nowhere"), ("x", "--not", ""), ("x", "--cursor", "y")]
    )
    def test_wrong_usage_is_told(self, cli: InProcess, arguments: tuple[str, ...]) -> None:
        done = cli("search", *arguments)
        assert (done.status, done.stdout) == (2, "")
