"""Batch claims pass over threads whose rollout is gone: there is nothing to extract from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019_extractable_threads"
down_revision = "0018_original_names"
branch_labels = None
depends_on = None

_OPEN_FOR_CWD = "cwd_settled_for IS NULL OR cwd_settled_for <> updated_at"
_OPEN_FOR_USER = "user_settled_for IS NULL OR user_settled_for <> updated_at"
_OPEN = {
    "idx_threads_open": (f"{_OPEN_FOR_CWD} OR {_OPEN_FOR_USER}", ["cwd_settled_for", "user_settled_for"]),
    "idx_threads_open_cwd": (_OPEN_FOR_CWD, ["cwd_settled_for"]),
    "idx_threads_open_user": (_OPEN_FOR_USER, ["user_settled_for"]),
}
_BEFORE = "archived = 0 AND memory_mode = 'enabled'"


def _replace(extractable: str) -> None:
    for name, (condition, settled_for) in _OPEN.items():
        where = sa.text(f"{extractable} AND ({condition})")
        op.drop_index(name, "threads")
        op.create_index(
            name,
            "threads",
            ["archived", sa.text("updated_at DESC"), sa.text("id DESC"), "source", "home", *settled_for],
            sqlite_where=where,
            postgresql_where=where,
        )


def upgrade() -> None:
    _replace(f"{_BEFORE} AND gone_at IS NULL")


def downgrade() -> None:
    _replace(_BEFORE)
