"""No index names what a renewal changes, so that PostgreSQL writes it into the row's own page and no index."""

from __future__ import annotations

from alembic import op

revision = "0026_renewals_in_place"
down_revision = "0025_ascending_indexes"
branch_labels = None
depends_on = None

_TABLE = "memory_phase1_jobs"


def _on_postgresql(statement: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(statement)


def upgrade() -> None:
    op.drop_index("idx_memory_phase1_jobs_status_started_at", _TABLE, if_exists=True)
    op.create_index("idx_memory_phase1_jobs_status_finished_at", _TABLE, ["status", "finished_at"])
    # Room for the next version of a row beside it.
    _on_postgresql(f"ALTER TABLE {_TABLE} SET (fillfactor = 85)")


def downgrade() -> None:
    _on_postgresql(f"ALTER TABLE {_TABLE} RESET (fillfactor)")
    op.drop_index("idx_memory_phase1_jobs_status_finished_at", _TABLE, if_exists=True)
    op.create_index("idx_memory_phase1_jobs_status_started_at", _TABLE, ["status", "started_at"])
