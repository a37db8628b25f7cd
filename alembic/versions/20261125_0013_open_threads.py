"""Batch claims skip the threads that have nothing to claim, and find retries that are due, by an index each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013_open_threads"
down_revision = "0012_phase1_failures"
branch_labels = None
depends_on = None

_OPEN_FOR_CWD = "cwd_settled_for IS NULL OR cwd_settled_for <> updated_at"
_OPEN_FOR_USER = "user_settled_for IS NULL OR user_settled_for <> updated_at"
_OPEN = {
    "idx_threads_open": (f"{_OPEN_FOR_CWD} OR {_OPEN_FOR_USER}", ["cwd_settled_for", "user_settled_for"]),
    "idx_threads_open_cwd": (_OPEN_FOR_CWD, ["cwd_settled_for"]),
    "idx_threads_open_user": (_OPEN_FOR_USER, ["user_settled_for"]),
}
_TO_BE_RETRIED = "status = 'failed' AND retry_at IS NOT NULL"


def upgrade() -> None:
    # Nothing reads jobs by their scope alone, but PostgreSQL's planner would do so where it has no statistics yet.
    op.drop_index("idx_memory_phase1_jobs_scope", "memory_phase1_jobs")
    for column in ("cwd_settled_for", "user_settled_for"):
        op.add_column("threads", sa.Column(column, sa.BigInteger().with_variant(sa.Integer(), "sqlite")))
    for name, (condition, settled_for) in _OPEN.items():
        where = sa.text(f"archived = 0 AND memory_mode = 'enabled' AND ({condition})")
        op.create_index(
            name,
            "threads",
            ["archived", sa.text("updated_at DESC"), sa.text("id DESC"), "source", "home", *settled_for],
            sqlite_where=where,
            postgresql_where=where,
        )
    op.create_index(
        "idx_memory_phase1_jobs_retry_at",
        "memory_phase1_jobs",
        ["status", "retry_at"],
        sqlite_where=sa.text(_TO_BE_RETRIED),
        postgresql_where=sa.text(_TO_BE_RETRIED),
    )


def downgrade() -> None:
    op.drop_index("idx_memory_phase1_jobs_retry_at", "memory_phase1_jobs")
    for name in _OPEN:
        op.drop_index(name, "threads")
    for column in ("user_settled_for", "cwd_settled_for"):
        op.drop_column("threads", column)
    op.create_index("idx_memory_phase1_jobs_scope", "memory_phase1_jobs", ["scope_kind", "scope_key"])
