"""Makes the example home, the same bytes every time: ``python examples/make_home.py [DIRECTORY]``.

It holds what real homes hold: several versions, sources, providers and projects, sub-agents, forks, archived and
compressed rollouts, sessions without a message, a broken line here and a damaged file there; and from November 2026
numbered lines, forks and reverted threads that refer to their history, goals, and names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import conversations as said
import zstandard
from conversations import Project, Turn
from extractor import records_of
from paginated_writer import PaginatedWriter
from rollout_writer import RolloutWriter, stamp, uuid7

HOME = Path(__file__).parent / "home"

FULL_ACCESS = {"type": "danger-full-access"}
READ_ONLY = {"type": "read-only"}

# A 1x1 pixel, so that image messages stay small.
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

TICKET_TOOLS = [
    {
        "name": "lookup_ticket",
        "description": "Look up a ticket by its key.",
        "inputSchema": {
            "type": "object",
            "properties": {"key": {"type": "string", "pattern": "^[A-Z]+-[0-9]+$"}},
            "required": ["key"],
            "additionalProperties": False,
        },
    },
    {
        "namespace": "calendar",
        "name": "free_slots",
        "description": "Free slots of a team in a week.",
        "inputSchema": {"type": "object", "properties": {"team": {"type": "string"}, "week": {"type": "integer"}}},
        "deferLoading": True,
    },
]

NAMESPACED_TOOLS = [
    {
        "type": "namespace",
        "name": "tickets",
        "description": "The ticket tracker.",
        "tools": [
            {
                "type": "function",
                "name": "lookup",
                "description": "Look up a ticket by its key.",
                "inputSchema": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
            },
            {
                "type": "function",
                "name": "assign",
                "description": "Give a ticket to somebody.",
                "inputSchema": {"type": "object", "properties": {"key": {"type": "string"}, "to": {"type": "string"}}},
                "deferLoading": True,
            },
        ],
    },
    {
        "type": "function",
        "name": "today",
        "description": "Which day it is.",
        "inputSchema": {"type": "object", "properties": {}},
    },
]


class Home:
    """A Codex home that is being written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def session(self, writer: RolloutWriter, *, text: str | None = None, compressed: bool = False) -> Path:
        """Store a rollout in its day's directory."""
        directory = self.root / "sessions" / f"{writer.started:%Y/%m/%d}"
        return self._store(directory / writer.name, (text or writer.text).encode(), compressed=compressed)

    def archived(self, writer: RolloutWriter) -> Path:
        """Store a rollout among the archived ones, which lie flat."""
        return self._store(self.root / "archived_sessions" / writer.name, writer.text.encode(), compressed=False)

    def name(self, thread_id: UUID, name: str, moment: datetime) -> None:
        """The user calls a thread something."""
        entry = {"id": str(thread_id), "thread_name": name, "updated_at": stamp(moment)}
        with (self.root / "session_index.jsonl").open("a", encoding="utf-8") as index:
            index.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")

    def damaged(self, started: datetime, content: bytes) -> Path:
        """Store a file that is named like a rollout and isn't one."""
        name = f"rollout-{started:%Y-%m-%dT%H-%M-%S}-{uuid7(started, random.Random(0))}.jsonl"
        return self._store(self.root / "sessions" / f"{started:%Y/%m/%d}" / name, content, compressed=False)

    def _store(self, path: Path, content: bytes, *, compressed: bool) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if compressed:
            path = path.with_name(path.name + ".zst")
            content = zstandard.ZstdCompressor(level=3).compress(content)
        path.write_bytes(content)
        return path


def at(text: str) -> datetime:
    """A UTC time from ``MM-DD HH:MM:SS`` of 2026."""
    return datetime.strptime(f"2026-{text}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def talk(
    started: str, project: Project, turns: Sequence[Turn], *, meta: dict[str, Any] | None = None, **options: Any
) -> RolloutWriter:
    """A rollout of one ordinary conversation."""
    writer = RolloutWriter(at(started), project, seed=started, **options)
    writer.meta(**(meta or {}))
    for number, turn in enumerate(turns):
        if number:
            writer.pause(minutes=7)
        writer.turn(turn)
    return writer


def paginated(
    started: str, project: Project, turns: Sequence[Turn], *, meta: dict[str, Any] | None = None, **options: Any
) -> PaginatedWriter:
    """A rollout of one conversation of November 2026."""
    writer = PaginatedWriter(at(started), project, seed=started, **options)
    writer.meta(**(meta or {}))
    for number, turn in enumerate(turns):
        if number:
            writer.pause(minutes=7)
        writer.turn(turn)
    return writer


def make_home(root: Path) -> None:
    """Write the whole home into ``root``, which must not exist."""
    home = Home(root)
    for write in (_everyday, _sub_agents, _forks, _oddities, _archive, _november, _november_forks, _november_names):
        write(home)
    (root / "config.toml").write_text('model = "gpt-5.1-codex"\nmodel_provider = "openai"\n', encoding="utf-8")


def _everyday(home: Home) -> None:
    february: dict[str, Any] = {"version": "0.99.0", "model": "gpt-5-codex"}
    home.session(talk("02-03 08:12:44", said.ORCHARD, said.PAGINATION, branch="keyset-pagination", **february))
    home.session(talk("02-03 13:40:02", said.TIDEPOOL, said.FLAKY_TEST, effort="high", **february))
    home.session(talk("02-05 09:03:10", said.LANTERN, said.DARK_MODE, source="vscode", branch="dark-mode", **february))
    home.session(talk("02-06 16:22:31", said.NOTES, said.SMALL_TALK, effort="low", sandbox=READ_ONLY, **february))
    home.session(talk("02-10 07:58:00", said.ORCHARD, said.DOCKER_CACHE, provider=None, **february))
    home.session(talk("02-12 10:15:27", said.LEDGER, said.NIGHTLY, source="exec", approval="never", **february))
    home.session(talk("02-13 10:15:26", said.LEDGER, said.NIGHTLY, source="exec", approval="never", **february))
    home.session(
        talk("03-02 09:30:00", said.LEDGER, said.MONTH_END, effort="high", approval="untrusted", branch="close-2026-02")
    )
    home.session(talk("03-04 11:05:51", said.TIDEPOOL, said.UNICODE_NAMES, branch="nfc"))
    home.session(talk("03-09 14:47:13", said.ORCHARD, said.RETRY_STORM, provider="azure", sandbox=FULL_ACCESS))
    home.session(talk("03-11 08:21:09", said.LANTERN, said.IDE_REQUEST, source="vscode"))
    home.session(talk("03-16 15:02:40", said.NOTES, said.CONVERT, provider="ollama", model="gpt-oss:20b", effort=None))
    home.session(talk("03-19 09:44:18", said.LEDGER, said.SQL_SLOW, source="mcp", sandbox=READ_ONLY))
    home.session(talk("03-20 10:00:00", said.LANTERN, said.ACCESSIBILITY, source="vscode", branch="picker-a11y"))
    home.session(talk("03-24 13:31:07", said.LEDGER, said.TYPE_HINTS, branch="strict"))
    home.session(
        talk("03-26 08:09:55", said.ORCHARD, said.TICKETS, source="vscode", meta={"dynamic_tools": TICKET_TOOLS})
    )


def _sub_agents(home: Home) -> None:
    parent = talk("03-27 09:00:00", said.TIDEPOOL, said.EXPLORE_SYNC[:0], branch="atomic-writes")
    parent.turn(
        Turn(
            "Make every write of tidepool atomic.",
            "First find them all; a sub-agent can look.",
            (),
            "Four writes to change.",
        )
    )
    home.session(parent)
    spawn = {"parent_thread_id": str(parent.id), "depth": 1, "agent_nickname": "Heron", "agent_role": "explorer"}
    explorer = {"agent_nickname": "Heron", "agent_role": "explorer", "agent_path": "/root/heron"}
    home.session(
        talk(
            "03-27 09:01:30",
            said.TIDEPOOL,
            said.EXPLORE_SYNC,
            source={"subagent": {"thread_spawn": spawn}},
            meta=explorer,
        )
    )
    home.session(
        talk("03-30 12:20:00", said.ORCHARD, said.SCHEMA_REVIEW, source={"subagent": "review"}, approval="never")
    )


def _forks(home: Home) -> None:
    parent = talk("03-31 08:30:00", said.LEDGER, said.LONG_REFACTOR[:1], branch="split-close")
    home.session(parent)
    fork = RolloutWriter(at("03-31 10:12:00"), said.LEDGER, seed="fork", branch="split-close")
    fork.meta(forked_from_id=str(parent.id))
    # A fork begins with everything its parent had, the parent's own first line included.
    for line in parent.lines:
        record = json.loads(line)
        fork.line(record["type"], record["payload"])
    fork.turn(said.LONG_REFACTOR[1])
    fork.compact("close.py was split into reading, matching, splitting, booking, reporting and money; all tests pass.")
    home.session(fork)


def _oddities(home: Home) -> None:
    picture = RolloutWriter(at("04-01 07:15:00"), said.LANTERN, seed="picture", source="vscode")
    picture.meta()
    picture.context()
    picture.request("", images=[PIXEL])
    picture.answer(
        "The screenshot shows the header overlapping the list below 360 px. A `min-width: 0` on the list fixes it."
    )
    picture.token_count(300, 120)
    home.session(picture)

    private = talk("04-01 09:20:00", said.NOTES, said.SMALL_TALK, meta={"memory_mode": "disabled"}, sandbox=READ_ONLY)
    home.session(private)

    polluted = talk("04-02 10:00:00", said.ORCHARD, said.RETRY_STORM, branch="breaker")
    polluted.meta(memory_mode="polluted")
    home.session(polluted)

    aborted = talk("04-02 22:41:00", said.LANTERN, said.ABORTED)
    aborted.event("turn_aborted", reason="interrupted")
    home.session(aborted)

    # Started and closed again: nothing was asked, so it isn't listed.
    home.session(talk("04-03 08:00:00", said.NOTES, ()))

    crashed = talk("04-03 11:11:11", said.TIDEPOOL, said.RELEASE_NOTES)
    broken = crashed.text.splitlines(keepends=True)
    broken.insert(4, '{"timestamp":"2026-04-03T11:11:20.000Z","type":"event_msg","payl\n')
    broken.append('{"timestamp":"2026-04-03T11:12:09.431Z","type":"resp')  # the power went
    home.session(crashed, text="".join(broken))

    home.session(talk("04-06 09:09:09", said.LEDGER, said.SQL_SLOW, branch="half-open"), compressed=True)

    # A full disk left a file of the right name with nothing but zero bytes in it.
    home.damaged(at("04-07 03:00:00"), bytes(4096))


def _archive(home: Home) -> None:
    home.archived(
        talk("01-14 09:10:11", said.ORCHARD, said.RELEASE_NOTES, version="0.98.0", model="gpt-5-codex", effort=None)
    )
    home.archived(
        talk("01-20 15:00:00", said.TIDEPOOL, said.TYPE_HINTS[:1], version="0.98.0", model="gpt-5-codex", effort="low")
    )
    home.archived(talk("02-18 12:00:00", said.LANTERN, said.DARK_MODE, version="0.101.0", source="vscode"))
    home.archived(talk("03-05 18:30:00", said.LEDGER, said.NIGHTLY, source="exec", approval="never"))


def _november(home: Home) -> None:
    nothing_forbidden: dict[str, Any] = {"permissions": {"type": "disabled"}, "sandbox": FULL_ACCESS}
    home.archived(paginated("11-03 16:20:00", said.NOTES, said.CHANGELOG_STYLE))
    home.session(paginated("11-04 09:41:12", said.TIDEPOOL, said.DEPENDENCIES, effort="max"), compressed=True)
    home.session(paginated("11-10 10:04:30", said.LANTERN, said.OFFLINE_BANNER, source="vscode", branch="offline"))
    home.session(
        paginated(
            "11-11 06:00:02", said.LEDGER, said.QUARTER_CHECK, source="exec", approval="never", **nothing_forbidden
        )
    )
    tools = paginated("11-12 13:15:40", said.ORCHARD, (), source="vscode", meta={"dynamic_tools": NAMESPACED_TOOLS})
    (ticket,) = said.STOCK_TICKET
    tools.start()
    tools.request(ticket.request)
    tools.reasoning(ticket.thought)
    tools.use_tool("tickets", "lookup", {"key": "ORCH-402"}, "ORCH-402: open, no reviewer")
    tools.answer(ticket.answer)
    tools.token_count(400, 80)
    tools.complete(ticket.answer)
    home.session(tools)

    picture = PaginatedWriter(at("11-13 17:02:10"), said.LANTERN, seed="picture of November", source="vscode")
    picture.meta()
    picture.start()
    picture.request("", images=[PIXEL])
    picture.answer("The chart's labels overlap below 400 px. Every second one is enough there.")
    picture.complete("The chart's labels overlap below 400 px. Every second one is enough there.")
    home.session(picture)

    # Begun by a goal: nobody wrote a message.
    goal = PaginatedWriter(at("11-19 08:30:00"), said.LANTERN, seed="goal", effort="high")
    goal.meta()
    goal.goal("Every page of lantern-web loads in under a second on a slow phone")
    goal.settings()
    home.session(goal)


def _november_forks(home: Home) -> None:
    parent = paginated("11-16 09:00:00", said.TIDEPOOL, (), branch="watch")
    (watch,) = said.WATCH_MODE
    (compare,) = said.COMPARE_CRATES
    parent.start()
    parent.request(watch.request)
    parent.reasoning(watch.thought)
    spawn = {"parent_thread_id": str(parent.id), "depth": 1, "agent_path": None}
    agent = {"agent_nickname": "Curlew", "agent_role": "explorer"}
    child = paginated(
        "11-16 09:00:41",
        said.TIDEPOOL,
        said.COMPARE_CRATES,
        source={"subagent": {"thread_spawn": spawn | agent}},
        session=parent.id,
        meta={"parent_thread_id": str(parent.id), "thread_source": "subagent", **agent},
    )
    parent.spawn(child, "Curlew", "explorer", compare.request)
    for step in watch.steps:
        parent.run(step)
    parent.answer(watch.answer)
    parent.token_count(2400, len(watch.answer))
    parent.complete(watch.answer)
    home.session(parent)
    home.session(child)

    # A fork doesn't copy what it begins with: it says where that ends.
    base = paginated("11-17 14:10:00", said.LEDGER, said.CURRENCIES[:1], branch="currencies")
    plan = base.here
    base.pause(minutes=7)
    base.turn(said.CURRENCIES[1])
    home.session(base)
    fork = PaginatedWriter(at("11-17 15:30:25"), said.LEDGER, seed="fork of November", branch="currencies")
    fork.go_on_after(plan)
    fork.meta(forked_from_id=str(base.id), forked_from_ordinal_exclusive=plan.ordinal)
    fork.settings()
    fork.turn(said.WITHOUT_A_TYPE[0])
    home.session(fork)

    # The second turn was taken back, and the thread goes on in a file of its own.
    first = paginated("11-18 11:20:15", said.ORCHARD, said.CACHE_HEADERS[:1])
    kept = first.here
    first.pause(minutes=7)
    first.turn(said.CACHE_HEADERS[1])
    home.session(first)
    second = first.reverted(kept, at("11-18 11:41:03"))
    second.meta()
    second.settings()
    second.turn(said.CACHE_HEADERS[2])
    home.session(second)


def _november_names(home: Home) -> None:
    importer = paginated("11-20 10:12:05", said.ORCHARD, said.ALL_OR_NOTHING, branch="importer")
    home.session(importer)
    # Named before anything was asked: the settings are all that its rollout tells.
    ideas = PaginatedWriter(at("11-20 08:45:00"), said.NOTES, seed="ideas")
    ideas.meta()
    ideas.settings()
    home.session(ideas)
    home.name(ideas.id, "Ideas for the autumn 🍂", at("11-20 08:45:30"))
    home.name(importer.id, "Importer", at("11-20 10:20:00"))
    home.name(importer.id, "Importer: all or nothing", at("11-20 10:31:00"))


def set_modification_times(home: Path) -> None:
    """Give each rollout the time of its last line: version control doesn't keep the times of files, and they matter.

    The index takes a thread's ``updated_at`` from there.
    """
    for path in sorted(home.rglob("rollout-*")):
        moment = _last_line_time(path)
        os.utime(path, (moment, moment))


def _last_line_time(path: Path) -> float:
    records = list(records_of(path))
    if records:
        return datetime.fromisoformat(records[-1]["timestamp"]).timestamp()
    return datetime.strptime(path.name[8:27], "%Y-%m-%dT%H-%M-%S").replace(tzinfo=UTC).timestamp()


def copy_home(source: Path, target: Path) -> None:
    """Copy a home and mend its modification times. The source stays untouched."""
    shutil.copytree(source, target)
    set_modification_times(target)


def main(arguments: Sequence[str]) -> None:
    """Write the home anew at its place, or at a given one that doesn't exist yet."""
    root = Path(arguments[0]) if arguments else HOME
    if root == HOME and HOME.exists():
        shutil.rmtree(HOME)
    elif root.exists():
        sys.exit(f"{root} is already there; name a directory that doesn't exist yet")
    make_home(root)
    set_modification_times(root)
    files = sorted(root.rglob("rollout-*"))
    print(f"{len(files)} rollouts, {sum(file.stat().st_size for file in files):,} bytes in {root}")


if __name__ == "__main__":
    main(sys.argv[1:])
