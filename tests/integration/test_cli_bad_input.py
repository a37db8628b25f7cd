"""Whatever is wrong, the real executable says one clear line, loses nothing, and shows no traceback."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cli_process import Cli, InProcess
from example_home import THREADS, copy_of_the_example_home
from rollout_files import session_meta, thread_id, user_message, write_rollout

from codex_state import StateRuntime, StateSettings

NOBODY = 65534

ID = "019d2931-6038-7f85-98dd-1f67f15e8ef8"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return InProcess(tmp_path / "home")


@pytest.fixture
def indexed(tmp_path: Path) -> Cli:
    cli = InProcess(copy_of_the_example_home(tmp_path / "home"))
    cli.ok("backfill")
    return cli


@pytest.fixture
def nobodys(indexed: Cli) -> Iterator[Path]:
    """A directory that a process without privileges can reach too, after everything has been imported."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions mean nothing to root, so root becomes nobody for the time of the block."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["threads", "show", "not-a-uuid"], "malformed thread id 'not-a-uuid'"),
        (["threads", "path", f"{ID}0"], "malformed thread id"),
        (["threads", "archive", ""], "malformed thread id ''"),
        (["threads", "unarchive", "../../etc/passwd"], "malformed thread id"),
        (["threads", "name", "1", "new"], "malformed thread id '1'"),
        (["threads", "title", ID, " \t "], "the name is blank"),
        (["threads", "list", "--cursor", "yesterday"], "malformed cursor 'yesterday'"),
        (["threads", "list", "--cursor", f"2026-01-01T00:00:00|{ID}"], "has no zone"),
        (["threads", "list", "--cursor", "2026-01-01T00:00:00Z|1"], "malformed cursor"),
        (["threads", "list", "--source", "editor"], "malformed source 'editor'"),
        (["threads", "list", "--source", '{"subagent":'], "malformed source"),
        (["threads", "list", "--codex-home", ""], "--codex-home is empty"),
        (["--codex-home", " ", "backfill"], "--codex-home is empty"),
        (["threads", "list", "--sort", "title"], "--sort"),
        (["threads", "list", "--limit", "-1"], "--limit"),
        (["threads", "list", "--limit", "many"], "--limit"),
        (["threads", "lits"], "Did you mean 'list'"),
        (["logs", "--from", "tomorrow"], "malformed date 'tomorrow'"),
        (["logs", "--to", "2026-01-01T00:00:00"], "has no zone"),
        (["logs", "--thread-id", "x"], "malformed thread id 'x'"),
        (["logs", "--poll-ms", "0"], "--poll-ms"),
        (["memories", "list", "--thread-id", "x"], "malformed thread id 'x'"),
        (["jobs", "list", "--status", "lost"], "--status"),
        (["jobs", "requeue"], "give a thread's ID, --reason or --holder, or --all-failed"),
        (["db", "downgrade", "--fast"], "no such option: --fast"),
        (["db", "downgrade"], "REVISION"),
        (["backfill", "--jsno"], "No such option: --jsno"),
        (["nurse"], "No such command 'nurse'"),
        (["search", os.fsdecode(b"a\xff")], "isn't text"),
        (["locks", "--lease", "99999999999999"], "--lease"),
        (["jobs", "list", "--lease", "99999999999999"], "--lease"),
        (["memory", "run", "--extractor", "json:loads", "--lease", "999999999999999"], "--lease"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_touched(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli.refused(*arguments)
    assert done.status == 2
    assert said in done.stderr
    assert not cli.home.exists()


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *((kind, "") for kind in ("pipe", "directory", "device", "endless device", "socket")),
        ("pipe", "-wal"),
        ("pipe", "-shm"),
    ],
)
def test_what_is_no_file_in_the_place_of_one_is_named_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    cli = InProcess(tmp_path / "home")
    with StateRuntime.open(StateSettings(codex_home=cli.home)) as runtime:
        path = runtime.database.path
    assert path is not None
    place = path.with_name(path.name + suffix)
    place.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case "socket":
            monkeypatch.chdir(place.parent)  # a socket's path may have about 100 characters
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(place.name)
            monkeypatch.undo()
        case "device":
            place.symlink_to("/dev/null")
        case _:
            place.symlink_to("/dev/zero")
    told = "a device" if "device" in kind else f"a {kind}"
    for command in (["threads", "list"], ["backfill"], ["db", "current"], ["db", "check"], ["backup", "copy"]):
        assert f"{place} is {told}, where a file should be" in cli.refused(*command).stderr, command
    assert f"is {told}, where a file should be" in cli("doctor").stdout + cli("doctor").stderr


def test_there_is_nothing_to_back_up_in_an_empty_file(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    cli.home.mkdir()
    StateSettings(codex_home=cli.home).database_path.touch()
    assert "holds no state" in cli.refused("backup", tmp_path / "copy").stderr
    assert list(tmp_path.iterdir()) == [cli.home]
    (tmp_path / "b.part").touch()
    with StateRuntime.open(StateSettings(codex_home=cli.home)):
        assert "a backup that was interrupted leaves it" in cli.refused("backup", tmp_path / "b").stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hun@ter2/hunter2@h/db",
        "postgresql://u:hunter2@@h/db",
        "postgresql://u:hunter2@h/x?host=a,b,c&port=1,2",
        "sqlite://u:hunter2@/x",
        "sqlite+pysqlcipher://:hunter2@/x",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_without_a_word_of_its_password(tmp_path: Path, url: str) -> None:
    cli = InProcess(tmp_path / "home")
    with StateRuntime.open(StateSettings(codex_home=cli.home)):
        pass
    for arguments in (["threads", "list"], ["db", "copy", "--to", url]):
        there = {} if "--to" in arguments else {"CODEX_STATE_DATABASE_URL": url}
        done = cli.refused(*arguments, **there)
        assert "hunter2" not in done.stderr
        assert "ter2" not in done.stderr


def test_the_executable_itself_refuses_the_same_way(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home")
    assert cli.refused("threads", "show", "not-a-uuid").status == 2
    assert cli.refused("threads", "show", "--jsno").status == 2
    assert cli.refused("threads", "show", ID).status == 1


def test_bytes_that_are_not_text_are_refused_as_a_title(indexed: Cli) -> None:
    done = indexed.refused("threads", "title", ID, os.fsdecode(b"\xff\xfe"))
    assert done.status == 2


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a directory")
    for command in (["threads", "list"], ["backfill"]):
        done = Cli(tmp_path / "home").refused(*command)
        assert done.status == 1
        assert f"{tmp_path / 'home'} is not a directory" in done.stderr
    assert (tmp_path / "home").read_text() == "not a directory"


@pytest.mark.parametrize(
    "command",
    [
        ["threads", "list"], ["threads", "title", ID, "new"], ["backfill"], ["homes"],
        ["memory", "run", "--extractor", "json:dumps"], ["memories", "list"], ["jobs", "list"],
        ["scopes"], ["locks"], ["logs"],
        ["db", "upgrade"], ["db", "current"], ["db", "check"], ["db", "downgrade", "-1"], ["db", "history"],
        ["db", "copy", "--to", "sqlite://"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_home_that_is_not_there_is_named_and_not_made(cli: Cli, command: list[str]) -> None:
    """L12: whoever mistypes a name gets no new home, whichever way the name is given."""
    flag, default = cli.home.with_name("flag"), cli.home.with_name(".codex")
    for home, arguments, variables in (
        (cli.home, command, {}),
        (flag, [*command, "--codex-home", str(flag)], {}),
        (default, command, {"CODEX_HOME": ""}),
        (cli.home, command, {"CODEX_SQLITE_HOME": str(cli.home.with_name("elsewhere"))}),
    ):
        done = cli.refused(*arguments, **variables)
        assert done.status == 1
        assert f"there is no Codex home at {home}" in done.stderr
    assert list(cli.home.parent.iterdir()) == []


def test_a_variable_that_cannot_be_used_is_no_wrong_command_line(cli: Cli) -> None:
    cli.home.mkdir()
    done = cli.refused("threads", "list", CODEX_STATE_POOL_SIZE="many")
    assert done.status == 1
    assert "pool_size" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["threads", "name", ID, "new"], ["threads", "archive", ID], ["threads", "unarchive", ID], ["backfill"],
        ["memory", "run", "--extractor", "json:dumps"], ["logs", "prune"], ["import"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_nothing_is_changed_in_a_database_that_is_gone_when_the_command_ends(cli: Cli, command: list[str]) -> None:
    rollout = write_rollout(cli.home, 1)
    done = cli.refused(*command, CODEX_STATE_DATABASE_URL="sqlite://")
    assert done.status == 1
    assert "the database is in memory" in done.stderr
    assert rollout.is_file()
    assert cli.ok("threads", "list", "--json", CODEX_STATE_DATABASE_URL="sqlite://").json["items"]


def test_a_command_that_concerns_no_file_of_the_home_needs_none_where_a_url_names_the_database(
    cli: Cli, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    cli.ok("db", "upgrade", CODEX_STATE_DATABASE_URL=url)
    for command in (["db", "check"], ["jobs", "list"], ["jobs", "requeue", "--all-failed"], ["logs"], ["homes"]):
        cli.ok(*command, CODEX_STATE_DATABASE_URL=url)
    for command in (["threads", "list"], ["backfill"], ["memory", "run", "--extractor", "json:dumps"]):
        assert "there is no Codex home" in cli.refused(*command, CODEX_STATE_DATABASE_URL=url).stderr
    assert not cli.home.exists()


def test_a_home_that_cannot_be_written_is_named(nobodys: Path) -> None:
    home = nobodys / "home"
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP)
    with without_privileges():
        done = InProcess(home).refused("backfill")
    assert done.status == 1
    assert "check the path" in done.stderr
    assert "permissions" in done.stderr
    assert list(home.iterdir()) == []


def test_a_file_that_is_not_a_database_is_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = "These are not the tables that you are looking for.\n" * 100
    (home / "codex_state_4.sqlite").write_text(text)
    for command in (["threads", "list"], ["backfill"], ["db", "upgrade"], ["db", "current"], ["db", "check"]):
        done = InProcess(home).refused(*command)
        assert done.status == 1
        assert "not an SQLite database" in done.stderr
    assert (home / "codex_state_4.sqlite").read_text() == text


def test_a_corrupt_page_is_reported_with_what_to_do(indexed: Cli) -> None:
    database = indexed.home / "codex_state_4.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'threads'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(database.read_bytes())
    content[(page - 1) * size : page * size] = b"\xa5" * size
    database.write_bytes(content)
    done = indexed.refused("threads", "list")
    assert done.status == 1
    assert "malformed" in done.stderr
    assert "`codex-state doctor --repair`, which saves what can be read" in done.stderr
    assert database.read_bytes() == bytes(content)


def test_an_unknown_status_in_a_row_is_named(indexed: Cli) -> None:
    with closing(sqlite3.connect(indexed.home / "codex_state_4.sqlite")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE backfill_state SET status = 'dreaming'")
        connection.commit()
    done = indexed.refused("threads", "list")
    assert done.status == 1
    assert "unknown BackfillStatus 'dreaming'" in done.stderr


def test_a_busy_database_has_its_own_exit_status(indexed: Cli) -> None:
    with closing(sqlite3.connect(indexed.home / "codex_state_4.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = indexed.refused("threads", "title", ID, "new", CODEX_STATE_BUSY_TIMEOUT="PT0.2S")
        assert done.status == 3
        assert "held the database" in done.stderr
        connection.execute("ROLLBACK")


def test_a_broken_config_stops_only_rollouts_that_name_no_provider(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    named = write_rollout(cli.home, 1)
    nameless = write_rollout(cli.home, 2, session_meta(2, model_provider=None), user_message())
    config = cli.home / "config.toml"
    config.write_text('model_provider = "mine"\nenv = {\n "A" = "b",\n}\n')
    done = cli.ok("backfill")
    assert "1 indexed, 1 failed" in done.stdout
    assert f"{nameless} names no provider" in done.stderr
    assert str(config) in done.stderr
    assert str(config) in cli.ok("doctor").stdout
    named.touch()
    listed = cli.ok("threads", "list", "--json")
    assert [item["id"] for item in listed.json["items"]] == [str(thread_id(1))]
    assert "1 file can't be indexed" in listed.stderr
    cli.ok("threads", "archive", str(thread_id(1)))
    config.write_text('model_provider = "mine"\n')
    assert "0 failed" in cli.ok("backfill").stdout
    assert cli.ok("threads", "show", str(thread_id(2)), "--json").json["model_provider"] == "mine"


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    cli = InProcess(tmp_path / "home")
    assert "database_url" in cli.refused("threads", "list", CODEX_STATE_DATABASE_URL="mysql://localhost/x").stderr
    assert "pool_size" in cli.refused("threads", "list", CODEX_STATE_POOL_SIZE="0").stderr


def test_strange_rollouts_fail_one_by_one_and_stop_nothing(tmp_path: Path) -> None:
    cli = InProcess(copy_of_the_example_home(tmp_path / "home"))
    day = cli.home / "sessions/2026/05/01"
    day.mkdir(parents=True)

    def name(number: int) -> Path:
        return day / f"rollout-2026-05-01T00-00-00-019de000-0000-7000-8000-{number:012}.jsonl"

    intact = next((cli.home / "sessions/2026/02/06").iterdir()).read_bytes()
    name(1).write_bytes(b"")
    name(2).write_bytes(os.urandom(4096))
    name(3).write_bytes(intact[: len(intact) // 2])  # cut in the middle of a line: the rest counts
    name(4).mkdir()
    name(5).symlink_to(day / "gone.jsonl")
    (day / "rollout-without-a-time.jsonl").write_bytes(b"{}\n")
    report = cli.ok("backfill", "--json").json
    failed = {Path(failure["path"]).name for failure in report["failures"] if "2026/05/01" in failure["path"]}
    assert failed == {name(1).name, name(2).name, "rollout-without-a-time.jsonl"}
    assert report["status"] == "complete"
    assert report["failed"] == len(failed) + 1


def test_a_file_that_may_not_be_read_fails_alone(nobodys: Path) -> None:
    cli = InProcess(copy_of_the_example_home(nobodys / "home"))
    locked = next((cli.home / "sessions/2026/02/06").iterdir())
    locked.chmod(0)
    if os.geteuid() == 0:
        os.chown(cli.home, NOBODY, -1)  # the database will be nobody's
    with without_privileges():
        report = cli.ok("backfill", "--json").json
    assert "Permission denied" in {failure["path"]: failure["error"] for failure in report["failures"]}[str(locked)]
    assert report["failed"] == 2
    assert report["upserted"] == THREADS - 1
