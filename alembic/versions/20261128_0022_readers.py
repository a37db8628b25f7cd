"""Which older versions may go on using the schema, for those that don't know its revision."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022_readers"
down_revision = "0021_log_segments"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "codex_state_readers",
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("oldest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_codex_state_readers"),
    )


def downgrade() -> None:
    op.drop_table("codex_state_readers")
