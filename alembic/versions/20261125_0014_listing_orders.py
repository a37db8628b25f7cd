"""A page by either time, with any filter, is read from an index in its order, also where there are no statistics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_listing_orders"
down_revision = "0013_open_threads"
branch_labels = None
depends_on = None

_UPDATED = [sa.text("updated_at DESC"), sa.text("id DESC")]
_CREATED = [sa.text("created_at DESC"), sa.text("id DESC")]
_BEFORE = {
    "idx_threads_created_at": _CREATED,
    "idx_threads_updated_at": _UPDATED,
    "idx_threads_source": ["source", *_UPDATED],
    "idx_threads_provider": ["model_provider", *_UPDATED],
}
# Every listing is of archived threads or of the others. An index that has all that a page asks for, and its order, is
# the best one by any estimate. idx_threads_archived, which has its own already, is as good as idx_threads_updated_at.
_AFTER = {
    "idx_threads_created_at": ["archived", *_CREATED],
    "idx_threads_source": ["source", "archived", *_UPDATED],
    "idx_threads_source_created_at": ["source", "archived", *_CREATED],
    "idx_threads_provider": ["model_provider", "archived", *_UPDATED],
    "idx_threads_provider_created_at": ["model_provider", "archived", *_CREATED],
}


def upgrade() -> None:
    for name in _BEFORE:
        op.drop_index(name, "threads")
    for name, columns in _AFTER.items():
        op.create_index(name, "threads", columns)


def downgrade() -> None:
    for name in _AFTER:
        op.drop_index(name, "threads")
    for name, columns in _BEFORE.items():
        op.create_index(name, "threads", columns)
