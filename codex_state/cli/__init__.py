"""The command line, ``codex-state``.

Importing this package costs next to nothing, and the modules of the commands import only typer. What opens a database
is imported when a command runs, so that help and completion answer at once.
"""
