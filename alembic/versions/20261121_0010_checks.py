"""Named CHECK constraints behind the entities. Rows that would break one are mended, never deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations
from sqlalchemy.dialects import postgresql

revision = "0010_checks"
down_revision = "0009_homes"
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

_CHECKS = {
    "threads": {
        "ck_threads_archived": "archived IN (0, 1)",
        "ck_threads_tokens_used": "tokens_used >= 0",
    },
    "thread_memory": {"ck_thread_memory_used_count": "used_count >= 0"},
    "memory_phase1_jobs": {
        "ck_memory_phase1_jobs_status": "status IN ('running', 'succeeded', 'failed')",
        "ck_memory_phase1_jobs_attempt": "attempt >= 0",
    },
    "memory_scope_dirty": {"ck_memory_scope_dirty_dirty": "dirty IN (0, 1)"},
    "backfill_state": {"ck_backfill_state_status": "status IN ('pending', 'running', 'complete')"},
}

_EMPTY_DEFAULTS = {"threads": ("cli_version", "first_user_message")}
"""Columns whose default Alembic's rebuild on SQLite would bring back as ``('')``, so it is given anew."""

_REPAIRS = (
    "UPDATE threads SET tokens_used = 0 WHERE tokens_used < 0",
    # archived_at is what readers go by; the flag only follows it.
    """
    UPDATE threads SET archived = CASE WHEN archived_at IS NULL THEN 0 ELSE 1 END
    WHERE archived <> CASE WHEN archived_at IS NULL THEN 0 ELSE 1 END
    """,
    "UPDATE thread_memory SET used_count = 0 WHERE used_count < 0",
    "UPDATE memory_phase1_jobs SET attempt = 0 WHERE attempt < 0",
    # Nobody knows what such a job had come to, so it may be tried again, and says why.
    """
    UPDATE memory_phase1_jobs
    SET status = 'failed',
        failure_reason = coalesce(failure_reason || '; ', '') || 'unknown status: ' || status,
        retry_at = coalesce(retry_at, finished_at, started_at, source_updated_at)
    WHERE status NOT IN ('running', 'succeeded', 'failed')
    """,
    "UPDATE memory_scope_dirty SET dirty = 1 WHERE dirty NOT IN (0, 1)",
    "UPDATE backfill_state SET status = 'pending' WHERE status NOT IN ('pending', 'running', 'complete')",
)


def upgrade() -> None:
    for repair in _REPAIRS:
        op.execute(repair)
    for table, checks in _CHECKS.items():
        with _rebuilt(table) as batch:
            for name, condition in checks.items():
                batch.create_check_constraint(op.f(name), condition)


def downgrade() -> None:
    for table, checks in _CHECKS.items():
        with _rebuilt(table) as batch:
            for name in checks:
                batch.drop_constraint(op.f(name), type_="check")


@contextmanager
def _rebuilt(table: str) -> Iterator[BatchOperations]:
    """Alter a table. SQLite's is rebuilt, which would lose the DESC of its indexes; so they are set aside."""
    indexes = _sqlite_indexes(table) if op.get_context().dialect.name == "sqlite" else {}
    for name in indexes:
        op.drop_index(name, table)
    with op.batch_alter_table(table) as batch:
        for column in _EMPTY_DEFAULTS.get(table, ()):
            batch.alter_column(column, existing_type=text, existing_nullable=False, server_default="")
        yield batch
    for definition in indexes.values():
        op.execute(definition)


def _sqlite_indexes(table: str) -> dict[str, str]:
    definitions = op.get_bind().execute(
        sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL"),
        {"table": table},
    )
    return {row.name: row.sql for row in definitions}
