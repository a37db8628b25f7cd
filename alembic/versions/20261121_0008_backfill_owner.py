"""Who runs the backfill, since when, and the token that fences them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008_backfill_owner"
down_revision = "0007_lock_tokens"
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("backfill_state", sa.Column("ownership_token", text))
    op.add_column("backfill_state", sa.Column("owner", text))
    op.add_column("backfill_state", sa.Column("claimed_at", bigint))


def downgrade() -> None:
    op.drop_column("backfill_state", "claimed_at")
    op.drop_column("backfill_state", "owner")
    op.drop_column("backfill_state", "ownership_token")
