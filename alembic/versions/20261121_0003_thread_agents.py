"""Which agent a thread is, and what may be remembered of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_thread_agents"
down_revision = "0002_drop_dead_parts"
branch_labels = None
depends_on = None

LOSES = {
    "threads.memory_mode": "memory_mode <> 'enabled'",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    for name in ("agent_nickname", "agent_role", "agent_path"):
        op.add_column("threads", sa.Column(name, text))
    op.add_column("threads", sa.Column("memory_mode", text, nullable=False, server_default="enabled"))


def downgrade() -> None:
    for name in ("memory_mode", "agent_path", "agent_role", "agent_nickname"):
        op.drop_column("threads", name)
