"""`codex-state threads`: what programs and people get."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import Cli, InProcess
from example_home import ARCHIVED, LISTED, copy_of_the_example_home

from codex_state.models import Thread

COLUMNS = set(Thread.column_names())
TIMES = {"created_at", "updated_at", "archived_at"}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """An indexed example home that no test changes."""
    cli = InProcess(copy_of_the_example_home(tmp_path_factory.mktemp("threads") / "home"))
    cli.ok("backfill")
    return cli


@pytest.fixture
def own(tmp_path: Path) -> Cli:
    """An indexed example home of the test's own."""
    cli = InProcess(copy_of_the_example_home(tmp_path / "home"))
    cli.ok("backfill")
    return cli


def items(cli: Cli, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli.ok("threads", "list", "--limit", "1000", *options, "--json").json["items"]
    return found


def titled(cli: Cli, part: str, *options: str) -> dict[str, Any]:
    (found,) = [item for item in items(cli, *options) if part in item["title"]]
    return found


def test_a_listing_is_one_object_whose_items_carry_every_column(indexed: Cli) -> None:
    done = indexed.ok("threads", "list", "--json")
    assert done.stderr == ""
    listing = done.json
    assert set(listing) == {"items", "next_cursor", "num_scanned_rows"}
    assert listing["next_cursor"] is None
    assert listing["num_scanned_rows"] == len(listing["items"]) == LISTED
    for item in listing["items"]:
        assert set(item) == COLUMNS
        assert item["archived"] is False
        for time in TIMES:
            assert item[time] is None or re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", item[time])
        assert Path(item["rollout_path"]).is_file()


def test_one_item_says_what_its_rollout_says(indexed: Cli) -> None:
    item = titled(indexed, "Look up ticket ORCH-311")
    assert item == item | {
        "id": "019d2931-6038-7f85-98dd-1f67f15e8ef8",
        "created_at": "2026-03-26T08:09:55Z",
        "updated_at": "2026-03-26T08:10:21Z",
        "source": "vscode",
        "model_provider": "openai",
        "model": "gpt-5.1-codex",
        "reasoning_effort": "medium",
        "cwd": "/home/dev/orchard-api",
        "approval_mode": "on-request",
        "cli_version": "0.129.0",
        "memory_mode": "enabled",
        "git_branch": "main",
        "archived_at": None,
        "agent_nickname": None,
    }
    assert json.loads(item["sandbox_policy"])["type"] == "workspace-write"
    assert item["tokens_used"] > 9000


@pytest.mark.parametrize("sort", ["created_at", "updated_at"])
def test_pages_follow_each_other_without_losing_or_repeating_a_thread(indexed: Cli, sort: str) -> None:
    def pages() -> Iterator[list[dict[str, Any]]]:
        cursor: list[str] = []
        while True:
            page = indexed.ok("threads", "list", "--sort", sort, "--limit", "7", *cursor, "--json").json
            assert page["num_scanned_rows"] == len(page["items"]) + (page["next_cursor"] is not None)
            yield page["items"]
            if page["next_cursor"] is None:
                return
            cursor = ["--cursor", page["next_cursor"]]

    listed = [item for page in pages() for item in page]
    assert len({item["id"] for item in listed}) == len(listed) == LISTED
    keys = [(item[sort], item["id"]) for item in listed]
    assert keys == sorted(keys, reverse=True)


def test_a_limit_of_zero_is_an_empty_page(indexed: Cli) -> None:
    assert indexed.ok("threads", "list", "--limit", "0", "--json").json == {
        "items": [],
        "next_cursor": None,
        "num_scanned_rows": 0,
    }


def test_archived_threads_are_listed_apart(indexed: Cli) -> None:
    archived = items(indexed, "--archived")
    assert len(archived) == ARCHIVED
    assert all(item["archived"] and item["archived_at"] for item in archived)
    assert not {item["id"] for item in archived} & {item["id"] for item in items(indexed)}


def test_sources_and_providers_are_alternatives_of_their_kind_and_both_must_hold(indexed: Cli) -> None:
    everything = items(indexed)

    def expected(sources: set[str], providers: set[str]) -> list[str]:
        return [
            item["id"]
            for item in everything
            if (not sources or item["source"] in sources) and (not providers or item["model_provider"] in providers)
        ]

    for sources, providers in [
        ({"exec"}, set()),
        ({"exec", "mcp"}, set()),
        (set(), {"azure", "ollama"}),
        ({"cli"}, {"ollama"}),
        ({"vscode"}, {"ollama"}),
        ({'{"subagent":"review"}'}, set()),
    ]:
        options = [part for value in sources for part in ("--source", value)]
        options += [part for value in providers for part in ("--provider", value)]
        assert [item["id"] for item in items(indexed, *options)] == expected(sources, providers)
    assert expected({'{"subagent":"review"}'}, set())


def test_a_source_may_be_spelled_with_spaces_and_in_any_order(indexed: Cli) -> None:
    (spawned,) = [item for item in items(indexed) if item["agent_nickname"] == "Heron"]
    fields = json.loads(spawned["source"])["subagent"]["thread_spawn"]
    spelled = json.dumps({"subagent": {"thread_spawn": dict(reversed(fields.items()))}}, indent=1)
    assert [item["id"] for item in items(indexed, "--source", spelled)] == [spawned["id"]]


def test_piped_listings_are_plain_lines_with_whole_values(indexed: Cli) -> None:
    lines = indexed.ok("threads", "list").stdout.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        [item["id"], item["updated_at"], item["source"]] for item in items(indexed)
    ]
    assert all(line.count("\t") == 5 for line in lines)
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_terminal_gets_a_table_that_fits(indexed: Cli, columns: int) -> None:
    done = indexed.on_terminal("threads", "list", columns=columns, NO_COLOR="1")
    assert done.status == 0
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in done.stdout.splitlines()]
    assert len(lines) == LISTED + 1  # one line each, below the header
    assert lines[0].startswith("ID ")
    assert lines[0].endswith("TITLE")
    assert ("PROJECT" in lines[0]) is (columns >= 100)
    assert ("BRANCH" in lines[0]) is (columns >= 120)
    assert max(map(len, lines)) <= columns
    assert sum("…" in line for line in lines) > 5


def test_a_page_that_is_not_the_last_says_how_to_go_on(indexed: Cli) -> None:
    done = indexed.ok("threads", "list", "--limit", "2")
    page = indexed.ok("threads", "list", "--limit", "2", "--json").json
    assert page["next_cursor"] in done.stderr


def test_a_thread_is_found_by_any_spelling_of_its_id(indexed: Cli) -> None:
    thread_id = titled(indexed, "ORCH-311")["id"]
    for spelling in (thread_id.upper(), thread_id.replace("-", ""), f"{{{thread_id}}}", f"urn:uuid:{thread_id}"):
        assert indexed.ok("threads", "show", spelling, "--json").json["id"] == thread_id


def test_show_adds_tools_and_memory_to_the_columns(indexed: Cli) -> None:
    item = titled(indexed, "ORCH-311")
    shown = indexed.ok("threads", "show", item["id"], "--json").json
    tools, memory = shown.pop("dynamic_tools"), shown.pop("memory")
    assert shown == item
    assert memory is None
    assert [(tool["position"], tool["name"], tool["namespace"], tool["defer_loading"]) for tool in tools] == [
        (0, "lookup_ticket", None, False),
        (1, "free_slots", "calendar", True),
    ]
    assert tools[0]["input_schema"]["required"] == ["key"]


def test_show_fits_a_terminal_and_names_every_column(indexed: Cli) -> None:
    item = titled(indexed, "ORCH-311")
    done = indexed.on_terminal("threads", "show", item["id"], columns=80, NO_COLOR="1")
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    names = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert names >= COLUMNS
    assert any("lookup_ticket" in line for line in lines)


def test_path_is_the_file_itself_even_when_the_row_is_stale(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    path = Path(item["rollout_path"])
    assert own.ok("threads", "path", item["id"]).stdout == f"{path}\n"
    moved = path.parent / "elsewhere" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    assert own.ok("threads", "path", item["id"]).stdout == f"{moved}\n"
    assert own.ok("threads", "show", item["id"], "--json").json["rollout_path"] == str(moved)


def test_archiving_moves_the_rollout_and_back(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    before = Path(item["rollout_path"])
    after = own.home / "archived_sessions" / before.name
    assert own.ok("threads", "archive", item["id"]).stdout == f"{after}\n"
    assert after.is_file()
    assert not before.exists()
    assert titled(own, "ORCH-311", "--archived")["archived_at"] is not None
    assert own.ok("threads", "archive", item["id"]).stdout == f"{after}\n"  # again is fine
    assert own.ok("threads", "unarchive", item["id"]).stdout == f"{before}\n"
    assert before.is_file()
    assert titled(own, "ORCH-311") == item


def test_a_title_of_the_user_survives_a_new_reading_of_all_rollouts(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    done = own.ok("threads", "title", item["id"], "  Ticket 311: order & paging 🍏 ")
    assert done.stdout == ""
    own.ok("backfill", "--again")
    assert own.ok("threads", "show", item["id"], "--json").json["title"] == "Ticket 311: order & paging 🍏"


def test_a_row_whose_rollout_is_gone_leaves_the_listing(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    Path(item["rollout_path"]).unlink()
    assert item["id"] not in {left["id"] for left in items(own)}
    assert "thread not found" in own.refused("threads", "show", item["id"]).stderr


def test_a_listing_of_an_incomplete_index_says_so_and_does_not_fail(tmp_path: Path) -> None:
    cli = InProcess(copy_of_the_example_home(tmp_path / "home"))
    done = cli.ok("threads", "list", "--json")
    assert done.json["items"] == []
    assert done.stderr == "codex-state: the index hasn't been built yet; run `codex-state backfill`\n"


def test_a_thread_that_is_not_indexed_yet_may_be_the_reason_why_it_is_not_found(tmp_path: Path) -> None:
    thread_id = "019d2931-6038-7f85-98dd-1f67f15e8ef8"
    for command in (["show", thread_id], ["title", thread_id, "new"]):
        done = InProcess(tmp_path / "home").refused("threads", *command)
        assert done.status == 1
        assert f"thread not found: {thread_id} (the index hasn't been built yet; run" in done.stderr


def test_an_unknown_thread_is_named(indexed: Cli) -> None:
    unknown = "00000000-0000-7000-8000-000000000000"
    for command in (["show"], ["path"], ["archive"], ["unarchive"], ["title"]):
        arguments = [*command, unknown, *(["new"] if command == ["title"] else [])]
        done = indexed.refused("threads", *arguments)
        assert done.status == 1
        assert unknown in done.stderr
