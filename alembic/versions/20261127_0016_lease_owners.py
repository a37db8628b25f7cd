"""Which process holds a lease and for how long, in all tables of leases alike."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016_lease_owners"
down_revision = "0015_rollout_inventory"
branch_labels = None
depends_on = None

LOSES = {
    "memory_phase1_jobs.lease_seconds": "status = 'running' AND lease_seconds IS NOT NULL",
    "memory_consolidation_locks.lease_seconds": "lease_seconds IS NOT NULL",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_JOBS, _BACKFILLS = "memory_phase1_jobs", "backfill_state"
_TABLES = (_JOBS, "memory_consolidation_locks", _BACKFILLS)
_HELD = "status = 'running' AND owner_process IS NOT NULL"


def upgrade() -> None:
    op.execute("ALTER TABLE backfill_state RENAME COLUMN owner TO owner_name")
    for table in _TABLES:
        if table != _BACKFILLS:
            op.add_column(table, sa.Column("owner_name", text))
        op.add_column(table, sa.Column("owner_process", text))
        op.add_column(table, sa.Column("lease_seconds", bigint))
    op.create_index(
        "idx_memory_phase1_jobs_owner_process",
        _JOBS,
        ["status", "owner_process"],
        sqlite_where=sa.text(_HELD),
        postgresql_where=sa.text(_HELD),
    )


def downgrade() -> None:
    op.drop_index("idx_memory_phase1_jobs_owner_process", _JOBS)
    for table in reversed(_TABLES):
        op.drop_column(table, "lease_seconds")
        op.drop_column(table, "owner_process")
        if table != _BACKFILLS:
            op.drop_column(table, "owner_name")
    op.execute("ALTER TABLE backfill_state RENAME COLUMN owner_name TO owner")
