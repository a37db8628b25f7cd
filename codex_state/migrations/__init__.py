"""Migrations: which schema a database holds, and bringing it to the one this version speaks.

Opening a database that is current costs two small reads and doesn't import Alembic. Anything else happens in one
exclusive transaction: of many processes and threads that open a fresh database at once, one migrates and the others
find it done; and a crash leaves the schema as it was.

A service with tables and an Alembic history of its own can share the database: our history is in a table of our own,
and ``except_codex_state`` keeps the service's autogeneration from our tables.
"""

from codex_state.migrations.coexistence import except_codex_state, is_codex_state_table, render_item
from codex_state.migrations.compare import check
from codex_state.migrations.revision import HEAD, current_revision, is_usable, usable_revision, verified_revision
from codex_state.migrations.runner import Migrated, downgrade, ensure_current, upgrade

__all__ = [
    "HEAD",
    "Migrated",
    "check",
    "current_revision",
    "downgrade",
    "ensure_current",
    "except_codex_state",
    "is_codex_state_table",
    "is_usable",
    "render_item",
    "upgrade",
    "usable_revision",
    "verified_revision",
]
