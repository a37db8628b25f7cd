"""Several Codex homes in one database: a thread belongs to one, and each has a backfill of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009_homes"
down_revision = "0008_backfill_owner"
branch_labels = None
depends_on = None

LOSES = {
    # One home's rows are told to be its own again; with several, which are whose is lost.
    "threads.home": "home <> (SELECT min(home) FROM threads)",
}

text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
bigint = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("threads", sa.Column("home", text, nullable=False, server_default="local"))
    op.add_column("backfill_state", sa.Column("home", text, nullable=False, server_default="local"))
    with op.batch_alter_table("backfill_state") as batch:
        batch.alter_column("id", existing_type=bigint, existing_nullable=False, server_default="1")
        batch.drop_constraint("pk_backfill_state", type_="primary")
        batch.create_primary_key("pk_backfill_state", ["id", "home"])


def downgrade() -> None:
    _merge_backfills()
    with op.batch_alter_table("backfill_state") as batch:
        batch.drop_constraint("pk_backfill_state", type_="primary")
        batch.drop_column("home")
        batch.alter_column("id", existing_type=bigint, existing_nullable=False, server_default=None)
        batch.create_primary_key("pk_backfill_state", ["id"])
    op.drop_column("threads", "home")


def _merge_backfills() -> None:
    # The older schema has one row for all homes. If there are several, it must not say of one what holds for another:
    # everything is looked at again.
    op.execute(
        "UPDATE backfill_state SET status = 'pending', last_watermark = NULL, last_success_at = NULL, "
        "ownership_token = NULL, owner = NULL, claimed_at = NULL "
        "WHERE (SELECT count(*) FROM backfill_state) > 1"
    )
    op.execute("DELETE FROM backfill_state WHERE home <> (SELECT min(home) FROM backfill_state)")
