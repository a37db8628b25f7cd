"""How groups of commands list and suggest them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typer.core import TyperGroup

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

    headings: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Below which of them each command is listed, and in which order; where there are none, below "Commands"."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as click calls it
        """Write the commands below their headings."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        for heading, names in (self.headings or {"Commands": tuple(shown)}).items():
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
