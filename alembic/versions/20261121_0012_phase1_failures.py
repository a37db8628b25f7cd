"""How many attempts of a job failed in a row, so that retries can be bounded."""

from __future__ import annotations

from alembic import op

revision = "0012_phase1_failures"
down_revision = "0011_listing_indexes"
branch_labels = None
depends_on = None

LOSES = {
    "memory_phase1_jobs.failures": "failures > 0",
}


def upgrade() -> None:
    integer = "INTEGER" if op.get_context().dialect.name == "sqlite" else "BIGINT"
    # As text: for a check of its own, Alembic would rebuild the table on SQLite.
    op.execute(
        f"ALTER TABLE memory_phase1_jobs ADD COLUMN failures {integer} DEFAULT '0' NOT NULL "
        "CONSTRAINT ck_memory_phase1_jobs_failures CHECK (failures >= 0)"
    )


def downgrade() -> None:
    op.drop_column("memory_phase1_jobs", "failures")
