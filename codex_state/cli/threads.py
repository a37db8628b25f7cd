"""``codex-state threads``: look at the index, and change what the user decides about a thread."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codex_state.cli import completing
from codex_state.cli.context import (
    CodexHome,
    Commands,
    Json,
    Limit,
    NoRefresh,
    ThreadId,
    begun_backfills,
    freshen,
    not_found,
    opened,
    short_ids,
    the_thread,
)
from codex_state.cli.filters import Filters, filtered, reasons, whole_page
from codex_state.cli.memories import memories_of
from codex_state.cli.output import (
    Column,
    ago,
    columns_of,
    counted,
    note,
    one_line,
    record_of,
    write,
    write_details,
    write_json,
    write_table,
)
from codex_state.cli.parsing import thread_id_or_beginning
from codex_state.cli.transcripts import cat
from codex_state.errors import InvalidInputError, RolloutError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from codex_state.models import DynamicTool, Thread, ThreadMemory, ThreadQuery, ThreadsPage, UnshownThreads
    from codex_state.rollout import ConversationSummary
    from codex_state.runtime import State, StateRuntime

_UNREADABLE_NAMED = 3
"""So many rows that can't be read are named, and the others counted."""

_MOST_COUNTED = 1_000_000

_MEMORIES_SHOWN = _CHILDREN_SHOWN = 100
"""So many of a thread's memories, and of the threads that it spawned, are shown at most."""

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List threads, read one, archive it, give it a name.")


@app.command("list")
@filtered
def list_threads(
    context: typer.Context,
    *,
    filters: Filters,
    home: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of this home instead; `homes` names them.",
            show_default=False,
            autocompletion=completing.homes,
        ),
    ] = None,
    all_homes: Annotated[
        bool, typer.Option("--all-homes", help="Also threads of other homes that share the database.")
    ] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Show spawned threads below their parents on the page.")] = False,
    limit: Limit = 50,
    total: Annotated[bool, typer.Option("--total", help="Also tell how many there are on all pages.")] = False,
    no_refresh: NoRefresh = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List threads, newest first: those with a name, a message or another text to show, and those without a rollout."""
    if home is not None and all_homes:
        raise InvalidInputError("--home names one home and --all-homes means every home; give one of the two")
    if tree and as_json:
        raise InvalidInputError("--tree is for people; in JSON, parent_thread_id tells a thread's parent")
    filters.query(None, limit)  # refuses what is wrong before anything is opened
    with opened(context, codex_home) as runtime:
        freshen(runtime, no_refresh=no_refresh)
        query = filters.query(None if all_homes else runtime.home if home is None else home, limit)
        page = whole_page(runtime, query)
        why = [] if as_json or page.items or page.next_anchor or query.anchor else reasons(runtime, query)
        unshown = None if as_json or filters.show_all or filters.cursor else _unshown(runtime, query)
        with runtime.read() as state:
            count = state.threads.count(replace(query, limit=_MOST_COUNTED)) if total else None
            short = short_ids(state, (thread.id for thread in page.items))
            elsewhere = {} if page.items or all_homes or home else state.threads.count_by_home(runtime.codex_home)
            elsewhere.pop(runtime.home, None)
        if home is not None:
            _hint_when_unknown(runtime, home)
    if as_json:
        write_json(_page_as_json(page) | ({} if count is None else {"total": count}))
    else:
        branches = _branches_of(page.items) if tree else [(thread, "") for thread in page.items]
        leads = {thread.id: lead for thread, lead in branches}
        write_table(_columns(filters.sort, short, with_home=all_homes, leads=leads), [thread for thread, _ in branches])
        _note_what_follows(query, page, why)
    if count is not None and not as_json:
        note(f"{'at least ' if count == _MOST_COUNTED else ''}{counted(count, 'thread')} in all")
    if unshown is not None:
        _note_unshown(unshown)
    for other, held in elsewhere.items():
        note(
            f"{counted(held, 'thread')} of this directory are known under the home {other!r} (CODEX_STATE_HOME); "
            "`codex-state backfill --again` has them under this one"
        )
    _note_unreadable(page)


@app.command()
def show(
    context: typer.Context,
    *,
    thread: ThreadId,
    no_refresh: NoRefresh = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Show what is known of a thread, and the command line that resumes it.

    Also its tools, memories and children, its turns, models and tokens. A terminal shows what people look for; a pipe
    and --json have every column.
    """
    from codex_state import rollout

    told = thread_id_or_beginning(thread)
    with opened(context, codex_home) as runtime:
        freshen(runtime, no_refresh=no_refresh)
        thread_id = the_thread(runtime, told)
        with runtime.read() as state:
            found = state.threads.get(thread_id)
            tools = state.dynamic_tools.get(thread_id) or []
            memory = state.thread_memories.get(thread_id)
            memories = memories_of(
                state, thread_id=thread_id, kind=None, key=None, invalidated=False, limit=_MEMORIES_SHOWN
            )
            children = _children_of(state, thread_id)
        if found is None:
            raise not_found(runtime, thread_id)
        try:
            summary = rollout.summarize_conversation(runtime, thread_id)
        except RolloutError:
            summary = None
        resume = _resume_line(runtime, found)
    if as_json:
        write_json(
            record_of(found)
            | {
                "dynamic_tools": [record_of(tool) for tool in tools],
                "memory": None if memory is None else record_of(memory),
                "memories": [record_of(each) for each in memories],
                "children": children,
                "turns": None if summary is None else summary.turns,
                "models": [] if summary is None else list(summary.models),
                "tokens": None if summary is None or summary.tokens is None else summary.tokens.as_dict(),
                "resume": resume,
            }
        )
    else:
        details = _in_short(found) if sys.stdout.isatty() else _whole(found)
        details += _things_of(tools, memory)
        shown = None if memory is None else (memory.scope_kind, memory.scope_key)
        others = [each for each in memories if (each.scope_kind, each.scope_key) != shown]
        details += [("memory", f"{each.scope_kind} {each.scope_key}: {each.memory_summary}") for each in others]
        details += [("child", f"{child['id']} {child['title'] or ''}".rstrip()) for child in children]
        details += _in_numbers(summary)
        if resume is None:
            details.append(("to resume it", "it is archived" if found.archived else None))
        write_details(details, [] if resume is None else [("to resume it", resume)])


app.command()(cat)


@app.command()
def path(
    context: typer.Context, *, thread: ThreadId, no_refresh: NoRefresh = False, codex_home: CodexHome = None
) -> None:
    """Print where a thread's rollout lies.

    The file itself is looked at, so a stale row can't mislead.
    """
    from codex_state import rollout

    told = thread_id_or_beginning(thread)
    with opened(context, codex_home) as runtime:
        freshen(runtime, no_refresh=no_refresh)
        thread_id = the_thread(runtime, told)
        found = rollout.find_thread_path(runtime, thread_id)
        if found is None:
            raise RolloutError(f"no rollout of thread {thread_id} in {runtime.codex_home}")
    write(f"{found}\n")


@app.command()
def archive(context: typer.Context, *, thread: ThreadId, codex_home: CodexHome = None) -> None:
    """Move a thread's rollout to archived_sessions.

    Prints its new path.
    """
    from codex_state import rollout

    told = thread_id_or_beginning(thread)
    with opened(context, codex_home, writes=True) as runtime:
        thread_id = the_thread(runtime, told)
        moved = rollout.archive_thread(runtime, thread_id)
    write(f"{moved}\n")


@app.command()
def unarchive(context: typer.Context, *, thread: ThreadId, codex_home: CodexHome = None) -> None:
    """Move a thread's rollout back to sessions.

    Prints its new path.
    """
    from codex_state import rollout

    told = thread_id_or_beginning(thread)
    with opened(context, codex_home, writes=True) as runtime:
        thread_id = the_thread(runtime, told)
        moved = rollout.unarchive_thread(runtime, thread_id)
    write(f"{moved}\n")


@app.command("name")
def name_thread(
    context: typer.Context,
    *,
    thread: ThreadId,
    text: Annotated[str | None, typer.Argument(metavar="NAME", help="The new name.", show_default=False)] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take its name away.")] = False,
    codex_home: CodexHome = None,
) -> None:
    """Give a thread a name of your own, which is shown in place of its first message.

    It survives every rebuild of the index.
    """
    told = thread_id_or_beginning(thread)
    if (text is None) is not clear:
        raise InvalidInputError("give either a NAME or --clear")
    name = None if text is None else text.strip()
    if name is not None and not name:
        raise InvalidInputError("the name is blank; give it at least one word, or --clear")
    with opened(context, codex_home, writes=True) as runtime:
        freshen(runtime)
        thread_id = the_thread(runtime, told)
        if not runtime.run(lambda state: state.threads.set_name(thread_id, name)):
            raise not_found(runtime, thread_id)
    note(f"{thread_id} has no name now" if name is None else f"{thread_id} is now called {name!r}")


app.command("title", hidden=True)(name_thread)


def _page_as_json(page: ThreadsPage) -> dict[str, Any]:
    return {
        "items": [record_of(thread) for thread in page.items],
        "next_cursor": None if page.next_anchor is None else page.next_anchor.cursor(),
        "num_scanned_rows": page.num_scanned_rows,
    }


def _note_what_follows(query: ThreadQuery, page: ThreadsPage, why_none: Sequence[str]) -> None:
    if page.next_anchor is not None:
        note(f"there are more: add `--cursor {shlex.quote(page.next_anchor.cursor())}`")
    elif not page.items and query.limit:
        none = "no threads match" if query.anchor is None else "no more threads match"
        note("; ".join([none, *why_none]))


def _unshown(runtime: StateRuntime, query: ThreadQuery) -> UnshownThreads:
    with runtime.read() as state:
        return state.threads.count_unshown(query)


def _note_unshown(unshown: UnshownThreads) -> None:
    at_least = "" if unshown.complete else "at least "
    told = []
    if unshown.empty:
        have = "has" if unshown.empty == 1 else "have"
        told.append(f"{at_least}{unshown.empty:,} more {have} neither a name nor a message")
    if unshown.gone:
        told.append(f"the rollout of {at_least}{unshown.gone:,} more is gone")
    if told:
        note(f"{', and '.join(told)}: --all lists them")


def _note_unreadable(page: ThreadsPage) -> None:
    for row in page.unreadable[:_UNREADABLE_NAMED]:
        note(f"the row of thread {one_line(row.key)} can't be read and is left out: {one_line(row.reason)}")
    if (more := len(page.unreadable) - _UNREADABLE_NAMED) > 0:
        note(f"{counted(more, 'more row')} can't be read")


def _branches_of(threads: Sequence[Thread]) -> list[tuple[Thread, str]]:
    """The threads of a page with spawned ones below their parents, and what is drawn before each.

    A family stands where its newest thread does. What lies on another page is not looked for.
    """
    by_id = {thread.id: thread for thread in threads}
    children: dict[UUID, list[Thread]] = {}
    for thread in threads:
        if thread.parent_thread_id in by_id:
            children.setdefault(thread.parent_thread_id, []).append(thread)
    drawn: dict[UUID, tuple[Thread, str]] = {}

    for newest in threads:
        waiting = [] if newest.id in drawn else [(_eldest(newest, by_id), "", "")]
        while waiting:
            thread, lead, below = waiting.pop()
            drawn[thread.id] = thread, lead
            spawned = [child for child in children.get(thread.id, ()) if child.id not in drawn]
            for child in reversed(spawned):
                last = child is spawned[-1]
                waiting.append((child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))
    return list(drawn.values())


def _eldest(thread: Thread, by_id: Mapping[UUID, Thread]) -> Thread:
    """The thread's first ancestor on the page: itself, when it is its own or has none there."""
    seen = {thread.id}
    eldest = thread
    while (parent := by_id.get(eldest.parent_thread_id or eldest.id)) is not None and parent.id not in seen:
        seen.add(parent.id)
        eldest = parent
    return eldest


def _hint_when_unknown(runtime: StateRuntime, home: str) -> None:
    if home not in {backfill.home for backfill in begun_backfills(runtime)}:
        note(f"no home called {home!r} was ever indexed here; `codex-state homes` lists those that were")


def _columns(
    sort: Literal["created_at", "updated_at"],
    short_id: Callable[[UUID], str],
    *,
    with_home: bool,
    leads: Mapping[UUID, str],
) -> list[Column[Thread]]:
    created: Column[Thread] = Column("CREATED", lambda t: t.created_at, lambda t: ago(t.created_at), style="dim")
    updated: Column[Thread] = Column("UPDATED", lambda t: t.updated_at, lambda t: ago(t.updated_at), style="dim")
    return [
        Column("ID", lambda t: t.id, lambda t: short_id(t.id)),
        created if sort == "created_at" else updated,
        *([Column("HOME", lambda t: t.home, style="cyan")] if with_home else []),
        Column("SOURCE", lambda t: t.source, lambda t: _short_source(t.source), from_width=100),
        Column("PROJECT", lambda t: t.cwd, lambda t: (t.cwd.name or "-")[:20], style="cyan"),
        Column("BRANCH", lambda t: t.git_branch, lambda t: (t.git_branch or "-")[:18], from_width=80),
        Column(
            "TITLE",
            lambda t: t.display_name,
            lambda t: f"{'(gone) ' if t.gone_at else ''}{t.display_name or '-'}",
            lead=lambda t: leads[t.id],
            takes_the_rest=True,
        ),
    ]


def _short_source(source: str) -> str:
    """``subagent`` and the like instead of the JSON of sources that carry details."""
    if not source.startswith("{"):
        return source
    try:
        kind = next(iter(json.loads(source)))
    except (ValueError, StopIteration):
        return source[:10]
    return str(kind)[:10]


def _children_of(state: State, thread_id: UUID) -> list[dict[str, Any]]:
    """The threads that a thread spawned, the oldest first."""
    from sqlmodel import col, select

    from codex_state.models import Thread

    columns = (col(Thread.id), col(Thread.name), col(Thread.title), col(Thread.agent_nickname))
    statement = select(*columns).where(Thread.parent_thread_id == thread_id)
    rows = state.session.exec(statement.order_by(col(Thread.created_at), col(Thread.id)).limit(_CHILDREN_SHOWN))
    return [
        {"id": str(child), "title": name or title, "agent_nickname": nickname} for child, name, title, nickname in rows
    ]


def _in_numbers(summary: ConversationSummary | None) -> list[tuple[str, Any]]:
    if summary is None:
        return []
    numbers: list[tuple[str, Any]] = [("turns", f"{summary.turns:,}"), ("models", ", ".join(summary.models))]
    if (tokens := summary.tokens) is not None:
        numbers += [
            ("tokens in", f"{tokens.input_tokens:,}, {tokens.cached_input_tokens:,} of them cached"),
            ("tokens out", f"{tokens.output_tokens:,}, {tokens.reasoning_output_tokens:,} of them for reasoning"),
        ]
    return numbers


def _resume_line(runtime: StateRuntime, thread: Thread) -> str | None:
    """The command line that goes on with a thread; ``None`` for one that can't be resumed as it is here."""
    if thread.archived or thread.gone_at is not None or thread.rollout_path is None or thread.home != runtime.home:
        return None
    home = runtime.codex_home
    usual = os.path.expanduser("~/.codex")  # noqa: PTH111 - pathlib's raises for a user without a home
    elsewhere = "" if str(home) == usual else f"CODEX_HOME={shlex.quote(str(home))} "
    return f"{elsewhere}codex resume {thread.id}"


def _in_short(thread: Thread) -> list[tuple[str, Any]]:
    """What people look for: nothing that is empty, as usual, or told elsewhere."""
    stands = " at ".join(text for text in (thread.git_branch, (thread.git_sha or "")[:12]) if text)
    remote = thread.git_origin_url and _without_secret(thread.git_origin_url)
    told: list[tuple[str, Any]] = [
        ("title", thread.display_name),
        ("id", thread.id),
        ("directory", thread.cwd),
        ("branch", f"{stands} of {remote}" if stands and remote else stands),
        ("started", thread.created_at),
        ("changed", thread.updated_at),
        ("by", " ".join(text for text in (_short_source(thread.source), thread.cli_version) if text)),
        ("model", ", ".join(text for text in (thread.model, thread.reasoning_effort, thread.model_provider) if text)),
        ("permissions", f"{thread.approval_mode}, {_kind_of(thread.sandbox_policy)}"),
        ("first message", thread.first_user_message if thread.first_user_message != thread.display_name else None),
        ("agent", " ".join(text for text in (thread.agent_nickname, thread.agent_role, thread.agent_path) if text)),
        ("spawned by", thread.parent_thread_id),
        ("forked from", thread.forked_from_id),
        ("memory mode", None if thread.memory_mode == "enabled" else thread.memory_mode),
        ("pinned", thread.pinned or None),
        ("archived", thread.archived_at),
        ("gone since", thread.gone_at),
        ("rollout", thread.rollout_path),
    ]
    return [(name, value) for name, value in told if value not in (None, "", Path())]


def _whole(thread: Thread) -> list[tuple[str, Any]]:
    """Every column."""
    return [
        (name, _without_secret(value) if name == "git_origin_url" and value else value)
        for name, value in columns_of(thread)
    ]


def _without_secret(url: str) -> str:
    """The URL of a remote without the password or token that stands in it: what is printed is shown to others."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    given, at, host = authority.rpartition("@")
    user, colon, _ = given.partition(":")
    if not colon and not (given and scheme.lower() in {"http", "https"}):
        return url
    return f"{scheme}://{f'{user}:' if colon else ''}***{at}{host}{slash}{path}"


def _kind_of(sandbox_policy: str) -> str:
    """The word for a policy that is stored as JSON."""
    try:
        policy = json.loads(sandbox_policy)
    except ValueError:
        return sandbox_policy
    return str(policy.get("type", sandbox_policy)) if isinstance(policy, dict) else str(policy)


def _things_of(tools: Sequence[DynamicTool], memory: ThreadMemory | None) -> list[tuple[str, Any]]:
    details: list[tuple[str, Any]] = [("dynamic tool", f"{tool.name}: {tool.description}") for tool in tools]
    if memory is not None:
        details += [(f"memory {name}", value) for name, value in columns_of(memory) if name != "thread_id"]
    return details
