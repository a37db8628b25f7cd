"""Alembic's entry: every command runs through here, from a checkout or an installation."""

from alembic import context

from codex_state.migrations import environment

environment.run(context)
