"""Consolidation locks are fenced by a token. A lock that is held now gets one that nobody knows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007_lock_tokens"
down_revision = "0006_phase1_retries"
branch_labels = None
depends_on = None

LOSES = {
    "memory_consolidation_locks.ownership_token": "ownership_token IS NOT NULL",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

_TABLE = "memory_consolidation_locks"
_INDEX = "idx_memory_consolidation_locks_updated_at"


def upgrade() -> None:
    token = {
        "sqlite": "lower(hex(randomblob(16)))",
        "postgresql": "replace(CAST(gen_random_uuid() AS TEXT), '-', '')",
    }[op.get_context().dialect.name]
    op.add_column(_TABLE, sa.Column("ownership_token", text))
    op.execute(f"UPDATE {_TABLE} SET ownership_token = {token}")  # noqa: S608
    # Alembic's rebuild of a table on SQLite would bring the index back without its DESC.
    op.drop_index(_INDEX, _TABLE)
    with op.batch_alter_table(_TABLE) as batch:
        batch.alter_column("ownership_token", existing_type=text, nullable=False)
    op.create_index(_INDEX, _TABLE, [sa.text("updated_at DESC")])


def downgrade() -> None:
    op.drop_column(_TABLE, "ownership_token")
