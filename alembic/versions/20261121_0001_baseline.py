"""The schema of the original Codex runtime of February 2026, with its dead parts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql

revision = "0001_baseline"
down_revision = None
branch_labels = None
depends_on = None

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
uuid = sa.Text().with_variant(sa.Uuid(), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
flag = sa.Integer()


def upgrade() -> None:
    _create_threads()
    _create_dynamic_tools()
    _create_logs()
    _create_backfill_state()
    _create_thread_memory()
    _create_phase1_jobs()
    _create_scope_dirty()
    _create_phase2_jobs()
    _create_consolidation_locks()


def downgrade() -> None:
    _refuse_to_delete_rows()
    for table in (
        "memory_consolidation_locks",
        "memory_phase2_jobs",
        "memory_scope_dirty",
        "memory_phase1_jobs",
        "thread_memory",
        "backfill_state",
        "logs",
        "thread_dynamic_tools",
        "threads",
    ):
        op.drop_table(table)


def _create_threads() -> None:
    op.create_table(
        "threads",
        sa.Column("id", uuid, nullable=False),
        sa.Column("rollout_path", text, nullable=False),
        sa.Column("created_at", bigint, nullable=False),
        sa.Column("updated_at", bigint, nullable=False),
        sa.Column("source", text, nullable=False),
        sa.Column("model_provider", text, nullable=False),
        sa.Column("cwd", text, nullable=False),
        sa.Column("title", text, nullable=False),
        sa.Column("sandbox_policy", text, nullable=False),
        sa.Column("approval_mode", text, nullable=False),
        sa.Column("tokens_used", bigint, nullable=False, server_default="0"),
        sa.Column("has_user_event", flag, nullable=False, server_default="0"),
        sa.Column("archived", flag, nullable=False, server_default="0"),
        sa.Column("archived_at", bigint),
        sa.Column("git_sha", text),
        sa.Column("git_branch", text),
        sa.Column("git_origin_url", text),
        sa.Column("cli_version", text, nullable=False, server_default=""),
        sa.Column("first_user_message", text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_threads")),
    )
    op.create_index("idx_threads_created_at", "threads", [sa.text("created_at DESC"), sa.text("id DESC")])
    op.create_index("idx_threads_updated_at", "threads", [sa.text("updated_at DESC"), sa.text("id DESC")])
    op.create_index("idx_threads_archived", "threads", ["archived"])
    op.create_index("idx_threads_source", "threads", ["source"])
    op.create_index("idx_threads_provider", "threads", ["model_provider"])


def _create_dynamic_tools() -> None:
    op.create_table(
        "thread_dynamic_tools",
        sa.Column("thread_id", uuid, nullable=False),
        sa.Column("position", bigint, autoincrement=False, nullable=False),
        sa.Column("name", text, nullable=False),
        sa.Column("description", text, nullable=False),
        sa.Column("input_schema", text, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", "position", name=op.f("pk_thread_dynamic_tools")),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["threads.id"],
            name=op.f("fk_thread_dynamic_tools_thread_id_threads"),
            ondelete="CASCADE",
        ),
    )
    op.create_index("idx_thread_dynamic_tools_thread", "thread_dynamic_tools", ["thread_id"])


def _create_logs() -> None:
    op.create_table(
        "logs",
        sa.Column("id", bigint, autoincrement=True, nullable=False),
        sa.Column("ts", bigint, nullable=False),
        sa.Column("ts_nanos", bigint, nullable=False),
        sa.Column("level", text, nullable=False),
        sa.Column("target", text, nullable=False),
        sa.Column("message", text),
        sa.Column("module_path", text),
        sa.Column("file", text),
        sa.Column("line", bigint),
        sa.Column("thread_id", text),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_logs")),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_logs_ts", "logs", [sa.text("ts DESC"), sa.text("ts_nanos DESC"), sa.text("id DESC")])
    op.create_index("idx_logs_thread_id", "logs", ["thread_id"])


def _create_backfill_state() -> None:
    op.create_table(
        "backfill_state",
        sa.Column("id", bigint, autoincrement=False, nullable=False),
        sa.Column("status", text, nullable=False),
        sa.Column("last_watermark", text),
        sa.Column("last_success_at", bigint),
        sa.Column("updated_at", bigint, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backfill_state")),
        sa.CheckConstraint("id = 1", name=op.f("ck_backfill_state_singleton")),
    )
    now = {
        "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
        "postgresql": "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)",
    }[op.get_context().dialect.name]
    op.execute(f"INSERT INTO backfill_state (id, status, updated_at) VALUES (1, 'pending', {now})")  # noqa: S608


def _create_thread_memory() -> None:
    op.create_table(
        "thread_memory",
        sa.Column("thread_id", uuid, nullable=False),
        sa.Column("scope_kind", text, nullable=False),
        sa.Column("scope_key", text, nullable=False),
        sa.Column("raw_memory", text, nullable=False),
        sa.Column("memory_summary", text, nullable=False),
        sa.Column("updated_at", bigint, nullable=False),
        sa.Column("last_used_at", bigint),
        sa.Column("used_count", bigint, nullable=False, server_default="0"),
        sa.Column("invalidated_at", bigint),
        sa.Column("invalid_reason", text),
        sa.PrimaryKeyConstraint("thread_id", "scope_kind", "scope_key", name=op.f("pk_thread_memory")),
        sa.ForeignKeyConstraint(
            ["thread_id"], ["threads.id"], name=op.f("fk_thread_memory_thread_id_threads"), ondelete="CASCADE"
        ),
    )
    for moment in ("last_used_at", "updated_at"):
        op.create_index(
            f"idx_thread_memory_scope_{moment}",
            "thread_memory",
            ["scope_kind", "scope_key", sa.text(f"{moment} DESC"), sa.text("thread_id DESC")],
        )


def _create_phase1_jobs() -> None:
    op.create_table(
        "memory_phase1_jobs",
        sa.Column("thread_id", uuid, nullable=False),
        sa.Column("scope_kind", text, nullable=False),
        sa.Column("scope_key", text, nullable=False),
        sa.Column("status", text, nullable=False),
        sa.Column("owner_session_id", uuid),
        sa.Column("started_at", bigint),
        sa.Column("finished_at", bigint),
        sa.Column("failure_reason", text),
        sa.Column("source_updated_at", bigint, nullable=False),
        sa.Column("raw_memory_path", text),
        sa.Column("summary_hash", text),
        sa.Column("ownership_token", text),
        sa.PrimaryKeyConstraint("thread_id", "scope_kind", "scope_key", name=op.f("pk_memory_phase1_jobs")),
        sa.ForeignKeyConstraint(
            ["thread_id"],
            ["threads.id"],
            name=op.f("fk_memory_phase1_jobs_thread_id_threads"),
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "idx_memory_phase1_jobs_status_started_at",
        "memory_phase1_jobs",
        ["status", sa.text("started_at DESC")],
    )
    op.create_index("idx_memory_phase1_jobs_scope", "memory_phase1_jobs", ["scope_kind", "scope_key"])


def _create_scope_dirty() -> None:
    op.create_table(
        "memory_scope_dirty",
        sa.Column("scope_kind", text, nullable=False),
        sa.Column("scope_key", text, nullable=False),
        sa.Column("dirty", flag, nullable=False),
        sa.Column("updated_at", bigint, nullable=False),
        sa.PrimaryKeyConstraint("scope_kind", "scope_key", name=op.f("pk_memory_scope_dirty")),
    )
    op.create_index("idx_memory_scope_dirty_dirty", "memory_scope_dirty", ["dirty", sa.text("updated_at DESC")])


def _create_phase2_jobs() -> None:
    op.create_table(
        "memory_phase2_jobs",
        sa.Column("scope_kind", text, nullable=False),
        sa.Column("scope_key", text, nullable=False),
        sa.Column("status", text, nullable=False),
        sa.Column("owner_session_id", uuid),
        sa.Column("agent_thread_id", uuid),
        sa.Column("started_at", bigint),
        sa.Column("last_heartbeat_at", bigint),
        sa.Column("finished_at", bigint),
        sa.Column("attempt", bigint, nullable=False, server_default="0"),
        sa.Column("failure_reason", text),
        sa.Column("ownership_token", text),
        sa.PrimaryKeyConstraint("scope_kind", "scope_key", name=op.f("pk_memory_phase2_jobs")),
    )
    op.create_index(
        "idx_memory_phase2_jobs_status_heartbeat",
        "memory_phase2_jobs",
        ["status", sa.text("last_heartbeat_at DESC")],
    )


def _create_consolidation_locks() -> None:
    op.create_table(
        "memory_consolidation_locks",
        sa.Column("cwd", text, nullable=False),
        sa.Column("working_thread_id", uuid, nullable=False),
        sa.Column("updated_at", bigint, nullable=False),
        sa.PrimaryKeyConstraint("cwd", name=op.f("pk_memory_consolidation_locks")),
    )
    op.create_index(
        "idx_memory_consolidation_locks_updated_at",
        "memory_consolidation_locks",
        [sa.text("updated_at DESC")],
    )


def _refuse_to_delete_rows() -> None:
    if op.get_context().as_sql:
        return
    connection = op.get_bind()
    for table in ("threads", "thread_memory", "memory_scope_dirty", "memory_consolidation_locks", "logs"):
        if connection.execute(sa.select(sa.exists().select_from(sa.table(table)))).scalar():
            raise CommandError(
                f"{table} has rows, and there is no older schema to hold them; "
                "to start anew, move the database away instead"
            )
