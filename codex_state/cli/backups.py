"""``codex-state backup`` and ``codex-state restore``: a copy for bad days, and going back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codex_state.cli.context import CodexHome, Json, opened, patiently, settings_for
from codex_state.cli.output import counted, note, one_line, write, write_json
from codex_state.errors import StateError


def backup(
    context: typer.Context,
    *,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new SQLite file.", show_default=False)],
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Copy the state into a new SQLite file, consistent as of one moment, while others go on working.

    `codex-state restore FILE` goes back to it.
    """
    from codex_state import transfer
    from codex_state.database import file_of
    from codex_state.database.state_files import is_missing

    settings = settings_for(context, codex_home, needs_home=False)
    path = file_of(settings)
    if path is not None:
        if is_missing(path):
            raise StateError(f"there is no database at {path} yet; run `codex-state backfill`")
        size = transfer.back_up_file(path, target)
    else:
        with opened(context, codex_home, needs_home=False) as runtime:
            size = transfer.back_up_server(runtime, target)
    if as_json:
        write_json({"file": str(target), "bytes": size})
    else:
        write(f"{one_line(str(target))}\t{size}\n")


def restore(
    context: typer.Context,
    *,
    backup: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` made.", show_default=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Set a state that holds rows aside. It stays beside, under another name.")
    ] = False,
    any_home: Annotated[bool, typer.Option("--any-home", help="Also a backup of another home.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Go back to a backup: check it, and put a copy of it in the state's place. Stop what uses the state first.

    A backup goes into a new or empty state, in a file or on a server. Afterwards
    `codex-state backfill`, or any listing, takes in what changed in the home.
    """
    from codex_state import transfer
    from codex_state.errors import InvalidInputError
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings

    settings: StateSettings = settings_for(context, codex_home)
    if (settings.database_url is None) or settings.database_url.get_secret_value().startswith("sqlite"):
        restored = transfer.restore_file(backup, settings, replace=replace, any_home=any_home)
    elif replace:
        raise InvalidInputError("--replace is for SQLite files: on a server, restore into a new database")
    else:
        with patiently(settings, lambda: StateRuntime.open(settings)) as runtime:
            restored = transfer.restore_into_server(backup, runtime, any_home=any_home)
    if restored.set_aside is not None:
        note(f"the state that was there is {restored.set_aside} now")
    if as_json:
        write_json(
            {
                "place": restored.place,
                "revision": restored.revision,
                "set_aside": None if restored.set_aside is None else str(restored.set_aside),
                "rows": restored.rows,
            }
        )
        return
    for table, rows in restored.rows.items():
        write(f"{table}\t{counted(rows, 'row')}\n")
