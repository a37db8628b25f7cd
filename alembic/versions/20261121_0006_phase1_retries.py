"""A fencing number that grows with every claim of a job, and retries for those who want them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_phase1_retries"
down_revision = "0005_tool_namespaces"
branch_labels = None
depends_on = None

LOSES = {
    "memory_phase1_jobs.attempt": "attempt > 0",
    "memory_phase1_jobs.retry_at": "retry_at IS NOT NULL",
}

bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("memory_phase1_jobs", sa.Column("attempt", bigint, nullable=False, server_default="0"))
    op.add_column("memory_phase1_jobs", sa.Column("retry_at", bigint))


def downgrade() -> None:
    op.drop_column("memory_phase1_jobs", "retry_at")
    op.drop_column("memory_phase1_jobs", "attempt")
