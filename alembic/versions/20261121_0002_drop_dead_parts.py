"""Drop what was dead in the original: threads.has_user_event and the phase-2 jobs, which nothing wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_drop_dead_parts"
down_revision = "0001_baseline"
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
uuid = sa.Text().with_variant(sa.Uuid(), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.drop_column("threads", "has_user_event")
    op.drop_table("memory_phase2_jobs")


def downgrade() -> None:
    op.create_table(
        "memory_phase2_jobs",
        sa.Column("scope_kind", text, nullable=False),
        sa.Column("scope_key", text, nullable=False),
        sa.Column("status", text, nullable=False),
        sa.Column("owner_session_id", uuid),
        sa.Column("agent_thread_id", uuid),
        sa.Column("started_at", bigint),
        sa.Column("last_heartbeat_at", bigint),
        sa.Column("finished_at", bigint),
        sa.Column("attempt", bigint, nullable=False, server_default="0"),
        sa.Column("failure_reason", text),
        sa.Column("ownership_token", text),
        sa.PrimaryKeyConstraint("scope_kind", "scope_key", name=op.f("pk_memory_phase2_jobs")),
    )
    op.create_index(
        "idx_memory_phase2_jobs_status_heartbeat",
        "memory_phase2_jobs",
        ["status", sa.text("last_heartbeat_at DESC")],
    )
    op.add_column("threads", sa.Column("has_user_event", sa.Integer(), nullable=False, server_default="0"))
