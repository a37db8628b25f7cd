"""How groups of commands list and suggest them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_HEADINGS = {
    "Conversations": ("threads", "search", "stats", "backfill", "homes", "import"),
    "Memories": ("memory", "memories", "jobs", "workers", "scopes", "locks"),
    "The database": ("db", "logs", "doctor", "backup", "restore", "version"),
}
"""Below which of them each of the program's own commands is listed, and in which order."""

_CHANGING = frozenset(
    [
        "archive",
        "copy",
        "downgrade",
        "import",
        "name",
        "prune",
        "requeue",
        "restore",
        "run",
        "title",
        "unarchive",
        "upgrade",
    ]
)
"""Whoever mistypes a command isn't given one of these to try."""

_WHOLE = 1000
"""Characters: no first sentence has more."""


class Commands(TyperGroup):
    """Lists its commands with their whole first sentences, and suggests none that changes anything."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, the program's own below headings."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        headings = {"Commands": tuple(shown)} if ctx.parent is not None else _HEADINGS
        for heading, names in headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name, shown[name].get_short_help_str(limit=_WHOLE)) for name in names])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was typed. Where there is none, typer suggests those that are spelled alike."""
        known = self.commands
        if args and args[0] not in known:
            self.commands = {name: command for name, command in known.items() if name not in _CHANGING}
        try:
            return super().resolve_command(ctx, args)
        finally:
            self.commands = known
