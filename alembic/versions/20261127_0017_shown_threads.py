"""Listings show more than threads with a first message: their indexes know which are shown, and serve the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_shown_threads"
down_revision = "0016_lease_owners"
branch_labels = None
depends_on = None

_UPDATED = [sa.text("updated_at DESC"), sa.text("id DESC")]
_CREATED = [sa.text("created_at DESC"), sa.text("id DESC")]
_IS_SHOWN = sa.text(
    "(coalesce(gone_at IS NULL AND (name <> '' OR first_user_message <> '' OR preview <> '' OR rollout_path = ''), "
    "false))"
)
_INDEXES = {
    "idx_threads_archived": ([], _UPDATED),
    "idx_threads_created_at": ([], _CREATED),
    "idx_threads_source": (["source"], _UPDATED),
    "idx_threads_source_created_at": (["source"], _CREATED),
    "idx_threads_provider": (["model_provider"], _UPDATED),
    "idx_threads_provider_created_at": (["model_provider"], _CREATED),
}


def upgrade() -> None:
    for name, (filters, order) in _INDEXES.items():
        op.drop_index(name, "threads")
        op.create_index(name, "threads", [*filters, "archived", _IS_SHOWN, *order])


def downgrade() -> None:
    for name, (filters, order) in _INDEXES.items():
        op.drop_index(name, "threads")
        op.create_index(name, "threads", [*filters, "archived", *order])
