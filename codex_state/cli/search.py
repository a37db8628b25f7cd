"""``codex-state search``: find conversations by what was said in them."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli.context import CodexHome, Json, Limit, NoRefresh, freshen, opened, short_ids
from codex_state.cli.filters import Filters, are_others, filtered, reasons
from codex_state.cli.output import (
    ago,
    console_of,
    counted,
    flush,
    json_value,
    note,
    one_line,
    rfc3339,
    shown_looking,
    write,
    write_drawn,
    write_json,
)
from codex_state.cli.transcripts import kinds_of
from codex_state.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from codex_state.models import Thread, ThreadQuery
    from codex_state.rollout import FoundThread
    from codex_state.runtime import StateRuntime

_COLUMNS = (
    "id",
    "name",
    "title",
    "cwd",
    "git_branch",
    "source",
    "archived",
    "created_at",
    "updated_at",
    "rollout_path",
)


@filtered
def search(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="WORDS...",
            help="What the thread holds, anywhere in its messages. word* begins a word; '\"two words\"' are a phrase.",
            show_default=False,
        ),
    ],
    *,
    without: Annotated[
        list[str] | None, typer.Option("--not", metavar="WORD", help="What it must not hold. Repeatable.")
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="KINDS",
            help="Look in these: user, agent, reasoning (the default), command, output, notice, all. "
            "Parted by commas, or repeated.",
            show_default=False,
        ),
    ] = None,
    filters: Filters,
    limit: Limit = 20,
    no_refresh: NoRefresh = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Find threads that hold all the words, in their messages or their name: the newest first.

    Case doesn't count. The words may be in different messages of a thread. Nothing is indexed: the rollouts
    themselves are looked through, as grep does.
    """
    from codex_state import rollout
    from codex_state.rollout.matching import parse_terms
    from codex_state.rollout.transcript import TranscriptKind

    wanted = [TranscriptKind(kind) for kind in sorted(kinds_of(kinds, "--in"))] if kinds else rollout.SAID
    sought = " ".join([*words, *(_excluded(word) for word in without or ())])
    parse_terms(sought)
    filters.query(None, limit)  # both refuse what is wrong before anything is opened
    with opened(context, codex_home) as runtime:
        query = filters.query(runtime.home, limit)
        freshen(runtime, no_refresh=no_refresh)
        with shown_looking() as looking:
            found = rollout.search(runtime, sought, query, kinds=wanted, on_progress=looking)
            if as_json:
                items = list(found)
                following = items[-1].anchor.cursor() if len(items) == limit and items else None
                write_json({"items": [_as_json(each) for each in items], "next_cursor": following})
                return

            def short_id(thread: Thread) -> str:
                with runtime.read() as state:
                    return short_ids(state, [thread.id])(thread.id)

            show = _drawer(sought, short_id) if sys.stdout.isatty() else _write_plain
            last, count = None, 0
            for last in found:
                looking.pause()
                show(last)
                flush()
                count += 1
        if last is None:
            note(_nothing(runtime, query, looking.threads))
            return
    note(
        f"{counted(count, 'thread')} found; `codex-state threads cat ID` reads one, "
        "`codex-state threads show ID` tells how to resume it"
    )
    if count == limit:
        note(f"there may be more: add `--cursor '{last.anchor.cursor()}'`")


def _nothing(runtime: StateRuntime, query: ThreadQuery, looked_through: int) -> str:
    if not query.limit:
        return "nothing was asked for: --limit 0"
    if not looked_through and query.anchor is not None:
        return "no more threads match"
    if not looked_through:
        return "; ".join(["nothing found: no threads match", *reasons(runtime, query)])
    more = "more " if query.anchor is not None else ""
    told = f"nothing {more}found in {counted(looked_through, 'thread')}"
    has_archived = not query.archived and are_others(runtime, query)
    return f"{told}; --archived looks through archived ones" if has_archived else told


def _excluded(word: str) -> str:
    if not word.strip() or '"' in word:
        raise InvalidInputError(f"--not takes a word or a phrase, without quotes in it: {word!r}")
    return f'-"{word}"' if " " in word.strip() else f"-{word.strip()}"


def _as_json(found: FoundThread) -> dict[str, Any]:
    return {name: json_value(getattr(found.thread, name)) for name in _COLUMNS} | {
        "hits": [
            {
                "kind": hit.kind.value,
                "at": hit.at and rfc3339(hit.at, timespec="milliseconds"),
                "line": hit.line,
                "snippet": hit.snippet,
            }
            for hit in found.hits
        ]
    }


def _write_plain(found: FoundThread) -> None:
    """One line for each thread, with its best hit."""
    thread = found.thread
    kind, snippet = (found.hits[0].kind.value, found.hits[0].snippet) if found.hits else ("name", "")
    columns = (thread.id, rfc3339(thread.updated_at), thread.cwd, thread.display_name or "", kind, snippet)
    write("\t".join(one_line(str(column)) for column in columns) + "\n")


def _drawer(sought: str, short_id: Callable[[Thread], str]) -> Callable[[FoundThread], None]:
    from rich.table import Table
    from rich.text import Text

    from codex_state.rollout.matching import fold, parse_terms

    terms = [term for term in parse_terms(sought) if not term.excluded]
    drawn = io.StringIO()
    console = console_of(into=drawn)

    def highlighted(text: str, style: str = "") -> Text:
        line = Text(one_line(text), style)
        folded = fold(line.plain)
        if len(folded) == len(line.plain):
            for term in terms:
                for begin, end in term.spans(folded):
                    line.stylize("reverse", begin, end)
        return line

    def draw(found: FoundThread) -> None:
        thread = found.thread
        where = f"{short_id(thread)}  {ago(thread.updated_at)}  {one_line(str(thread.cwd))}"
        if thread.git_branch:
            where += f"  {one_line(thread.git_branch)}"
        for line in (highlighted(thread.display_name or "-", "bold"), Text(where, "dim")):
            console.print(line, no_wrap=True, overflow="ellipsis")
        hits = Table.grid(padding=(0, 2, 0, 0))
        hits.add_column(width=11, justify="right", style="cyan")
        hits.add_column()
        for hit in found.hits:
            hits.add_row(hit.kind.value, highlighted(hit.snippet))
        console.print(hits)
        write_drawn(drawn.getvalue() + "\n")
        drawn.seek(0)
        drawn.truncate()
        if found.unreadable is not None:
            note(found.unreadable)

    return draw
