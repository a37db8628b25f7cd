"""Options and arguments that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from codex_state.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What was given before the command's name."""

    codex_home: str | None = None


CodexHome = Annotated[
    str | None,
    typer.Option(
        "--codex-home",
        metavar="DIR",
        help="The Codex home.  [default: $CODEX_HOME, else ~/.codex]",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

Limit = Annotated[int, typer.Option(metavar="N", min=0, max=1_000_000_000, help="How many at most.")]

ThreadId = Annotated[str, typer.Argument(metavar="ID", help="The thread's UUID, in any spelling.", show_default=False)]

ScopeKind = Annotated[
    str | None,
    typer.Option("--scope-kind", metavar="KIND", help="Only scopes of this kind: cwd or user.", show_default=False),
]

ScopeKey = Annotated[
    str | None,
    typer.Option(
        "--scope-key",
        metavar="KEY",
        help="Only this scope: a working directory as the threads store it, or user.",
        show_default=False,
    ),
]


def home_of(context: typer.Context, codex_home: str | None) -> Path | None:
    """The Codex home that was asked for, by the command's own option or by the one in front of it.

    Raises:
        InvalidInputError: it is empty, as a script's unset variable is. It would mean the working directory.
    """
    given = context.find_object(GlobalOptions)
    wanted = codex_home if codex_home is not None or given is None else given.codex_home
    if wanted is None:
        return None
    if not wanted.strip():
        raise InvalidInputError("--codex-home is empty; name a directory, or leave the option out")
    return Path(wanted)
