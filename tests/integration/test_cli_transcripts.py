"""`codex-state threads cat`: what readers, exporters and programs get."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import Cli, InProcess
from example_home import copy_of_the_example_home
from rollout_files import event, record, rollout_path, session_meta, thread_id, user_message, write, write_rollout

pytestmark = pytest.mark.usefixtures("in_utc")

ID = str(thread_id(1))
PLAIN = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """An indexed example home that no test changes."""
    cli = InProcess(copy_of_the_example_home(tmp_path_factory.mktemp("cat") / "home"))
    cli.ok("backfill")
    return cli


def of_lines(tmp_path: Path, *lines: Any) -> Cli:
    """An indexed home with one thread of these lines."""
    home = tmp_path / "home"
    write_rollout(home, 1, session_meta(1), *lines, modified=1_767_400_000)
    cli = InProcess(home, PAGER="cat")
    cli.ok("backfill")
    return cli


def call(command: str, **more: Any) -> bytes:
    arguments = f'{{"cmd":"{command}"}}'
    return record("response_item", {"type": "function_call", "name": "exec", "arguments": arguments} | more)


def output(text: object) -> bytes:
    return record("response_item", {"type": "function_call_output", "call_id": "c", "output": text})


def conversation() -> Iterator[Any]:
    yield from (user_message("list\nthem"), call("ls -l"), output("\n".join(map(str, range(20)))))
    yield record("response_item", {"type": "reasoning", "summary": [{"text": "a thought"}]})
    yield event("agent_message", message="There are **twenty**.")
    yield event("turn_aborted", reason="interrupted")


def test_a_conversation_is_read_with_messages_whole_and_outputs_in_part(tmp_path: Path) -> None:
    done = of_lines(tmp_path, *conversation()).ok("threads", "cat", ID)
    assert done.stdout == (
        "list them\n"
        "/code-x/proj\n"
        f"{ID}\n"
        "\n"
        "user  2026-01-02 03:04\n"
        "list\n"
        "them\n"
        "\n"
        "$ ls -l\n"
        "  0\n"
        "  1\n"
        "  2\n"
        "  3\n"
        "  … 16 more lines (--full)\n"
        "\n"
        "reasoning\n"
        "a thought\n"
        "\n"
        "agent  03:04\n"
        "There are **twenty**.\n"
        "\n"
        "── the turn was stopped: interrupted\n"
    )


def test_all_of_it_is_shown_when_asked_for(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation(), event("thread_rolled_back", num_turns=1))
    assert "list\nthem" not in cli.ok("threads", "cat", ID).stdout
    shown = cli.ok("threads", "cat", ID, "--full").stdout
    assert "list\nthem" in shown
    assert "  19\n" in shown
    assert "--full" not in shown


def test_what_tools_put_around_an_output_is_left_out_and_a_failure_is_told(tmp_path: Path) -> None:
    wrapped = "Chunk ID: 1\nWall time: 0.1 seconds\nProcess exited with code 2\nOutput:\nno such file\n"
    cli = of_lines(tmp_path, user_message("a"), call("ls x"), output(wrapped))
    assert cli.ok("threads", "cat", ID).stdout.endswith("$ ls x\n  exit status 2\n  no such file\n")
    assert cli.ok("threads", "cat", ID, "--full").stdout.endswith("  Output:\n  no such file\n")


def test_a_patch_is_told_by_its_files(tmp_path: Path) -> None:
    patch = "*** Begin Patch\n*** Add File: a.py\n+x\n*** Update File: b.py\n*** End Patch"
    lines = record("response_item", {"type": "custom_tool_call", "name": "apply_patch", "input": patch})
    cli = of_lines(tmp_path, user_message("a"), lines)
    assert cli.ok("threads", "cat", ID).stdout.endswith("apply_patch  A a.py, U b.py\n")
    assert cli.ok("threads", "cat", ID, "--full").stdout.endswith("  *** End Patch\n")


@pytest.mark.parametrize(
    ("only", "kinds"),
    [
        (["user"], ["user"]),
        (["user,agent"], ["user", "agent"]),
        (["messages"], ["user", "agent"]),
        (["tools", "notice"], ["command", "output", "notice"]),
        (["Commands, outputs"], ["command", "output"]),
        (["all"], ["user", "command", "output", "reasoning", "agent", "notice"]),
    ],
)
def test_only_some_kinds_are_read(tmp_path: Path, only: list[str], kinds: list[str]) -> None:
    options = [part for word in only for part in ("--only", word)]
    done = of_lines(tmp_path, *conversation()).ok("threads", "cat", ID, "--jsonl", *options)
    assert [item["kind"] for item in done.records] == kinds


def test_the_last_items_are_the_last_of_what_would_be_shown(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation())
    assert [item["kind"] for item in cli.ok("threads", "cat", ID, "--jsonl", "--last", "2").records] == [
        *("agent", "notice")
    ]
    (item,) = cli.ok("threads", "cat", ID, "--jsonl", "--last", "1", "--only", "tools").records
    assert item["kind"] == "output"
    assert cli.ok("threads", "cat", ID, "--jsonl", "--last", "0").stdout == ""


def test_each_json_line_has_every_field_and_nothing_is_cut(tmp_path: Path) -> None:
    first, command, given, *_ = of_lines(tmp_path, *conversation()).ok("threads", "cat", ID, "--jsonl").records
    assert first == {
        "thread_id": ID,
        "kind": "user",
        "at": "2026-01-02T03:04:05.678Z",
        "text": "list\nthem",
        "name": None,
        "call_id": None,
        "arguments": None,
        "images": [],
        "line": 2,
        "ordinal": None,
    }
    assert (command["text"], command["arguments"]) == ("ls -l", '{"cmd":"ls -l"}')
    assert given["text"].endswith("\n19")


def test_markdown_has_all_of_it_and_its_fences_hold(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation(), output("```\ninner\n```"))
    done = cli.ok("threads", "cat", ID, "--markdown")
    assert done.stdout.startswith(f"# list them\n\n- Thread: `{ID}`\n- Directory: `/code-x/proj`\n")
    assert "\n## User · 2026-01-02T03:04:05Z\n\nlist\nthem\n" in done.stdout
    assert "\n**exec**\n\n```sh\nls -l\n```\n" in done.stdout
    assert "\n18\n19\n```\n" in done.stdout
    assert "\n> a thought\n" in done.stdout
    assert done.stdout.endswith("\n````\n```\ninner\n```\n````\n")


def test_images_are_named(tmp_path: Path) -> None:
    data = "data:image/png;base64," + "A" * 40_000
    done = of_lines(tmp_path, user_message("look", images=[data])).ok("threads", "cat", ID)
    assert done.stdout.endswith("look\n[image, 30 KB, png]\n")


HOSTILE = "\x1b]0;title\x07\x1b[31mred\x1b[0m \x9b2J\u202eback\x1b[ 10%\r20%\r\n\tdone\x07"


def test_a_terminal_gets_no_commands_from_what_was_said(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, user_message(HOSTILE), event("agent_message", message=HOSTILE), output(HOSTILE))
    for options in ([], ["--full"]):
        done = cli.on_terminal("threads", "cat", ID, *options, columns=80)
        shown = PLAIN.sub("", done.stdout)[PLAIN.sub("", done.stdout).index("/code-x/proj") :]  # without the bar
        assert done.status == 0
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown), options
    piped = cli.ok("threads", "cat", ID).stdout
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", piped)
    assert "20%\n    done\ufffd\n" in piped  # the last form of a line that was written over


def test_on_a_terminal_nothing_is_wider_than_it(tmp_path: Path) -> None:
    long = "word " * 60
    cli = of_lines(tmp_path, user_message(long), call("x" * 300), output("y" * 300))
    for options in ([], ["--full"]):
        done = cli.on_terminal("threads", "cat", ID, *options, columns=80, NO_COLOR="1")
        lines = PLAIN.sub("", done.stdout).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= 80
        assert sum(line.count("x") for line in lines if "xx" in line) == (300 if options else 77)


def test_colours_can_be_turned_off(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation())
    assert "\x1b[1;36muser" in cli.on_terminal("threads", "cat", ID, columns=80).stdout
    assert not re.search(
        "\x1b\\[[0-9;]*3[0-9]m", cli.on_terminal("threads", "cat", ID, columns=80, NO_COLOR="1").stdout
    )


def test_a_terminal_that_does_not_speak_unicode_shows_the_rest(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation(), event("agent_message", message="日本語 done"))
    own = Cli(cli.home, PYTHONIOENCODING="ascii")
    done = own.on_terminal("threads", "cat", ID, columns=80, PAGER="cat")
    assert done.status == 0
    assert "??? done" in done.stdout


def test_a_terminal_goes_through_the_users_pager(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation())
    pager = "sh -c 'echo paged; cat'"
    assert cli.on_terminal("threads", "cat", ID, columns=80, PAGER=pager).stdout.count("paged\n") == 1
    assert "paged" not in cli.on_terminal("threads", "cat", ID, "--no-pager", columns=80, PAGER=pager).stdout
    assert "paged" not in cli.ok("threads", "cat", ID, PAGER=pager).stdout
    own = cli.on_terminal("threads", "cat", ID, columns=80, PAGER=pager, CODEX_STATE_PAGER="")
    assert "paged" not in own.stdout
    for missing in ("no-such-pager-anywhere", "'"):
        assert "There are" in cli.on_terminal("threads", "cat", ID, columns=80, PAGER=missing).stdout


def test_leaving_the_pager_ends_quietly(tmp_path: Path) -> None:
    lines = [user_message(f"{number} {'x' * 1000}") for number in range(2000)]
    done = of_lines(tmp_path, *lines).on_terminal("threads", "cat", ID, columns=80, PAGER="head -n 1")
    assert done.status == 0, done.stdout[-1000:]
    assert "0 xxx" in done.stdout
    assert f"{ID}\n" not in done.stdout


def test_two_formats_and_unknown_kinds_are_wrong_usage(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, *conversation())
    assert cli.refused("threads", "cat", ID, "--jsonl", "--markdown").status == 2
    done = cli.refused("threads", "cat", ID, "--only", "user,jokes")
    assert done.status == 2
    assert "unknown kind 'jokes' in --only; expected any of user, agent" in done.stderr


def test_a_thread_in_which_nothing_was_said_is_told(tmp_path: Path) -> None:
    done = of_lines(tmp_path).ok("threads", "cat", ID)
    assert "nothing was said in this thread" in done.stderr


def test_a_thread_whose_rollout_is_gone_is_told(tmp_path: Path) -> None:
    cli = of_lines(tmp_path, user_message("a"))
    next(cli.home.rglob("rollout-*.jsonl")).unlink()
    done = cli.refused("threads", "cat", ID)
    assert done.status == 1
    assert f"no rollout of thread {ID}" in done.stderr


def test_threads_of_the_example_home_can_be_read(example: Cli) -> None:
    """Some of every age."""
    listed = example.ok("threads", "list", "--all", "--limit", "1000", "--json").json["items"]
    assert len(listed) > 40
    for item in listed[::6]:
        if item["rollout_path"] is None:
            continue
        shown = example.ok("threads", "cat", item["id"], "--no-refresh").stdout
        assert item["id"] in shown
        asked = item["first_user_message"]
        assert asked in (None, "[Image]") or asked.split("\n")[0] in shown


@pytest.mark.parametrize("options", [[], ["--jsonl"], ["--markdown"], ["--last", "1"]])
@pytest.mark.parametrize(("ending", "content"), [("", b"\0" * 9000), (".zst", b""), ("", b"no line of a rollout\n")])
def test_a_rollout_that_makes_no_thread_is_not_called_one_in_which_nothing_was_said(
    tmp_path: Path, ending: str, content: bytes, options: list[str]
) -> None:
    path = rollout_path(tmp_path / "home", 1)
    write(path.with_name(path.name + ending), content)
    done = InProcess(tmp_path / "home")("threads", "cat", ID, *options)
    assert (done.status, done.stdout) == (1, "")
    assert f"codex-state: error: the rollout {path}{ending} " in done.stderr


def test_a_damaged_file_is_read_up_to_the_damage(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    cli = of_lines(tmp_path, *(user_message(f"message {number} {'x' * 100}") for number in range(5_000)))
    path = next(cli.home.rglob("rollout-*.jsonl"))
    path.with_name(f"{path.name}.zst").write_bytes(zstandard.compress(path.read_bytes())[:-10])
    path.unlink()
    done = cli("threads", "cat", ID)
    assert done.status == 1
    assert "it was cut off" in done.stderr
    assert "message 1000 x" in done.stdout
    last = cli("threads", "cat", ID, "--last", "1")
    assert (last.status, last.stderr.splitlines()[-1]) == (1, done.stderr.splitlines()[-1])
    assert last.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
