"""``codex-state threads``: look at the index, and change what the user decides about a thread."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codex_state.cli.opening import begun_backfills, hint_when_incomplete, not_found, opened
from codex_state.cli.options import CodexHome, Json, Limit, ThreadId
from codex_state.cli.output import columns_of, note, record_of, write, write_json
from codex_state.cli.parsing import source_of, thread_id_of
from codex_state.cli.tables import Column, ago, write_details, write_table
from codex_state.errors import InvalidInputError, RolloutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codex_state.models import DynamicTool, Thread, ThreadMemory, ThreadsPage
    from codex_state.runtime import StateRuntime

app = typer.Typer(no_args_is_help=True, help="List threads, look at one, archive it, give it a title.")


@app.command("list")
def list_threads(
    context: typer.Context,
    *,
    sort: Annotated[
        Literal["created_at", "updated_at"], typer.Option(help="Newest first, by this time.")
    ] = "updated_at",
    archived: Annotated[bool, typer.Option("--archived", help="Only archived threads, instead of the others.")] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="Only this source: cli, vscode, exec, mcp, or JSON. Repeatable.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="Only this model provider. Repeatable.", show_default=False),
    ] = None,
    home: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of this home instead; `homes` names them.", show_default=False),
    ] = None,
    all_homes: Annotated[
        bool, typer.Option("--all-homes", help="Also threads of other homes that share the database.")
    ] = False,
    limit: Limit = 50,
    cursor: Annotated[
        str | None, typer.Option(metavar="C", help="Go on where the last page ended.", show_default=False)
    ] = None,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """List the threads that have a first message, newest first."""
    from codex_state import rollout
    from codex_state.models import Anchor, SortKey

    anchor = None if cursor is None else Anchor.parse(cursor)
    sources = [source_of(text) for text in source or ()]
    if home is not None and all_homes:
        raise InvalidInputError("--home names one home and --all-homes means every home; give one of the two")
    with opened(context, codex_home) as runtime:
        page = rollout.list_threads(
            runtime,
            page_size=limit,
            anchor=anchor,
            sort_key=SortKey(sort),
            sources=sources,
            providers=provider or (),
            archived=archived,
            home=None if all_homes else runtime.home if home is None else home,
        )
        if home is None:
            hint_when_incomplete(runtime)
        else:
            _hint_when_unknown(runtime, home)
    if as_json:
        write_json(_page_as_json(page))
    else:
        write_table(_columns(sort, with_home=all_homes), page.items)
        _note_what_follows(page)


@app.command()
def show(context: typer.Context, *, thread: ThreadId, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """Show all that is known of a thread, with its tools and memory."""
    thread_id = thread_id_of(thread)
    with opened(context, codex_home) as runtime:
        with runtime.read() as state:
            found = state.threads.get(thread_id)
            tools = state.dynamic_tools.get(thread_id) or []
            memory = state.thread_memories.get(thread_id)
        if found is None:
            raise not_found(runtime, thread_id)
    if as_json:
        write_json(
            record_of(found)
            | {
                "dynamic_tools": [record_of(tool) for tool in tools],
                "memory": None if memory is None else record_of(memory),
            }
        )
    else:
        write_details(_details(found, tools, memory))


@app.command()
def path(context: typer.Context, *, thread: ThreadId, codex_home: CodexHome = None) -> None:
    """Print where a thread's rollout lies.

    The file itself is looked at, so a stale row can't mislead.
    """
    from codex_state import rollout

    thread_id = thread_id_of(thread)
    with opened(context, codex_home) as runtime:
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

    thread_id = thread_id_of(thread)
    with opened(context, codex_home) as runtime:
        moved = rollout.archive_thread(runtime, thread_id)
    write(f"{moved}\n")


@app.command()
def unarchive(context: typer.Context, *, thread: ThreadId, codex_home: CodexHome = None) -> None:
    """Move a thread's rollout back to sessions.

    Prints its new path.
    """
    from codex_state import rollout

    thread_id = thread_id_of(thread)
    with opened(context, codex_home) as runtime:
        moved = rollout.unarchive_thread(runtime, thread_id)
    write(f"{moved}\n")


@app.command()
def title(
    context: typer.Context,
    *,
    thread: ThreadId,
    text: Annotated[str, typer.Argument(metavar="TITLE", help="The new title.", show_default=False)],
    codex_home: CodexHome = None,
) -> None:
    """Give a thread a title of your own. It survives every rebuild of the index."""
    thread_id = thread_id_of(thread)
    new_title = text.strip()
    if not new_title:
        raise InvalidInputError("the title is blank; give it at least one word")
    with opened(context, codex_home) as runtime:
        if not runtime.run(lambda state: state.threads.set_title(thread_id, new_title)):
            raise not_found(runtime, thread_id)
    note(f"{thread_id} is now called {new_title!r}")


def _page_as_json(page: ThreadsPage) -> dict[str, Any]:
    return {
        "items": [record_of(thread) for thread in page.items],
        "next_cursor": None if page.next_anchor is None else page.next_anchor.cursor(),
        "num_scanned_rows": page.num_scanned_rows,
    }


def _note_what_follows(page: ThreadsPage) -> None:
    if page.next_anchor is not None:
        note(f"there are more: add --cursor {shlex.quote(page.next_anchor.cursor())}")
    elif not page.items:
        note("no threads match")


def _hint_when_unknown(runtime: StateRuntime, home: str) -> None:
    if home not in {backfill.home for backfill in begun_backfills(runtime)}:
        note(f"no home called {home!r} was ever indexed here; `codex-state homes` lists those that were")


def _columns(sort: Literal["created_at", "updated_at"], *, with_home: bool) -> list[Column[Thread]]:
    created: Column[Thread] = Column("CREATED", lambda t: t.created_at, lambda t: ago(t.created_at), style="dim")
    updated: Column[Thread] = Column("UPDATED", lambda t: t.updated_at, lambda t: ago(t.updated_at), style="dim")
    return [
        Column("ID", lambda t: t.id),
        created if sort == "created_at" else updated,
        *([Column("HOME", lambda t: t.home, style="cyan")] if with_home else []),
        Column("SOURCE", lambda t: t.source, lambda t: _short_source(t.source), from_width=100),
        Column("PROJECT", lambda t: t.cwd, lambda t: t.cwd.name or "-", from_width=100, style="cyan"),
        Column("BRANCH", lambda t: t.git_branch, lambda t: (t.git_branch or "-")[:18], from_width=120),
        Column("TITLE", lambda t: t.title or t.first_user_message, takes_the_rest=True),
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


def _details(thread: Thread, tools: Sequence[DynamicTool], memory: ThreadMemory | None) -> list[tuple[str, Any]]:
    details = columns_of(thread)
    details += [("dynamic tool", f"{tool.name}: {tool.description}") for tool in tools]
    if memory is not None:
        details += [(f"memory {name}", value) for name, value in columns_of(memory) if name != "thread_id"]
    return details
