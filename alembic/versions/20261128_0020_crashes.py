"""Jobs count the crashes of their workers and tell versions within one second apart; locks under any name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020_crashes"
down_revision = "0019_extractable_threads"
branch_labels = None
depends_on = None

LOSES = {
    "memory_phase1_jobs.crashes": "crashes > 0",
    "codex_state_locks": "1 = 1",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_JOBS = "memory_phase1_jobs"


def upgrade() -> None:
    integer = "INTEGER" if op.get_context().dialect.name == "sqlite" else "BIGINT"
    op.add_column(_JOBS, sa.Column("begun_at", bigint))
    # As text: for a check of its own, Alembic would rebuild the table on SQLite.
    op.execute(
        f"ALTER TABLE {_JOBS} ADD COLUMN crashes {integer} DEFAULT '0' NOT NULL "
        f"CONSTRAINT ck_{_JOBS}_crashes CHECK (crashes >= 0)"
    )
    op.add_column(_JOBS, sa.Column("source_ns", bigint))
    op.execute(
        f"ALTER TABLE threads ADD COLUMN updated_ns {integer} DEFAULT '0' NOT NULL "
        "CONSTRAINT ck_threads_updated_ns CHECK (updated_ns >= 0)"
    )
    op.create_table(
        "codex_state_locks",
        sa.Column("name", text, nullable=False),
        sa.Column("owner", text, nullable=False, server_default=""),
        sa.Column("renewed_at", bigint, nullable=False),
        sa.Column("ownership_token", text, nullable=False),
        sa.Column("owner_name", text),
        sa.Column("owner_process", text),
        sa.Column("lease_seconds", bigint),
        sa.PrimaryKeyConstraint("name", name="pk_codex_state_locks"),
    )


def downgrade() -> None:
    op.drop_table("codex_state_locks")
    op.drop_column("threads", "updated_ns")
    op.drop_column(_JOBS, "source_ns")
    op.drop_column(_JOBS, "crashes")
    op.drop_column(_JOBS, "begun_at")
