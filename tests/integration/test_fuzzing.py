"""Whatever is read, nothing stops, redirects or tricks the reader (laws L8, L10, L11): no traceback, no raw escape.

Hypothesis makes rollouts, file names, settings, arguments, cursors and times. Each run tries a few of them;
``CODEX_STATE_FUZZ=1000`` has it try more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
from cli_process import Cli, Finished, InProcess
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_state import Anchor, StateRuntime, StateSettings, Thread, ThreadQuery
from codex_state.errors import ConfigurationError, InvalidInputError
from codex_state.testing.samples import a_log_line, a_thread

EXAMPLES = int(os.environ.get("CODEX_STATE_FUZZ", "12"))
few, many = settings(max_examples=EXAMPLES), settings(max_examples=EXAMPLES * 12)

ID = "0198c0de-0000-7000-8000-00000000000"

# Values

texts = st.text(max_size=40) | st.sampled_from(
    [
        "\x1b]0;owned\x07",
        "\x9b31m",
        "\u202ereversed",
        "\0",
        "",
        "a\nb\r",
        "x" * 300,
        "../../etc",
        "\ud800",
        "1e999",
        "-0",
    ]
)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(timezones=zones | st.just(UTC))  # from year 1 to 9999
spelled_moments = st.one_of(
    moments.map(lambda moment: moment.isoformat()),
    moments.map(lambda moment: moment.isoformat().replace("+00:00", "Z")),
    moments.map(lambda moment: moment.strftime("%Y-%m-%dT%H-%M-%S")),
    texts,
)


def line(kind: str, payload: object, stamp: object = "2026-02-10T12:00:00.000Z") -> dict[str, Any]:
    return {"timestamp": stamp, "type": kind, "payload": payload}


LINES: list[dict[str, Any]] = [
    line("session_meta", {
        "id": ID + "1", "timestamp": "2026-02-10T12:00:00Z", "cwd": "/code", "originator": "cli", "cli_version": "1",
        "source": {"subagent": {"thread_spawn": {"parent_thread_id": ID + "2", "depth": 1}}}, "model_provider": "o",
        "git": {"commit_hash": "abc", "branch": "main", "repository_url": "r"}, "memory_mode": "enabled",
        "dynamic_tools": [{"name": "t", "description": "d", "inputSchema": {"type": "object"}}],
    }),
    line("event_msg", {"type": "user_message", "message": "hello"}),
    line("event_msg", {"type": "thread_name_updated", "thread_id": ID + "1", "thread_name": "a name"}),
    line("event_msg", {"type": "token_count", "info": {"total_token_usage": {"total_tokens": 5}}}),
    line("turn_context", {"cwd": "/code", "approval_policy": "never", "sandbox_policy": {"type": "read-only"}}),
    line("response_item", {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}),
]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something in it replaced, left out, or put in."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 5)):
            case 0:
                return {name: each for name, each in value.items() if name != key}
            case 1:
                return value | {draw(texts): draw(values)}
            case _:
                return value | {key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [draw(changed(value[0])), *value]
    return draw(values | spelled_moments)


@st.composite
def rollouts(draw: st.DrawFn) -> bytes:
    """Lines of a rollout, some changed as values and some as bytes."""
    encoded = []
    for item in LINES:
        for one in draw(st.sampled_from([[item], [item], [], [item, item]])):
            what = draw(changed(one)) if draw(st.integers(0, 2)) == 0 else one
            encoded.append(json.dumps(what, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    content = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(encoded) + b"\n"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=8)) + content[at + draw(st.integers(0, 20)) :]
    return content


file_names = st.one_of(
    st.builds(
        lambda number, ending: f"rollout-2026-02-10T12-00-00-{ID}{number}".encode() + ending,
        st.integers(0, 9),
        st.sampled_from(
            [b".jsonl", b".jsonl.zst", b" (copy).jsonl", b"-1.jsonl", b"\xff.jsonl", b"\n.jsonl", b"\x1b[31m.jsonl"]
        ),
    ),
    st.binary(min_size=1, max_size=243).map(lambda name: b"rollout-" + name[:242] + b".jsonl"),
    st.binary(min_size=1, max_size=255),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})


DIRECTIONS = "\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def is_harmless(shown: str) -> bool:
    """Whether a terminal shows it as it is: neither escapes nor C1 nor changes of direction, but colours of ours."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", shown)
    return not any(
        (unicodedata.category(each) == "Cc" and each not in "\n\r\t") or each in DIRECTIONS for each in plain
    )


def run(cli: Cli, *arguments: str, **environment: str) -> Finished:
    """Run a command in this process, where what isn't expected is raised."""
    done = cli(*arguments, **environment)
    assert done.status in {0, 1, 2, 3}, done
    assert "Traceback" not in done.stderr
    assert is_harmless(done.stderr), done
    return done


@contextmanager
def refused(kind: type[Exception]) -> Iterator[dict[str, str]]:
    """What may be refused in the block: the text of the refusal is noted, every other error is raised."""
    told: dict[str, str] = {}
    try:
        yield told
    except kind as error:
        told["text"] = str(error)


@contextmanager
def new_home() -> Iterator[Path]:
    with TemporaryDirectory() as directory:
        home = Path(directory, "home")
        home.mkdir()
        shutil.copy(TEMPLATE[0], StateSettings(codex_home=home).database_path)
        yield home


TEMPLATE: list[Path] = []


@pytest.fixture(autouse=True)
def template(migrated_sqlite: Path) -> None:
    TEMPLATE[:] = [migrated_sqlite]


@few
@given(contents=st.lists(st.tuples(file_names, rollouts()), min_size=1, max_size=4), index=st.binary(max_size=80))
def test_rollouts_of_any_content_under_any_name_are_indexed_or_named(
    contents: list[tuple[bytes, bytes]], index: bytes
) -> None:
    with new_home() as home:
        folder = home / "sessions" / "2026" / "02" / "10"
        folder.mkdir(parents=True)
        for name, content in contents:
            path = folder / os.fsdecode(name)
            path.write_bytes(content)
            os.utime(path, (1_770_724_800, 1_770_724_800))  # what was written just now is read again
        (home / "session_index.jsonl").write_bytes(index)
        cli = InProcess(home)
        told = run(cli, "backfill", "--json").json
        assert told["scanned"] == told["upserted"] + told["failed"] or told["upserted"] <= told["scanned"]
        listed = run(cli, "threads", "list", "--all", "--limit", "50", "--json").json["items"]
        assert not run(cli, "threads", "list", "--all").stdout.count("\x1b")
        for item in listed:
            assert run(cli, "threads", "show", item["id"]).status == 0
            assert run(cli, "threads", "path", item["id"]).status in {0, 1}
        again = run(cli, "backfill", "--json").json
        assert again["upserted"] == 0, "what was read once isn't read again for what is in it"
        if listed:
            shown = cli.on_terminal("threads", "list", "--all", "--no-refresh", columns=200).stdout
            assert is_harmless(shown), repr(shown)
            assert is_harmless(
                cli.on_terminal("threads", "list", "--all", "--no-refresh", "--json", columns=200).stdout
            )


@many
@given(
    config=st.binary(max_size=80)
    | st.builds(
        lambda key, value: f"{key} = {value!r}".encode("utf-8", "ignore"),
        st.sampled_from(["model_provider", "profile", "profiles", "[profiles.x]\nmodel_provider"]),
        values,
    )
)
def test_a_config_file_of_any_kind_gives_a_provider_or_a_refusal(config: bytes) -> None:
    with TemporaryDirectory() as home:
        Path(home, "config.toml").write_bytes(config)
        with refused(ConfigurationError) as told:
            assert StateSettings(codex_home=Path(home)).provider
        assert "config.toml" in told.get("text", "config.toml")


VARIABLES = [
    "CODEX_HOME", "CODEX_SQLITE_HOME", "CODEX_STATE_DATABASE_URL", "CODEX_STATE_HOME", "CODEX_STATE_BUSY_TIMEOUT",
    "CODEX_STATE_RETRY_FOR", "CODEX_STATE_POOL_SIZE", "CODEX_STATE_MIGRATE", "CODEX_STATE_LOG_MAX_AGE",
    "CODEX_STATE_LOG_MAX_BYTES", "CODEX_STATE_BACKFILL_LEASE", "CODEX_STATE_TRANSACTION_POOLING",
    "CODEX_STATE_ENV_FILE",
]  # fmt: skip
numbers = (
    st.floats().map(repr) | st.integers(-(2**80), 2**80).map(str) | st.sampled_from(["P1D", "PT9e99S", "1e400", "nan"])
)
spelled = (
    texts
    | numbers
    | st.sampled_from(["sqlite://", "postgresql://u:secret@[::1/x", "sqlite:///\x01", "postgresql://:secret@/"])
).filter(lambda text: "\0" not in text)


def storable(text: str) -> str:
    """As the environment holds it."""
    return os.fsdecode(os.fsencode(text.encode("utf-8", "ignore")))


@many
@given(variables=st.dictionaries(st.sampled_from(VARIABLES), spelled.map(storable), min_size=1, max_size=3))
def test_settings_of_any_text_are_used_or_refused(variables: dict[str, str]) -> None:
    with patch.dict(os.environ, variables), refused(ConfigurationError) as told:
        StateSettings()
    if "secret" in variables.get("CODEX_STATE_DATABASE_URL", ""):
        assert "secret" not in told.get("text", "")


@few
@given(variables=st.dictionaries(st.sampled_from(VARIABLES[3:12]), spelled.map(storable), min_size=1, max_size=3))
def test_a_command_with_settings_of_any_text_ends_in_an_answer_or_a_refusal(variables: dict[str, str]) -> None:
    with new_home() as home:
        run(InProcess(home), "threads", "list", **({"CODEX_STATE_RETRY_FOR": "0"} | variables))


ARGUMENTS = [
    tuple(words.split())
    for words in (
        "threads list --cursor", "threads list --source", "threads list --provider", "threads list --limit",
        "threads show", f"threads name {ID}1", "logs --since", "logs --to", "logs --thread-id", "logs --search",
        "logs --backfill", "logs prune --max-size", "logs prune --before", "jobs list --status", "memories show",
        "db upgrade", "db downgrade", "import", "backup", "restore", "--codex-home",
    )
]  # fmt: skip


@many
@given(arguments=st.sampled_from(ARGUMENTS), text=(texts | spelled_moments | numbers).map(storable))
def test_arguments_of_any_text_are_used_or_refused(arguments: tuple[str, ...], text: str) -> None:
    with new_home() as home, TemporaryDirectory() as elsewhere, chdir(elsewhere):
        run(InProcess(home), *arguments, text.replace("\0", ""))


@many
@given(text=st.builds(lambda moment, end: f"{moment}|{end}", spelled_moments, st.just(ID + "1") | texts) | texts)
def test_a_cursor_of_any_text_is_a_place_or_refused(text: str) -> None:
    try:
        anchor = Anchor.parse(text)
        with shared_state() as runtime, runtime.read() as state:
            state.threads.list(ThreadQuery(anchor=anchor))
    except InvalidInputError:
        return
    assert Anchor.parse(anchor.cursor()) == anchor


@many
@given(created=moments, updated=moments, text=texts)
def test_every_time_from_year_1_to_9999_in_any_zone_is_stored_and_listed_or_refused(
    created: datetime, updated: datetime, text: str
) -> None:
    thread = a_thread(id=UUID(ID + "5"), created_at=created, updated_at=updated, title=text)
    with shared_state() as runtime:
        try:
            runtime.run(lambda state: state.threads.upsert(thread))
            runtime.run(lambda state: state.logs.insert(a_log_line(text, target=text)))
        except InvalidInputError:
            return
        stored = runtime.run_read(lambda state: state.threads.get(thread.id))
        assert stored is not None
        assert stored.created_at == created.astimezone(UTC).replace(microsecond=0)
        runtime.run_read(lambda state: state.threads.list(ThreadQuery(anchor=Anchor(updated, thread.id))))
        assert Thread.model_validate_json(stored.model_dump_json()).created_at == stored.created_at


@contextmanager
def shared_state() -> Iterator[StateRuntime]:
    """One in memory, which many examples share."""
    if not OPEN:
        OPEN.append(StateRuntime.open(StateSettings(database_url="sqlite://")))
    yield OPEN[0]


OPEN: list[StateRuntime] = []
