"""The command line, ``codex-state``.

Importing this package costs next to nothing, and the modules of the commands import only typer. What opens a database
is imported when a command runs, so that help and completion answer at once.

Below are its exit statuses. Scripts rely on them, so they never change their meaning.
"""

from __future__ import annotations

FAILED = 1
"""The command could not do what was asked; one line on stderr says why."""

USAGE = 2
"""The command line is wrong: an unknown option, a malformed id, cursor, date or source."""

HELD = 3
"""Somebody else holds what is needed: the backfill, a running job, the database. Trying again later can help."""

TOO_NEW = 4
"""A newer version has changed the database's schema so that this one can't use it. Only upgrading codex-state helps."""

INTERRUPTED = 130
"""Stopped by Ctrl-C. What was done is kept, and the next run goes on from there."""

READER_GONE = 141
"""Whoever read the output stopped reading, as ``head`` does."""
