"""`codex-state threads`: what programs and people get."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cli_process import Cli, InProcess
from example_home import ARCHIVED, LISTED, copy_of_the_example_home
from rollout_files import session_meta, user_message, write_rollout

from codex_state.models import MemoryScope, Thread
from codex_state.repositories import thread_listing
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import NOON, a_thread

COLUMNS = set(Thread.column_names())
TIMES = {"created_at", "updated_at", "archived_at", "name_at", "memory_mode_chosen_at", "gone_at"}


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


def of_threads(tmp_path: Path, *threads: Thread) -> Cli:
    """A home that holds these threads and no rollouts."""
    home = tmp_path / "home"
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
        state.threads.upsert_many(threads)
    return InProcess(home)


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


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_gets_a_table_that_fits(indexed: Cli, columns: int) -> None:
    done = indexed.on_terminal("threads", "list", columns=columns, NO_COLOR="1")
    assert done.status == 0
    lines = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in done.stdout.splitlines()]
    at, end = [number for number, line in enumerate(lines) if line.startswith("ID ")]
    header, *rows = lines[at:end]
    assert lines[end] == header, "below more rows than fit on the screen"
    assert len(rows) == LISTED  # one line each
    assert header.endswith("TITLE")
    assert "PROJECT" in header
    assert ("BRANCH" in header) is (columns >= 80)
    assert ("SOURCE" in header) is (columns >= 100)
    assert max(map(len, [header, *rows])) <= columns
    shown = [row.partition(" ")[0] for row in rows]
    listed = [item["id"] for item in items(indexed)]
    assert [[whole for whole in listed if whole.startswith(short)] for short in shown] == [[each] for each in listed]
    assert indexed.ok("threads", "show", shown[0], "--json").json["id"] == listed[0]
    assert sum("…" in row for row in rows) > 5


def test_times_that_exclude_each_other_are_refused(indexed: Cli) -> None:
    refused = indexed.refused("threads", "list", "--since", "2h ago", "--until", "7d ago")
    assert "--since 2h ago is after --until 7d ago" in refused.stderr


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
    assert shown == item | {
        "memories": [],
        "children": [],
        "turns": 1,
        "models": ["gpt-5.1-codex"],
        "tokens": shown["tokens"],
        "resume": f"CODEX_HOME={indexed.home} codex resume {item['id']}",
    }
    assert shown["tokens"]["total_tokens"] == item["tokens_used"]
    assert memory is None
    assert [(tool["position"], tool["name"], tool["namespace"], tool["defer_loading"]) for tool in tools] == [
        (0, "lookup_ticket", None, False),
        (1, "free_slots", "calendar", True),
    ]
    assert tools[0]["input_schema"]["required"] == ["key"]


def test_show_fits_a_terminal_and_tells_what_people_look_for(indexed: Cli) -> None:
    item = titled(indexed, "ORCH-311")
    done = indexed.on_terminal("threads", "show", item["id"], columns=80, NO_COLOR="1")
    lines = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in done.stdout.splitlines()]
    first, last = (next(at for at, line in enumerate(lines) if line.startswith(name)) for name in ("title ", "to res"))
    assert max(map(len, lines[first:last])) <= 80
    assert last - first <= 24
    names = [line.split("  ")[0] for line in lines[first:last] if not line.startswith(" ")]
    wanted = ["title", "id", "directory", "branch", "started", "changed", "by", "model", "permissions", "rollout"]
    assert [name for name in names if name in wanted] == wanted
    assert any("lookup_ticket" in line for line in lines)
    assert lines[last] == f"to resume it: CODEX_HOME={indexed.home} codex resume {item['id']}", "no break to be copied"


def test_show_names_the_threads_that_it_spawned_and_every_memory(tmp_path: Path) -> None:
    parent = a_thread(rollout_path=None)
    children = [
        a_thread(parent_thread_id=parent.id, title=title, created_at=NOON + timedelta(hours=hour), rollout_path=None)
        for hour, title in enumerate(("first", "second"))
    ]
    cli = of_threads(tmp_path, parent, *reversed(children))
    with StateRuntime.open(StateSettings(codex_home=cli.home)) as runtime, runtime.begin() as state:
        state.thread_memories.upsert(parent.id, "raw", "of its directory")
        state.thread_memories.upsert_for_scope(parent.id, MemoryScope.user(), "raw", "of the user")
    shown = cli.ok("threads", "show", str(parent.id), "--json").json
    assert [(child["id"], child["title"]) for child in shown["children"]] == [
        (str(child.id), child.title) for child in children
    ]
    assert {memory["memory_summary"] for memory in shown["memories"]} == {"of its directory", "of the user"}
    assert (shown["turns"], shown["models"], shown["tokens"], shown["resume"]) == (None, [], None, None)
    text = cli.ok("threads", "show", str(parent.id)).stdout
    assert f"child\t{children[1].id} second\n" in text
    assert text.count("of its directory") == text.count("of the user") == 1


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("https://dev:t0ken@host:8443/team/app.git", "https://dev:***@host:8443/team/app.git"),
        ("https://dev:t0k@en@host/app.git", "https://dev:***@host/app.git"),
        ("HTTPS://t0ken@host/app.git", "HTTPS://***@host/app.git"),
        ("ssh://dev:t0ken@host/app.git", "ssh://dev:***@host/app.git"),
        ("ssh://git@host/app@2.git", "ssh://git@host/app@2.git"),
        ("https://host:8443/a:b@c.git", "https://host:8443/a:b@c.git"),
        ("git@host:team/app.git", "git@host:team/app.git"),
        ("/srv/git/a:b@c", "/srv/git/a:b@c"),
    ],
)
def test_people_are_not_shown_the_secret_in_a_remotes_url(tmp_path: Path, stored: str, shown: str) -> None:
    """The row has it, as the original's: programs get what is stored."""
    thread = a_thread(git_origin_url=stored, git_branch="main", rollout_path=None)
    cli = of_threads(tmp_path, thread)
    assert f"git_origin_url\t{shown}\n" in cli.ok("threads", "show", str(thread.id)).stdout
    terminal = cli.on_terminal("threads", "show", str(thread.id), "--no-refresh", columns=200).stdout
    assert f" of {shown}" in terminal
    assert cli.ok("threads", "show", str(thread.id), "--json").json["git_origin_url"] == stored


def test_a_thread_is_shown_to_a_user_without_a_home(indexed: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number."""
    item = items(indexed)[0]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert indexed.ok("threads", "show", item["id"], "--json").json["resume"].startswith("CODEX_HOME=")


def test_show_says_how_to_resume_a_thread_unless_it_is_archived(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    assert own.ok("threads", "show", item["id"]).stdout.endswith(
        f"to resume it\tCODEX_HOME={own.home} codex resume {item['id']}\n"
    )
    at_home = own.home.rename(own.home.parent / ".codex")
    done = own.ok("threads", "show", item["id"], "--json", CODEX_HOME=str(at_home))
    assert done.json["resume"] == f"codex resume {item['id']}"
    own.ok("threads", "archive", item["id"], CODEX_HOME=str(at_home))
    done = own.ok("threads", "show", item["id"], CODEX_HOME=str(at_home))
    assert done.stdout.endswith("to resume it\tit is archived\n")


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


@pytest.mark.parametrize("command", ["name", "title"])
def test_a_name_survives_a_new_reading_of_all_rollouts_and_is_shown_in_place_of_the_title(
    own: Cli, command: str
) -> None:
    item = titled(own, "ORCH-311")
    done = own.ok("threads", command, item["id"], "  Ticket 311: order & paging 🍏 ")
    assert done.stdout == ""
    own.ok("backfill", "--again")
    shown = own.ok("threads", "show", item["id"], "--json").json
    assert (shown["name"], shown["title"]) == ("Ticket 311: order & paging 🍏", item["title"])
    (line,) = [line for line in own.ok("threads", "list").stdout.splitlines() if line.startswith(item["id"])]
    assert line.endswith("\tTicket 311: order & paging 🍏")


def test_a_name_can_be_taken_away(own: Cli) -> None:
    item = titled(own, "ORCH-311")
    own.ok("threads", "name", item["id"], "mine")
    done = own.ok("threads", "name", item["id"], "--clear")
    assert done.stderr == f"codex-state: {item['id']} has no name now\n"
    assert own.ok("threads", "show", item["id"], "--json").json["name"] is None
    for arguments in ([], ["new", "--clear"]):
        assert "either a NAME or --clear" in own.refused("threads", "name", item["id"], *arguments).stderr


def test_a_thread_whose_rollout_is_gone_leaves_the_listing_and_keeps_its_row(own: Cli) -> None:
    """L7."""
    item = titled(own, "ORCH-311")
    Path(item["rollout_path"]).unlink()
    assert item["id"] not in {left["id"] for left in items(own)}
    assert own.ok("threads", "show", item["id"], "--json").json["gone_at"] is not None
    done = own.ok("threads", "list")
    assert "the rollout of 1 more is gone: --all lists them" in done.stderr
    assert item["id"] in {left["id"] for left in items(own, "--all")}
    assert "(gone) " in own.on_terminal("threads", "list", "--all", columns=200, NO_COLOR="1").stdout


def test_where_rollouts_are_out_of_reach_is_told_beside_a_listing(own: Cli, tmp_path: Path) -> None:
    shown = items(own)
    month = own.home / "sessions/2026/02"
    month.rename(tmp_path / "month")
    month.symlink_to(tmp_path / "month")
    listed = own.ok("threads", "list", "--limit", "1000", "--json")
    assert listed.json["items"] == shown  # their paths lead there all the same
    assert f"{month} can't be looked at: a symbolic link, which isn't followed (known rollouts out of" in listed.stderr
    assert "is gone" not in own.ok("threads", "list").stderr
    (own.home / "sessions").rename(tmp_path / "unmounted")
    listed = own.ok("threads", "list")
    assert listed.stdout == ""
    assert f"{own.home}/sessions can't be looked at: it isn't there" in listed.stderr
    assert "no threads match" in listed.stderr
    told = own.ok("backfill", "--json")
    (place,) = (place for place in told.json["unseen"])
    assert place["path"] == f"{own.home}/sessions"
    assert f"(known rollouts out of reach: {place['known_rollouts']})" in told.stderr


def test_threads_with_nothing_to_show_are_counted_and_listed_with_all(tmp_path: Path) -> None:
    empty = [a_thread(first_user_message=None, title="", rollout_path=tmp_path / f"{each}.jsonl") for each in "abc"]
    cli = of_threads(tmp_path, a_thread(rollout_path=None), *empty)
    done = cli.ok("threads", "list")
    assert "codex-state: 3 more have neither a name nor a message: --all lists them\n" in done.stderr
    assert len(done.stdout.splitlines()) == 1
    everything = cli.ok("threads", "list", "--all")
    assert "--all" not in everything.stderr
    assert len(everything.stdout.splitlines()) == 4
    assert "--all" not in cli.ok("threads", "list", "--json").stderr


def test_a_service_that_knows_no_rollouts_has_its_threads_listed(tmp_path: Path) -> None:
    thread = a_thread(rollout_path=Path(), first_user_message=None, title="")
    cli = of_threads(tmp_path, thread)
    (item,) = cli.ok("threads", "list", "--json").json["items"]
    assert (item["id"], item["rollout_path"]) == (str(thread.id), None)
    assert "no rollout" in cli.refused("threads", "path", str(thread.id)).stderr


def test_spawned_threads_can_be_left_out_or_drawn_below_their_parents(tmp_path: Path) -> None:
    def a_child(of: Thread, title: str, hours: int) -> Thread:
        moment = NOON + timedelta(hours=hours)
        return a_thread(parent_thread_id=of.id, title=title, updated_at=moment, rollout_path=None)

    parent, other = (a_thread(title=title, rollout_path=None) for title in ("parent", "other"))
    first, second = a_child(parent, "first", 1), a_child(parent, "second", 2)
    grandchild = a_child(first, "grandchild", 3)
    orphan = a_child(a_thread(), "orphan", 4)
    ring = a_thread(title="its own", rollout_path=None, updated_at=NOON - timedelta(hours=1))
    ring.parent_thread_id = ring.id
    cli = of_threads(tmp_path, parent, other, first, second, grandchild, orphan, ring)

    def names(*options: str) -> list[str]:
        return [line.rpartition("\t")[2] for line in cli.ok("threads", "list", *options).stdout.splitlines()]

    assert sorted(names("--no-children")) == ["other", "parent"]
    assert names("--tree") == ["orphan", "parent", "second", "first", "grandchild", "other", "its own"]
    done = cli.on_terminal("threads", "list", "--tree", columns=80, NO_COLOR="1")
    lines = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in done.stdout.splitlines()]
    (title,) = [line.index("TITLE") for line in lines if "TITLE" in line]
    drawn = [line[title:] for line in lines if "2026-02-10  " in line]
    assert drawn == ["orphan", "parent", "├─ second", "└─ first", "   └─ grandchild", "other", "its own"]
    assert "--tree is for people" in cli.refused("threads", "list", "--tree", "--json").stderr


def test_a_row_that_can_not_be_read_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    threads = [a_thread(rollout_path=None) for _ in range(5)]
    cli = of_threads(tmp_path, *threads)
    with closing(sqlite3.connect(StateSettings(codex_home=cli.home).database_path)) as connection, connection:
        for thread in threads[:4]:
            connection.execute("UPDATE threads SET updated_at = 'yesterday' WHERE id = ?", (str(thread.id),))
    done = cli.ok("threads", "list", "--json")
    assert [item["id"] for item in done.json["items"]] == [str(threads[4].id)]
    notes = [line for line in done.stderr.splitlines() if "can't be read" in line]
    assert len(notes) == 4
    named = {line.removeprefix("codex-state: the row of thread ").partition(" ")[0] for line in notes[:3]}
    assert len(named & {str(thread.id) for thread in threads[:4]}) == 3
    assert notes[3] == "codex-state: 1 more row can't be read"


def test_a_listing_takes_in_what_is_new_first_unless_it_is_told_not_to(tmp_path: Path) -> None:
    cli = InProcess(copy_of_the_example_home(tmp_path / "home"))
    done = cli.ok("threads", "list", "--json", "--no-refresh")
    assert done.json["items"] == []
    assert done.stderr == "codex-state: the index isn't complete yet (--no-refresh)\n"
    done = cli.ok("threads", "list", "--json")
    assert len(done.json["items"]) == LISTED
    assert done.stderr == "codex-state: 1 file can't be indexed; `codex-state backfill` says why\n"
    assert cli.ok("threads", "list", "--json").stderr == ""
    done = cli.ok("threads", "list", "--json", "--no-refresh")
    assert len(done.json["items"]) == LISTED
    assert done.stderr.startswith("codex-state: the index was brought up to date ")


def test_a_thread_that_is_not_indexed_yet_can_be_shown_found_and_named(tmp_path: Path) -> None:
    thread_id = "019d2931-6038-7f85-98dd-1f67f15e8ef8"
    for command in (["show", thread_id], ["path", thread_id], ["name", thread_id, "new"]):
        cli = InProcess(copy_of_the_example_home(tmp_path / command[0]))
        cli.ok("threads", *command)


def test_an_unknown_thread_is_named(indexed: Cli) -> None:
    unknown = "00000000-0000-7000-8000-000000000000"
    for command in (["show"], ["cat"], ["path"], ["archive"], ["unarchive"], ["name"]):
        arguments = [*command, unknown, *(["new"] if command == ["name"] else [])]
        done = indexed.refused("threads", *arguments)
        assert done.status == 1
        assert unknown in done.stderr


# Filters


def test_threads_are_chosen_by_directory_time_branch_and_model(indexed: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = items(indexed)
    for options, chosen in [
        (["--cwd", "/home/dev"], lambda item: item["cwd"].startswith("/home/dev/")),
        (["--cwd", "/home/dev/orchard-api/"], lambda item: item["cwd"] == "/home/dev/orchard-api"),
        (["--branch", "main"], lambda item: item["git_branch"] == "main"),
        (["--model", "codex"], lambda item: "codex" in (item["model"] or "")),
        (["--source", "subagent"], lambda item: item["source"].startswith("{")),
        (["--no-children"], lambda item: item["parent_thread_id"] is None),
        (["--sort", "created_at", "--since", "2026-11-01"], lambda item: item["created_at"] >= "2026-11"),
        (["--sort", "created_at", "--until", "2026-10-31"], lambda item: item["created_at"] < "2026-11"),
    ]:
        expected = {item["id"] for item in everything if chosen(item)}
        assert {item["id"] for item in items(indexed, *options)} == expected, options
        assert 0 < len(expected) < len(everything), options
        total = indexed.ok("threads", "list", "--limit", "1", "--total", *options, "--json").json["total"]
        assert total == len(expected), options
    monkeypatch.chdir("/")
    assert len(items(indexed, "--cwd", ".")) == sum(item["cwd"].startswith("/") for item in everything)


def test_a_directory_is_found_by_the_link_that_leads_to_it(tmp_path: Path) -> None:
    """As a shell's ``$PWD`` has it."""
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "code").mkdir(parents=True)
    link.symlink_to(real)
    home = tmp_path / "home"
    write_rollout(home, 1, session_meta(cwd=str(link / "code")), user_message("hello"))
    cli = InProcess(home)
    for directory in (link / "code", real / "code", link):
        assert [item["cwd"] for item in items(cli, "--cwd", str(directory))] == [str((real / "code").resolve())]
        assert "hello" in cli.ok("search", "hello", "--cwd", directory).stdout
        assert cli.ok("stats", "--cwd", directory, "--json").json["total"]["threads"] == 1


@pytest.mark.parametrize(
    "options", [["--since", "nonsense"], ["--until", "2026-02-30"], ["--cwd", ""], ["--since", "99999999999999"]]
)
def test_a_filter_that_means_nothing_is_refused(indexed: Cli, options: list[str]) -> None:
    assert indexed("threads", "list", *options).status == 2


def test_a_filter_that_lets_little_through_still_fills_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codex_state.repositories.thread_listing.LOOK_AT", 2)
    rare = {3, 9}
    cli = of_threads(
        tmp_path,
        *(
            a_thread(
                updated_at=NOON + timedelta(minutes=n), git_branch="rare" if n in rare else "main", rollout_path=None
            )
            for n in range(12)
        ),
    )
    page = cli.ok("threads", "list", "--branch", "rare", "--limit", "1", "--json").json
    assert [item["git_branch"] for item in page["items"]] == ["rare"]
    rest = cli.ok("threads", "list", "--branch", "rare", "--cursor", page["next_cursor"], "--json").json
    assert ([item["git_branch"] for item in rest["items"]], rest["next_cursor"]) == (["rare"], None)


def test_a_listing_without_threads_says_which_filter_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = a_thread(git_branch="main", cwd=Path("/code/a"), model="gpt-5", rollout_path=None)
    there = a_thread(git_branch="dev", cwd=Path("/code/b"), rollout_path=None)
    cli = of_threads(tmp_path, here, there, a_thread(git_branch="dev", archived_at=NOON, rollout_path=None))

    def said(*options: str) -> str:
        return cli.ok("threads", "list", "--no-refresh", *options).stderr.partition("no threads match")[2].strip()

    assert said("--branch", "mian") == "; no thread is on the branch 'mian'; did you mean 'main'?"
    assert said("--cwd", "/somewhere/else") == "; no thread is in '/somewhere/else' or below"
    assert said("--cwd", "/somewhere/else", "--branch", "dev") == "; no thread is in '/somewhere/else' or below"
    assert said("--model", "gpt-6", "--repo", "x") == (
        "; no thread's remote has 'x' in its URL; no thread's model has 'gpt-6' in its name; did you mean 'gpt-5'?"
    )
    assert said("--cwd", "/code/b", "--branch", "main") == (
        "; each of --cwd and --branch has threads, but none has all of them"
    )
    assert said("--source", "exec", "--source", "mcp") == "; no thread is from the source 'exec' or 'mcp'"
    assert said("--since", "2199-01-01") == "; none is as new as --since asks for"
    assert said("--archived", "--branch", "main") == (
        "; no thread is on the branch 'main'; threads that aren't archived do: leave --archived out"
    )
    assert said("--cwd", "/code/aa") == "; no thread is in '/code/aa' or below; did you mean '/code/a'?"
    assert said("--limit", "0") == ""
    monkeypatch.setattr(thread_listing, "LOOK_AT", 1)
    assert said("--cwd", "/code", "--branch", "nope") == "", "what can't be told at once isn't told"
    assert said("--text", "nope") == ""
    monkeypatch.undo()
    cursor = cli.ok("threads", "list", "--limit", "2", "--json").json["items"][-1]
    end = f"{cursor['updated_at']}|{cursor['id']}"
    assert "no more threads match\n" in cli.ok("threads", "list", "--cursor", end).stderr
    child = a_thread(parent_thread_id=here.id, rollout_path=None, source='{"subagent":"review"}')
    alone = of_threads(tmp_path / "children", child)
    done = alone.ok("threads", "list", "--no-children", "--source", "subagent")
    assert "no threads match; each was spawned by another one\n" in done.stderr
    assert (
        "no threads match; no thread is archived\n" in alone.ok("threads", "list", "--archived", "--branch", "x").stderr
    )
    own_home = StateSettings(codex_home=tmp_path / "empty")
    own_home.codex_home.mkdir()
    assert "no threads match\n" in InProcess(own_home.codex_home).ok("threads", "list").stderr


# Ids


def test_a_thread_is_named_by_how_its_id_alone_begins(own: Cli) -> None:
    whole = items(own)[0]["id"]
    digits = whole.replace("-", "")
    others = [item["id"].replace("-", "") for item in items(own, "--all")]
    length = next(n for n in range(4, 33) if sum(each.startswith(digits[:n]) for each in others) == 1)
    for spelled in (digits[: length + 1].upper(), whole[: length + 8]):
        assert own.ok("threads", "show", spelled, "--json").json["id"] == whole
        assert own.ok("threads", "path", spelled).stdout == own.ok("threads", "path", whole).stdout
        assert own.ok("threads", "cat", spelled).stdout == own.ok("threads", "cat", whole).stdout
    own.ok("threads", "name", digits[:length], "Mine")
    assert own.ok("threads", "show", whole, "--json").json["name"] == "Mine"
    assert "/archived_sessions/" in own.ok("threads", "archive", digits[:length]).stdout
    assert "/sessions/" in own.ok("threads", "unarchive", digits[:length]).stdout


def test_a_beginning_of_no_id_or_of_several_is_refused(tmp_path: Path) -> None:
    ids = [UUID(f"0198c0de-0000-7000-8000-00000000000{n}") for n in range(7)]
    cli = of_threads(tmp_path, *(a_thread(id=each, rollout_path=None) for each in ids))
    done = cli("threads", "show", "0198c0de")
    assert done.status == 1
    *named, error = done.stderr.splitlines()
    assert [line.split()[1] for line in named] == [str(each) for each in ids[:5]]
    assert "more than 5 threads' ids begin with 0198c0de; give more of it" in error
    assert "no thread's id begins with ffff" in cli("threads", "show", "ffff").stderr
    assert cli("threads", "show", "019").status == 2


def test_the_module_runs_and_tells_its_version(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codex_state", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert re.fullmatch(r"codex-state \d+\.\d+\.\d+\n", done.stdout)
