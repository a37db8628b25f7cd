"""Filtered listings read their order from the index instead of sorting all that matches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_listing_indexes"
down_revision = "0010_checks"
branch_labels = None
depends_on = None

_FILTERS = {
    "idx_threads_archived": "archived",
    "idx_threads_source": "source",
    "idx_threads_provider": "model_provider",
}


def upgrade() -> None:
    for name, column in _FILTERS.items():
        op.drop_index(name, "threads")
        op.create_index(name, "threads", [column, sa.text("updated_at DESC"), sa.text("id DESC")])


def downgrade() -> None:
    for name, column in _FILTERS.items():
        op.drop_index(name, "threads")
        op.create_index(name, "threads", [column])
