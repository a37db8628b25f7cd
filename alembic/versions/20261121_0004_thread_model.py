"""Which model a thread used, and with how much effort."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_thread_model"
down_revision = "0003_thread_agents"
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("threads", sa.Column("model", text))
    op.add_column("threads", sa.Column("reasoning_effort", text))


def downgrade() -> None:
    op.drop_column("threads", "reasoning_effort")
    op.drop_column("threads", "model")
