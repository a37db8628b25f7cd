"""What the original's own database called a thread when that was last read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018_original_names"
down_revision = "0017_shown_threads"
branch_labels = None
depends_on = None

LOSES = {
    # Without it, a name that was given here since gives way to that one.
    "threads.original_name": "original_name <> name",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("threads", sa.Column("original_name", text))


def downgrade() -> None:
    op.drop_column("threads", "original_name")
