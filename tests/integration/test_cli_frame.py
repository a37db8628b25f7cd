"""What holds for every command: help, speed, streams, and how a process ends."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from cli_process import EXECUTABLE, Cli, InProcess
from example_home import copy_of_the_example_home
from typer.main import get_command

import codex_state
from codex_state import StateRuntime, StateSettings
from codex_state.cli import completing, context
from codex_state.cli.app import command_of, program
from codex_state.testing.samples import a_log_line, a_thread

GROUPS = {"threads": 7, "memories": 2, "jobs": 4, "db": 6}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home")


def test_help_names_every_command_and_fits_a_terminal(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    shown = cli.ok("--help").stdout
    for command in ("backfill", "threads", "memories", "jobs", "db", "logs", "version"):
        assert f"\n  {command}  " in shown
    for group, count in GROUPS.items():
        listed = cli.ok(group, "-h").stdout.partition("Commands:\n")[2]
        assert "..." not in listed
        names = re.findall(r"^  (\S+)  ", listed, re.MULTILINE)
        assert len(names) == count
        for name in names:
            page = cli.ok(group, name, "--help").stdout
            assert page.startswith(f"Usage: codex-state {group} {name} ")
            assert max(map(len, page.splitlines())) <= 80
    assert "[default: 50" in cli.ok("threads", "list", "--help").stdout


def test_help_does_not_load_what_opens_databases(cli: Cli) -> None:
    program = (
        "import sys; from codex_state.cli.entry import run\n"
        "status = run(['threads', 'list', '--help'])\n"
        "heavy = {'sqlalchemy', 'sqlmodel', 'pydantic_settings', 'alembic', 'rich.console'} & set(sys.modules)\n"
        "sys.exit(status or ', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=cli.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_group_alone_shows_its_help_and_counts_as_wrong_usage(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    for arguments in ([], ["threads"], ["jobs"]):
        done = cli(*arguments)
        assert (done.status, done.stdout) == (2, "")
        assert "Usage: codex-state" in done.stderr


def test_version_says_what_is_needed_for_a_bug_report(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    versions = cli.ok("version", "--json").json
    assert set(versions) == {"codex_state", "schema", "python", "sqlite"}
    assert cli.ok("version").stdout.startswith(f"codex-state {versions['codex_state']}\n")
    assert not cli.home.exists()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(cli: Cli, missing: str) -> None:
    cli.home.mkdir()
    program = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "sys.stderr.isatty = lambda: True\n"  # a bar is to be shown
        "from codex_state.cli.entry import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "backfill"],
        env=cli.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"codex-state: error: the command line needs {missing}: pip install 'codex-state[cli]'\n"


@pytest.mark.parametrize("options", ["--json", ""])
def test_a_reader_that_goes_away_ends_the_command_quietly(cli: Cli, options: str) -> None:
    cli.home.mkdir()
    # `true` is gone long before the command has something to write.
    done = in_shell(cli, f"{EXECUTABLE} db history {options} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["", "threads list"])
def test_a_help_page_that_nobody_reads_ends_as_any_output(cli: Cli, command: str) -> None:
    done = in_shell(cli, f"{EXECUTABLE} {command} --help | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, "")


def test_an_output_that_cannot_be_written_is_reported(cli: Cli) -> None:
    for arguments in ("version", "--help"):
        done = in_shell(cli, f"{EXECUTABLE} {arguments} > /dev/full")
        assert done.returncode == 1
        assert done.stderr == "codex-state: error: can't write the output: No space left on device\n"


def test_a_current_directory_that_is_gone_is_not_taken_for_the_output(cli: Cli) -> None:
    cli.home.mkdir()
    InProcess(cli.home).ok("backfill")
    gone = 'mkdir gone; cd gone; rmdir "$PWD";'
    for arguments in ("threads list --cwd .", "stats --cwd ."):
        done = in_shell(cli, f"{gone} {EXECUTABLE} {arguments}")
        told = "codex-state: error: the current directory is gone; go to one that is there\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", told), arguments
    assert in_shell(cli, f"{gone} {EXECUTABLE} threads list --json").returncode == 0


def in_shell(cli: Cli, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        env=cli.environment(),
        cwd=cli.home.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_completion_knows_commands_and_options(cli: Cli) -> None:
    def completions(words: str) -> set[str]:
        done = cli(_CODEX_STATE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1))
        return set(done.stdout.split())

    assert completions("codex-state th") == {"threads"}
    assert {"list", "show", "path", "archive", "unarchive", "name"} <= completions("codex-state threads ")
    assert "--sort" in completions("codex-state threads list --s")
    # The shell is named, because it is otherwise found among the parents of the process, where CI may have none.
    shown = cli.ok("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete" in shown.stdout


def test_completion_knows_what_the_newest_threads_have(tmp_path: Path) -> None:
    context = SimpleNamespace(
        params={}, find_root=lambda: SimpleNamespace(params={"codex_home": str(tmp_path / "home")})
    )
    assert completing.thread_ids(context, "") == []
    assert not (tmp_path / "home").exists()
    threads = [
        a_thread(id=UUID("01a1e9d7-dac0-7fd1-beed-c2d8a5b7c43b"), git_branch="main", name="one\x1b[2J"),
        a_thread(id=UUID("01a1e9d7-dac1-7fd1-beed-c2d8a5b7c43b"), git_branch="currencies", source="exec"),
        a_thread(id=UUID(int=7), source='{"subagent":"review"}', model="gpt-x"),
    ]
    with StateRuntime.open(StateSettings(codex_home=tmp_path / "home")) as runtime, runtime.begin() as state:
        state.threads.upsert_many(threads)
        of_home = runtime.home
    assert completing.thread_ids(context, "01A1") == [("01a1e9d7-dac1", "hello"), ("01a1e9d7-dac0", "one\ufffd[2J")]
    assert completing.thread_ids(context, str(threads[0].id)[:-1]) == [(str(threads[0].id), "one\ufffd[2J")]
    assert completing.thread_ids(context, "f") == []
    assert sorted(completing.branches(context, "")) == ["currencies", "main"]
    assert completing.branches(context, "c") == ["currencies"]
    assert sorted(completing.sources(context, "")) == ["cli", "exec", "subagent"]
    assert (completing.models(context, "gpt"), completing.providers(context, "")) == (["gpt-x"], ["openai"])
    assert completing.homes(context, of_home[:1]) == [of_home]
    with closing(sqlite3.connect(StateSettings(codex_home=tmp_path / "home").database_path)) as connection, connection:
        connection.execute("ALTER TABLE threads RENAME TO elsewhere")
    assert completing.thread_ids(context, "") == completing.branches(context, "") == []


def test_every_command_is_below_a_heading_and_known_to_change_something_or_not() -> None:
    """One that is forgotten would be missing from the help, or suggested to whoever mistypes another."""
    tree = get_command(program())
    assert isinstance(tree, context.Commands)
    assert sorted(name for names in tree.headings.values() for name in names) == sorted(tree.commands)
    commands = {name for group in (tree, *tree.commands.values()) for name in getattr(group, "commands", {})}
    harmless = commands - context._CHANGING
    assert commands >= context._CHANGING
    assert harmless == {"backfill", "backup", "cat", "check", "current", "db", "doctor", "history", "homes", "jobs"} | {
        "list", "locks", "logs", "memories", "memory", "path", "scopes", "search", "show", "stats", "threads",
        "version", "watch", "workers",
    }  # fmt: skip


def test_only_the_command_that_is_run_is_built() -> None:
    for before in ([], ["-v"], ["--codex-home", "threads"], ["--codex-home=x", "--verbose"]):
        assert command_of([*before, "jobs", "list"]) == "jobs"
    for unclear in ([], ["--help", "jobs"], ["--codex-home"], ["job"], ["--", "jobs"], ["--version"], ["-vh", "jobs"]):
        assert command_of(unclear) is None
    tree = get_command(program("jobs"))
    assert isinstance(tree, context.Commands)
    assert [*tree.commands] == ["jobs"]


def test_a_mistyped_command_is_not_answered_with_one_that_changes_something(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    for arguments in (["restor"], ["threads", "archiv"], ["db", "upgrde"], ["jobs", "requeu"]):
        assert "Did you mean" not in cli.refused(*arguments).stderr
    assert "Did you mean 'doctor'?" in cli.refused("docter").stderr


def test_warnings_of_the_library_go_to_stderr(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "codex_state_7.sqlite").write_text("from the future")
    with closing(sqlite3.connect(home / "codex_state_2.sqlite")) as older:
        older.execute("CREATE TABLE codex_state_version (version_num TEXT)")
    cli = InProcess(home)
    done = cli.ok("--verbose", "backfill", "--json")
    assert done.json["scanned"] == 0
    assert "codex-state: warning: left the newer codex_state_7.sqlite" in done.stderr
    assert "codex-state: info: removed the older state file" in done.stderr
    assert (home / "codex_state_7.sqlite").read_text() == "from the future"
    assert "info" not in cli.ok("backfill", "--json").stderr


def test_output_survives_a_terminal_that_does_not_speak_unicode(tmp_path: Path) -> None:
    home = copy_of_the_example_home(tmp_path / "home")
    InProcess(home).ok("backfill")
    cli = Cli(home, PYTHONIOENCODING="ascii")
    titles = [item["title"] for item in cli.ok("threads", "list", "--json").json["items"]]
    assert any("日本語" in title for title in titles)
    assert "???" in cli.ok("threads", "list").stdout


def test_json_is_indented_only_for_people(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    assert cli.ok("version", "--json").stdout.count("\n") == 1
    shown = cli.on_terminal("version", "--json", columns=80).stdout
    assert shown.count("\n") == 6
    assert json.loads(shown)["codex_state"]


def test_the_version_is_the_distributions(tmp_path: Path) -> None:
    from importlib.metadata import version

    assert codex_state.__name__ == "codex_state"
    assert InProcess(tmp_path / "home").ok("version", "--json").json["codex_state"] == version("codex-state")


HOSTILE = "\x1b]0;x\x07\x9b31m\u202eevil\x7f"


def test_a_file_name_cannot_speak_to_the_terminal_by_an_error(tmp_path: Path) -> None:
    done = InProcess(tmp_path / HOSTILE).refused("threads", "list")
    assert not set("\x1b\x07\x9b\u202e\x7f") & set(done.stderr)


def test_nor_by_what_json_on_a_terminal_shows(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    cli.home.mkdir()
    with StateRuntime.open(StateSettings(codex_home=cli.home)) as runtime:
        runtime.run(lambda state: state.logs.insert(a_log_line(HOSTILE)))
    shown = cli.on_terminal("logs", "--json", columns=200).stdout
    assert not set("\x1b\x07\x9b\u202e\x7f") & set(shown)
    assert json.loads(shown)["message"] == HOSTILE
    assert cli.ok("logs", "--json").records[0]["message"] == HOSTILE


@pytest.mark.parametrize("closed", ["1", "0 1 2"])
def test_a_process_without_a_standard_stream_ends_as_any_other(tmp_path: Path, closed: str) -> None:
    """And none of the state's files gets the number of one, into which Python would print."""
    redirections = " ".join(f"{number}>&-" for number in closed.split())
    cli = Cli(tmp_path)
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(cli.command('threads', 'list'))} {redirections}"],
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, "nothing is to be written to stdout"
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(cli.command('version'))} 1>&-"],
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "can't write the output" in done.stderr) == (1, True)
