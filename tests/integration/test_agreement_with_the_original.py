"""Homes of every era give the rows and lists that the newest original gives, but for the differences that are meant.

Each difference stands in ``docs/differences.md`` under the name that it has here, with its reason.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard
from cli_process import InProcess
from original import DEFAULT_PROVIDER, NAMES, Original, edge_id, parsed, unpack

from codex_state.models import DynamicTool, Thread, ThreadQuery
from codex_state.models.columns import path_to_text, to_epoch_seconds
from codex_state.rollout import BackfillOutcome, backfill, list_threads
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings

DIFFERENCES_PAGE = Path(__file__).parents[2] / "docs" / "differences.md"

WITHOUT_AN_ANSWER = edge_id(151)
"""Its working directory is ``.``: whatever the original was started in. No answer is recorded."""

ONLY_OURS = {"edge": {edge_id(11), edge_id(37), WITHOUT_AN_ANSWER}}
"""Threads that the original has no row for. In case 11 one byte that is not UTF-8 spoils the whole file there, in 37
all records are on one line, parted by carriage returns."""

IN_A_LINKED_DIRECTORY = {edge_id(155), edge_id(373)}
"""Their working directory is ``/bin``, which was a link to ``/usr/bin``."""


@dataclass(frozen=True)
class Indexed:
    """A home, the original's answers for it, and ours."""

    original: Original
    threads: dict[str, Thread]
    tools: dict[str, list[DynamicTool]]
    listed: dict[bool, dict[str, Thread]]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Indexed]:
    """Each home is unpacked and indexed once, when somebody asks for it."""
    return functools.cache(lambda name: _index(unpack(name, tmp_path_factory.mktemp(name)), tmp_path_factory))


def _index(original: Original, directories: pytest.TempPathFactory) -> Indexed:
    settings = StateSettings(
        codex_home=original.home, sqlite_home=directories.mktemp("state"), default_provider=DEFAULT_PROVIDER
    )
    with StateRuntime.open(settings) as runtime:
        assert backfill(runtime, workers=0).status is BackfillOutcome.COMPLETE
        listed = {archived: {str(t.id): t for t in _listed(runtime, archived)} for archived in (False, True)}
        with runtime.read() as state:
            ids = [row[0] for row in state.session.connection().exec_driver_sql("SELECT id FROM threads")]
            threads = {thread_id: state.threads.get(UUID(thread_id)) for thread_id in ids}
            tools = {thread_id: state.dynamic_tools.get(UUID(thread_id)) for thread_id in ids}
    return Indexed(
        original,
        {thread_id: thread for thread_id, thread in threads.items() if thread is not None},
        {thread_id: defined for thread_id, defined in tools.items() if defined is not None},
        listed,
    )


def _listed(runtime: StateRuntime, archived: bool) -> Iterator[Thread]:
    anchor = None
    while True:
        page = list_threads(runtime, ThreadQuery(archived=archived, anchor=anchor))
        yield from page.items
        anchor = page.next_anchor
        if anchor is None:
            return


@dataclass(frozen=True)
class Difference:
    """One kind of meant difference: in which columns, and which of our values it excuses."""

    name: str
    columns: frozenset[str]
    excuses: Callable[[Any, Any], bool]
    """Of our value and the original's."""


def what_it_allows(policy: Any) -> tuple[str, bool]:
    """How far a sandbox reaches and whether the network is open, by a policy or by a permission profile."""
    if isinstance(policy, str):
        policy = {"type": policy}
    kind = policy["type"]
    if kind in {"disabled", "danger-full-access"}:
        return "everything", True
    network = policy.get("network") == "enabled" or policy.get("network_access") in {True, "enabled"}
    if kind == "managed":
        entries = policy.get("file_system", {}).get("entries", [])
        return ("writing" if any(entry.get("access") == "write" for entry in entries) else "reading"), network
    reach = {"read-only": "reading", "workspace-write": "writing", "external-sandbox": "external"}
    return reach.get(kind, kind), network


MEANT = (
    Difference(
        "The form of `sandbox_policy`",
        frozenset({"sandbox_policy"}),
        lambda ours, theirs: what_it_allows(ours) == what_it_allows(theirs),
    ),
    Difference(
        "`on-failure`",
        frozenset({"approval_mode"}),
        lambda ours, theirs: (ours, theirs) == ("on-failure", "on-request"),
    ),
    Difference(
        "`created_at` before 2020",
        frozenset({"created_at"}),
        lambda ours, theirs: bool(ours == theirs // 1000),
    ),
    Difference(
        "A text or a count that the original leaves out",
        frozenset({"title", "first_user_message", "tokens_used", "model"}),
        lambda ours, theirs: bool(ours) and not theirs,
    ),
)


def excused(column: str, ours: Any, theirs: Any) -> Difference | None:
    """The meant difference that two unequal values are an example of."""
    return next((kind for kind in MEANT if column in kind.columns and kind.excuses(ours, theirs)), None)


def differing(home: Indexed, thread_id: str) -> dict[str, tuple[Any, Any]]:
    """The columns in which a thread's row isn't the original's, with both values."""
    theirs = _their_form(home.original, thread_id)
    ours = _stored_form(home.threads[thread_id], home.original.home)
    return {column: (ours[column], theirs[column]) for column in theirs if ours[column] != theirs[column]}


def _stored_form(thread: Thread, home: Path) -> dict[str, Any]:
    """A thread as the original's answers spell it."""
    values = {name: parsed(getattr(thread, name)) for name in thread.column_names()}
    for name in ("created_at", "updated_at", "archived_at"):
        values[name] = None if values[name] is None else to_epoch_seconds(values[name])
    assert thread.rollout_path is not None
    return values | {
        "id": str(thread.id),
        "rollout_path": thread.rollout_path.relative_to(home).as_posix(),
        "cwd": path_to_text(thread.cwd),
        "archived": int(thread.archived),
        "first_user_message": thread.first_user_message or "",
    }


def _their_form(original: Original, thread_id: str) -> dict[str, Any]:
    left_open = original.left_open.get(thread_id, ())
    answer = {name: parsed(value) for name, value in original.threads[thread_id].items() if name not in left_open}
    if thread_id in IN_A_LINKED_DIRECTORY:
        answer["cwd"] = os.path.realpath("/bin")
    return answer | {"first_user_message": answer["first_user_message"] or ""}


@pytest.mark.parametrize("name", NAMES)
def test_every_thread_agrees_in_every_column(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    assert len(home.original.threads) >= 75
    assert set(home.original.threads) <= set(home.threads)
    unmeant = {
        thread_id: different
        for thread_id in home.original.threads
        if (
            different := {
                column: values
                for column, values in differing(home, thread_id).items()
                if excused(column, *values) is None
            }
        )
    }
    assert unmeant == {}


@pytest.mark.parametrize("name", NAMES)
def test_no_other_thread_has_a_row(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    assert set(home.threads) - set(home.original.threads) == ONLY_OURS.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_the_files_without_a_row_are_the_originals(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    root = home.original.home
    with_a_row = {thread.rollout_path for thread in home.threads.values()}
    without = {
        path.relative_to(root).as_posix()
        for directory, _, files in os.walk(root)  # which doesn't follow links, as the original doesn't
        for path in (Path(directory) / file for file in files)
        if path.name.startswith("rollout-") and path not in with_a_row
    }
    theirs = {path for path in home.original.files_without_a_row if not _is_through_a_link(root / path, root)}
    ours = {thread_id for thread_id in ONLY_OURS.get(name, ()) if thread_id in home.threads}
    assert without == {path for path in theirs if not any(thread_id in path for thread_id in ours)}


@pytest.mark.parametrize("name", NAMES)
def test_every_dynamic_tool_that_the_original_keeps_agrees(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    for thread_id, theirs in home.original.dynamic_tools.items():
        ours = home.tools.get(thread_id, [])
        assert [{field: getattr(tool, field) for field in theirs[0]} for tool in ours] == theirs


@pytest.mark.parametrize("name", NAMES)
def test_every_thread_that_the_original_lists_is_listed(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    assert len(home.original.listed[False]) >= 68
    for archived in (False, True):
        assert home.original.listed[archived] - set(home.listed[archived]) == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_a_user_gave_in_the_original_is_shown(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    listed = home.listed[False] | home.listed[True]
    named = {thread_id: given for thread_id, given in home.original.names.items() if thread_id in home.threads}
    assert {thread_id: listed[thread_id].name if thread_id in listed else None for thread_id in named} == named
    assert named or name == "edge"


@pytest.mark.parametrize("name", NAMES)
def test_every_sub_agent_has_its_parent(name: str, indexed: Callable[[str], Indexed]) -> None:
    home = indexed(name)
    ours = {child: home.threads[child].parent_thread_id for child in home.original.parents}
    assert ours == {child: UUID(parent) for child, parent in home.original.parents.items()}
    assert len(ours) >= 2


@pytest.mark.parametrize("difference", MEANT, ids=lambda kind: kind.name)
def test_every_meant_difference_occurs_and_is_explained(
    difference: Difference, indexed: Callable[[str], Indexed]
) -> None:
    homes = [indexed(name) for name in NAMES]
    kinds = {
        excused(column, *values)
        for home in homes
        for thread_id in home.original.threads
        for column, values in differing(home, thread_id).items()
    }
    assert difference in kinds, "nothing needs this excuse any more"
    page = DIFFERENCES_PAGE.read_text(encoding="utf-8")
    assert difference.name in re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)


def test_the_command_line_shows_what_the_newest_original_shows(tmp_path: Path) -> None:
    original = unpack("real-0.171.0", tmp_path / "home")
    cli = InProcess(original.home)
    report = cli.ok("backfill", "--json").json
    assert (report["status"], report["failed"], report["parse_errors"]) == ("complete", 0, 0)
    shown: dict[str, Any] = {}
    for archived in (False, True):
        options = ["--archived"] if archived else []
        items = cli.ok("threads", "list", "--limit", "1000", *options, "--json").json["items"]
        assert original.listed[archived] <= {item["id"] for item in items}
        shown |= {item["id"]: item for item in items}
    assert {thread_id: shown[thread_id]["name"] for thread_id in original.names} == original.names
    child, parent = next(iter(original.parents.items()))
    assert shown[child]["parent_thread_id"] == parent


@pytest.mark.parametrize("name", NAMES)
def test_no_home_holds_what_the_original_itself_tells_the_model(name: str, tmp_path: Path) -> None:
    """Those texts are the original's authors'. Only their places are needed."""
    told = {text for path in sorted(unpack(name, tmp_path).home.rglob("rollout-*")) for text in _instructions_in(path)}
    assert {text for text in told if len(text) > len("(instructions)")} == set()
    assert told


def _instructions_in(rollout: Path) -> Iterator[str]:
    for line in _content(rollout).splitlines():
        try:
            payload = json.loads(line)["payload"]
            yield from _texts_under(payload, "base_instructions")
            yield from _texts_under(payload, "developer_instructions")
            if payload.get("role") in {"developer", "system"}:
                yield from _texts_under(payload, "content")
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # an edge case


def _content(rollout: Path) -> bytes:
    if rollout.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(rollout.read_bytes())
    return rollout.read_bytes() if rollout.is_file() else b""


def _texts_under(value: Any, key: str) -> Iterator[str]:
    """Every text below a key, however deep either lies."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _all_texts(each) if name == key else _texts_under(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_under(each, key)


def _all_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for name, each in value.items() if name != "provenance" for text in _all_texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _all_texts(each))


def _is_through_a_link(path: Path, home: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(home))
