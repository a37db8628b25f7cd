"""What rollouts of late 2026 say of a thread, names apart from titles, and the inventory of rollout files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015_rollout_inventory"
down_revision = "0014_listing_orders"
branch_labels = None
depends_on = None

LOSES = {
    "threads.name": "name IS NOT NULL",
    "threads.pinned": "pinned = 1",
    "threads.memory_mode_chosen_at": "memory_mode_chosen_at IS NOT NULL",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
uuid = sa.Text().with_variant(sa.Uuid(), "postgresql")

_THREADS = {
    "name": text,
    "name_at": bigint,
    "preview": text,
    "thread_source": text,
    "originator": text,
    "parent_thread_id": uuid,
    "forked_from_id": uuid,
    "memory_mode_chosen_at": bigint,
    "gone_at": bigint,
}


def upgrade() -> None:
    for name, kind in _THREADS.items():
        op.add_column("threads", sa.Column(name, kind))
    # As text: for a check of its own, Alembic would rebuild the table on SQLite.
    op.execute(
        "ALTER TABLE threads ADD COLUMN pinned INTEGER DEFAULT '0' NOT NULL "
        "CONSTRAINT ck_threads_pinned CHECK (pinned IN (0, 1))"
    )
    is_child = sa.text("parent_thread_id IS NOT NULL")
    op.create_index(
        "idx_threads_parent", "threads", ["parent_thread_id"], sqlite_where=is_child, postgresql_where=is_child
    )
    # A title that isn't the first message was given by a user: a name is what that is called from now on.
    op.execute(
        "UPDATE threads SET name = trim(title), name_at = updated_at, title = trim(first_user_message) "
        "WHERE trim(title) <> '' AND trim(title) <> trim(first_user_message)"
    )
    op.create_table(
        "rollout_files",
        sa.Column("home", text, nullable=False),
        sa.Column("path", text, nullable=False),
        sa.Column("thread_id", uuid),
        sa.Column("size", bigint, nullable=False),
        sa.Column("mtime_ns", bigint),
        sa.Column("state", text, nullable=False),
        sa.Column("error", text),
        sa.Column("parse_errors", bigint),
        sa.Column("unknown_lines", bigint),
        sa.PrimaryKeyConstraint("home", "path", name="pk_rollout_files"),
        sa.CheckConstraint("state IN ('indexed', 'superseded', 'failed', 'gone')", name=op.f("ck_rollout_files_state")),
    )
    op.create_index("idx_rollout_files_thread", "rollout_files", ["thread_id"])


def downgrade() -> None:
    op.drop_table("rollout_files")
    op.execute("UPDATE threads SET title = name WHERE name IS NOT NULL")
    op.drop_index("idx_threads_parent", "threads")
    for name in ("pinned", *reversed(_THREADS)):
        op.drop_column("threads", name)
