"""Segments of log lines: by them the logs are kept within their bounds of bytes, lines and age since insertion."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_log_segments"
down_revision = "0020_crashes"
branch_labels = None
depends_on = None

bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "log_segments",
        sa.Column("last_id", bigint, nullable=False, autoincrement=False),
        sa.Column("lines", bigint, nullable=False),
        sa.Column("size", bigint, nullable=False),
        sa.Column("closed_at", bigint, nullable=False),
        sa.PrimaryKeyConstraint("last_id", name="pk_log_segments"),
    )


def downgrade() -> None:
    op.drop_table("log_segments")
