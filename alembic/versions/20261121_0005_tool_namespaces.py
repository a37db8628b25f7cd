"""Dynamic tools that are loaded late, and those of a namespace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005_tool_namespaces"
down_revision = "0004_thread_model"
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("thread_dynamic_tools", sa.Column("defer_loading", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("thread_dynamic_tools", sa.Column("namespace", text))


def downgrade() -> None:
    op.drop_column("thread_dynamic_tools", "namespace")
    op.drop_column("thread_dynamic_tools", "defer_loading")
